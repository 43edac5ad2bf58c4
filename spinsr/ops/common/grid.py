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
from spinsr.ops.common.index_map import IndexMap


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
        cells: `pixels` as a map.
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
    cells: IndexMap
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
    if torch.compiler.is_compiling():
        cells = x.index_select(1, grid.pixels.reshape(-1))
    else:
        cells = grid.cells.gather(x)
    return cells.unflatten(1, (grid.num_cells, -1))


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
    if symbolic.is_symbolic(height, width) and reach is not None:
        return _symbolic(height, width, cell, torch.device(device), reach)
    label_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return _build(specialize_int(height), specialize_int(width), cell, torch.device(device), label_dtype, reach)


@cached_table
def _build(height: int, width: int, cell: int, device: torch.device, dtype: torch.dtype, reach: int | None) -> Grid:
    rows, cols = max(1, height // cell), max(1, width // cell)
    numbers = torch.arange(rows * cols, dtype=dtype).view(1, 1, rows, cols)
    labels = F.interpolate(numbers, size=(height, width), mode='nearest').long().view(height, width)
    row_of, col_of = labels[:, 0] // cols, labels[0] % cols
    assert torch.equal(labels, row_of[:, None] * cols + col_of), 'cells must be rectangles'

    row_slots, row_valid = _slots(row_of, rows)
    col_slots, col_valid = _slots(col_of, cols)
    pixels, is_pixel = _of_cells(row_slots, col_slots, width), _of_cells(row_valid, col_valid)

    incoming = None
    if reach is None:
        neighbors = torch.arange(rows * cols).expand(rows * cols, -1)
        is_neighbor = torch.ones((), dtype=torch.bool).expand_as(neighbors)
        smallest = height * width
    else:
        neighbors, is_neighbor, incoming = _neighbors(rows, cols, reach, torch.device('cpu'))
        areas = is_pixel.sum(1)
        smallest = int((areas[neighbors] * is_neighbor).sum(1).min())
    return Grid(
        size=(height, width),
        shape=(rows, cols),
        cell=cell,
        reach=reach,
        labels=labels.reshape(-1).to(device),
        neighbors=neighbors.to(device),
        is_neighbor=is_neighbor.to(device),
        pixels=pixels.to(device),
        is_pixel=None if bool(is_pixel.all()) else is_pixel.to(device),
        cells=IndexMap.build(pixels.flatten(), height * width).to(device),
        incoming=None if incoming is None else incoming.to(device),
        smallest_neighborhood=smallest,
        num_cells=rows * cols,
        num_pixels=height * width,
    )


def _symbolic(height: int, width: int, cell: int, device: torch.device, reach: int) -> Grid:
    """As `_build`, with maps that an exported graph computes for each image, whose sides are at least `cell`."""
    rows, cols = (symbolic.number(side // cell, least=1) for side in (height, width))
    row_of, col_of = symbolic.cell_of(height, rows, device), symbolic.cell_of(width, cols, device)
    row_slots, row_valid = symbolic.slots(row_of, rows)
    col_slots, col_valid = symbolic.slots(col_of, cols)
    neighbors, is_neighbor, incoming = _neighbors(rows, cols, reach, device)
    pixels = _of_cells(row_slots, col_slots, width)
    return Grid(
        size=(height, width),
        shape=(rows, cols),
        cell=cell,
        reach=reach,
        labels=(row_of[:, None] * cols + col_of).reshape(-1),
        neighbors=neighbors,
        is_neighbor=is_neighbor,
        pixels=pixels,
        is_pixel=_of_cells(row_valid, col_valid),
        # Only its `index` is read while a graph is traced.
        cells=IndexMap(pixels.reshape(-1), pixels, pixels, pixels),
        incoming=incoming,
        smallest_neighborhood=cell**2,
        num_cells=rows * cols,
        num_pixels=height * width,
    )


def _of_cells(rows: Tensor, columns: Tensor, width: int | None = None) -> Tensor:
    """Joins slots (rows, h) and (columns, w) to those of cells, (K, h w): pixels of an image of `width`, or flags."""
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    joined = rows & columns if width is None else rows * width + columns
    return joined.flatten(2).flatten(0, 1)


def _neighbors(rows: int, cols: int, reach: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`Grid.neighbors`, `Grid.is_neighbor` and `Grid.incoming`."""
    offsets = torch.arange(-reach, reach + 1, device=device)
    m = len(offsets) ** 2
    r = torch.arange(rows, device=device).view(-1, 1, 1, 1) + offsets.view(1, 1, -1, 1)
    c = torch.arange(cols, device=device).view(1, -1, 1, 1) + offsets.view(1, 1, 1, -1)
    is_neighbor = ((r >= 0) & (r < rows) & (c >= 0) & (c < cols)).reshape(rows * cols, m)
    neighbors = (r.clamp(0, rows - 1) * cols + c.clamp(0, cols - 1)).reshape(rows * cols, m)
    neighbors = neighbors.masked_fill(~is_neighbor, 0)
    # The cell in direction d of mine sees me in the opposite one.
    return neighbors, is_neighbor, neighbors.flip(1) * m + torch.arange(m, device=device)


@cached_table
def patches(height: int, width: int, cell: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The pixels of each cell as rectangles of one size, (K, T) int64, ascending; arguments as of `superpixel_grid`.

    T is the area of the largest cell: a cell that is a row or a column shorter takes in the next one, or, at the end of
    the image, the one before.
    """
    grid = superpixel_grid(height, width, cell, torch.device('cpu'), dtype, reach=0)
    labels, cols = grid.labels.view(height, width), grid.shape[1]
    y, x = (_spans(cells) for cells in (labels[:, 0] // cols, labels[0] % cols))
    return (y[:, None, :, None] * width + x[None, :, None, :]).reshape(grid.num_cells, -1).to(device)


def _spans(cell_of: Tensor) -> Tensor:
    """As `_slots`, but the padding of a shorter cell is the next position, or the one before."""
    lengths = torch.bincount(cell_of)
    longest = int(lengths.max())
    starts = (lengths.cumsum(0) - lengths).clamp(max=len(cell_of) - longest)
    return starts[:, None] + torch.arange(longest)


def _slots(cell_of: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    """Positions along a side by cell, (cells, longest), padded with the cell's last one; and False for padding."""
    lengths = torch.bincount(cell_of, minlength=num_cells)
    starts = lengths.cumsum(0) - lengths
    steps = torch.arange(int(lengths.max()))
    valid = steps < lengths[:, None]
    return starts[:, None] + torch.minimum(steps, lengths[:, None] - 1), valid
