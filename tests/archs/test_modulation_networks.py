"""What only SAFMN, SMFANet and ShuffleMixer have: their mixers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spinsr.archs.safmn_arch import SAFMN, SpatiallyAdaptiveFeatureModulation
from spinsr.archs.shufflemixer_arch import ShuffleMixer, mix_halves
from spinsr.archs.smfanet_arch import SelfModulationFeatureAggregation, SMFANet
from spinsr.modules.channel_norm import ChannelNorm


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no_bias'])
def test_channel_norm_is_a_layer_norm_of_each_pixel(bias, assert_close):
    norm, x = ChannelNorm(6, 1e-2, bias).double(), torch.randn(2, 6, 3, 4, dtype=torch.float64)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-2).sqrt()
    expected = expected * norm.weight[:, None, None]
    assert_close(norm(x), expected + norm.bias[:, None, None] if bias else expected)


def copy_centre(*convs: nn.Conv2d) -> None:
    """Depthwise convolutions that change nothing."""
    for conv in convs:
        nn.init.zeros_(conv.bias)
        nn.init.zeros_(conv.weight)
        conv.weight.data[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1


def test_levels_of_safm_are_maxima_of_growing_cells(assert_close):
    net, x = SpatiallyAdaptiveFeatureModulation(4).double(), torch.rand(1, 4, 16, 8, dtype=torch.float64)
    copy_centre(*net.depthwise)
    levels = [
        F.max_pool2d(x[:, level : level + 1], 2**level).repeat_interleave(2**level, 2).repeat_interleave(2**level, 3)
        for level in range(4)
    ]
    assert_close(net(x), F.gelu(net.aggregate(torch.cat(levels, 1))) * x)


def test_smfa_modulates_by_maxima_and_variance(assert_close):
    net, f = SelfModulationFeatureAggregation(2).double(), torch.rand(1, 2, 16, 8, dtype=torch.float64)
    nn.init.normal_(net.beta)
    copy_centre(net.depthwise)
    local, x = net.split(f).chunk(2, 1)
    cells = net.alpha * F.max_pool2d(x, 8) + net.beta * x.flatten(2).var(2)[..., None, None]
    cells = F.gelu(net.mix(cells)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert_close(net(f), net.project(x * cells + net.detail(local)))


def test_features_of_a_pixel_that_are_all_zero_have_finite_gradients():
    net, x = SMFANet(num_feat=4, num_block=1), torch.zeros(1, 3, 8, 8, requires_grad=True)
    nn.init.zeros_(net.conv_first.bias)
    net(x).sum().backward()
    assert x.grad.isfinite().all()


def test_halves_are_mixed_and_shuffled(assert_close):
    x = torch.arange(32.0).view(1, 32, 1, 1)
    mixed = mix_halves(x, lambda half: -half)
    expected = [channel if channel >= 16 else -channel for d in range(4) for channel in range(d, 32, 4)]
    assert mixed.flatten().tolist() == expected


def test_shufflemixer_adds_the_bilinear_image(assert_close):
    net, x = ShuffleMixer(num_feat=8, num_block=1, kernel_size=3, upscale=3), torch.rand(1, 3, 5, 7)
    nn.init.zeros_(net.conv_last.weight)
    nn.init.zeros_(net.conv_last.bias)
    assert_close(net(x), F.interpolate(x, scale_factor=3, mode='bilinear'))


@pytest.mark.parametrize(
    ('arch', 'arguments', 'message'),
    [
        (SAFMN, {'num_feat': 6}, 'num_feat=6'),
        (SMFANet, {'num_feat': 2, 'ffn_scale': 1.5}, 'ffn_scale=1.5'),
        (ShuffleMixer, {'num_feat': 12}, 'num_feat=12'),
        (ShuffleMixer, {'kernel_size': 4}, 'kernel_size=4'),
        (ShuffleMixer, {'num_out_ch': 1}, 'num_out_ch=1'),
    ],
)
def test_bad_arguments_are_refused_with_the_value(arch, arguments, message):
    with pytest.raises(ValueError, match=message):
        arch(**arguments)


@pytest.mark.parametrize('arch', [SAFMN, SMFANet])
def test_an_image_below_8_pixels_is_extended_by_reflection(arch, assert_close):
    net, x = arch(num_feat=8, num_block=1, upscale=2).double(), torch.rand(1, 3, 5, 9, dtype=torch.float64)
    assert_close(net(x), net(F.pad(x, (0, 0, 0, 3), mode='reflect'))[..., :10, :])
