"""Samples by place: the same for any number of workers and processes, and never damaged."""

import contextlib
import io
import os
import random
import traceback
from collections import Counter

import cv2
import lmdb
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.single_image_dataset import SingleImageDataset
from basicsr.utils import FileClient

from spinsr.data import png as png_file
from spinsr.training.sampling import ExactDataset, Place, PlaceSampler
from spinsr.utils.errors import DataError

from ..tiny_project import write_images

PAIRS = {
    'name': 'pairs',
    'phase': 'train',
    'scale': 2,
    'dataroot_gt': 'hr',
    'dataroot_lq': 'lr',
    'io_backend': {'type': 'disk'},
    'gt_size': 8,
    'use_hflip': True,
    'use_rot': True,
}


class Draws(torch.utils.data.Dataset):
    """What each of the three generators gives."""

    opt = {'name': 'draws'}

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.random(), torch.rand(()).item()], dtype=torch.float64)


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, 3)
    return lambda **changes: ExactDataset(PairedImageDataset({**PAIRS, **changes}), seed=0)


def epoch(sampler, number=0, workers=0, seed=3, data=None):
    sampler.set_epoch(number)
    data = ExactDataset(data or Draws(), seed)
    return torch.cat(list(DataLoader(data, sampler.batch, sampler=sampler, num_workers=workers, drop_last=True)))


def sampler(batch=2, ratio=4, **place):
    return PlaceSampler(Draws(), batch, 3, ratio=ratio, **place)


@pytest.mark.parametrize('workers', [1, 2, 3])
def test_workers_do_not_matter(workers):
    assert torch.equal(epoch(sampler(), workers=workers), epoch(sampler()))


def test_repeats_of_an_image_and_epochs_differ():
    first, second = epoch(sampler()), epoch(sampler(), 1)
    assert len(torch.cat([first, second])[:, 1:].flatten().unique()) == 2 * 20 * 3
    assert not torch.equal(first[:, 0], second[:, 0])
    assert Counter(first[:, 0].tolist()) == dict.fromkeys(range(5), 4)


@pytest.mark.parametrize('ratio', [4, 4.5], ids=['whole', 'with-a-rest'])
def test_several_processes_see_what_one_sees(ratio):
    one = epoch(sampler(batch=4, ratio=ratio)).view(-1, 4, 4)
    two = [epoch(sampler(ratio=ratio, num_replicas=2, rank=rank)).view(-1, 2, 4) for rank in (0, 1)]
    assert torch.equal(one, torch.stack(two, 2).flatten(1, 2))


@pytest.mark.parametrize('position', [0, 2, 7, 18, 20], ids=lambda position: f'from-{position}')
def test_epoch_is_entered_where_it_was_left(position):
    entered = sampler()
    entered.enter(1, position)
    whole = epoch(sampler(), 1)
    left = (20 - position) // 2 * 2
    assert entered.batches_left() == left // 2
    if left:
        assert torch.equal(epoch(entered, 1), whole[position : position + left])
    assert torch.equal(epoch(entered, 2), epoch(sampler(), 2))


def test_seed_changes_order_and_draws():
    other = PlaceSampler(Draws(), 2, 4, ratio=4)
    assert not torch.equal(epoch(other)[:, 0], epoch(sampler())[:, 0])
    assert not torch.equal(epoch(sampler(), seed=4)[:, 1:], epoch(sampler())[:, 1:])


def test_generators_of_the_process_stay_where_they_were():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    epoch(sampler())
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    # The loader itself draws a seed; the loaders of spinsr.training.loader have a generator of their own.
    torch.empty((), dtype=torch.int64).random_()
    assert not torch.equal(torch.get_rng_state(), before[2])


def test_crops_are_those_of_basicsr(pairs):
    """Beside where the random numbers come from, nothing changes."""
    data = pairs()
    place = Place(2, 5, 1)
    sample = data[place]
    data[Place(0, 0, 0)]
    assert torch.equal(data[place]['gt'], sample['gt'])
    assert sample['lq'].shape == (3, 4, 4) and sample['gt'].shape == (3, 8, 8)
    assert data.opt['name'] == 'pairs' and len(data) == 3


@contextlib.contextmanager
def refused(line):
    """An error of the data. Its traceback would keep the loader, whose collection then waits 5 s for the worker."""
    with pytest.raises(DataError, match=line) as error:
        yield error
    traceback.clear_frames(error.tb)


