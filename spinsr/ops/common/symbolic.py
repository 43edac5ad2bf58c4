"""Positions along the sides of an image, of which its grid and its windows are made.

A side may be a symbol of a graph that is being exported, which then computes the positions for each image. So they are
comparisons and sums over one side, which every runtime knows. A symbolic side is at least the cell, and at least the
window: below it the number of selected pixels and the shape of the windows depend on the size.
"""

import torch
from torch import Tensor

# torch 2.6 does not tell exporting from compiling: there the tables are constants, and a graph takes one size.
SUPPORTED = hasattr(torch.compiler, 'is_exporting')


def is_symbolic(*sides: int) -> bool:
    """Whether a side varies from image to image in the graph that is being exported."""
    return SUPPORTED and torch.compiler.is_exporting() and any(isinstance(side, torch.SymInt) for side in sides)


def number(value: int, least: int) -> int:
    """`value`, of at least `least`, as a symbol of its own.

    torch.export compares sizes while it traces. What it concludes from a quotient of a side, such as a certain
    remainder, would become a condition on every image.
    """
    symbol = torch.full((1,), value, dtype=torch.int64).item()
    torch._check(symbol >= least)
    return symbol  # pyright: ignore[reportReturnType]  # an int, as the tensor's type says


def num_cells(side: int, cell: int) -> int:
    """Cells along a side."""
    return number(side // cell, least=1) if isinstance(side, torch.SymInt) else max(1, side // cell)


def cell_of(side: int, cells: int) -> Tensor:
    """The cell of each position along a symbolic side, by nearest-neighbour interpolation in float32: (side,) int64."""
    step = torch.full((1,), cells, dtype=torch.float32) / side
    return (torch.arange(side).float() * step).long().clamp(max=cells - 1)


def slots(labels: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Positions by cell, (cells, longest), padded with the cell's last one; and False for padding."""
    number = torch.arange(cells)[:, None]
    starts, ends = (labels < number).sum(1), (labels <= number).sum(1)
    lengths = (ends - starts)[:, None]
    longest = lengths.max().item()
    torch._check(longest >= 1)
    steps = torch.arange(longest)
    return starts[:, None] + torch.minimum(steps, lengths - 1), steps < lengths


def cell_means(side: int, cells: int, x: Tensor) -> Tensor:
    """A matrix (cells, side) in the type of `x`, whose product with a side is its adaptive average pooling."""
    number, position = torch.arange(cells, device=x.device)[:, None], torch.arange(side, device=x.device)
    starts, ends = number * side // cells, ((number + 1) * side + cells - 1) // cells
    inside = ((starts <= position) & (position < ends)).to(x.dtype)
    return inside / (ends - starts).to(x.dtype)


def windows(side: int, window: int, overlap: int) -> Tensor:
    """Positions of the windows along a side, (windows, window): a new one each `window - overlap`, the last inside.

    Example:
        >>> windows(side=9, window=4, overlap=1)[:, 0]
        tensor([0, 3, 5])
    """
    window = window if isinstance(side, torch.SymInt) else min(window, side)
    step, last = max(window - overlap, 1), side - window
    starts = torch.arange(number((last + step - 1) // step + 1, least=1)) * step
    return starts.clamp(max=last)[:, None] + torch.arange(window)


def join(rows: Tensor, columns: Tensor, width: int | None = None) -> Tensor:
    """Joins groups (R, h) and (S, w) along both sides to (R S, h w): pixels of an image of `width`, or flags."""
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    joined = rows & columns if width is None else rows * width + columns
    return joined.flatten(2).flatten(0, 1)
