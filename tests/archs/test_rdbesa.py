"""What only RDBESA has: its sizes, and its spatial attention on images that are smaller than its view."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spinsr.archs.rdbesa_arch import RDBESA, EnhancedSpatialAttention, ResidualDistillationBlock


@pytest.mark.parametrize(
    ('num_feat', 'num_block', 'counts'),
    [
        (64, 6, [782_692, 791_347, 803_464]),
        (64, 8, [1_038_316, 1_046_971, 1_059_088]),
        (48, 6, [444_830, 451_325, 460_418]),
    ],
    ids=['C64-N6', 'C64-N8', 'C48-N6'],
)
def test_number_of_parameters_at_other_sizes(num_feat, num_block, counts):
    with torch.device('meta'):
        nets = [RDBESA(num_feat=num_feat, num_block=num_block, upscale=scale) for scale in (2, 3, 4)]
    assert [sum(parameter.numel() for parameter in net.parameters()) for net in nets] == counts


def test_default_is_the_size_of_rlfn():
    with torch.device('meta'):
        count = sum(parameter.numel() for parameter in RDBESA(upscale=2).parameters())
    assert abs(count - 526_856) / 526_856 < 1e-3


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_feat': 0}, 'num_feat=0'),
        ({'num_block': 0}, 'num_block=0'),
        ({'upscale': 0}, 'upscale=0'),
        ({'num_out_ch': 0}, 'num_out_ch=0'),
        ({'squeeze_factor': 0}, 'squeeze_factor=0'),
        ({'num_feat': 16, 'squeeze_factor': 17}, 'squeeze_factor=17'),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_with_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        RDBESA(**arguments)


def test_number_of_output_channels_is_free():
    net = RDBESA(num_out_ch=6, num_feat=8, num_block=1, squeeze_factor=2, upscale=3)
    assert net(torch.rand(1, 3, 5, 7)).shape == (1, 6, 15, 21)


def test_block_without_distillation_is_the_input(assert_close):
    block, x = ResidualDistillationBlock(8, 2), torch.randn(1, 8, 5, 7)
    nn.init.zeros_(block.distill.weight)
    nn.init.zeros_(block.distill.bias)
    assert_close(block(x), x)


def test_block_distils_all_three_convolutions(assert_close):
    """The convolutions copy and shift, the distillation adds: the result is known."""
    block, x = ResidualDistillationBlock(1, 1), torch.rand(1, 1, 4, 5)
    block.attention = nn.Identity()
    for conv in block.convs:
        nn.init.zeros_(conv.weight)
        nn.init.ones_(conv.bias)
        conv.weight.data[0, 0, 1, 1] = 1
    block.distill.weight.data[:] = torch.tensor([1.0, 10, 100]).view(1, 3, 1, 1)
    nn.init.zeros_(block.distill.bias)
    assert_close(block(x), x + (x + 1) + 10 * (x + 2) + 100 * (x + 3))


@pytest.mark.parametrize('size', [(15, 15), (16, 29), (40, 21)], ids=['15x15', '16x29', '40x21'])
def test_spatial_attention_is_rlfn_s_where_it_is_defined(size, assert_close):
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


def test_without_fusion_only_the_long_skip_is_left(assert_close):
    net, x = RDBESA(num_feat=8, num_block=2, squeeze_factor=2, upscale=3), torch.rand(1, 3, 5, 7)
    nn.init.zeros_(net.fuse.weight)
    nn.init.zeros_(net.fuse.bias)
    assert_close(net(x), F.pixel_shuffle(net.conv_last(F.relu(net.conv_first(x))), 3))


def test_all_blocks_are_fused(assert_close):
    net, x = RDBESA(num_feat=8, num_block=2, squeeze_factor=2, upscale=2), torch.rand(1, 3, 5, 7)
    shallow = F.relu(net.conv_first(x))
    first = net.blocks[0](shallow)
    second = net.blocks[1](first)
    fused = F.conv2d(torch.cat([first, second], 1), net.fuse.weight, net.fuse.bias)
    assert_close(net(x), F.pixel_shuffle(net.conv_last(shallow + net.attention(fused)), 2))
