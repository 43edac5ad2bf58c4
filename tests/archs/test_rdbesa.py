"""What only RDBESA has: its sizes, its block and its fusion."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spinsr.archs.rdbesa_arch import RDBESA, ResidualDistillationBlock


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
