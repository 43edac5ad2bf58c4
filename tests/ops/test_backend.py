import importlib.util
import logging

import pytest
import torch

from spinsr import ops
from spinsr.ops.common import backend

CALLS = {
    'associate': lambda name: ops.associate(torch.rand(1, 4, 4, 3), 2, backend=name),
    'superpixel_cross_attention': lambda name: ops.superpixel_cross_attention(
        *torch.rand(3, 1, 16, 4), torch.rand(1, 4, 4), backend=name
    ),
    'intra_superpixel_attention': lambda name: ops.intra_superpixel_attention(
        *torch.rand(3, 1, 16, 4), torch.arange(16).view(1, 4, 4), backend=name
    ),
    'window_attention': lambda name: ops.window_attention(*torch.rand(3, 1, 4, 4, 4), 3, backend=name),
    'pool': lambda name: ops.pool(torch.rand(1, 4, 4, 3), ops.associate(torch.rand(1, 4, 4, 3), 2), backend=name),
    'covariance': lambda name: ops.covariance(torch.rand(1, 4, 4, 4), backend=name),
}


@pytest.fixture(params=CALLS.values(), ids=CALLS.keys())
def call(request):
    return request.param


@pytest.fixture
def fresh():
    """The backend's module as it is before anything was asked."""
    spec = importlib.util.spec_from_file_location('fresh_backend', backend.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_unknown_name_is_refused_with_the_name(call):
    with pytest.raises(ValueError, match="auto, reference, torch, triton, got 'cuda'"):
        call('cuda')


def test_unknown_name_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'fast')
    with pytest.raises(ValueError, match="got 'fast'"):
        ops.resolve_backend()


def test_forced_backend_that_cannot_run_says_why(call, monkeypatch):
    monkeypatch.setattr(backend, '_triton', lambda: (None, False))  # there, and not interpreted
    with pytest.raises(RuntimeError, match="'triton' cannot run: the tensors are on 'cpu' .+TRITON_INTERPRET=1"):
        call('triton')


def test_forced_backend_without_its_package_says_so(fresh, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(RuntimeError, match="'triton' cannot run: triton is not installed; use 'torch'"):
        fresh.resolve_backend('triton')


def test_forced_backend_whose_package_is_broken_says_so(fresh, monkeypatch):
    def broken(name):
        raise ImportError('no libcuda')

    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
    monkeypatch.setattr(importlib, 'import_module', broken)
    with pytest.raises(RuntimeError, match=r'triton does not import \(no libcuda\)'):
        fresh.resolve_backend('triton')


def test_forced_backend_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(backend, '_triton', lambda: (None, False))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(RuntimeError, match="'triton' cannot run: its kernels need CUDA, which torch does not find"):
        ops.resolve_backend('triton')


def test_triton_runs_on_cuda_tensors_when_it_is_not_interpreted(monkeypatch):
    monkeypatch.setattr(backend, '_triton', lambda: (None, False))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert ops.resolve_backend('triton', torch.device('cuda', 1)) == 'triton'


@pytest.mark.parametrize('name', ['reference', 'torch'])
def test_environment_chooses(monkeypatch, name):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', name)
    assert ops.resolve_backend() == name


def test_environment_reaches_the_ops(monkeypatch):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
    assert isinstance(ops.associate(torch.rand(1, 4, 4, 3), 2), ops.DenseAssociation)


def test_argument_beats_the_environment(monkeypatch):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
    assert isinstance(ops.associate(torch.rand(1, 4, 4, 3), 2, backend='torch'), ops.SparseAssociation)


@pytest.mark.parametrize('value', ['', 'auto'])
def test_auto_is_the_sparse_path(monkeypatch, value):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', value)
    assert ops.resolve_backend() == 'torch'


@pytest.mark.parametrize(
    ('capability', 'no_kernel', 'expected'),
    [((9, 0), None, 'triton'), ((8, 6), None, 'torch'), ((9, 0), 'the op has no kernels', 'torch')],
    ids=['measured', 'another-gpu', 'no-kernel'],
)
def test_auto_takes_the_kernels_on_the_gpus_where_they_were_measured(
    capability, no_kernel, expected, fresh, monkeypatch
):
    monkeypatch.setattr(fresh, 'FASTER_BY_TRITON', frozenset({(9, 0)}))
    monkeypatch.setattr(fresh, '_triton', lambda: (None, False))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    assert fresh.resolve_backend(None, torch.device('cuda', 0), no_kernel=no_kernel) == expected
    assert fresh.resolve_backend(None, torch.device('cpu')) == 'torch'


def test_auto_logs_its_choice_once_at_debug(caplog, fresh):
    with caplog.at_level(logging.DEBUG, logger='spinsr.ops'):
        fresh.resolve_backend('reference')
        assert not caplog.records
        fresh.resolve_backend()
        fresh.resolve_backend('auto')
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    assert "'torch'" in caplog.text
