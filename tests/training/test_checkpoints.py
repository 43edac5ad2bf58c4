"""Checkpoint files: a digest of the whole file, which other readers skip, and damage that is always found."""

import hashlib
import io
import pickle

import pytest
import torch

from spinsr.training import checkpoints
from spinsr.utils.errors import CheckpointError

MOMENTS = {'step': torch.tensor(3.0), 'exp_avg': torch.arange(64.0)}
STATE = {
    'epoch': 0,
    'iter': 4,
    'optimizers': [{'state': {0: MOMENTS}, 'param_groups': [{'lr': 1e-3, 'params': [0]}]}],
    'schedulers': [{'last_epoch': 4}],
}


@pytest.fixture
def models(tmp_path):
    checkpoints.write(tmp_path / 'net_g_4.pth', {'params': {'w': torch.arange(8.0)}})
    return tmp_path


def directory_record(content, name=b'/data/1'):
    """Where the directory of a ZIP archive describes a record."""
    return content.rindex(b'PK\1\2', 0, content.rindex(name))


def without_digest(content):
    """The file as torch.save wrote it."""
    plain = io.BytesIO()
    torch.save(content, plain)
    return plain.getvalue()


@pytest.mark.parametrize('sealed', [True, False], ids=['with-digest', 'without'])
def test_folder_bit_of_a_record_is_damage(models, sealed):
    path = models / '4.state'
    checkpoints.write(path, STATE)
    content = bytearray(path.read_bytes() if sealed else without_digest(STATE))
    content[directory_record(content) + 38] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='is damaged'):
        checkpoints.read_state(path, models)


def test_damage_to_the_digest_itself_is_damage(models):
    path = models / '4.state'
    checkpoints.write(path, STATE)
    content = path.read_bytes()
    for position in range(len(content) - 22 - 71, len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match='is damaged'):
            checkpoints.read_state(path, models)


def test_end_of_an_archive_that_names_several_disks_is_damage(models):
    # The 64-bit end record before the usual one: zipfile refuses to look for an archive then.
    locator = b'PK\6\7' + bytes(12) + (2).to_bytes(4, 'little')
    plain = without_digest(STATE)
    (models / '4.state').write_bytes(plain[:-22] + locator + plain[-22:])
    with pytest.raises(CheckpointError) as caught:
        checkpoints.read_state(models / '4.state', models)
    assert str(caught.value).count('is damaged') == 1


@pytest.mark.parametrize('mmap', [False, True])
def test_other_readers_skip_the_digest(models, mmap):
    checkpoints.write(models / '4.state', STATE)
    content = torch.load(models / '4.state', weights_only=True, mmap=mmap)
    assert torch.equal(content['optimizers'][0]['state'][0]['exp_avg'], MOMENTS['exp_avg'])
    assert content.keys() == STATE.keys()


def test_digest_that_write_returns_is_that_of_the_whole_file(models):
    digest = checkpoints.write(models / 'a.pth', {'w': torch.ones(2)})
    assert digest == hashlib.sha256((models / 'a.pth').read_bytes()).hexdigest()


def test_files_without_a_digest_still_load(models):
    (models / '4.state').write_bytes(without_digest(STATE))
    assert checkpoints.read_state(models / '4.state', models)['iter'] == 4


@pytest.mark.parametrize(
    'content',
    [b'', b'PK', b'text', pickle.dumps({}), b'PK\5\6' + bytes(18)],
    ids=['empty', 'short', 'text', 'pickle', 'empty-archive'],
)
def test_what_was_never_a_state_is_one_error(models, content):
    (models / '4.state').write_bytes(content)
    with pytest.raises(CheckpointError):
        checkpoints.read_state(models / '4.state', models)
