"""What only ETDS has: its start, its two streams, and the exact conversion for inference."""

import numpy as np
import pytest
import torch
from torch import nn

from spinsr.archs.etds_arch import ETDS, ETDSInference, to_inference

from ..conftest import PARITY


@pytest.mark.parametrize(('scale', 'residual'), [(2, 3), (3, 3), (4, 5)])
def test_conversion_gives_the_clipped_image(scale, residual, assert_close):
    net = ETDS(num_feat=9, num_block=2, num_residual_feat=residual, upscale=scale).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.constant_(net.conv_last.bias, 0.5)
    x = torch.rand(2, 3, 6, 7, dtype=torch.float64)
    image, converted = net(x), to_inference(net)(x)
    assert image.min() < 0 and image.max() > 1  # the clip matters
    assert_close(converted, image.clamp(0, 1))


@pytest.mark.parametrize('scale', [2, 3])
def test_conversion_is_that_of_the_authors(scale, official):
    """Their networks of both forms hold the same weights."""
    theirs = official(f'zoo/etds_infer_x{scale}')
    net = official(f'zoo/etds_x{scale}').build(torch.float32)
    converted = to_inference(net).state_dict()
    assert converted.keys() == theirs.weights.keys()
    assert max((value - theirs.weights[name]).abs().max().item() for name, value in converted.items()) < 1e-6


def test_residual_stream_is_that_of_the_authors(official):
    net, x = official('zoo/etds_x2').build(), official('zoo/etds_x2').images[0]
    with np.load(PARITY / 'zoo/etds_x2.npz') as archive, torch.no_grad():
        assert np.abs(net(x.double(), auxiliary=True)[1]['residual'].numpy() - archive['r0']).max() < 1e-9


def test_residual_stream_starts_as_nearest_upsampling(assert_close):
    net, x = ETDS(num_feat=8, num_block=2, num_residual_feat=4, upscale=3), torch.rand(1, 3, 4, 5)
    image, more = net(x, auxiliary=True)
    low = more['residual']
    assert_close(low, nn.functional.interpolate(x, scale_factor=3, mode='nearest'))
    nn.init.zeros_(net.conv_last.weight)
    nn.init.zeros_(net.conv_last.bias)
    assert_close(net(x), low)
    assert (image - low).abs().max() > 0.001


def test_inference_network_clips_the_image(assert_close):
    net = ETDSInference(num_feat=8, num_block=1, upscale=3)
    y = torch.linspace(-1, 2, 28).view(1, 28, 1, 1).expand(1, 28, 2, 2)
    net.conv_last.forward = lambda x: 1 - y
    assert_close(net(torch.rand(1, 3, 2, 2)), nn.functional.pixel_shuffle(y[:, :27].clamp(0, 1), 3))


@pytest.mark.parametrize('arguments', [{'num_out_ch': 1}, {'num_residual_feat': 2}, {'num_feat': 3}], ids=str)
def test_bad_arguments_are_refused_with_the_value(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f'{name}={value}'):
        ETDS(**arguments)
