"""The dataset that makes LR when it reads: what BasicSR's dataset gives on stored LR, bit for bit."""

import pickle
import random

import numpy as np
import pytest
import torch

from spinsr.data.bicubic import downsample, mod_crop
from spinsr.data.bicubic_image_dataset import DATASET_REGISTRY, BicubicImageDataset
from spinsr.data.image_file import write_png
from spinsr.data.prepare import Source, write_lmdbs


@pytest.fixture
def folder(tmp_path, write_photo):
    """Three HR images, b first on the disk."""
    folder = tmp_path / 'HR'
    for seed, name in enumerate('bac'):
        write_photo(folder / f'{name}.png', 50 + seed, 67, seed)
    return folder


@pytest.fixture
def options(folder):
    def make(**changes):
        opt = {
            'name': 'test',
            'type': 'BicubicImageDataset',
            'dataroot_gt': str(folder),
            'io_backend': {'type': 'disk'},
            'phase': 'val',
            'scale': 4,
        }
        if changes.get('phase') == 'train':
            opt |= {'gt_size': 24, 'use_hflip': True, 'use_rot': True}
        return {key: value for key, value in (opt | changes).items() if value is not None}

    return make


@pytest.fixture
def lmdb(tmp_path, folder):
    path = tmp_path / 'HR.lmdb'
    sources = [Source(name, folder / f'{name}.png', (50 + seed, 67)) for seed, name in enumerate('bac')]
    write_lmdbs(sorted(sources, key=lambda source: source.key), {1: path}, None, 1, 'test')
    return path


def to_uint8(tensor: torch.Tensor) -> np.ndarray:
    return (tensor * 255).round().byte().permute(1, 2, 0).numpy()


def test_registered_in_basicsr(options):
    assert DATASET_REGISTRY.get('BicubicImageDataset') is BicubicImageDataset


def test_basicsr_builds_it(options):
    from basicsr.data import build_dataset

    assert len(build_dataset(options())) == 3


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
@pytest.mark.parametrize('phase', ['val', 'test'])
def test_whole_images(folder, options, photo, phase, scale):
    item = BicubicImageDataset(options(phase=phase, scale=scale))[0]
    gt = mod_crop(photo(51, 67, 1), scale)
    np.testing.assert_array_equal(to_uint8(item['gt']), gt)
    np.testing.assert_array_equal(to_uint8(item['lq']), downsample(gt, scale))
    assert item['lq_path'] == item['gt_path'] == str(folder / 'a.png')
    assert {item['lq'].dtype, item['gt'].dtype} == {torch.float32}


@pytest.fixture
def stored_lr(tmp_path, photo):
    """The options of BasicSR's dataset for the same images, with their LR beside them."""
    for seed, name in enumerate('bac'):
        gt = mod_crop(photo(50 + seed, 67, seed), 4)
        write_png(tmp_path / 'GT' / f'{name}.png', gt)
        write_png(tmp_path / 'LR' / f'{name}.png', downsample(gt, 4))
    return {'dataroot_gt': str(tmp_path / 'GT'), 'dataroot_lq': str(tmp_path / 'LR'), 'io_backend': {'type': 'disk'}}


@pytest.mark.parametrize('name', ['a.png', 'b.png'])
@pytest.mark.parametrize('phase', ['train', 'val'])
def test_equals_the_paired_dataset_on_stored_lr(options, stored_lr, phase, name):
    from basicsr.data.paired_image_dataset import PairedImageDataset

    def item(dataset, paths):
        random.seed(3)
        return dataset[[path.endswith(name) for path in paths].index(True)]

    # BasicSR's dataset has its images in the order of the disk.
    paired = PairedImageDataset(options(phase=phase) | stored_lr)
    expected = item(paired, [paths['gt_path'] for paths in paired.paths])
    ours = BicubicImageDataset(options(phase=phase))
    actual = item(ours, ours.paths)
    torch.testing.assert_close(actual['gt'], expected['gt'], rtol=0, atol=0)
    torch.testing.assert_close(actual['lq'], expected['lq'], rtol=0, atol=0)


