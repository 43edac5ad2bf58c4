"""Attention in overlapping windows, the "overlapped patches" of SPIN."""

import functools

import torch
from torch import Tensor

from spinsr.ops.attention import attend_rows, attention, attention_reference, in_pieces, merge_heads, split_heads
from spinsr.ops.backend import resolve_backend
from spinsr.ops.index_map import IndexMap


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

    Raises:
        ValueError: A size is out of its range, or channels are not divisible by num_heads.

    Example:
        >>> q, k, v = torch.rand(1, 9, 14, 8), torch.rand(1, 9, 14, 8), torch.rand(1, 9, 14, 12)
        >>> window_attention(q, k, v, window=6).shape
        torch.Size([1, 9, 14, 12])
    """
    if window < 1 or overlap < 0:
        raise ValueError(f'window must be at least 1 and overlap at least 0, got {window=}, {overlap=}')
    backend = resolve_backend(backend, v.device)
    if backend == 'reference':
        return _window_attention_reference(q, k, v, window, overlap, num_heads)
    b, h, w, c = v.shape
    windows, t, count = _windows(h, w, window, overlap, v.device)
    q, k, v = (x.flatten(1, 2) for x in (q, k, v))
    if backend == 'triton':
        from spinsr.ops.kernels.attention import window_attention as attend

        return attend(q, k, v, windows, t, num_heads).view(b, h, w, c)
    if in_pieces(q, k, v):
        rows = windows.index + h * w * torch.arange(b, device=v.device)[:, None]
        out = attend_rows(*(x.flatten(0, 1) for x in (q, k, v)), rows.view(-1, t), num_heads)
    else:
        inside = (split_heads(windows.gather(x).view(-1, t, x.shape[2]), num_heads) for x in (q, k, v))
        out = merge_heads(attention(*inside))
    return (windows.add(out.reshape(b, -1, c)) / count.to(out.dtype)).view(b, h, w, c)


def _window_attention_reference(q, k, v, window, overlap, num_heads):
    _, h, w, _ = v.shape
    total, count = torch.zeros_like(v), v.new_zeros(h, w, 1)
    for top in window_starts(h, window, overlap):
        for left in window_starts(w, window, overlap):
            area = (slice(None), slice(top, top + window), slice(left, left + window))
            inside = (split_heads(x[area].flatten(1, 2), num_heads) for x in (q, k, v))
            total[area] += merge_heads(attention_reference(*inside)).view(total[area].shape)
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


@functools.lru_cache(maxsize=16)
def _windows(height: int, width: int, window: int, overlap: int, device: torch.device) -> tuple[IndexMap, int, Tensor]:
    """The pixels of all windows, one window after the other; pixels a window; windows a pixel, (N, 1)."""
    with torch.inference_mode(False), torch.no_grad():
        tops = torch.tensor(window_starts(height, window, overlap))
        lefts = torch.tensor(window_starts(width, window, overlap))
        rows = tops[:, None] + torch.arange(min(window, height))
        cols = lefts[:, None] + torch.arange(min(window, width))
        index = (rows[:, None, :, None] * width + cols[None, :, None, :]).flatten()
        count = torch.bincount(index, minlength=height * width).unsqueeze(1)
        windows = IndexMap.build(index, height * width)
    return windows.to(device), rows.shape[1] * cols.shape[1], count.to(device)
