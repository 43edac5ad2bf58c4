"""LMDBs grow, survive interruptions, and are never overwritten."""

import lmdb
import pytest

from spinsr.data import lmdb_writer
from spinsr.data.lmdb_writer import LmdbWriter

SHAPES = {'a_s001': (8, 6), 'a_s002': (8, 6), 'b_s001': (4, 4)}
A, B = [('a_s001', b'one'), ('a_s002', b'two')], [('b_s001', b'three')]


def content(path):
    env = lmdb.open(str(path), readonly=True, lock=False)
    with env.begin() as transaction:
        result = {key.decode(): value for key, value in transaction.cursor()}
    env.close()
    return result


@pytest.fixture
def writer(tmp_path):
    writers = []

    def make(shapes=SHAPES):
        writers.append(LmdbWriter(tmp_path / 'x.lmdb', shapes))
        return writers[-1]

    yield make
    for one in writers:
        one.close()


def fill(writer, *sources):
    for name, origin, images in sources:
        writer.put(name, origin, images)
    return writer


def test_layout_is_basicsrs(tmp_path, writer):
    fill(writer(), ('b', '1', B), ('a', '1', A)).finish()
    assert sorted(path.name for path in (tmp_path / 'x.lmdb').iterdir()) == ['data.mdb', 'meta_info.txt']
    assert (tmp_path / 'x.lmdb' / 'meta_info.txt').read_text().splitlines() == [
        'a_s001.png (8,6,3) 1',
        'a_s002.png (8,6,3) 1',
        'b_s001.png (4,4,3) 1',
    ]
    assert content(tmp_path / 'x.lmdb') == dict(A + B)
    assert [path.name for path in tmp_path.iterdir()] == ['x.lmdb']


def test_meta_info_says_the_level(tmp_path):
    writer = LmdbWriter(tmp_path / 'x.lmdb', {'b_s001': (4, 4)}, level=0)
    fill(writer, ('b', '1', B)).finish()
    assert (tmp_path / 'x.lmdb' / 'meta_info.txt').read_text() == 'b_s001.png (4,4,3) 0\n'
    assert LmdbWriter(tmp_path / 'x.lmdb', {'b_s001': (4, 4)}, level=0).finished
    with pytest.raises(ValueError, match='holds other images'):
        LmdbWriter(tmp_path / 'x.lmdb', {'b_s001': (4, 4)})


def test_unfinished_has_another_name_and_is_continued(tmp_path, writer):
    fill(writer(), ('a', '1', A)).close()
    assert [path.name for path in tmp_path.iterdir()] == ['x.lmdb.part']
    second = writer()
    assert (second.holds('a', '1'), second.holds('b', '1')) == (True, False)
    fill(second, ('b', '1', B)).finish()
    assert content(tmp_path / 'x.lmdb') == dict(A + B)


def test_another_origin_is_made_anew(tmp_path, writer):
    # The source was larger in the first run: what is too much is taken out.
    fill(writer(), ('a', '1', [*A, ('a_s003', b'old')])).close()
    second = writer()
    assert not second.holds('a', '2')
    fill(second, ('a', '2', [('a_s001', b'new'), ('a_s002', b'new')]), ('b', '1', B)).finish()
    assert content(tmp_path / 'x.lmdb') == {'a_s001': b'new', 'a_s002': b'new', 'b_s001': b'three'}


def test_finished_is_left_alone(tmp_path, writer):
    fill(writer(), ('a', '1', A), ('b', '1', B)).finish()
    before = (tmp_path / 'x.lmdb' / 'data.mdb').stat().st_mtime_ns
    second = writer()
    assert second.finished and second.holds('a', 'any')
    second.finish()
    assert (tmp_path / 'x.lmdb' / 'data.mdb').stat().st_mtime_ns == before


def test_finished_with_other_images_is_an_error(tmp_path, writer):
    fill(writer(), ('a', '1', A), ('b', '1', B)).finish()
    with pytest.raises(ValueError, match=r'x.lmdb exists and holds other images than these sources give \(1\)'):
        writer({'a_s001': (8, 6)})
    assert content(tmp_path / 'x.lmdb') == dict(A + B)


def test_a_folder_that_is_no_lmdb_is_an_error(tmp_path, writer):
    (tmp_path / 'x.lmdb').mkdir()
    with pytest.raises(ValueError, match='x.lmdb exists and is not a finished LMDB'):
        writer()


def test_a_part_that_is_no_lmdb_is_an_error(tmp_path, writer):
    (tmp_path / 'x.lmdb.part').mkdir()
    (tmp_path / 'x.lmdb.part' / 'data.mdb').write_bytes(b'x' * 10000)
    with pytest.raises(OSError, match='x.lmdb.part cannot be opened.*remove it'):
        writer()


def test_the_map_grows(tmp_path, writer, monkeypatch):
    monkeypatch.setattr(lmdb_writer, 'FIRST_MAP_SIZE', 2**16)
    big = [('a_s001', bytes(3 * 2**20)), ('a_s002', b'two')]
    fill(writer(), ('a', '1', big), ('b', '1', B)).finish()
    assert content(tmp_path / 'x.lmdb') == dict(big + B)


def test_the_file_is_as_large_as_its_data(tmp_path, writer):
    fill(writer(), ('a', '1', A), ('b', '1', B)).finish()
    assert (tmp_path / 'x.lmdb' / 'data.mdb').stat().st_size < 2**20