def find(part: np.ndarray, whole: np.ndarray) -> tuple[int, int]:
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape)[:, :, 0]
    matches = np.argwhere((windows == part).all((2, 3, 4)))
    assert len(matches) == 1
    return tuple(matches[0])


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize(('scale', 'gt_size'), [(2, 8), (3, 12), (4, 48), (8, 16)], ids=str)
def test_crops_are_crops_of_the_whole_lr(options, photo, scale, gt_size, seed):
    dataset = BicubicImageDataset(options(phase='train', scale=scale, gt_size=gt_size, use_hflip=False, use_rot=False))
    random.seed(seed)
    item = dataset[0]
    hr = mod_crop(photo(51, 67, 1), scale)
    top, left = find(to_uint8(item['gt']), hr)
    side = gt_size // scale
    lr = downsample(hr, scale)[top // scale : top // scale + side, left // scale : left // scale + side]
    assert (top % scale, left % scale) == (0, 0)
    np.testing.assert_array_equal(to_uint8(item['lq']), lr)


def test_crops_differ_and_reach_the_edges(options):
    dataset = BicubicImageDataset(options(phase='train', gt_size=48, max_images=1))
    crops = {dataset[0]['gt'].numpy().tobytes() for _ in range(100)}
    assert len(crops) > 20


def test_lmdb_gives_what_the_folder_gives(options, lmdb):
    stored = BicubicImageDataset(options(dataroot_gt=str(lmdb), io_backend={'type': 'lmdb'}))
    item, expected = stored[2], BicubicImageDataset(options())[2]
    torch.testing.assert_close(item['gt'], expected['gt'], rtol=0, atol=0)
    assert item['lq_path'] == 'c'


def test_options_stay_as_they_were(options, lmdb):
    opt = options(dataroot_gt=str(lmdb), io_backend={'type': 'lmdb'})
    assert BicubicImageDataset(opt)[0]['lq_path'] == 'a'
    assert opt == options(dataroot_gt=str(lmdb), io_backend={'type': 'lmdb'})


@pytest.mark.parametrize(('max_images', 'expected'), [(None, 'abc'), (2, 'ab'), (9, 'abc')])
def test_max_images_takes_the_first(options, max_images, expected):
    paths = BicubicImageDataset(options(max_images=max_images)).paths
    assert ''.join(path[-5] for path in paths) == expected


def test_meta_info_file_chooses_images(tmp_path, folder, options):
    (tmp_path / 'meta.txt').write_text('c.png (52,67,3)\nb.png (50,67,3)\n\n')
    paths = BicubicImageDataset(options(meta_info_file=str(tmp_path / 'meta.txt'))).paths
    assert paths == [str(folder / 'b.png'), str(folder / 'c.png')]


def test_can_be_sent_to_a_worker(options, lmdb):
    dataset = BicubicImageDataset(options(dataroot_gt=str(lmdb), io_backend={'type': 'lmdb'}))
    assert pickle.loads(pickle.dumps(dataset))[1]['gt_path'] == 'b'


@pytest.mark.parametrize('phase', ['train', 'val'])
def test_a_truncated_image_is_named(folder, options, truncate, phase):
    truncate(folder / 'b.png')
    with pytest.raises(ValueError, match='b.png cannot be read completely'):
        BicubicImageDataset(options(phase=phase))[1]


def test_a_removed_image_is_named(folder, options):
    dataset = BicubicImageDataset(options())
    (folder / 'b.png').unlink()
    with pytest.raises(ValueError, match='b.png cannot be read'):
        dataset[1]


def test_a_missing_key_is_named(options, lmdb):
    with open(lmdb / 'meta_info.txt', 'a') as file:
        file.write('d.png (8,8,3) 1\n')
    with pytest.raises(ValueError, match=r'd of .*HR.lmdb is missing'):
        BicubicImageDataset(options(dataroot_gt=str(lmdb), io_backend={'type': 'lmdb'}))[3]


def test_an_image_smaller_than_gt_size_is_named(options):
    with pytest.raises(ValueError, match=r'at least gt_size=52, got 51x67.*a.png'):
        BicubicImageDataset(options(phase='train', gt_size=52))[0]


def test_gt_size_may_be_all_that_the_cut_leaves(options):
    # 51 rows are 48 rows for x8.
    item = BicubicImageDataset(options(phase='train', scale=8, gt_size=48))[0]
    assert item['gt'].shape == (3, 48, 48)


def test_an_image_smaller_than_the_scale_is_named(folder, options, write_photo):
    write_photo(folder / 'a.png', 3, 9)
    with pytest.raises(ValueError, match=r'at least scale=4, got 3x9.*a.png'):
        BicubicImageDataset(options())[0]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'dataroot_gt': None}, 'needs the option dataroot_gt'),
        ({'scale': None}, 'needs the option scale'),
        ({'phase': 'train', 'gt_size': None}, 'needs the option gt_size'),
        ({'phase': 'train', 'use_rot': None}, 'needs the option use_rot'),
        ({'phase': 'train', 'gt_size': 30}, 'multiple of scale, got gt_size=30, scale=4'),
        ({'max_images': 0}, 'at least 1, got max_images=0'),
        ({'dataroot_gt': 'nowhere'}, 'not a directory: nowhere'),
        ({'io_backend': {'type': 'lmdb'}}, r'must end with \.lmdb'),
        ({'dataroot_gt': 'no.lmdb', 'io_backend': {'type': 'lmdb'}}, 'meta_info.txt cannot be read'),
    ],
    ids=lambda value: '' if isinstance(value, str) else '-'.join(map(str, value)),
)
def test_wrong_options_are_named(options, changes, message):
    with pytest.raises(ValueError, match=message):
        BicubicImageDataset(options(**changes))
