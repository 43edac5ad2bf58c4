"""The overlapping windows of an image, the "overlapped patches" of SPIN."""

import dataclasses

import torch
from torch import Tensor

from spinsr.ops.common import symbolic
from spinsr.ops.common.cache import cached_table


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


@cached_table
def windows_of(height: int, width: int, window: int, overlap: int, device: torch.device) -> Windows:
    """The (cached) windows of an image of a size."""
    tops = torch.tensor(window_starts(height, window, overlap))
    lefts = torch.tensor(window_starts(width, window, overlap))
    rows = tops[:, None] + torch.arange(min(window, height))
    cols = lefts[:, None] + torch.arange(min(window, width))
    index = rows[:, None, :, None] * width + cols[None, :, None, :]
    count = torch.bincount(index.flatten(), minlength=height * width).unsqueeze(1)
    return Windows(index.view(len(tops) * len(lefts), -1).to(device), count.to(device))


def symbolic_windows(height: int, width: int, window: int, overlap: int, device: torch.device) -> Windows:
    """As `windows_of`, for an exported graph that computes them for each image, whose sides are at least `window`."""
    tops, lefts = (symbolic.window_starts(side, window, overlap, device) for side in (height, width))
    steps = torch.arange(window, device=device)
    index = (tops[:, None] + steps)[:, None, :, None] * width + (lefts[:, None] + steps)[None, :, None, :]
    in_rows, in_columns = symbolic.windows_at(tops, height, window), symbolic.windows_at(lefts, width, window)
    return Windows(index.flatten(2).flatten(0, 1), (in_rows[:, None] * in_columns).reshape(-1, 1))


def batch_rows(rows: Tensor, num_rows: int, batch: int) -> Tensor:
    """Groups of rows of each image (..., G, T) in [0, num_rows) as rows of all images: (batch * G, T)."""
    images = num_rows * torch.arange(batch, device=rows.device).view(-1, 1, 1)
    return (rows + images).flatten(0, 1)
