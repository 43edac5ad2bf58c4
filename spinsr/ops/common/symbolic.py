"""Index maps for images whose size is a symbol of an exported graph: the graph computes them for each image.

`spinsr.ops.common.grid` and `spinsr.ops.attention.windows` build the same maps once a size, with Python numbers. Here
they are comparisons and sums over one side of the image, which every runtime knows. A side is at least the cell, and
at least the window: below it the number of selected pixels and the shape of the windows depend on the size.
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

    torch.export compares sizes while it traces. What it concludes from a quotient of a side, as that the side leaves a
    certain rest, would become a condition on every image.
    """
    symbol = torch.full((1,), value, dtype=torch.int64).item()
    torch._check(symbol >= least)
    return symbol  # pyright: ignore[reportReturnType]  # an int, as the tensor's type says


def cell_of(side: int, cells: int, device: torch.device) -> Tensor:
    """The cell of each position along a side, by nearest-neighbour interpolation in float32: (side,) int64."""
    step = torch.full((1,), cells, dtype=torch.float32, device=device) / side
    return (torch.arange(side, device=device).float() * step).long().clamp(max=cells - 1)


def slots(labels: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Positions by cell, (cells, longest), padded with the cell's last one; and False for padding."""
    number = torch.arange(cells, device=labels.device)[:, None]
    starts, ends = (labels < number).sum(1), (labels <= number).sum(1)
    lengths = (ends - starts)[:, None]
    longest = lengths.max().item()
    torch._check(longest >= 1)
    steps = torch.arange(longest, device=labels.device)
    return starts[:, None] + torch.minimum(steps, lengths - 1), steps < lengths


def cell_means(side: int, cells: int, x: Tensor) -> Tensor:
    """A matrix (cells, side) in the type of `x`, whose product with a side is its adaptive average pooling."""
    number, position = torch.arange(cells, device=x.device)[:, None], torch.arange(side, device=x.device)
    starts, ends = number * side // cells, ((number + 1) * side + cells - 1) // cells
    inside = ((starts <= position) & (position < ends)).to(x.dtype)
    return inside / (ends - starts).to(x.dtype)


def window_starts(side: int, window: int, overlap: int, device: torch.device) -> Tensor:
    """First pixels of the windows along a side of at least `window`."""
    step, last = max(window - overlap, 1), side - window
    windows = number((last + step - 1) // step + 1, least=1)
    return (torch.arange(windows, device=device) * step).clamp(max=last)


def windows_at(starts: Tensor, side: int, window: int) -> Tensor:
    """How many windows each position along a side is in: (side,) int64."""
    position = torch.arange(side, device=starts.device)
    return ((starts[:, None] <= position) & (position < starts[:, None] + window)).sum(0)
