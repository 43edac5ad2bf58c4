"""Training in several processes on the CPU: torchrun and gloo."""

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from spinsr import train
from spinsr.training import distributed

from ..tiny_project import DISTILLATION, TRAIN, changed, write_images, write_options, write_outputs

WITHOUT_SHOW = {'network_g:num_block': 1, 'logger:print_freq': 1000}


def start(folder, flags, *, processes=0, restarts=0):
    """Starts a training in a folder, in one process or through torchrun; a port that is free is found by torchrun."""
    runner = ['-m', 'spinsr.train']
    if processes:
        single = ['--standalone', f'--nproc_per_node={processes}', f'--max-restarts={restarts}']
        runner = ['-m', 'torch.distributed.run', *single, *runner]
        flags = [*flags, '--launcher', 'pytorch']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, *runner, *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=240)
    return output


def gradients(folder):
    """The gradients of the first iteration: Adam's first moment is a tenth of them."""
    state = torch.load(folder / 'experiments/tiny/training_states/1.state', weights_only=True)
    return {key: 10 * value['exp_avg'] for key, value in state['optimizers'][0]['state'].items()}


def project(folder, **changes):
    folder.mkdir()
    write_images(folder, 7)
    write_outputs(folder, 7)
    write_options(folder / 'tiny.yml', changed(TRAIN, {**WITHOUT_SHOW, **changes}))
    return folder


def batches(loaded, taken):
    """Patches that grow, from a part of those that are loaded."""
    part = {'gt_sizes': [10, 16], 'iters': [4, 4], 'batch_size_per_gpu': loaded, 'mini_batch_sizes': [taken, loaded]}
    return {f'datasets:train:{key}': value for key, value in part.items()}


UNCERTAINTY = {
    'model_type': 'UncertaintyModel',
    'network_s': {'type': 'RDBESA', 'num_feat': 4, 'num_block': 1, 'squeeze_factor': 2, 'upscale': 2},
    'train:pixel_opt': {'type': 'UncertaintyEstimationLoss', 'loss_weight': 0.01},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('accumulate', 'changes'),
    [
        pytest.param(1, {'train:pixel_opt:reduction': 'sum'}, id='at-once'),
        pytest.param(2, {'train:pixel_opt:reduction': 'mean'}, id='in-two-parts'),
        pytest.param(2, UNCERTAINTY, id='in-two-parts-of-two-networks'),
        pytest.param(2, DISTILLATION, id='in-two-parts-with-a-teacher'),
    ],
)
def test_two_processes_give_the_gradients_of_one_with_twice_the_batch(tmp_path, accumulate, changes):
    once = {'train:total_iter': 1, 'logger:save_checkpoint_freq': 1, 'datasets:train:num_worker_per_gpu': 1, **changes}
    one = project(tmp_path / 'one', **once, **batches(loaded=8, taken=4))
    two = project(tmp_path / 'two', **once, **batches(loaded=4, taken=2), **{'train:accumulate': accumulate})
    runs = [start(one, ['-opt', 'tiny.yml']), start(two, ['-opt', 'tiny.yml'], processes=2)]
    for run in runs:
        output = finish(run)
        assert run.returncode == 0, output

    expected, actual = gradients(one), gradients(two)

    largest = max(value.abs().max().item() for value in expected.values())
    assert largest > 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6 * max(1, largest))
    assert [path.name for path in (two / 'experiments').iterdir()] == ['tiny']


@pytest.mark.slow
def test_two_processes_with_muon_give_the_weights_of_one_with_twice_the_batch(tmp_path):
    # Adam's eps is large because some biases have a gradient of rounding errors alone, whose sign differs.
    muon = {'type': 'Muon', 'lr': 0.01, 'adam': {'eps': 1e-4}}
    changes = {'train:total_iter': 2, 'train:optim_g': muon, 'train:grad_clip': 1.0}
    one = project(tmp_path / 'one', **changes, **{'datasets:train:batch_size_per_gpu': 4})
    two = project(tmp_path / 'two', **changes, **{'datasets:train:batch_size_per_gpu': 2})
    runs = [start(one, ['-opt', 'tiny.yml']), start(two, ['-opt', 'tiny.yml'], processes=2)]
    for run in runs:
        output = finish(run)
        assert run.returncode == 0, output

    expected, actual = (
        torch.load(folder / 'experiments/tiny/models/net_g_latest.pth', weights_only=True)['params']
        for folder in (one, two)
    )

    # A hundredth of a step.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_error_of_one_process_is_said_and_ends_all(tmp_path):
    folder = project(tmp_path / 'two', **{'train:total_iter': 100})
    for path in (folder / 'hr').iterdir():
        os.truncate(path, 200)
    run = start(folder, ['-opt', 'tiny.yml'], processes=2)
    output = finish(run)
    assert run.returncode != 0
    assert 'spinsr.train: error: ' in output and '.png cannot be read completely' in output


@pytest.mark.slow
def test_launcher_flag_without_a_launcher_is_one_line(tmp_path):
    folder = project(tmp_path / 'one')
    run = start(folder, ['-opt', 'tiny.yml', '--launcher', 'pytorch'])
    assert finish(run) == (
        'spinsr.train: error: --launcher pytorch: RANK is not set; start with: '
        'torchrun --nproc_per_node=N -m spinsr.train …\n'
    )
    assert run.returncode == 1


def test_processes_without_the_launcher_flag_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert train.main(['-opt', 'train_SPIN_x4.yml']) == 1
    error = capsys.readouterr().err
    assert error == 'spinsr.train: error: torchrun started 2 processes: add --launcher pytorch\n'


