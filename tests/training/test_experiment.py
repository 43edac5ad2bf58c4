"""The lock of an experiment: one process at a time, and nothing of a dead one."""

import json
import os
import socket
import subprocess
import sys

import pytest

from spinsr.training import experiment
from spinsr.training.experiment import Lock
from spinsr.utils.errors import OptionError

HOLD = """
import sys
from spinsr.training.experiment import Lock
lock = Lock(sys.argv[1])
lock.acquire()
print('held', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path / 'tiny')],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout.readline() == b'held\n'
    yield process
    process.kill()
    process.wait()


def test_second_process_is_refused_and_told_who_holds_it(tmp_path, other):
    with pytest.raises(OptionError) as caught:
        Lock(tmp_path / 'tiny').acquire()
    assert f'is in use by process {other.pid} on {socket.gethostname()}, started 2' in str(caught.value)
    other.kill()
    other.wait()
    with Lock(tmp_path / 'tiny'):
        assert json.loads((tmp_path / '.tiny.lock').read_text())['pid'] == os.getpid()


def test_nothing_is_left_after_a_run(tmp_path):
    with Lock(tmp_path / 'tiny'):
        assert (tmp_path / '.tiny.lock').exists()
    assert list(tmp_path.iterdir()) == []
    with Lock(tmp_path / 'tiny'):
        pass


@pytest.mark.parametrize(
    ('holder', 'is_free'),
    [
        ({'host': 'elsewhere', 'pid': 1, 'start': 'today'}, False),
        ({'host': None, 'pid': 1, 'start': 'today'}, False),
        ({'host': None, 'pid': 2**22 + 1, 'start': 'today'}, True),
        ({}, True),
        ('half a line', True),
    ],
    ids=['other-host', 'alive', 'dead', 'nobody', 'damaged'],
)
def test_without_locks_of_the_file_system_the_process_counts(tmp_path, monkeypatch, holder, is_free):
    if isinstance(holder, dict):
        holder = json.dumps({**holder, 'host': holder.get('host') or socket.gethostname()} if holder else {})
    (tmp_path / '.tiny.lock').write_text(holder)
    monkeypatch.setattr(experiment, '_lock', lambda file: None)
    if is_free:
        with Lock(tmp_path / 'tiny'):
            pass
    else:
        with pytest.raises(OptionError, match='if it has ended, delete'):
            Lock(tmp_path / 'tiny').acquire()


def test_a_lock_that_was_deleted_while_it_was_opened_is_taken_again(tmp_path, monkeypatch):
    answers = iter([False, True])
    monkeypatch.setattr(experiment, '_is_same', lambda file, path: next(answers))
    with Lock(tmp_path / 'tiny'):
        assert next(answers, None) is None
