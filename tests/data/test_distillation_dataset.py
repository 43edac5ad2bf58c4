"""HR, LR and a teacher's output of one crop: exact, at 16 bits, checked, and the same for any number of workers."""

import os

import cv2
import lmdb
import numpy as np
import pytest
import torch

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.data import build_dataset
from torch.utils.data import DataLoader

from spinsr.data import image_file
from spinsr.data.lmdb_writer import LmdbWriter
from spinsr.models.registration import register
from spinsr.training.sampling import ExactDataset, Place, PlaceSampler
from spinsr.utils.errors import DataError

from ..tiny_project import write_images, write_outputs

register()

OPTIONS = {
    'name': 'd',
    'type': 'DistillationDataset',
    'phase': 'train',
    'scale': 2,
    'dataroot_gt': 'hr',
    'dataroot_lq': 'lr',
    'dataroot_teacher': 'teacher',
    'io_backend': {'type': 'disk'},
    'gt_size': 8,
    'use_hflip': True,
    'use_rot': True,
}
LMDBS = {
    **{f'dataroot_{side}': f'{name}.lmdb' for side, name in (('gt', 'hr'), ('lq', 'lr'), ('teacher', 'teacher'))},
    'io_backend': {'type': 'lmdb'},
}


def to_lmdb(folder, name):
    """The images of a folder as an LMDB, the files as they are."""
    files = {path.stem: path.read_bytes() for path in sorted((folder / name).iterdir())}
    side = 12 if name == 'lr' else 24
    writer = LmdbWriter(folder / f'{name}.lmdb', dict.fromkeys(files, (side, side)))
    writer.put(name, '', files.items())
    writer.finish()


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Three pairs and outputs, in folders and in LMDBs."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, 3)
    write_outputs(tmp_path, 3)
    for name in ('hr', 'lr', 'teacher'):
        to_lmdb(tmp_path, name)
    return tmp_path


def build(**changes):
    # BasicSR writes into io_backend.
    options = {**OPTIONS, **changes}
    return ExactDataset(build_dataset({**options, 'io_backend': dict(options['io_backend'])}), seed=0)


def places():
    return [Place(epoch, position, position % 3) for epoch in range(2) for position in range(6)]


@pytest.fixture(params=[{}, LMDBS], ids=['disk', 'lmdb'])
def backend(request, images):
    return request.param


def test_pairs_are_those_of_basicsr_and_the_output_has_their_crop_and_flips(images, backend):
    """The teacher's outputs are HR here, so that they show where they were cut and how they were turned."""
    as_teacher = {'dataroot_teacher': backend.get('dataroot_gt', 'hr')}
    ours, basicsr = build(**{**backend, **as_teacher}), build(**{**backend, 'type': 'PairedImageDataset'})
    for place in places():
        sample, pair = ours[place], basicsr[place]
        assert torch.equal(sample['lq'], pair['lq']) and torch.equal(sample['gt'], pair['gt'])
        assert torch.equal(sample['teacher'], sample['gt'])
        assert {key: sample[key] for key in ('lq_path', 'gt_path')} == {
            key: pair[key] for key in ('lq_path', 'gt_path')
        }


def test_output_keeps_its_16_bits(images, backend):
    sample = build(**backend, phase='val')[1]
    image = cv2.imread('teacher/1.png', cv2.IMREAD_UNCHANGED)
    assert image.dtype == np.uint16
    values = sample['teacher'].permute(1, 2, 0).numpy()
    assert values.dtype == np.float32 and values.shape == (24, 24, 3)
    assert np.array_equal(values, image[..., ::-1].astype(np.float32) / 65535)


def test_without_hr_the_rest_is_the_same(images, backend):
    whole, part = build(**backend), build(**backend, read_gt=False)
    for place in places():
        sample = part[place]
        assert 'gt' not in sample
        assert torch.equal(sample['lq'], whole[place]['lq']) and torch.equal(sample['teacher'], whole[place]['teacher'])