def test_processes_wait_for_a_long_validation_and_forget_a_failed_attempt(monkeypatch):
    calls, store = [], torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *args, **params: calls.append((args, params)))
    monkeypatch.setattr(torch.distributed, 'rendezvous', lambda url: iter([(store, 0, 2)]))
    monkeypatch.setattr(os, 'environ', {'RANK': '0', 'LOCAL_RANK': '0', 'WORLD_SIZE': '2', 'MASTER_ADDR': 'localhost'})
    distributed.init_process('pytorch', 0)
    os.environ['TORCHELASTIC_RESTART_COUNT'] = '1'
    distributed.init_process('pytorch', 0)
    assert [args for args, _ in calls] == [('gloo',)] * 2
    assert all(params['timeout'] == datetime.timedelta(hours=12) for _, params in calls)
    first, second = (params['store'] for _, params in calls)
    first.set('rank0', 'an address')
    assert first.check(['rank0']) and not second.check(['rank0'])


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='finds the processes in /proc')
def test_dead_process_ends_the_job_and_a_restart_goes_on(tmp_path):
    changes = {'train:total_iter': 120, 'logger:save_checkpoint_freq': 10, 'datasets:train:batch_size_per_gpu': 1}
    whole, broken = project(tmp_path / 'whole', **changes), project(tmp_path / 'broken', **changes)
    run = start(whole, ['-opt', 'tiny.yml'], processes=2)
    assert finish(run) and run.returncode == 0

    run = start(broken, ['-opt', 'tiny.yml', '--auto_resume'], processes=2, restarts=3)
    for state in (30, 60, 90):
        wait_for(broken / f'experiments/tiny/training_states/{state}.state')
        kill_rank(run, 1)
    output = finish(run)

    assert run.returncode == 0, output
    assert 'Resuming training from epoch' in output
    expected, actual = (
        torch.load(folder / 'experiments/tiny/models/net_g_latest.pth', weights_only=True) for folder in (whole, broken)
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)

    run = start(broken, ['-opt', 'tiny.yml', '--auto_resume', '--force_yml', 'train:total_iter=100000'], processes=2)
    wait_for(broken / 'experiments/tiny/training_states/140.state')
    kill_rank(run, 1)
    output = finish(run)
    assert run.returncode != 0
    assert 'Signal 9 (SIGKILL) received' in output


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The weights of a training of two processes that never stopped."""
    folder = project(tmp_path_factory.mktemp('two') / 'whole', **STOPPED)
    run = start(folder, ['-opt', 'tiny.yml'], processes=2)
    output = finish(run)
    assert run.returncode == 0, output
    return weights(folder)


def weights(folder):
    return torch.load(folder / 'experiments/tiny/models/net_g_latest.pth', weights_only=True)


def states(folder):
    return sorted(int(path.stem) for path in (folder / 'experiments/tiny/training_states').iterdir())


STOPPED = {
    'train:total_iter': 200,
    'logger:save_checkpoint_freq': 10,
    'datasets:train:batch_size_per_gpu': 1,
    'datasets:train:num_worker_per_gpu': 1,
}


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='finds the processes in /proc')
@pytest.mark.parametrize('rank', [0, 1, None], ids=['first', 'second', 'torchrun'])
def test_sigterm_ends_all_processes_after_the_same_iteration(tmp_path, whole, rank):
    folder = project(tmp_path / 'broken', **STOPPED)
    run = start(folder, ['-opt', 'tiny.yml'], processes=2)
    wait_for(folder / 'experiments/tiny/training_states/10.state')
    if rank is None:  # passes the signal on and ends with an error of its own, when the others are done
        run.terminate()
    else:
        kill_rank(run, rank, signal.SIGTERM)
    output = finish(run)

    assert (run.returncode == 0) == (rank is not None), output
    assert output.count('SIGTERM: training stops after iteration ') == 1
    last = states(folder)[-1]
    assert f'training stops after iteration {last} of 200.' in output and last < 200
    again = ['-opt', 'tiny.yml', '--launcher', 'pytorch', '--auto_resume']
    assert f'To continue: torchrun --nproc_per_node=2 -m spinsr.train {" ".join(again)}' in output
    run = start(folder, ['-opt', 'tiny.yml', '--auto_resume'], processes=2)
    output = finish(run)
    assert run.returncode == 0, output
    torch.testing.assert_close(weights(folder), whole, rtol=0, atol=0)


@pytest.mark.slow
def test_time_limit_ends_all_processes(tmp_path):
    folder = project(tmp_path / 'limited', **STOPPED, **{'train:time_limit': '1s'})
    run = start(folder, ['-opt', 'tiny.yml'], processes=2)
    output = finish(run)
    assert run.returncode == 0, output
    assert output.count('train:time_limit: training stops after iteration 1 of 200.') == 1
    assert states(folder) == [1]


def wait_for(path):
    wait_until(path.exists, f'{path} did not come')


def wait_until(condition, failure, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, failure
        time.sleep(0.02)


def kill_rank(torchrun, rank, number=signal.SIGKILL):
    """Sends the process of this rank a signal; after an earlier kill it may have to be started first."""

    def kill():
        for process in Path('/proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):
                parent = int((process / 'stat').read_text().rpartition(')')[2].split()[1])
                environment = (process / 'environ').read_bytes().split(b'\0')
                if parent == torchrun.pid and f'RANK={rank}'.encode() in environment:
                    os.kill(int(process.name), number)
                    return True
        return torchrun.poll() is not None

    wait_until(kill, f'no process of rank {rank}')
