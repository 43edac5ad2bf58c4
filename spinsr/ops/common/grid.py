"""The superpixel grid: which pixels belong to which cell, and which cells are neighbours.

An image of H x W pixels has max(1, H // cell) x max(1, W // cell) cells. The cell of a pixel is the nearest-neighbour
upsampling of the cell numbers, as in the authors' code. A superpixel can claim pixels of the cells within its reach:
1, the 3 x 3 cells around it, as in the paper; 0, its own cell alone, which makes it a patch; None, the whole image.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from spinsr.ops.common import symbolic
from spinsr.ops.common.cache import cached_table, specialize_int


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Index maps of one grid, all on one device. K cells, N = H*W pixels, P slots a cell (its pixels, then padding).

    M is the number of cells within reach: 9 for a reach of 1, 1 for 0, K for None.

    Attributes:
        size: (H, W) in pixels.
        shape: (rows, columns) of cells; K = rows * columns.
        cell: Side of a cell in pixels, as asked for.
        reach: How many cells away a superpixel can claim pixels; None: all.
        labels: (N,) int64, the cell of each pixel.
        neighbors: (K, M) int64, the cells around each cell, row by row, itself in the middle; 0 outside the grid.
        is_neighbor: (K, M) bool, False where there is no such cell.
        pixels: (K, P) int64, the pixels of each cell; padding slots repeat a pixel of the cell.
        is_pixel: (K, P) bool, False in padding slots; None when no cell has padding.
        incoming: (K, M) int64, for each cell and direction d the entry `k * M + d` of the cell k that sees it there;
            None where the reach is None.
        smallest_neighborhood: Pixels within the reach of the cell that has the fewest.
        num_cells: K.
        num_pixels: N.
    """

    size: tuple[int, int]
    shape: tuple[int, int]
    cell: int
    reach: int | None
    labels: Tensor
    neighbors: Tensor
    is_neighbor: Tensor
    pixels: Tensor
    is_pixel: Tensor | None
    incoming: Tensor | None
    smallest_neighborhood: int
    num_cells: int
    num_pixels: int


def marked_pixels(grid: Grid) -> Tensor:
    """The pixels of each cell, with -1 in padding slots: (K, P).

    A function, since torch.compile takes no method of a constant.
    """
    return grid.pixels if grid.is_pixel is None else grid.pixels.masked_fill(~grid.is_pixel, -1)


def to_cells(x: Tensor, grid: Grid) -> Tensor:
    """Sorts tokens (B, N, C) by cell: (B, K, P, C); padding slots repeat a pixel of their cell."""
    return x.index_select(1, grid.pixels.reshape(-1)).unflatten(1, (grid.num_cells, -1))


def gather_incoming(x: Tensor, grid: Grid) -> Tensor:
    """Turns what each cell holds for its neighbours, (B, K, M, D), into what each cell gets from them.

    Entries that would come from outside the grid are copies of others: mask them with `grid.is_neighbor.flip(1)`.
    """
    assert grid.incoming is not None
    b, k, m, d = x.shape
    return x.reshape(b, k * m, d).index_select(1, grid.incoming.reshape(-1)).view(b, k, m, d)


def initial_centroids(x: Tensor, grid: Grid) -> Tensor:
    """(B, H, W, C) -> the mean features of the cells, (B, K, C)."""
    if symbolic.is_symbolic(*grid.size):  # ONNX has no pooling to a size that the graph computes
        rows, columns = (symbolic.cell_means(*sides, x) for sides in zip(grid.size, grid.shape, strict=True))
        pooled = (rows @ x.flatten(2)).unflatten(2, x.shape[2:])  # (B, rows, W, C)
        return (columns @ pooled).flatten(1, 2)
    pooled = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), grid.shape)
    return pooled.flatten(2).transpose(1, 2)  # (B, K, C)


def superpixel_grid(
    height: int,
    width: int,
    cell: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    reach: int | None = 1,
) -> Grid:
    """Returns the (cached) grid of an image.

    Args:
        height: Of the image in pixels, >= 1.
        width: Of the image in pixels, >= 1.
        cell: Side of a cell in pixels, >= 1. A side of the image below it has one cell.
        device: Where the index maps live.
        dtype: Type of the features. The labels come from an interpolation in this type (at least float32), as in the
            authors' code, whose float32 and float64 labels differ for a few sizes.
        reach: How many cells away a superpixel can claim pixels, >= 0; None means anywhere.

    Raises:
        ValueError: A size is below 1, or `reach` below 0.

    Example:
        >>> superpixel_grid(180, 320, 12, torch.device('cpu')).shape
        (15, 26)
    """
    if height < 1 or width < 1 or cell < 1:  # not their minimum, which would compare the sides of an exported graph
        raise ValueError(f'height, width and cell must be at least 1, got {height=}, {width=}, {cell=}')
    if reach is not None and reach < 0:
        raise ValueError(f'reach must be at least 0, or None for the whole image, got {reach=}')
    arguments = cell, torch.device(device), torch.float64 if dtype == torch.float64 else torch.float32, reach
    if symbolic.is_symbolic(height, width) and reach is not None:
        return _build(height, width, *arguments)
    return _cached(specialize_int(height), specialize_int(width), *arguments)


