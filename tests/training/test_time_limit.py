"""A run that ends on time: by SIGTERM and by train: time_limit, and goes on as if nothing had happened."""

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.utils import logger as basicsr_logger
from torch.utils.data import DataLoader

from spinsr import train
from spinsr.models.spinsr_model import SpinsrModel
from spinsr.training import distributed, sampling, time_limit

from ..tiny_project import TRAIN, changed, write_images, write_options
from .test_exact_resume import LONG, assert_identical, files, final


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        ('170m', 10200),
        ('2h', 7200),
        ('2h30m', 9000),
        ('1d 12h', 129600),
        ('90s', 90),
        ('1.5h', 5400),
        (90, 90),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_seconds(value, expected):
    assert time_limit.seconds(value) == expected
    assert time_limit.TIME_LIMIT.holds(value)


@pytest.mark.parametrize('value', ['', '0m', 0, -1, '5', '30m2h', '2 hours', True, [3], float('nan')])
def test_what_is_no_time_is_refused(value):
    with pytest.raises(ValueError, match='must be a time such as 170m'):
        time_limit.seconds(value)
    assert not time_limit.TIME_LIMIT.holds(value)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time_limit.time, 'monotonic', lambda: now[0])
    return now


def iterate(stop, clock, took):
    with stop.waiting():
        clock[0] += took / 2
    stop.iterating()
    clock[0] += took / 2
    stop.iterated()


def test_run_ends_when_an_iteration_and_a_checkpoint_would_be_too_long(clock):
    stop = time_limit.Stop(program=False)
    stop.limit, stop.writing = 20, 3
    assert not stop.asked()
    iterate(stop, clock, 4)
    iterate(stop, clock, 2)
    clock[0] = 112.9  # and 4 and 3: 19.9
    assert not stop.asked()
    clock[0] = 113.1
    assert stop.asked() and stop.cause == 'train:time_limit'


def test_the_shortest_limit_allows_an_iteration(clock):
    stop = time_limit.Stop(program=False)
    stop.limit = 1
    clock[0] += 5
    assert not stop.asked()
    iterate(stop, clock, 1)
    assert stop.asked()


def test_iterations_of_long_ago_do_not_count(clock):
    stop = time_limit.Stop(program=False)
    stop.limit = 1000
    iterate(stop, clock, 600)  # torch.compile
    for _ in range(100):
        iterate(stop, clock, 1)
    assert not stop.asked()


def test_time_of_a_program_counts_from_its_start(monkeypatch):
    monkeypatch.setattr(time_limit, '_process_age', lambda: 50.0)
    begin = time.monotonic()
    assert time_limit.Stop(program=True)._begin == pytest.approx(begin - 50, abs=1)
    assert time_limit.Stop(program=False)._begin == pytest.approx(begin, abs=1)


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads the start of a process in /proc')
def test_age_of_a_process():
    context, begin = multiprocessing.get_context('fork'), time.monotonic()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: (time.sleep(0.1), sender.send(time_limit._process_age())))
    process.start()
    age = receiver.recv()
    process.join()
    assert 0.1 <= age < time.monotonic() - begin + 0.02  # it counts in hundredths


