"""Networks by ONNX Runtime: the same images as by PyTorch, exported once."""

import importlib.util

import numpy as np
import pytest
import torch

import spinsr
from spinsr.inference import onnx_engine
from spinsr.inference.upscale import by_engine, super_resolve

SMALL = {'num_feat': 4, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 2}


def build(**changes):
    torch.manual_seed(0)
    return spinsr.load('RCAN', 2, None, **{**SMALL, **changes})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of the cache, and no session of an earlier test."""
    monkeypatch.setenv('SPINSR_CACHE', str(tmp_path / 'cache'))
    onnx_engine._session.cache_clear()
    return tmp_path / 'cache' / 'onnx'


@pytest.fixture
def no_export(monkeypatch):
    """Fails where something would be exported."""

    def to_onnx(*_, **__):
        raise AssertionError('exported')

    return lambda: monkeypatch.setattr(onnx_engine, 'to_onnx', to_onnx)


def test_images_are_those_of_torch_and_the_file_is_used_again(cache, no_export, monkeypatch):
    net = build()
    x = torch.rand(1, 3, 40, 45)
    whole = super_resolve(x, by_engine(net, 'onnx'))
    torch.testing.assert_close(whole, super_resolve(x, net), rtol=0, atol=1e-4)
    (file,) = cache.iterdir()
    no_export()
    onnx_engine._session.cache_clear()  # as in another process
    tiled = super_resolve(x, by_engine(build(), 'onnx'), tile=32, self_ensemble=True)
    torch.testing.assert_close(tiled, super_resolve(x, net, tile=32, self_ensemble=True), rtol=0, atol=1e-4)
    image = np.random.randint(0, 256, (33, 35, 3), np.uint8)
    difference = spinsr.upscale(image, net, engine='onnx').astype(int) - spinsr.upscale(image, net)
    assert abs(difference).max() <= 1
    assert list(cache.iterdir()) == [file]


@pytest.mark.parametrize('change', ['weight', 'argument', 'attribute', 'buffer'])
def test_another_network_has_another_digest(change):
    net, other = build(), build(**({'img_range': 1.0} if change == 'argument' else {}))
    if change == 'weight':
        with torch.no_grad():
            next(other.parameters()).view(-1)[-1] += 1e-6
    elif change == 'attribute':
        other.num_heads = 3
    elif change == 'buffer':
        other.register_buffer('more', torch.zeros(1), persistent=False)
    assert onnx_engine.digest(net) == onnx_engine.digest(build())
    assert onnx_engine.digest(net) != onnx_engine.digest(other)


def test_a_missing_package_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'onnxruntime' else find(name))
    with pytest.raises(ImportError, match="engine 'onnx' needs the package onnxruntime: pip install"):
        by_engine(build(), 'onnx')


def test_a_network_that_cannot_be_exported(cache):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.conv(x)
            return torch.kron(x[0], torch.ones(1, 2, 2) * (1 if float(x.sum()) < 1e9 else 2))[None]

    with pytest.raises(ValueError, match="Twice cannot be translated to ONNX: .*engine 'torch' runs it"):
        spinsr.upscale(np.zeros((8, 9, 3), np.uint8), Twice().eval(), engine='onnx')
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'engine': 'tensorrt'}, "engine must be one of torch, onnx, got 'tensorrt'"),
        ({'engine': 'onnx', 'precision': 'bf16'}, "engine 'onnx' computes in fp32, got precision='bf16'"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        spinsr.upscale(np.zeros((4, 4, 3), np.uint8), build(), **options)


def test_another_type_is_refused():
    with pytest.raises(ValueError, match='in float32 on the CPU, got float64 on cpu'):
        by_engine(build().double(), 'onnx')


def test_a_broken_file_is_named(cache, no_export):
    net = by_engine(build(), 'onnx')
    cache.mkdir(parents=True)
    (cache / f'RCAN-any-{net.digest}.onnx').write_bytes(b'broken')
    no_export()
    with pytest.raises(ValueError, match='cannot be loaded: .*; delete it'):
        super_resolve(torch.zeros(1, 3, 8, 8), net)
