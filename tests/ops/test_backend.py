import importlib.util
import logging

import pytest
import torch

from spinsr import ops
from spinsr.ops import backend

CALLS = {
    'associate': lambda name: ops.associate(torch.rand(1, 4, 4, 3), 2, backend=name),
    'superpixel_cross_attention': lambda name: ops.superpixel_cross_attention(
        *torch.rand(3, 1, 16, 4), torch.rand(1, 4, 4), backend=name
    ),
    'intra_superpixel_attention': lambda name: ops.intra_superpixel_attention(
        *torch.rand(3, 1, 16, 4), torch.arange(16).view(1, 4, 4), backend=name
    ),
    'window_attention': lambda name: ops.window_attention(*torch.rand(3, 1, 4, 4, 4), 3, backend=name),
    'covariance': lambda name: ops.covariance(torch.rand(1, 4, 4, 4), backend=name),
}


@pytest.fixture(params=CALLS.values(), ids=CALLS.keys())
def call(request):
    return request.param


def test_unknown_name_is_refused_with_the_name(call):
    with pytest.raises(ValueError, match="auto, reference, torch, triton, got 'cuda'"):
        call('cuda')


def test_unknown_name_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'fast')
    with pytest.raises(ValueError, match="got 'fast'"):
        ops.resolve_backend()


def test_forced_backend_that_cannot_run_says_why(call):
    with pytest.raises(RuntimeError, match="'triton' cannot run: .+"):
        call('triton')


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


def test_auto_logs_its_choice_once_at_debug(caplog):
    spec = importlib.util.spec_from_file_location('fresh_backend', backend.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    with caplog.at_level(logging.DEBUG, logger='spinsr.ops'):
        fresh.resolve_backend('reference')
        assert not caplog.records
        fresh.resolve_backend()
        fresh.resolve_backend('auto')
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    assert "'torch'" in caplog.text
