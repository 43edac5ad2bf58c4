"""Patches at several scales: each LR patch is that of its HR patch."""

import random

import numpy as np
import pytest

from spinsr.data.bicubic import downsample, mod_crop
from spinsr.data.image_file import write_png
from spinsr.data.multi_scale_dataset import MultiScaleDataset

OPTIONS = {
    'name': 'test',
    'io_backend': {'type': 'disk'},
    'phase': 'train',
    'scale': 4,
    'scales': [2, 3, 4],
    'gt_size': 20,
    'use_hflip': False,
    'use_rot': False,
}


@pytest.fixture
def image(tmp_path):
    """An image in which every pixel says where it is, with a third channel of noise."""
    rows, columns = np.mgrid[:43, :50].astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (43, 50), np.uint8)
    image = np.stack([rows, columns, noise], 2)
    write_png(tmp_path / 'a.png', image)
    return image


def to_uint8(tensor):
    return (tensor * 255).round().byte().permute(1, 2, 0).numpy()


def test_pairs_at_every_scale(tmp_path, image):
    random.seed(3)
    item = MultiScaleDataset({**OPTIONS, 'dataroot_gt': str(tmp_path)})[0]
    places = set()
    for scale, suffix in ((2, '_x2'), (3, '_x3'), (4, '')):
        lq, gt = to_uint8(item[f'lq{suffix}']), to_uint8(item[f'gt{suffix}'])
        top, left = map(int, gt[0, 0, :2])
        assert np.array_equal(gt, image[top : top + 5 * scale, left : left + 5 * scale])
        whole = downsample(mod_crop(image, scale), scale)
        assert np.array_equal(lq, whole[top // scale : top // scale + 5, left // scale : left // scale + 5])
        places.add((top, left))
    assert len(places) == 3


def test_all_pairs_are_flipped_alike(tmp_path, image):
    random.seed(0)
    dataset = MultiScaleDataset({**OPTIONS, 'dataroot_gt': str(tmp_path), 'use_hflip': True, 'use_rot': True})
    seen = set()
    for _ in range(20):
        item = dataset[0]
        patches = [to_uint8(item[f'gt{suffix}']).astype(int) for suffix in ('_x2', '_x3', '')]
        steps = {(*(gt[1, 0] - gt[0, 0])[:2].tolist(), *(gt[0, 1] - gt[0, 0])[:2].tolist()) for gt in patches}
        assert len(steps) == 1
        seen |= steps
    assert len(seen) > 1


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'scales': [2, 3]}, r'scale=4 among them, got \[2, 3\]'),
        ({'scales': 4}, 'among them, got 4'),
        ({'scales': None}, 'among them'),
        ({'gt_size': 44}, '43x50'),
    ],
    ids=['scale', 'number', 'none', 'small'],
)
def test_bad_options_are_refused(tmp_path, image, changes, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleDataset({**OPTIONS, 'dataroot_gt': str(tmp_path), **changes})[0]
