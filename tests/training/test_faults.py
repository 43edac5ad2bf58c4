"""Training that is killed again and again, runs out of disk, meets damaged samples, and does not grow."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from spinsr.training import checkpoints

from ..tiny_project import TRAIN, changed, write_images, write_options

pytestmark = pytest.mark.slow

KILLS, STOPS = 24, 5
LONG = {
    'network_g:num_feat': 40,
    'network_g:num_block': 2,
    'network_g:qk_dim': 24,
    'network_g:mlp_dim': 72,
    'network_g:stoken_size': [4, 6],
    'datasets:train:num_worker_per_gpu': 2,
    'datasets:train:dataset_enlarge_ratio': 3,
    'train:total_iter': 330,
    'train:scheduler:milestones': [150, 250],
    'train:warmup_iter': 40,
    'val:val_freq': 15,
    'logger:print_freq': 100,
    'logger:save_checkpoint_freq': 6,
    'logger:keep_last': 3,
}


def start(folder, *flags, **keywords):
    log = open(folder / 'log.txt', 'a')
    return subprocess.Popen(
        [sys.executable, '-m', 'spinsr.train', '-opt', 'tiny.yml', *flags],
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
        stdout=log,
        stderr=log,
        **keywords,
    )


def start_and_save(folder):
    """Starts a training and waits for its first checkpoint."""
    process = start(folder)
    while not saved(folder / 'experiments/tiny'):
        assert process.poll() is None
        time.sleep(0.002)
    return process


def project(folder, images=7, **changes):
    folder.mkdir()
    write_images(folder, images)
    write_options(folder / 'tiny.yml', changed(TRAIN, {**LONG, **changes}))
    return folder / 'experiments/tiny'


def saved(experiment):
    return {int(path.stem) for path in (experiment / 'training_states').glob('*.state')}


def parts(experiment):
    return [path for folder in ('models', 'training_states') for path in (experiment / folder).glob('.*.part')]


def final(experiment, last):
    weights = torch.load(experiment / 'models/net_g_latest.pth', weights_only=True)
    state = torch.load(experiment / f'training_states/{last}.state', weights_only=True)
    return weights, {key: value for key, value in state.items() if key != checkpoints.NETWORKS}


def differences(one, other):
    """How many leaves of two nested containers differ."""
    if isinstance(one, torch.Tensor):
        return int(one.dtype != other.dtype or not torch.equal(one, other))
    if isinstance(one, dict):
        return len(one.keys() ^ other.keys()) + sum(differences(one[key], other[key]) for key in one.keys() & other)
    if isinstance(one, (list, tuple)):
        return abs(len(one) - len(other)) + sum(differences(*pair) for pair in zip(one, other, strict=False))
    return int(one != other)


def test_killed_training_ends_with_the_bits_of_one_that_was_not(tmp_path, capsys):
    whole, broken = project(tmp_path / 'whole'), project(tmp_path / 'broken')
    assert start(tmp_path / 'whole').wait() == 0
    rng, kills, in_a_write = random.Random(0), 0, 0
    while True:
        before = saved(broken)
        process = start(tmp_path / 'broken', '--auto_resume')
        if kills < KILLS:
            # Every second time in the middle of a write, else some time after the first new checkpoint.
            in_write, wait = kills % 2 == 0, rng.uniform(0, 0.3)
            while process.poll() is None and not saved(broken) - before:
                time.sleep(0.002)
            end = time.monotonic() + (5 if in_write else wait)
            while process.poll() is None and time.monotonic() < end and not (in_write and parts(broken)):
                pass
            process.send_signal(signal.SIGKILL)
        status = process.wait()
        if status == 0:
            break
        assert status == -signal.SIGKILL, (tmp_path / 'broken/log.txt').read_text()[-2000:]
        kills += 1
        in_a_write += bool(parts(broken))
    resumes = (tmp_path / 'broken/log.txt').read_text().count('Resuming training from epoch')
    differing = differences(final(broken, 330), final(whole, 330))
    with capsys.disabled():
        print(f'\n{kills} kills, {in_a_write} of them in a write, {resumes} resumes, {differing} differences')
    assert differing == 0
    assert kills >= 20 and in_a_write >= 3 and resumes >= kills - 1
    assert saved(broken) == saved(whole) == {318, 324, 330}
    assert not parts(broken)


@pytest.mark.skipif(not hasattr(signal, 'sigwaitinfo'), reason='the workers are not spared on macOS and Windows')
def test_training_whose_processes_get_sigterm_again_and_again_ends_with_the_same_bits(tmp_path, capsys):
    whole, broken = project(tmp_path / 'whole'), project(tmp_path / 'broken')
    assert start(tmp_path / 'whole').wait() == 0
    rng, log = random.Random(0), tmp_path / 'broken/log.txt'
    for number in range(1, STOPS + 1):
        before = saved(broken)
        process = start(tmp_path / 'broken', '--auto_resume', start_new_session=True)
        while process.poll() is None and number % 3 and not saved(broken) - before:
            time.sleep(0.002)
        while log.read_text().count('Start training') < number and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.6))
        for _ in range(2):  # as `timeout` does
            os.killpg(process.pid, signal.SIGTERM)
        assert process.wait() == 0, log.read_text()[-2000:]
        with pytest.raises(ProcessLookupError):  # no worker is left
            os.killpg(process.pid, 0)
    stops, nothing = (log.read_text().count(words) for words in ('training stops after', 'nothing was trained'))
    with capsys.disabled():
        print(f'\n{stops} stops, {nothing} before the first iteration')
    assert stops + nothing == STOPS and stops >= STOPS / 2
    assert start(tmp_path / 'broken', '--auto_resume').wait() == 0
    assert 'Traceback' not in log.read_text()
    assert differences(final(broken, 330), final(whole, 330)) == 0


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='looks into /proc')
def test_sigterm_while_the_program_is_imported_ends_it_in_order(tmp_path):
    project(tmp_path / 'early')
    process = start(tmp_path / 'early')
    status = Path(f'/proc/{process.pid}/status')
    while not int(re.search(r'SigCgt:\s+(\w+)', status.read_text()).group(1), 16) >> signal.SIGTERM - 1 & 1:
        time.sleep(0.001)
    process.terminate()
    assert process.wait() == 0
    assert (
        'SIGTERM before the first iteration of this run: nothing was trained'
        in (tmp_path / 'early/log.txt').read_text()
    )


def test_full_disk_ends_training_and_leaves_the_last_checkpoint(tmp_path):
    resource = pytest.importorskip('resource', reason='limits the size of files, as Windows cannot')
    experiment = project(tmp_path / 'full', **{'logger:save_checkpoint_freq': 5})
    whole = project(tmp_path / 'whole', **{'logger:save_checkpoint_freq': 5})
    process = start_and_save(tmp_path / 'full')
    # From now on no file may grow beyond 100 kB: a checkpoint has 10 times as much.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    assert process.wait() == 1
    log = (tmp_path / 'full/log.txt').read_text().splitlines()
    assert re.fullmatch(r'spinsr\.train: error: \S+ cannot be written: File too large; .*', log[-1])
    assert checkpoints.newest(experiment / 'training_states', experiment / 'models')[0] is not None
    assert not parts(experiment)
    assert start(tmp_path / 'full', '--auto_resume').wait() == 0
    assert start(tmp_path / 'whole').wait() == 0
    assert differences(final(experiment, 330), final(whole, 330)) == 0


def test_dead_worker_ends_training_with_a_line(tmp_path):
    project(tmp_path / 'dead')
    process = start_and_save(tmp_path / 'dead')
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    workers = [pid for pid in children if b'spinsr' in Path(f'/proc/{pid}/cmdline').read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    assert process.wait() == 1
    log = (tmp_path / 'dead/log.txt').read_text().splitlines()
    # From torch, which knows of the signal or not, or from us where the worker had announced a batch.
    assert re.fullmatch(r'spinsr\.train: error: .*worker.*', log[-1]) and 'Traceback' not in '\n'.join(log)
    assert start(tmp_path / 'dead', '--auto_resume').wait() == 0


def test_damaged_sample_ends_training_with_its_name_and_mending_it_goes_on(tmp_path):
    experiment = project(tmp_path / 'damaged')
    process = start_and_save(tmp_path / 'damaged')
    image = tmp_path / 'damaged/hr/3.png'
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    assert process.wait() == 1
    log = (tmp_path / 'damaged/log.txt').read_text().splitlines()
    assert re.fullmatch(r'spinsr\.train: error: hr/3\.png cannot be read completely: .*', log[-1])
    image.write_bytes(content)
    assert start(tmp_path / 'damaged', '--auto_resume').wait() == 0
    whole = project(tmp_path / 'whole')
    assert start(tmp_path / 'whole').wait() == 0
    assert differences(final(experiment, 330), final(whole, 330)) == 0


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='counts open files in /proc')
def test_memory_and_open_files_do_not_grow(tmp_path, capsys):
    experiment = project(tmp_path / 'long', **{'train:total_iter': 900})
    process = start(tmp_path / 'long')
    seen = {}
    while process.poll() is None:
        number = max(saved(experiment), default=0)
        if number and number % 30 == 0 and number not in seen:
            try:
                status = Path(f'/proc/{process.pid}/status').read_text()
                memory = int(re.search(r'VmRSS:\s+(\d+)', status).group(1)) / 1024
                seen[number] = memory, len(os.listdir(f'/proc/{process.pid}/fd'))
            except (OSError, AttributeError):
                break
        time.sleep(0.01)
    assert process.wait() == 0
    numbers = sorted(seen)
    early, late = ([seen[n] for n in numbers if low <= n < high] for low, high in ((150, 420), (600, 900)))
    memory = [max(entry[0] for entry in part) for part in (early, late)]
    files = [min(entry[1] for entry in part) for part in (early, late)]  # a checkpoint being written has one more
    with capsys.disabled():
        print(f'\niterations 150 to 420 and 600 to 900: {memory[0]:.0f} and {memory[1]:.0f} MB, {files} open files')
    assert memory[1] < memory[0] + 20
    assert files[1] <= files[0]
