import pytest
import torch

from spinsr.modules.windows import from_windows, to_windows


@pytest.mark.parametrize('dilated', [False, True], ids=['contiguous', 'dilated'])
def test_windows_hold_their_pixels_and_come_back(dilated):
    x = torch.arange(2 * 3 * 6 * 8).view(2, 3, 6, 8)
    windows = to_windows(x, 2, 4, dilated)
    # The second window of the first image: the next two rows, or the next pixel along a row.
    expected = x[0, :, 0::3, 1::2] if dilated else x[0, :, :2, 4:]
    assert torch.equal(windows[1], expected)
    assert torch.equal(from_windows(windows, 6, 8, dilated), x)
