"""The overlapping windows of an image, the "overlapped patches" of SPIN."""

import torch
from torch import Tensor

from spinsr.ops.common import symbolic
from spinsr.ops.common.cache import cached_table, specialize_int


def windows_of(height: int, width: int, window: int, overlap: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The (cached) windows of an image of a size; for symbolic sides, at least `window`, the graph computes them.

    Returns:
        (windows, T) int64 in [0, N), the pixels of each window; (N, 1) int64, the windows that each pixel is in.
    """
    if symbolic.is_symbolic(height, width):
        return _build(height, width, window, overlap, device)
    return _cached(specialize_int(height), specialize_int(width), window, overlap, device)


def _build(height: int, width: int, window: int, overlap: int, device: torch.device) -> tuple[Tensor, Tensor]:
    groups, counts = [], []
    for side in (height, width):
        groups.append(symbolic.windows(side, window, overlap))
        position, first, last = torch.arange(side), groups[-1][:, :1], groups[-1][:, -1:]
        counts.append(((first <= position) & (position <= last)).sum(0))
    count = (counts[0][:, None] * counts[1]).reshape(-1, 1)
    return symbolic.join(*groups, width).to(device), count.to(device)


_cached = cached_table(_build)


def batch_rows(rows: Tensor, num_rows: int, batch: int) -> Tensor:
    """Groups of rows of each image (..., G, T) in [0, num_rows) as rows of all images: (batch * G, T)."""
    images = num_rows * torch.arange(batch, device=rows.device).view(-1, 1, 1)
    return (rows + images).flatten(0, 1)
