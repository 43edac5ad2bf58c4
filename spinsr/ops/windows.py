"""Attention in overlapping windows, the "overlapped patches" of SPIN."""

import dataclasses

import torch
from torch import Tensor

from spinsr.ops.attention import add_attended_rows, attention_reference, merge_heads, split_heads
from spinsr.ops.backend import resolve_backend
from spinsr.ops.constant import constant, static


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
        ValueError: A size is out of its range, sizes disagree, or channels are not divisible by num_heads.

    Example:
        >>> q, k, v = torch.rand(1, 9, 14, 8), torch.rand(1, 9, 14, 8), torch.rand(1, 9, 14, 12)
        >>> window_attention(q, k, v, window=6).shape
        torch.Size([1, 9, 14, 12])
    """
    if window < 1 or overlap < 0:
        raise ValueError(f'window must be at least 1 and overlap at least 0, got {window=}, {overlap=}')
    if not q.shape[:3] == k.shape[:3] == v.shape[:3]:
        raise ValueError(f'q, k and v must agree in (B, H, W), got {q.shape[:3]}, {k.shape[:3]}, {v.shape[:3]}')
    backend = resolve_backend(backend, v.device)
    if backend == 'reference':
        return _window_attention_reference(q, k, v, window, overlap, num_heads)
    b, h, w, c = v.shape
    if backend == 'triton':
        from spinsr.ops.kernels.attention import window_attention as attend

        return attend(q, k, v, window, overlap, num_heads)
    windows = windows_of(static(h), static(w), window, overlap, v.device)
    rows = batch_rows(windows, b)
    total = add_attended_rows(*(x.flatten(0, 2) for x in (q, k, v)), rows, num_heads, start=False)
    return total.view(b, -1, c).div(windows.count.to(v.dtype)).view(b, h, w, c)


def _window_attention_reference(q, k, v, window, overlap, num_heads):
    b, h, w, c = v.shape
    # Along one side, then along the other: a slice for each row and each column of windows, not for each window.
    tops, lefts = ([slice(i, i + window) for i in window_starts(side, window, overlap)] for side in (h, w))
    inside = []
    for x in (q, k, v):
        x = torch.stack([x[:, rows] for rows in tops], 1)  # (B, R, window, W, C)
        x = torch.stack([x[:, :, :, columns] for columns in lefts], 2)  # (B, R, L, window, window, C)
        inside.append(split_heads(x.flatten(3, 4).flatten(0, 2), num_heads))
    out = merge_heads(attention_reference(*inside))  # (B * windows, T, C)
    out = out.view(b, len(tops), len(lefts), min(window, h), min(window, w), c)
    strips, total = v.new_zeros(b, len(tops), min(window, h), w, c), torch.zeros_like(v)
    count_h, count_w = v.new_zeros(h, 1, 1), v.new_zeros(w, 1)
    for columns, part in zip(lefts, out.unbind(2), strict=True):
        strips[:, :, :, columns] += part
        count_w[columns] += 1
    for rows, part in zip(tops, strips.unbind(1), strict=True):
        total[:, rows] += part
        count_h[rows] += 1
    return total / (count_h * count_w)


def window_starts(side: int, window: int, overlap: int) -> list[int]:
    """First pixels of the windows along a side.

    Example:
        >>> window_starts(side=25, window=12, overlap=2)
        [0, 10, 13]
    """
    last = max(side - window, 0)
    return [*range(0, last, max(window - overlap, 1)), last]


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """The windows of an image.

    Attributes:
        rows: (windows, T) int64 in [0, N), the pixels of each window.
        count: (N, 1) int64, the windows that each pixel is in.
    """

    rows: Tensor
    count: Tensor


def batch_rows(windows: Windows, batch: int) -> Tensor:
    """(batch * windows, T): the pixels of the windows of images that follow one another."""
    images = torch.arange(batch, device=windows.rows.device).view(-1, 1, 1)
    return (windows.rows + len(windows.count) * images).flatten(0, 1)


@constant
def windows_of(height: int, width: int, window: int, overlap: int, device: torch.device) -> Windows:
    """The (cached) windows of an image of a size."""
    with torch.device('cpu'):
        tops = torch.tensor(window_starts(height, window, overlap))
        lefts = torch.tensor(window_starts(width, window, overlap))
        rows = tops[:, None] + torch.arange(min(window, height))
        cols = lefts[:, None] + torch.arange(min(window, width))
        index = rows[:, None, :, None] * width + cols[None, :, None, :]
        count = torch.bincount(index.flatten(), minlength=height * width).unsqueeze(1)
    return Windows(index.view(len(tops) * len(lefts), -1).to(device), count.to(device))
