import errno
import os

import pytest

from spinsr.utils import atomic_write


def test_file_is_written_and_replaced(tmp_path):
    path = tmp_path / 'a.bin'
    for data in (b'first', memoryview(b'second')):
        atomic_write.write_bytes(path, data)
        assert path.read_bytes() == bytes(data)
    assert os.listdir(tmp_path) == ['a.bin']


def test_failure_names_the_file_and_leaves_it_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match=r'a\.bin cannot be written: No space left on device$'):
        atomic_write.write_bytes(path, b'new')
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.bin']
