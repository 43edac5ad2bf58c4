"""The tail goes through strips only where the layers are what they seem."""

import pytest
import torch
from torch import nn

from spinsr.modules.upsample import TokenUpsample, Upsample, upsample_and_convolve


class Doubled(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


def called(upsample, x, conv_last):
    return upsample_and_convolve(x, upsample, conv_last) if isinstance(upsample, Upsample) else upsample(x, conv_last)


@pytest.fixture(params=[Upsample, TokenUpsample])
def parts(request):
    x = torch.randn(1, 6, 5, 7, dtype=torch.float64).to(memory_format=torch.channels_last)
    return request.param(4, 6).double(), x, nn.Conv2d(6, 3, 3, 1, 1).double()


def test_a_wrapped_stage_is_called(parts, assert_close):
    upsample, x, conv_last = parts
    upsample[0].bias.data.zero_()
    plain = called(upsample, 2 * x, conv_last)
    upsample[0] = Doubled(upsample[0])
    assert_close(called(upsample, x, conv_last), plain)


def test_hooks_are_called(parts):
    upsample, x, conv_last = parts
    seen = []
    for layer in (upsample[0], conv_last):
        layer.register_forward_hook(lambda layer, args, out: seen.append(layer))
    called(upsample, x, conv_last)
    assert seen == [upsample[0], conv_last]


def test_parametrised_weights_are_used(parts):
    upsample, x, conv_last = parts
    nn.utils.parametrizations.weight_norm(conv_last)
    before = called(upsample, x, conv_last)
    conv_last.parametrizations.weight.original0.data *= 2
    assert not torch.allclose(called(upsample, x, conv_last), before)


OTHER_CONVOLUTIONS = {
    'wider': {'kernel_size': 5, 'padding': 2},
    'no_bias': {'kernel_size': 3, 'padding': 1, 'bias': False},
    'reflecting': {'kernel_size': 3, 'padding': 1, 'padding_mode': 'reflect'},
    'dilated': {'kernel_size': 3, 'padding': 2, 'dilation': 2},
    'grouped': {'kernel_size': 3, 'padding': 1, 'groups': 3},
}


@pytest.mark.parametrize('options', OTHER_CONVOLUTIONS.values(), ids=OTHER_CONVOLUTIONS.keys())
def test_another_last_convolution_is_called(parts, options, monkeypatch, assert_close):
    upsample, x, _ = parts
    conv_last = nn.Conv2d(6, 3, **options).double()
    out = called(upsample, x, conv_last)
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
    assert_close(out, called(upsample, x, conv_last))