def test_another_process_that_got_the_signal_ends_this_one(monkeypatch):
    monkeypatch.setattr(distributed, 'largest', lambda value: max(value, 2))
    stop = time_limit.Stop(program=False)
    with pytest.raises(time_limit.Stopped):
        stop.end_if_asked()
    assert stop.cause == 'SIGTERM'


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_one_of_several_processes_does_not_leave_the_others_waiting(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with time_limit.Stop(program=False) as stop:
        with stop.waiting():
            terminate()
        assert stop.asked()


def test_signal_that_comes_twice_counts_once_and_a_later_one_ends_all():
    with time_limit.Stop(program=False) as stop:
        stop.iterating()
        terminate()
        terminate()
        stop._signalled -= 5
        with pytest.raises(KeyboardInterrupt):
            terminate()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_workers_are_not_left_half_started():
    """Another thread than the one that starts them may take the signal."""
    begun = []
    with time_limit.Stop(program=False) as stop, pytest.raises(time_limit.Stopped):
        with stop.uninterrupted(blocked=True):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            terminate()
            begun.append('workers')
        begun.append('data')
    assert begun == ['workers']


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return index


@pytest.mark.skipif(not hasattr(signal, 'sigwaitinfo'), reason='not on macOS and Windows')
@pytest.mark.parametrize('start', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_workers_end_by_the_signal_of_their_parent_only(start):
    loader = DataLoader(Numbers(), num_workers=1, multiprocessing_context=start)
    batches = iter(time_limit.Unterminated(loader, time_limit.Stop(program=False)))
    (worker,) = batches._workers
    subprocess.run(['kill', str(worker.pid)], check=True)  # while it begins
    next(batches)
    subprocess.run(['kill', str(worker.pid)], check=True)
    assert [next(batches).item() for _ in range(10)] == list(range(1, 11))
    assert worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# Training


def options(folder, name, changes):
    return write_options(folder / f'{name}.yml', changed(TRAIN, {**LONG, 'name': name, **changes}))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A folder with a training that never stopped, and what it left."""
    folder = tmp_path_factory.mktemp('whole')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(basicsr_logger, 'initialized_logger', {})
        write_images(folder, 5)
        assert train.main(['-opt', options(folder, 'whole', {})]) == 0
        return folder, final('whole')


@pytest.fixture
def project(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(basicsr_logger, 'initialized_logger', {})
    for name in ('hr', 'lr'):
        Path(name).symlink_to(whole[0] / name)
    return tmp_path


def at(monkeypatch, owner, name, call, action=terminate):
    """Lets something happen in the given call, counted from 1, of a function; returns the count of calls."""
    calls, own = [0], getattr(owner, name)

    def acting(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            action()
        return own(*args, **kwargs)

    monkeypatch.setattr(owner, name, acting)
    return calls


ITERATION, SAMPLE = (SpinsrModel, 'optimize_parameters'), (sampling.ExactDataset, '_checked')
IMAGE, CHECKPOINT = (SpinsrModel, 'test'), (SpinsrModel, 'save')


@pytest.mark.parametrize(
    ('where', 'call', 'states'),
    [
        pytest.param(ITERATION, 1, [1], id='in-the-first-iteration', marks=pytest.mark.slow),
        pytest.param(ITERATION, 4, [3, 4], id='at-the-end-of-an-epoch'),
        pytest.param(ITERATION, 6, [3, 6], id='before-a-checkpoint', marks=pytest.mark.slow),
        pytest.param(ITERATION, 8, [3, 6, 8], id='in-the-middle', marks=pytest.mark.slow),
        pytest.param(CHECKPOINT, 2, [3, 6], id='in-a-checkpoint'),
        pytest.param(SAMPLE, 15, [3, 4], id='while-an-epoch-begins', marks=pytest.mark.slow),
        pytest.param(SAMPLE, 17, [3, 5], id='while-data-is-loaded', marks=pytest.mark.slow),
        pytest.param(IMAGE, 7, [3, 6], id='in-a-validation', marks=pytest.mark.slow),
    ],
)
def test_stopped_training_goes_on_to_the_same_bits(project, whole, monkeypatch, capfd, where, call, states):
    broken = options(project, 'broken', {})
    with monkeypatch.context() as patch:
        at(patch, *where, call)
        images = at(patch, *IMAGE, 0)
        assert train.main(['-opt', broken]) == 0
    log = capfd.readouterr().err

    assert f'SIGTERM: training stops after iteration {states[-1]} of 11.' in log
    assert f'To continue: python -m spinsr.train -opt {broken} --auto_resume' in log
    assert 'End of training' not in log
    if where is IMAGE:
        assert images[0] == call
    models, folder = files('broken')
    assert sorted(int(path.stem) for path in folder.iterdir()) == states
    assert not (models / 'net_g_latest.pth').exists()

    assert train.main(['-opt', broken, '--auto_resume']) == 0
    assert_identical(final('broken'), whole[1])


@pytest.mark.slow
def test_validation_between_two_checkpoints_is_left_and_done_on_resume(project, whole, monkeypatch):
    """The checkpoint is written with the best metrics of before."""
    changes = {'logger:save_checkpoint_freq': 9}
    broken = options(project, 'broken', changes)
    with monkeypatch.context() as patch:
        at(patch, *IMAGE, 7)
        assert train.main(['-opt', broken]) == 0
    (state,) = files('broken')[1].iterdir()
    assert state.name == '6.state'
    best = torch.load(state, weights_only=True)['best_metric_results']['pairs_val']['psnr']
    assert best['iter'] == 3

    assert train.main(['-opt', broken, '--auto_resume']) == 0
    assert_identical(final('broken'), whole[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ('where', 'call'),
    [
        pytest.param(ITERATION, 11, id='in-the-last-iteration'),
        pytest.param(CHECKPOINT, 4, id='while-the-weights-are-written'),
        pytest.param(IMAGE, 17, id='in-the-last-validation'),
    ],
)
def test_after_the_last_iteration_only_its_validation_is_left_out(project, whole, monkeypatch, capfd, where, call):
    broken = options(project, 'broken', {})
    with monkeypatch.context() as patch:
        at(patch, *where, call)
        assert train.main(['-opt', broken]) == 0
    log = capfd.readouterr().err

    assert 'End of training' in log and 'SIGTERM: the last validation is left out. To do it: ' in log
    assert_identical(final('broken'), whole[1])
    with monkeypatch.context() as patch:
        trained, images = at(patch, *ITERATION, 0), at(patch, *IMAGE, 0)
        assert train.main(['-opt', broken, '--auto_resume']) == 0
    assert (trained[0], images[0]) == (0, 5)
    assert_identical(final('broken'), whole[1])


def test_time_limit_ends_a_run_after_an_iteration(project, whole, capfd):
    broken = options(project, 'broken', {'logger:keep_last': 3})
    for number in (1, 2):
        assert train.main(['-opt', broken, '--auto_resume', '--force_yml', 'train:time_limit=0.001']) == 0
        assert f'train:time_limit: training stops after iteration {number} of 11.' in capfd.readouterr().err
    assert train.main(['-opt', broken, '--auto_resume', '--force_yml', 'train:time_limit=1h']) == 0
    assert_identical(final('broken'), whole[1])


@pytest.mark.slow
def test_time_limit_ends_a_validation_between_two_images(project, whole, monkeypatch, capfd):
    broken, moves = options(project, 'broken', {'train:time_limit': '1h'}), []
    with monkeypatch.context() as patch:
        own = time.monotonic
        patch.setattr(time_limit.time, 'monotonic', lambda: own() + sum(moves))
        images = at(patch, *IMAGE, 7, lambda: moves.append(3600))
        assert train.main(['-opt', broken]) == 0
    assert images[0] == 7
    assert 'train:time_limit: training stops after iteration 6 of 11.' in capfd.readouterr().err

    assert train.main(['-opt', broken, '--auto_resume']) == 0
    assert_identical(final('broken'), whole[1])


@pytest.mark.parametrize(
    ('owner', 'name'),
    [
        pytest.param(train, '_make_exp_dirs', id='while-the-folders-are-made'),
        pytest.param(SpinsrModel, '__init__', id='while-the-model-is-built'),
        pytest.param(*SAMPLE, id='while-the-first-batch-is-loaded'),
    ],
)
def test_before_the_first_iteration_nothing_is_written(project, monkeypatch, capfd, owner, name):
    broken = options(project, 'broken', {})
    at(monkeypatch, owner, name, 1)
    trained = at(monkeypatch, *ITERATION, 0)
    assert train.main(['-opt', broken]) == 0
    assert (
        'SIGTERM before the first iteration of this run: nothing was trained' in capfd.readouterr().err.splitlines()[-1]
    )
    assert trained[0] == 0
    assert not any(path.is_file() for folder in files('broken') for path in folder.glob('*'))


@pytest.mark.slow
def test_resumed_run_that_ends_in_its_first_validation_leaves_the_checkpoint(project, whole, monkeypatch, capfd):
    broken = options(project, 'broken', {})
    with monkeypatch.context() as patch:
        at(patch, *ITERATION, 6)
        assert train.main(['-opt', broken]) == 0
    with monkeypatch.context() as patch:
        at(patch, *IMAGE, 3)
        assert train.main(['-opt', broken, '--auto_resume']) == 0
    assert 'nothing was trained' in capfd.readouterr().err
    assert sorted(path.name for path in files('broken')[1].iterdir()) == ['3.state', '6.state']
    assert train.main(['-opt', broken, '--auto_resume']) == 0
    assert_identical(final('broken'), whole[1])


def test_second_signal_ends_at_once(project, whole, monkeypatch, capfd):
    broken = options(project, 'broken', {})

    def twice():
        terminate()
        terminate()

    with monkeypatch.context() as patch:
        patch.setattr(time_limit, '_SAME_SIGNAL', -1)
        at(patch, *ITERATION, 5, twice)
        assert train.main(['-opt', broken]) == 1
    assert capfd.readouterr().err.splitlines()[-1] == 'spinsr.train: ended by a second SIGTERM'
    assert [path.name for path in files('broken')[1].iterdir()] == ['3.state']
    assert train.main(['-opt', broken, '--auto_resume']) == 0
    assert_identical(final('broken'), whole[1])


@pytest.fixture
def ctrl_c():
    """Lets this process hear Ctrl-C: a shell starts background jobs, and so the tests in one, deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_one_line(project, ctrl_c, monkeypatch, capfd):
    at(monkeypatch, *ITERATION, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train.main(['-opt', options(project, 'broken', {})]) == 130
    assert capfd.readouterr().err.splitlines()[-1] == 'spinsr.train: interrupted'


@pytest.mark.slow
def test_model_of_basicsr_stops_too(project, monkeypatch, capfd):
    from basicsr.models.sr_model import SRModel

    broken = options(project, 'broken', {'model_type': 'SRModel'})
    at(monkeypatch, SRModel, 'optimize_parameters', 4)
    assert train.main(['-opt', broken]) == 0
    models, states = files('broken')
    assert {path.name for path in (*models.iterdir(), *states.iterdir())} >= {'net_g_4.pth', '4.state'}
    assert train.main(['-opt', broken, '--auto_resume']) == 0
    assert 'Resuming training from epoch: 1, iter: 4.' in capfd.readouterr().err


def test_wrong_time_limit_is_one_line(project, capfd):
    broken = options(project, 'broken', {'train:time_limit': '2 hours'})
    for flags in ([], ['--no-check']):
        assert train.main(['-opt', broken, *flags]) == 1
        assert 'train:time_limit' in capfd.readouterr().err.splitlines()[-1]
