"""What only RLFN has: its block, and images that are smaller than its attention sees."""

import torch
import torch.nn.functional as F
from torch import nn

from spinsr.archs.rlfn_arch import RLFN, ResidualLocalFeatureBlock

SMALL = {'num_feat': 8, 'num_block': 2, 'num_esa': 4, 'upscale': 3}


def test_block_adds_its_input_before_it_fuses(assert_close):
    """The convolutions copy and shift by a constant below zero, which LeakyReLU makes small: the result is known."""
    block, x = ResidualLocalFeatureBlock(2, 3, 1), torch.rand(1, 2, 4, 5) + 1
    block.esa = nn.Identity()
    for conv, bias in ((block.c1_r, 0), (block.c2_r, 0), (block.c3_r, -10)):
        nn.init.zeros_(conv.weight)
        nn.init.constant_(conv.bias, bias)
        for channel in range(2):
            conv.weight.data[channel, channel, 1, 1] = 1
    nn.init.zeros_(block.c5.bias)
    block.c5.weight.data = 3 * torch.eye(2).view(2, 2, 1, 1)
    assert_close(block(x), 3 * (x + 0.05 * (x - 10)))


def test_body_without_blocks_is_two_skips(assert_close):
    net, x = RLFN(**SMALL).double(), torch.rand(1, 3, 15, 17, dtype=torch.float64)
    for number in (1, 2):
        net.body.get_submodule(f'block_{number}').forward = lambda features: features
    shallow = net.conv_first(255 * x)
    assert_close(net(x), F.pixel_shuffle(net.conv_last(shallow + net.conv_after_body(shallow)), 3) / 255)


def test_a_small_image_is_extended_by_reflection(assert_close):
    net, x = RLFN(**SMALL).double().eval(), torch.rand(1, 3, 10, 16, dtype=torch.float64)
    extended = F.pad(x, (0, 0, 0, 5), mode='reflect')
    assert_close(net(x), net(extended)[..., :30, :])


def test_number_of_output_channels_is_free():
    assert RLFN(**SMALL, num_out_ch=6)(torch.rand(1, 3, 5, 7)).shape == (1, 6, 15, 21)
