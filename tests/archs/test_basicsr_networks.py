"""The networks that BasicSR has: told by their weights, in the authors' form, and at sizes that they do not take."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

import spinsr
from spinsr import compat
from spinsr.convert import convert_state_dict, detect_arch, get_format, to_official
from spinsr.convert.mean_shift import DIV2K_MEAN
from spinsr.convert.registry import valueless
from spinsr.training import recipes

from ..networks import BASICSR

LARGE = {'upsampler': 'nearest+conv', 'resi_connection': '3conv'}
CASES = {
    'SwinIR-direct': ('SwinIR', 3, {}),
    'SwinIR-stages': ('SwinIR', 4, {'upsampler': 'pixelshuffle', 'img_size': 16, 'qkv_bias': False}),
    'SwinIR-nearest': ('SwinIR', 4, LARGE),
    'SwinIR-residual': ('SwinIR', 1, {'upsampler': '', 'in_chans': 1}),
    'EDSR': ('EDSR', 3, {}),
    'ECBSR': ('ECBSR', 3, {'num_in_ch': 1, 'num_out_ch': 1}),
}


def build(name, scale, **arguments):
    format = get_format(name)
    return format.cls(**{**format.defaults, **BASICSR[name].small, format.scale_keyword: scale, **arguments}).eval()


@pytest.mark.parametrize(('name', 'scale', 'arguments'), CASES.values(), ids=CASES)
def test_network_and_sizes_are_told_by_the_weights(name, scale, arguments):
    net = build(name, scale, **arguments)
    assert detect_arch(net.state_dict()) == name
    rebuilt = spinsr.load(weights={'params': net.state_dict()})
    x = torch.rand(1, next(net.parameters()).shape[1], 8, 12)
    with torch.no_grad():
        assert torch.equal(rebuilt(x), net(x))


@pytest.mark.parametrize(
    ('name', 'scale', 'parameters'),
    [(name, scale, count) for name in BASICSR for scale, count in BASICSR[name].parameters.items()],
)
def test_number_of_parameters(name, scale, parameters):
    format = get_format(name)
    net = valueless(format.cls, {**format.defaults, format.scale_keyword: scale})
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


@pytest.mark.parametrize('name', BASICSR)
def test_any_size_is_upscaled(name):
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    assert spinsr.upscale(image, build(name, 2)).shape == (14, 18, 3)


def test_weights_of_another_size_are_not_held_to_the_defaults():
    light = build('SwinIR', 2)
    assert spinsr.load('SwinIR', 2, light.state_dict()).embed_dim == 8
    with pytest.raises(ValueError, match='must have the shape'):
        spinsr.load('SwinIR-light', 2, light.state_dict())


def edsr(weights, x):
    """The authors' function at x2: convolutions around blocks, in 0..255, with the mean as two more of them."""

    def conv(x, name):
        weight = weights[f'{name}.weight']
        return F.conv2d(x, weight, weights[f'{name}.bias'], padding=weight.shape[-1] // 2)

    first = out = conv(conv(255 * x, 'sub_mean'), 'head.0')
    for block in range(2):
        out = out + conv(F.relu(conv(out, f'body.{block}.body.0')), f'body.{block}.body.2')
    out = F.pixel_shuffle(conv(first + conv(out, 'body.2'), 'tail.0.0'), 2)
    return conv(conv(out, 'tail.1'), 'add_mean') / 255


def test_edsr_reads_and_writes_the_authors_form():
    net, x = build('EDSR', 2), torch.rand(1, 3, 5, 6)
    official = to_official(net.state_dict(), 'EDSR')
    assert torch.equal(official['sub_mean.bias'], -DIV2K_MEAN)
    back = convert_state_dict(official, 'EDSR')
    assert back.keys() == net.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(spinsr.load(weights=official)(x), edsr(official, x), rtol=0, atol=1e-5)


def test_edsr_of_another_mean_is_refused():
    official = to_official(build('EDSR', 2).state_dict(), 'EDSR')
    for layer in ('sub_mean', 'add_mean'):
        official[f'{layer}.bias'] = official[f'{layer}.bias'] * 1.1
    with pytest.raises(ValueError, match='mean of DIV2K'):
        convert_state_dict(official, 'EDSR')


def test_large_edsr_scales_its_residuals():
    format = get_format('EDSR')
    weights = valueless(format.cls, {**format.defaults, **format.configurations['EDSR-large'], 'upscale': 2})
    assert format.arguments(weights.state_dict())['res_scale'] == 0.1


@pytest.mark.parametrize('name', BASICSR)
def test_option_file_builds_the_network(name):
    found = [file for file in recipes.files().values() if (file.phase, file.configuration) == ('train', name)]
    assert [file.scale for file in found] == [2, 3, 4]
    network = yaml.safe_load(found[0].text())['network_g']
    assert network.pop('type') == name
    net = valueless(get_format(name).cls, network)
    assert sum(parameter.numel() for parameter in net.parameters()) == BASICSR[name].parameters[2]


@pytest.mark.parametrize('name', BASICSR)
def test_without_basicsr_the_error_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setattr(compat, 'is_installed', lambda: False)
    with pytest.raises(ImportError, match='spinsr install-basicsr'):
        dataclasses.replace(get_format(name)).cls  # noqa: B018
