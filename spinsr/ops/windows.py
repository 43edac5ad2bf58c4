"""Attention in overlapping windows (SPIN, section 3.5: 'overlapped patches')."""

import functools

import torch
from torch import Tensor

from spinsr.ops.attention import _merge_heads, _split_heads, attention, attention_reference
from spinsr.ops.backend import resolve_backend


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, overlap: int = 2, num_heads: int = 1, backend: str | None = None
) -> Tensor:
    """Attention inside square windows that overlap; where windows overlap, the mean of their results.

    Windows start every `window - overlap` pixels; the last one of a side is pushed back inside. On a side shorter than
    the window there is one window of that length.

    Args:
        q, k: (B, H, W, num_heads * D).
        v: (B, H, W, C), C divisible by num_heads.
        window: Side of a window in pixels, >= 1.
        overlap: Pixels that neighbouring windows share, >= 0; windows move by at least one pixel.
        num_heads: Number of heads.
        backend: See `spinsr.ops.backend`.

    Returns:
        (B, H, W, C).

    Example:
        >>> q, k, v = torch.rand(1, 9, 14, 8), torch.rand(1, 9, 14, 8), torch.rand(1, 9, 14, 12)
        >>> window_attention(q, k, v, window=6).shape
        torch.Size([1, 9, 14, 12])
    """
    if resolve_backend(backend) == 'reference':
        return _window_attention_reference(q, k, v, window, overlap, num_heads)
    b, h, w, c = v.shape
    index, count = _window_index(h, w, window, overlap, v.device)  # (windows, T), (N, 1)
    flat, t = index.flatten(), index.shape[1]
    inside = (_split_heads(x.flatten(1, 2).index_select(1, flat).view(-1, t, x.shape[3]), num_heads) for x in (q, k, v))
    out = _merge_heads(attention(*inside)).reshape(b, -1, c)  # (B, windows * T, C)
    total = out.new_zeros(b, h * w, c).index_add(1, flat, out)
    return (total / count.to(out.dtype)).view(b, h, w, c)


def _window_attention_reference(q, k, v, window, overlap, num_heads):
    _, h, w, _ = v.shape
    total, count = torch.zeros_like(v), v.new_zeros(h, w, 1)
    for top in window_starts(h, window, overlap):
        for left in window_starts(w, window, overlap):
            area = (slice(None), slice(top, top + window), slice(left, left + window))
            inside = (_split_heads(x[area].flatten(1, 2), num_heads) for x in (q, k, v))
            total[area] += _merge_heads(attention_reference(*inside)).view(total[area].shape)
            count[area[1:]] += 1
    return total / count


def window_starts(side: int, window: int, overlap: int) -> list[int]:
    """First pixels of the windows along a side.

    Example:
        >>> window_starts(side=25, window=12, overlap=2)
        [0, 10, 13]
    """
    last = max(side - window, 0)
    return [*range(0, last, max(window - overlap, 1)), last]


@functools.lru_cache(maxsize=64)
def _window_index(height: int, width: int, window: int, overlap: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.no_grad():
        tops = torch.tensor(window_starts(height, window, overlap))
        lefts = torch.tensor(window_starts(width, window, overlap))
        rows = tops[:, None] + torch.arange(min(window, height))
        cols = lefts[:, None] + torch.arange(min(window, width))
        index = (rows[:, None, :, None] * width + cols[None, :, None, :]).reshape(len(tops) * len(lefts), -1)
        count = torch.bincount(index.flatten(), minlength=height * width).unsqueeze(1)
    return index.to(device), count.to(device)