def damage_pixels(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    ('damage', 'line'),
    [
        pytest.param(lambda hr, lr: os.truncate(hr, 700), r'hr/1\.png cannot be read completely', id='truncated'),
        pytest.param(lambda hr, lr: damage_pixels(lr), r'lr/1\.png cannot be read completely', id='wrong-checksum'),
        pytest.param(lambda hr, lr: hr.write_bytes(b''), r'hr/1\.png is not an image', id='empty'),
        pytest.param(lambda hr, lr: lr.write_text('no image'), r'lr/1\.png is not an image', id='text'),
        pytest.param(lambda hr, lr: hr.unlink(), r'hr/1\.png cannot be read: .', id='gone'),
        pytest.param(
            lambda hr, lr: cv2.imwrite(str(hr), np.zeros((20, 24, 3), np.uint8)),
            r'lr/1\.png and hr/1\.png: .',
            id='unequal',
        ),
        pytest.param(
            lambda hr, lr: [
                cv2.imwrite(str(hr), np.zeros((6, 24, 3), np.uint8)),
                cv2.imwrite(str(lr), np.zeros((3, 12, 3), np.uint8)),
            ],
            r'lr/1\.png and hr/1\.png: .',
            id='smaller-than-the-crop',
        ),
    ],
)
@pytest.mark.parametrize('workers', [0, 1])
def test_sample_that_cannot_be_used_is_one_line_with_its_file(pairs, tmp_path, damage, line, workers):
    data = pairs(gt_size=16)
    damage(tmp_path / 'hr/1.png', tmp_path / 'lr/1.png')
    loader = DataLoader(data, sampler=[Place(0, 0, 1)], num_workers=workers)
    with refused(line) as error:
        next(iter(loader))
    assert '\n' not in str(error.value)


def test_a_cut_image_without_hr_is_refused(tmp_path):
    data = cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[1].tobytes()
    (tmp_path / 'a.jpg').write_bytes(data[: len(data) // 2] + b'\xff\xd9')  # OpenCV fills it up with grey
    single = SingleImageDataset({'dataroot_lq': str(tmp_path), 'io_backend': {'type': 'disk'}})
    with refused(r'a\.jpg cannot be read completely'):
        ExactDataset(single, 0)[0]


@pytest.mark.parametrize('workers', [0, 1])
def test_damage_of_an_lmdb_is_named_by_its_key(tmp_path, workers):
    image = cv2.imencode('.png', np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    for name, values in (('hr.lmdb', {'a': image, 'b': image[:-8]}), ('lr.lmdb', {'b': image})):
        with lmdb.open(str(tmp_path / name)) as environment, environment.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key.encode(), value)
        (tmp_path / name / 'meta_info.txt').write_text('a.png (16,16,3) 1\nb.png (16,16,3) 1\n')
    options = {**PAIRS, 'dataroot_gt': str(tmp_path / 'hr.lmdb'), 'dataroot_lq': str(tmp_path / 'lr.lmdb')}
    data = ExactDataset(PairedImageDataset({**options, 'scale': 1, 'io_backend': {'type': 'lmdb'}}), 0)

    def read(index):
        return next(iter(DataLoader(data, sampler=[Place(0, 0, index)], num_workers=workers)))

    with refused(r'^a \(lq\) is missing in the LMDB'):
        read(0)
    with refused(r'^b cannot be read completely'):
        read(1)


def test_png_without_a_chunk_is_refused_at_its_first_reading(pairs, tmp_path):
    path, data = tmp_path / 'hr/1.png', pairs()
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    cv2.imwrite(str(path), noise)
    cv2.imwrite(str(tmp_path / 'lr/1.png'), noise[::2, ::2])
    data[Place(0, 0, 1)]
    whole = path.read_bytes()
    parts = list(png_file.chunks(whole))
    assert [part[0] for part in parts][1:3] == [b'IDAT'] * 2
    path.write_bytes(whole[:8] + b''.join(part[2] for part in (*parts[:2], *parts[3:])))
    with pytest.raises(DataError, match=r'hr/1\.png cannot be read completely'):
        pairs()[Place(0, 0, 1)]


@pytest.mark.parametrize('value', [float('nan'), float('inf')], ids=str)
def test_values_that_are_not_finite_are_refused(value):
    class Broken(Draws):
        paths = [f'{index}.exr' for index in range(5)]

        def __getitem__(self, index):
            return {'lq': torch.zeros(1), 'gt': torch.tensor([1.0, value])}

    with pytest.raises(DataError, match=r'^3\.exr: gt has values that are not finite$'):
        ExactDataset(Broken(), 0)[Place(0, 0, 3)]


def test_data_set_without_paths_is_named_by_its_option(tmp_path):
    class Broken(Draws):
        def __getitem__(self, index):
            raise KeyError

    with pytest.raises(DataError, match='^sample 3 of draws: KeyError$'):
        ExactDataset(Broken(), 0)[3]


def test_data_set_of_another_kind_reads_what_it_wants_in_its_own_order(tmp_path):
    """Another plugin's: no images, and a second list that goes with `paths`."""

    class Arrays(Draws):
        def __init__(self):
            self.paths = [{'gt_path': str(tmp_path / name)} for name in ('b.npy', 'a.npy')]
            self.io_backend_opt, self.file_client = {'type': 'disk'}, None
            for value, path in enumerate(self.paths):
                np.save(path['gt_path'], np.full(2, value))

        def __getitem__(self, index):
            if self.file_client is None:
                self.file_client = FileClient(self.io_backend_opt.pop('type'), **self.io_backend_opt)
            return np.load(io.BytesIO(self.file_client.get(self.paths[index]['gt_path'], 'gt')))

    data = ExactDataset(Arrays(), 0)
    assert data[Place(0, 0, 0)].tolist() == [0, 0] and data[Place(0, 1, 1)].tolist() == [1, 1]
