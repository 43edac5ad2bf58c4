"""The index maps that an exported graph computes are those that are built once a size."""

import pytest
import torch
import torch.nn.functional as F

from spinsr.ops.attention.windows import symbolic_windows, windows_of
from spinsr.ops.common import grid as grids
from spinsr.ops.common import symbolic

CPU = torch.device('cpu')
# One cell, almost two, multiples of the cell and none, sides of different lengths.
SIZES = pytest.mark.parametrize('size', [(6, 6), (11, 7), (12, 18), (29, 38), (6, 61), (70, 11)], ids=str)


@SIZES
@pytest.mark.parametrize('reach', [1, 0])
def test_grids(size, reach):
    expected = grids.superpixel_grid(*size, 6, CPU, reach=reach)
    found = grids._symbolic(*size, 6, CPU, reach)
    assert (found.shape, found.num_cells, found.num_pixels) == (expected.shape, expected.num_cells, expected.num_pixels)
    for name in ('labels', 'neighbors', 'is_neighbor', 'pixels', 'incoming'):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(grids.marked_pixels(found), grids.marked_pixels(expected))
    assert found.smallest_neighborhood <= expected.smallest_neighborhood


@SIZES
@pytest.mark.parametrize('overlap', [2, 0])
def test_windows(size, overlap):
    expected, found = windows_of(*size, 6, overlap, CPU), symbolic_windows(*size, 6, overlap, CPU)
    assert torch.equal(found.rows, expected.rows) and torch.equal(found.count, expected.count)


@pytest.mark.parametrize('cell', [12, 16, 20, 24])
def test_every_side_up_to_1000_pixels_has_the_cells_of_an_interpolation(cell):
    for side in range(cell, 1001):
        numbers = torch.arange(side // cell, dtype=torch.float32)[None, None]
        expected = F.interpolate(numbers, size=side, mode='nearest').long().flatten()
        assert torch.equal(symbolic.cell_of(side, side // cell, CPU), expected)


@pytest.mark.parametrize(('side', 'cells'), [(29, 3), (24, 4), (7, 1), (13, 12)])
def test_cell_means_are_adaptive_average_pooling(side, cells):
    x = torch.rand(1, 2, side, dtype=torch.float64)
    expected = F.adaptive_avg_pool1d(x, cells)
    torch.testing.assert_close(x @ symbolic.cell_means(side, cells, x).t(), expected)
