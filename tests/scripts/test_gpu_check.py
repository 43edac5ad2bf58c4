"""scripts/gpu_check.py: a whole run without a GPU, and what becomes of a part that is too slow, crashes or is wrong."""

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip('triton', reason='triton is not installed')

SCRIPTS = Path(__file__).parents[2] / 'scripts'
sys.path.insert(0, str(SCRIPTS))
gpu_check = importlib.import_module('gpu_check')


@pytest.mark.slow
def test_whole_run_on_the_cpu(tmp_path):
    command = [sys.executable, SCRIPTS / 'gpu_check.py', '--device', 'cpu', '--minutes', '10', '-o', tmp_path / 'out']
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / 'out.json').read_text())
    rows = {name: part['rows'] for name, part in report['parts'].items()}
    assert list(rows) == ['kernels', 'network', 'inference', 'step', 'autocast', 'processes']
    assert {row['check'] for row in rows['kernels']} == set(gpu_check.OPS)
    assert {row['backend'] for row in rows['inference']} == {row['backend'] for row in rows['step']}
    assert set(report['speed']['training step, float32']) == {
        'torch over reference',
        'triton over reference',
        'triton over torch',
    }
    assert (tmp_path / 'out.md').read_text() == done.stdout


def part(rows, problem=''):
    return {'rows': rows, 'problem': problem, 'seconds': 1.0}


def checked(error, limit=1e-5, shape='1x2x3'):
    return {
        'check': 'pool',
        'shape': shape,
        'dtype': 'float32',
        'error': error,
        'limit': limit,
        'holds': error <= limit,
    }


def timed(backend, seconds):
    return {'timing': 'inference', 'backend': backend, 'dtype': 'float32', 'shape': '', 'seconds': seconds}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs `main` with these results of its parts, those that are not named being empty."""

    def run(**results):
        monkeypatch.setattr(gpu_check, '_run_part', lambda name, *args: results.get(name, part([])))
        status = gpu_check.main(['--device', 'cpu', '-o', str(tmp_path / 'out')])
        return status, json.loads((tmp_path / 'out.json').read_text()), capsys.readouterr().out

    monkeypatch.setenv('TRITON_INTERPRET', '1')
    return run


def test_checks_that_hold_exit_0_and_the_worst_is_shown(run):
    status, _, table = run(kernels=part([checked(1e-7), checked(2e-6, shape='worst'), checked(1e-8)]))
    assert status == 0
    assert '3 of 3 checks hold' in table
    assert 'worst' in table
    assert '1x2x3' not in table


@pytest.mark.parametrize(
    'kernels',
    [
        pytest.param(part([checked(1e-4, shape='wrong'), checked(1e-3)]), id='a-wrong-result'),
        pytest.param(part([checked(1e-7)], 'wrong memory access'), id='a-part-that-ended'),
        pytest.param(part([checked(float('inf'), shape='wrong')]), id='not-a-number'),
    ],
)
def test_whatever_does_not_hold_exits_1_and_is_shown(run, kernels):
    status, _, table = run(kernels=kernels)
    assert status == 1
    assert 'wrong' in table


def test_ratios_are_times_as_fast(run):
    rows = [timed('reference', 6.0), timed('torch', 3.0), timed('triton', 1.5)]
    _, report, _ = run(inference=part(rows))
    assert report['speed'] == {
        'inference, float32': {'torch over reference': 2.0, 'triton over reference': 4.0, 'triton over torch': 2.0}
    }


def test_a_backend_without_memory_has_no_ratio(run):
    rows = [timed('torch', 3.0), {**timed('reference', 1.0), 'problem': 'out of memory'}]
    del rows[1]['seconds']
    status, report, table = run(inference=part(rows))
    assert (status, report['speed']) == (0, {'inference, float32': {}})
    assert 'out of memory' in table


def _two_rows_then_sleep(name, device, small, rows):
    rows.put(('row', {'number': 1}))
    rows.put(('row', {'number': 2}))
    time.sleep(60)


def _one_row_then_die(name, device, small, rows):
    rows.put(('row', {'number': 1}))
    rows.close()
    rows.join_thread()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize(
    ('work', 'limit', 'count', 'problem'),
    [(_two_rows_then_sleep, 4.0, 2, 'not done'), (_one_row_then_die, 60.0, 1, f'signal {int(signal.SIGKILL)}')],
    ids=['too-slow', 'crash'],
)
def test_rows_of_a_part_that_is_stopped_or_dies_are_kept(work, limit, count, problem, monkeypatch):
    monkeypatch.setattr(gpu_check, '_work', work)
    # Forked, it starts at once and takes functions of this file; the parts' own are spawned, which takes seconds.
    forked = multiprocessing.get_context('fork')
    monkeypatch.setattr(gpu_check.multiprocessing, 'get_context', lambda kind: forked)
    start = time.monotonic()
    result = gpu_check._run_part('kernels', 'cpu', True, limit)
    assert time.monotonic() - start < limit + 30
    assert len(result['rows']) == count
    assert problem in result['problem']


def test_a_kernel_that_is_wrong_in_one_gradient_is_found(monkeypatch):
    """The check computes; here the kernels are replaced by an op whose second gradient is wrong."""
    from spinsr import ops

    attend = ops.window_attention

    def wrong(q, k, v, *args, backend=None, **kwargs):
        if backend == 'reference':
            return attend(q, k, v, *args, backend=backend, **kwargs)
        return attend(q, k.detach() + 0.999 * (k - k.detach()), v, *args, backend='torch', **kwargs)

    shape, cpu = gpu_check.Shape(1, 5, 6, 3), torch.device('cpu')
    monkeypatch.setattr(ops, 'window_attention', wrong)
    row = gpu_check._kernel('window_attention', shape, (4, 6), torch.float64, cpu)
    assert not row['holds']
    assert row['error'] < 1e-2


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--minutes', '0'], '--minutes must be above 0'),
        (['--device', 'mps'], '--device must be cuda or cpu'),
        (['--device', 'cpu', '-o', 'nowhere/out'], 'existing folder'),
    ],
)
def test_wrong_usage(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        gpu_check.main(flags)
    assert error.value.code == 2
    assert words in capsys.readouterr().err