def _build(height: int, width: int, cell: int, device: torch.device, dtype: torch.dtype, reach: int | None) -> Grid:
    """Built on the CPU; for symbolic sides, which are at least `cell`, by the exported graph for each image."""
    is_symbolic = symbolic.is_symbolic(height, width)
    rows, cols = symbolic.num_cells(height, cell), symbolic.num_cells(width, cell)
    if is_symbolic:
        row_of, col_of = symbolic.cell_of(height, rows), symbolic.cell_of(width, cols)
    else:
        numbers = torch.arange(rows * cols, dtype=dtype).view(1, 1, rows, cols)
        labels = F.interpolate(numbers, size=(height, width), mode='nearest').long().view(height, width)
        row_of, col_of = labels[:, 0] // cols, labels[0] % cols
        assert torch.equal(labels, row_of[:, None] * cols + col_of), 'cells must be rectangles'
    (row_slots, row_valid), (col_slots, col_valid) = symbolic.slots(row_of, rows), symbolic.slots(col_of, cols)
    pixels, is_pixel = symbolic.join(row_slots, col_slots, width), symbolic.join(row_valid, col_valid)
    if reach is None:
        neighbors, incoming = torch.arange(rows * cols).expand(rows * cols, -1), None
        is_neighbor = torch.ones((), dtype=torch.bool).expand_as(neighbors)
        smallest = height * width
    else:
        neighbors, is_neighbor, incoming = _neighbors(rows, cols, reach)
        smallest = cell**2 if is_symbolic else int((is_pixel.sum(1)[neighbors] * is_neighbor).sum(1).min())
    return Grid(
        size=(height, width),
        shape=(rows, cols),
        cell=cell,
        reach=reach,
        labels=(row_of[:, None] * cols + col_of).reshape(-1).to(device),
        neighbors=neighbors.to(device),
        is_neighbor=is_neighbor.to(device),
        pixels=pixels.to(device),
        is_pixel=is_pixel.to(device) if is_symbolic or not is_pixel.all() else None,
        incoming=None if incoming is None else incoming.to(device),
        smallest_neighborhood=smallest,
        num_cells=rows * cols,
        num_pixels=height * width,
    )


_cached = cached_table(_build)


def _neighbors(rows: int, cols: int, reach: int) -> tuple[Tensor, Tensor, Tensor]:
    """`Grid.neighbors`, `Grid.is_neighbor` and `Grid.incoming`."""
    offsets = torch.arange(-reach, reach + 1)
    m = len(offsets) ** 2
    r = torch.arange(rows).view(-1, 1, 1, 1) + offsets.view(1, 1, -1, 1)
    c = torch.arange(cols).view(1, -1, 1, 1) + offsets.view(1, 1, 1, -1)
    is_neighbor = ((r >= 0) & (r < rows) & (c >= 0) & (c < cols)).reshape(rows * cols, m)
    neighbors = (r.clamp(0, rows - 1) * cols + c.clamp(0, cols - 1)).reshape(rows * cols, m)
    neighbors = neighbors.masked_fill(~is_neighbor, 0)
    # The cell in direction d of mine sees me in the opposite one.
    return neighbors, is_neighbor, neighbors.flip(1) * m + torch.arange(m)


@cached_table
def patches(height: int, width: int, cell: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The pixels of each cell as rectangles of one size, (K, T) int64, ascending; arguments as of `superpixel_grid`.

    T is the area of the largest cell: a cell that is a row or a column shorter takes in the next one, or, at the end of
    the image, the one before.
    """
    grid = superpixel_grid(height, width, cell, torch.device('cpu'), dtype, reach=0)
    labels, cols = grid.labels.view(height, width), grid.shape[1]
    spans = []
    for cell_of in (labels[:, 0] // cols, labels[0] % cols):
        lengths = torch.bincount(cell_of)
        longest = int(lengths.max())
        spans.append((lengths.cumsum(0) - lengths).clamp(max=len(cell_of) - longest)[:, None] + torch.arange(longest))
    return symbolic.join(*spans, width).to(device)
