import pytest
import torch
import torch.nn.functional as F

from spinsr.modules.shift import fixed_kernels, shift


@pytest.mark.parametrize('channels', [20, 13, 4])
def test_shift_is_a_convolution_with_the_fixed_kernels(channels, assert_close):
    x = torch.rand(2, channels, 5, 6, dtype=torch.float64)
    assert_close(shift(x), F.conv2d(x, fixed_kernels(channels).double(), padding=1, groups=channels))


def test_every_side_comes_in_at_its_border():
    x = torch.arange(1.0, 10).view(1, 1, 3, 3).expand(1, 6, 3, 3)
    assert shift(x)[0, :, 1, 1].tolist() == [6, 4, 8, 2, 5, 5]
    assert shift(x)[0, :, 0, 0].tolist() == [2, 0, 4, 0, 1, 1]
