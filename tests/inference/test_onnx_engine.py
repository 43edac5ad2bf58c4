"""Networks by ONNX Runtime: the same images as by PyTorch, exported once."""

import copy
import fractions
import functools
import importlib.util
import threading

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


@pytest.mark.slow
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


def change_weight(net):
    with torch.no_grad():
        next(net.parameters()).view(-1)[-1] += 1e-6


def times(factor):
    return lambda x: factor * x


# What makes a network another one, beside what it was built with.
CHANGES = {
    'weight': change_weight,
    'attribute': lambda net: setattr(net, 'num_heads', 3),
    'buffer': lambda net: net.register_buffer('more', torch.zeros(1), persistent=False),
    'module': lambda net: net.add_module('again', next(iter(net.children()))),
}
# Attributes whose values differ although their kinds, and in part what they are printed as, do not.
PAIRS = {
    'dict': ({'position_weight': 0.5}, {'position_weight': 1.0}),
    'dtype': (torch.float32, torch.float64),
    'array': (np.zeros(2000), np.eye(1, 2000, 1000)[0]),
    'tensors': ([torch.zeros(2000)], [(torch.arange(2000) == 1000).float()]),
    'partial': (functools.partial(max, 1), functools.partial(max, 2)),
    'closure': (times(1), times(2)),
    'nested': ((1, (2, 3)), ((1, 2), 3)),
    'object': (fractions.Fraction(1, 2), fractions.Fraction(1, 3)),
}


@pytest.mark.parametrize('change', [*CHANGES, 'argument'])
def test_another_network_has_another_digest(change):
    net, other = build(), build(**({'img_range': 1.0} if change == 'argument' else {}))
    CHANGES.get(change, lambda _: None)(other)
    assert onnx_engine.digest(net) == onnx_engine.digest(build())
    assert onnx_engine.digest(net) != onnx_engine.digest(other)


@pytest.mark.parametrize('pair', PAIRS)
def test_another_attribute_has_another_digest(pair):
    def digest(value):
        net = torch.nn.Conv2d(3, 3, 1, bias=False)
        torch.nn.init.zeros_(net.weight).requires_grad_(False)
        net.value = copy.deepcopy(value)
        return onnx_engine.digest(net)

    one, other = PAIRS[pair]
    assert digest(one) == digest(one) != digest(other)


def test_another_source_has_another_digest(monkeypatch):
    before = onnx_engine.digest(build())
    monkeypatch.setattr(onnx_engine, '_FOLDERS', ('ops',))
    onnx_engine._package.cache_clear()
    assert onnx_engine.digest(build()) != before
    monkeypatch.undo()
    onnx_engine._package.cache_clear()
    assert onnx_engine.digest(build()) == before


def test_an_attribute_that_cannot_be_compared_is_refused():
    net = build()
    net.lock = [threading.Lock()]
    with pytest.raises(ValueError, match=r'got a lock in RCAN\.lock, which cannot be compared'):
        by_engine(net, 'onnx')


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

    with pytest.raises(ValueError, match="Twice cannot be translated .*tiles of another size .*engine 'torch' runs it"):
        spinsr.upscale(np.zeros((8, 9, 3), np.uint8), Twice().eval(), engine='onnx')
    assert not list(cache.iterdir())


def test_tiles_are_no_advice_for_a_file_of_any_size(monkeypatch):
    def to_onnx(*_, **__):
        raise ValueError('why')

    monkeypatch.setattr(onnx_engine, 'to_onnx', to_onnx)
    net = by_engine(build(), 'onnx')
    net.sides = 1, None
    with pytest.raises(ValueError, match="^why; engine 'torch' runs it$"):
        super_resolve(torch.zeros(1, 3, 8, 8), net)


def test_lack_of_memory_is_not_a_broken_network(cache, monkeypatch):
    """Smaller tiles are tried then."""

    def export(*_, **__):
        raise RuntimeError('cannot be exported') from MemoryError()

    net = by_engine(build(), 'onnx')
    monkeypatch.setattr(torch.onnx, 'export', export)
    with pytest.raises(MemoryError, match='tried: whole image, 32-px tiles'):
        super_resolve(torch.zeros(1, 3, 64, 40), net)
    assert not list(cache.iterdir())


def test_lack_of_memory_is_not_a_broken_file(tmp_path, monkeypatch):
    def session(*_, **__):
        raise RuntimeError('Failed to allocate memory for requested buffer')

    monkeypatch.setattr('onnxruntime.InferenceSession', session)
    with pytest.raises(MemoryError, match='Failed to allocate'):
        onnx_engine._load(tmp_path / 'a.onnx', 1)


def test_two_processes_may_export_the_same_network(cache, monkeypatch):
    """The other one finishes while this one exports, and a third was killed."""
    net = by_engine(build(), 'onnx')
    written = []

    def to_onnx(_, path, **__):
        path.write_bytes(f'{len(written)}'.encode())
        written.append(path)
        if len(written) == 1:
            net._file(32, 32)
            assert path.read_bytes() == b'0'

    monkeypatch.setattr(onnx_engine, 'to_onnx', to_onnx)
    (cache / '.killed.part').mkdir(parents=True)
    path = net._file(32, 32)
    assert len(set(written)) == 2 and path.read_bytes() == b'0'
    assert sorted(cache.iterdir()) == [cache / '.killed.part', path]


def test_autocast_is_refused(cache):
    with pytest.raises(ValueError, match="engine 'onnx' computes in fp32, got autocast"):
        super_resolve(torch.zeros(1, 3, 8, 8), by_engine(build(), 'onnx'), precision='bf16')
    assert not cache.exists()


def test_another_ops_backend_is_refused_at_once(monkeypatch):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
    with pytest.raises(ValueError, match="needs the ops backend 'torch', got 'reference'"):
        by_engine(build(), 'onnx')


def test_a_network_that_takes_no_small_image_is_taken_as_rgb(monkeypatch):
    """As with PyTorch."""

    class Large(torch.nn.Conv2d):
        def forward(self, x):
            if x.shape[2] < 16:
                raise ValueError('too small')
            return super().forward(x)

    monkeypatch.setattr(onnx_engine.OnnxNetwork, 'forward', lambda self, x: self.net(x))
    image = np.full((16, 17, 3), 100, np.uint8)
    net = Large(3, 3, 1)
    assert np.array_equal(spinsr.upscale(image, net, engine='onnx'), spinsr.upscale(image, net))


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
