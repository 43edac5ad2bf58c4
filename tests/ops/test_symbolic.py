"""What an exported graph computes for symbolic sides is what torch computes for numbers."""

import pytest
import torch
import torch.nn.functional as F

from spinsr.ops.common import symbolic


@pytest.mark.parametrize('cell', [12, 16, 20, 24])
def test_every_side_up_to_1000_pixels_has_the_cells_of_an_interpolation(cell):
    for side in range(cell, 1001):
        numbers = torch.arange(side // cell, dtype=torch.float32)[None, None]
        expected = F.interpolate(numbers, size=side, mode='nearest').long().flatten()
        assert torch.equal(symbolic.cell_of(side, side // cell), expected)


@pytest.mark.parametrize(('side', 'cells'), [(29, 3), (24, 4), (7, 1), (13, 12)])
def test_cell_means_are_adaptive_average_pooling(side, cells):
    x = torch.rand(1, 2, side, dtype=torch.float64)
    expected = F.adaptive_avg_pool1d(x, cells)
    torch.testing.assert_close(x @ symbolic.cell_means(side, cells, x).t(), expected)