def test_hr_is_not_read_where_it_is_left_out(images):
    (images / 'hr' / '1.png').write_bytes(b'')
    assert build(read_gt=False)[Place(0, 0, 1)]['teacher'].shape == (3, 8, 8)
    with pytest.raises(DataError, match=r'hr/1\.png'):
        build()[Place(0, 0, 1)]


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_do_not_matter(images, workers):
    def epoch(workers):
        data = build(**LMDBS)
        sampler = PlaceSampler(data, 2, 3, ratio=2)
        loader = DataLoader(data, 2, sampler=sampler, num_workers=workers, drop_last=True)
        return torch.cat([batch['teacher'] for batch in loader])

    assert torch.equal(epoch(workers), epoch(0))


@pytest.mark.parametrize(
    ('color', 'mean', 'shape'), [('y', None, (1, 8, 8)), (None, [0.5] * 3, (3, 8, 8))], ids=['y', 'normalised']
)
def test_options_of_the_pairs_act_on_the_output_too(images, color, mean, shape):
    more = {'color': color, 'mean': mean, 'std': mean and [0.25] * 3}
    sample = build(**more, dataroot_teacher='hr')[Place(0, 0, 1)]
    pair = build(**more, type='PairedImageDataset')[Place(0, 0, 1)]
    assert sample['teacher'].shape == shape
    assert torch.equal(sample['lq'], pair['lq']) and torch.equal(sample['gt'], pair['gt'])
    assert torch.equal(sample['teacher'], sample['gt'])


def test_names_of_lr_and_a_list_of_hr(images):
    for path in (images / 'lr').iterdir():
        path.rename(path.with_name(f'{path.stem}x2.png'))
    (images / 'list.txt').write_text('2.png (24,24,3)\n0.png (24,24,3)\n')
    data = build(filename_tmpl='{}x2', meta_info_file='list.txt')
    assert [os.path.basename(path['teacher_path']) for path in data.paths] == ['0.png', '2.png']
    assert data[Place(0, 0, 1)]['lq_path'] == 'lr/2x2.png'


def in_lmdb(name, key, change):
    with lmdb.open(f'{name}.lmdb') as env, env.begin(write=True) as transaction:
        transaction.put(key, change(bytes(transaction.get(key))))


SMALL = image_file.encode_png16(np.zeros((20, 24, 3), np.uint16))


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        pytest.param(lambda data: data[:-40], '1 cannot be read completely', id='truncated'),
        pytest.param(lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], '1 cannot be read', id='one-bit'),
        pytest.param(lambda data: b'text', '1 is not an image', id='text'),
        pytest.param(lambda data: SMALL, r'1: the output .* must be 24x24 .*, which is x2 of LR, got 20x24', id='size'),
    ],
)
def test_damaged_output_is_named(images, change, line):
    in_lmdb('teacher', b'1', change)
    with pytest.raises(DataError, match=line):
        build(**LMDBS)[Place(0, 0, 1)]
    assert build(**LMDBS)[Place(0, 0, 0)]


def test_missing_key_is_named(images):
    with lmdb.open('teacher.lmdb') as env, env.begin(write=True) as transaction:
        transaction.delete(b'1')
    with pytest.raises(DataError, match=r'^1 \(teacher\) is missing in the LMDB'):
        build(**LMDBS)[Place(0, 0, 1)]


def test_image_without_an_output_is_named_at_once(images):
    (images / 'teacher' / '1.png').unlink()
    with pytest.raises(DataError, match=r'hr/1\.png has no output of the teacher in teacher; make it'):
        build()
    lines = (images / 'teacher.lmdb' / 'meta_info.txt').read_text().splitlines()
    (images / 'teacher.lmdb' / 'meta_info.txt').write_text('\n'.join(lines[:2]))
    with pytest.raises(DataError, match=r'^2 has no output of the teacher in teacher\.lmdb'):
        build(**LMDBS)
    with pytest.raises(DataError, match='needs the option dataroot_teacher'):
        build(dataroot_teacher=None)
