import pytest
import torch
import torch.nn.functional as F

from spinsr.ops import superpixel_grid
from spinsr.ops.common.grid import gather_incoming, to_cells

CPU = torch.device('cpu')


@pytest.fixture
def grid(case):
    return superpixel_grid(case.height, case.width, case.cell, CPU, torch.float64)


def test_grid_by_hand():
    grid = superpixel_grid(4, 5, 2, CPU)  # 2 x 2 cells; of 5 columns the first cell gets 3
    assert grid.shape == (2, 2)
    assert grid.labels.view(4, 5).tolist() == [[0, 0, 0, 1, 1]] * 2 + [[2, 2, 2, 3, 3]] * 2
    assert grid.pixels[0].tolist() == [0, 1, 2, 5, 6, 7]
    assert grid.pixels[3][grid.is_pixel[3]].tolist() == [13, 14, 18, 19]
    assert grid.is_neighbor[0].tolist() == [False, False, False, False, True, True, False, True, True]
    assert grid.neighbors[0][grid.is_neighbor[0]].tolist() == [0, 1, 2, 3]
    assert grid.smallest_neighborhood == 20


def test_number_of_cells(case, grid):
    assert grid.shape == (max(1, case.height // case.cell), max(1, case.width // case.cell))
    assert grid.num_cells == grid.shape[0] * grid.shape[1]
    assert grid.num_pixels == case.height * case.width


@pytest.mark.parametrize('height', [74, 111], ids=['H74', 'H111'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=['float32', 'float64'])
def test_labels_are_those_of_interpolation_in_the_type(height, dtype):
    rows = height // 12
    expected = F.interpolate(torch.arange(rows, dtype=dtype).view(1, 1, rows, 1), size=(height, 12), mode='nearest')
    assert torch.equal(superpixel_grid(height, 12, 12, CPU, dtype).labels, expected.long().flatten())


def test_half_types_have_the_labels_of_float32():
    labels = [superpixel_grid(74, 12, 12, CPU, dtype).labels for dtype in (torch.bfloat16, torch.float32)]
    assert torch.equal(*labels)


def test_neighbors_are_the_cells_around(grid):
    rows, cols = grid.shape
    r, c = torch.arange(grid.num_cells) // cols, torch.arange(grid.num_cells) % cols
    dr, dc = torch.arange(9) // 3 - 1, torch.arange(9) % 3 - 1
    r, c = r[:, None] + dr, c[:, None] + dc  # (K, 9)
    inside = (r >= 0) & (r < rows) & (c >= 0) & (c < cols)
    assert torch.equal(grid.is_neighbor, inside)
    assert torch.equal(grid.neighbors, torch.where(inside, r * cols + c, 0))


def test_slots_hold_every_pixel_once_and_padding_repeats_the_cell(grid):
    valid = torch.ones_like(grid.pixels, dtype=torch.bool) if grid.is_pixel is None else grid.is_pixel
    assert torch.equal(grid.pixels[valid].sort().values, torch.arange(grid.num_pixels))
    assert torch.equal(grid.labels[grid.pixels], torch.arange(grid.num_cells)[:, None].expand_as(grid.pixels))


def test_to_cells_sorts_the_tokens(case, grid):
    tokens = case.tokens(3)
    cells = to_cells(tokens, grid)
    assert torch.equal(cells, tokens[:, grid.pixels])


def test_gather_incoming_brings_what_the_neighbors_hold_for_a_cell(case, grid):
    held = torch.randn(case.batch, grid.num_cells, 9, 2, dtype=torch.float64)
    got = gather_incoming(held, grid) * grid.is_neighbor.flip(1).unsqueeze(-1)
    # Entry d came from the cell in direction 8 - d, where it was held for direction d.
    senders = grid.neighbors.flip(1)
    assert torch.equal(got, held[:, senders, torch.arange(9)] * grid.is_neighbor.flip(1).unsqueeze(-1))
    given = (held * grid.is_neighbor.unsqueeze(-1)).flatten(1, 2)
    expected = torch.zeros_like(held[:, :, 0]).index_add(1, grid.neighbors.flatten(), given)
    torch.testing.assert_close(got.sum(2), expected)


def test_smallest_neighborhood_counts_pixels(grid):
    near = torch.zeros(grid.num_cells, grid.num_cells, dtype=torch.long)
    near.scatter_add_(1, grid.neighbors, grid.is_neighbor.long())
    areas = grid.labels.bincount(minlength=grid.num_cells)
    assert grid.smallest_neighborhood == (near @ areas).min()


def test_grid_is_cached():
    assert superpixel_grid(9, 11, 4, CPU) is superpixel_grid(9, 11, 4, CPU)


def test_maps_built_in_inference_mode_serve_autograd():
    with torch.inference_mode():
        grid = superpixel_grid(31, 41, 5, CPU)  # a size of this test alone, so that it is built here
    x = torch.randn(1, 31 * 41, 2, requires_grad=True)
    to_cells(x, grid).sum().backward()
    assert not any(value.is_inference() for value in vars(grid).values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize('size', [(0, 4, 2), (4, 0, 2), (4, 4, 0)], ids=['no_rows', 'no_columns', 'no_cell'])
def test_sizes_below_one_are_refused(size):
    with pytest.raises(ValueError, match='at least 1, got height=.* cell='):
        superpixel_grid(*size, CPU)
