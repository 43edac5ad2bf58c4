"""LMDBs that would crash the process, or that BasicSR would misread, are recognized without opening them."""

import os

import lmdb
import pytest

from spinsr import compat
from spinsr.utils import lmdb_file
from spinsr.utils.errors import DataError


@pytest.fixture
def data(tmp_path):
    """An LMDB of 50 images, one of them deleted."""
    path = tmp_path / 'x.lmdb'
    with lmdb.open(str(path), map_size=2**24) as environment:
        with environment.begin(write=True) as transaction:
            for index in range(50):
                transaction.put(f'k{index}'.encode(), bytes([index]) * 9000)
        with environment.begin(write=True) as transaction:
            transaction.delete(b'k0')
    (path / 'meta_info.txt').write_text('\n'.join(f'k{index}.png (9,9,3) 1' for index in range(1, 50)))
    return path


def test_a_whole_one_has_no_problem(data):
    assert lmdb_file.problem(data) == ''


@pytest.mark.parametrize('part', [0.5, 0.9, 0.1])
def test_one_that_is_cut_off(data, part):
    os.truncate(data / 'data.mdb', int(part * (data / 'data.mdb').stat().st_size))
    assert 'is cut off' in lmdb_file.problem(data)
    with pytest.raises(DataError, match='is cut off'):
        compat._open_shared(str(data), False, {})


@pytest.mark.parametrize(('count', 'size'), [(3, 100), (200, 300), (5, 9000)], ids=['root', 'leaf', 'big'])
def test_one_that_lacks_the_last_page_that_is_needed(tmp_path, count, size):
    # One transaction, so no page is free: the last one is the root, or one of those below it.
    with lmdb.open(str(tmp_path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for index in range(count):
            transaction.put(f'k{index}'.encode(), bytes(size))
    file = tmp_path / 'data.mdb'
    assert lmdb_file.data_problem(tmp_path) == ''
    os.truncate(file, file.stat().st_size - 4096)
    assert 'is cut off' in lmdb_file.data_problem(tmp_path)


def test_one_that_lacks_a_free_page_is_whole(tmp_path):
    # The transaction's last page is given up before it ends.
    with lmdb.open(str(tmp_path), map_size=2**24) as environment:
        for start in range(0, 40, 10):
            with environment.begin(write=True) as transaction:
                for index in range(start, start + 10):
                    transaction.put(f'{index:05}'.encode(), bytes(300))
    file = tmp_path / 'data.mdb'
    os.truncate(file, file.stat().st_size - 4096)
    assert lmdb_file.data_problem(tmp_path) == ''


@pytest.mark.parametrize('content', [b'', b'x' * 300, bytes(8192)], ids=['empty', 'text', 'zeros'])
def test_another_file(data, content):
    (data / 'data.mdb').write_bytes(content)
    assert 'is not an LMDB' in lmdb_file.problem(data)


def test_a_root_outside_of_the_file(data):
    content = bytearray((data / 'data.mdb').read_bytes())
    for page in (0, 4096):
        content[page + 16 + 24 + 48 + 40 : page + 16 + 24 + 48 + 48] = (10**6).to_bytes(8, 'little')
    (data / 'data.mdb').write_bytes(content)
    assert 'root lies outside' in lmdb_file.problem(data)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'k1.png (9,9,3) 1\n\n', 'line 2 must be like'),
        (b'k1 (9,9,3) 1\n', 'line 1 must be like'),
        (b'\xff\n', 'is not a text file in UTF-8'),
        ('ä.png (9,9,3) 1\n'.encode(), 'a key must be ASCII'),
        (b'k.png (9,9,3) 1\n' * 99, 'names 99 images, but data.mdb has 49'),
    ],
    ids=['empty-line', 'no-ending', 'encoding', 'no-ascii', 'more-than-there-are'],
)
def test_a_wrong_meta_info(data, content, words):
    (data / 'meta_info.txt').write_bytes(content)
    assert words in lmdb_file.problem(data)
