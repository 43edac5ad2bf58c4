"""What `precision: auto` chooses, and what it costs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import spinsr
from spinsr.cli import main
from spinsr.data import photograph
from spinsr.evaluation import benchmark
from spinsr.inference import precision as module
from spinsr.inference.precision import LARGEST_LOSS, choose, resolve, set_loss
from spinsr.inference.upscale import super_resolve, upscale
from spinsr.weights.models import find_model

SMALL = {'num_block': 1, 'stoken_size': (12,), 'num_feat': 8, 'qk_dim': 8, 'mlp_dim': 8}


@pytest.fixture(params=[True, False], ids=['with_bf16', 'without_bf16'])
def multiplies(request, monkeypatch):
    """A processor with and without instructions for bfloat16."""
    monkeypatch.setattr(module, 'multiplies_bf16', lambda: request.param)
    return request.param


@pytest.fixture
def bf16_processor(monkeypatch):
    monkeypatch.setattr(module, 'multiplies_bf16', lambda: True)


@pytest.fixture
def net():
    net = spinsr.load('SPIN', 2, None, **SMALL)
    set_loss(net, 0.002)
    return net


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)


def test_bf16_where_the_processor_multiplies_it(net, multiplies):
    assert choose(net).precision == ('bf16' if multiplies else 'fp32')


@pytest.mark.usefixtures('bf16_processor')
def test_fp32_where_bf16_could_be_seen_or_was_not_measured(net):
    assert choose(net, bits=16).precision == 'fp32'
    assert choose(spinsr.load('SPIN', 2, None, **SMALL)).precision == 'fp32'
    assert choose(nn.Identity()).precision == 'fp32'
    assert choose(torch.compile(net)).precision == 'fp32'
    set_loss(net, 2 * LARGEST_LOSS)
    assert choose(net).precision == 'fp32'


@pytest.mark.usefixtures('bf16_processor')
def test_other_types_and_devices(net):
    for other in (net.double(), net.to('meta')):
        set_loss(other, 0.0)
        assert choose(other).precision == 'fp32'


@pytest.mark.usefixtures('bf16_processor')
def test_other_weights_were_not_measured(net):
    copied = copy.deepcopy(net)
    assert choose(copied).precision == 'fp32'
    net.load_state_dict(net.state_dict())
    assert 'not measured' in choose(net).reason
    set_loss(net, 0.0)
    assert choose(net).precision == 'bf16'
    net.load_state_dict(net.state_dict())
    assert choose(net).precision == 'fp32'


def test_a_named_precision_stays(net, multiplies):
    assert [resolve(name, net) for name in ('fp32', 'bf16', 'fp16')] == ['fp32', 'bf16', 'fp16']


def test_upscale_computes_what_was_chosen(net, image, multiplies):
    chosen = upscale(image, net, precision='bf16' if multiplies else 'fp32')
    assert np.array_equal(upscale(image, net, precision='auto'), chosen)
    deep = image.astype(np.uint16) * 257
    assert np.array_equal(upscale(deep, net, precision='auto'), upscale(deep, net))


@pytest.mark.usefixtures('bf16_processor')
def test_floats_are_computed_in_fp32(net):
    x = torch.rand(1, 3, 12, 13)
    assert torch.equal(super_resolve(x, net, precision='auto'), super_resolve(x, net))


@pytest.mark.parametrize(
    ('flags', 'says'), [((), 'if bf16'), (('--precision', 'auto'), 'always'), (('--precision', 'fp32'), '')]
)
def test_the_command_says_what_it_chose(tmp_path, monkeypatch, capfd, image, multiplies, flags, says):
    monkeypatch.chdir(tmp_path)
    photograph.write(tmp_path / 'a.png', photograph.Photograph(image))
    assert main(['upscale', 'a.png', '--scale', '2', *flags]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith('precision: ')]
    said = says == 'always' or (says == 'if bf16' and multiplies)
    assert [line.split()[1] for line in lines] == ['bf16' if multiplies else 'fp32'] * said


@pytest.mark.slow
@pytest.mark.parametrize('name', ['Set5', 'Set14'])
@pytest.mark.parametrize(('model', 'scale'), [('spin', 2), ('spin', 3), ('spin', 4), ('rcan-light', 4), ('photo', 4)])
def test_the_loss_is_the_one_that_was_measured(shared, model, scale, name):
    net, known = spinsr.load(model=model, scale=scale), find_model(model, scale)
    assert known.bf16_loss <= LARGEST_LOSS

    def psnr(precision):
        (result,) = benchmark.evaluate(
            [shared(f'data/benchmark/{name}')],
            [scale],
            benchmark.network({scale: net}, precision=precision),
            protocols=['y_crop_scale'],
        )
        return result['protocols']['y_crop_scale']['psnr']

    assert psnr('fp32') - psnr('bf16') <= known.bf16_loss
