import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spinsr.modules.esa import EnhancedSpatialAttention


@pytest.mark.parametrize('size', [(15, 15), (16, 29), (40, 21)], ids=['15x15', '16x29', '40x21'])
def test_equals_its_formula(size, assert_close):
    net, x = EnhancedSpatialAttention(8, 4).double(), torch.randn(2, 8, *size, dtype=torch.float64)

    def conv(name, x, **options):
        layer = getattr(net, name)
        return F.conv2d(x, layer.weight, layer.bias, **options)

    fine = conv('conv_in', x)
    coarse = F.max_pool2d(conv('conv_stride', fine, stride=2), 7, 3)
    coarse = F.interpolate(conv('conv_coarse', coarse, padding=1), size, mode='bilinear', align_corners=False)
    assert_close(net(x), x * torch.sigmoid(conv('conv_out', coarse + conv('conv_skip', fine))))


@pytest.mark.parametrize('height', [1, 2, 3, 7, 14])
def test_below_15_pixels_the_coarse_view_is_one_along_the_side(height, assert_close):
    net, x = EnhancedSpatialAttention(8, 4).double(), torch.rand(1, 8, height, 30, dtype=torch.float64) + 1
    nn.init.zeros_(net.conv_skip.weight)
    factor = net(x) / x
    assert_close(factor, factor[:, :, :1].expand_as(factor))
    assert factor.std(dim=3).max() > 1e-6


@pytest.mark.parametrize(('height', 'row'), [(2, 0), (2, 1), (7, 0), (7, 6), (14, 0), (14, 12)], ids=str)
def test_the_ends_of_a_short_side_are_seen(height, row):
    net = EnhancedSpatialAttention(1, 1).double()
    for layer in net.children():
        nn.init.zeros_(layer.bias)
        nn.init.ones_(layer.weight)
    x = torch.full((1, 1, height, 20), 0.01, dtype=torch.float64)
    brighter = x.clone()
    brighter[:, :, row] += 1
    other = (row + 1) % height
    assert net(brighter)[0, 0, other, 0] > net(x)[0, 0, other, 0]


def test_other_forms_bring_their_own_convolutions(assert_close):
    """RFDN's three convolutions, and a separable one as BSRN's; the rest is the same."""
    stride = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 3, stride=2, groups=4))
    coarse = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1))
    net, x = EnhancedSpatialAttention(8, 4, conv_stride=stride, conv_coarse=coarse).double(), torch.randn(1, 8, 20, 17)
    x = x.double()
    fine = net.conv_in(x)
    seen = F.interpolate(coarse(F.max_pool2d(stride(fine), 7, 3)), (20, 17), mode='bilinear', align_corners=False)
    assert_close(net(x), x * torch.sigmoid(net.conv_out(seen + net.conv_skip(fine))))
