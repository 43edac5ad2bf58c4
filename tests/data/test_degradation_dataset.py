"""The dataset that degrades: crops that belong together, and samples that depend on their place or name alone."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from spinsr.data import degradation_dataset, image_file
from spinsr.data.bicubic import downsample
from spinsr.data.degradation import PRESETS
from spinsr.data.degradation_dataset import DATASET_REGISTRY, DegradationDataset
from spinsr.data.degraded_images import prepare_degraded
from spinsr.data.prepare import Source, write_lmdbs
from spinsr.training.sampling import ExactDataset, PlaceSampler


@pytest.fixture
def folder(tmp_path, write_photo):
    folder = tmp_path / 'HR'
    for seed, name in enumerate('ab'):
        write_photo(folder / f'{name}.png', 110 + seed, 131, seed)
    return folder


@pytest.fixture
def options(folder):
    def make(**changes):
        opt = {
            'name': 'test',
            'type': 'DegradationDataset',
            'dataroot_gt': str(folder),
            'io_backend': {'type': 'disk'},
            'phase': 'train',
            'scale': 2,
            'degradation': 'strong',
            'gt_size': 16,
            'use_hflip': True,
            'use_rot': True,
        }
        return {key: value for key, value in (opt | changes).items() if value is not None}

    return make


def to_uint8(tensor: torch.Tensor) -> np.ndarray:
    return (tensor * 255).round().byte().permute(1, 2, 0).numpy()


def test_registered_and_sent_to_a_worker(options):
    assert DATASET_REGISTRY.get('DegradationDataset') is DegradationDataset
    assert len(pickle.loads(pickle.dumps(DegradationDataset(options())))) == 2


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_crops_belong_together_and_have_margins(options, tmp_path, monkeypatch, scale):
    """With a plain resize instead of the degradation, each crop's LR is a crop of the whole LR, up to its edges."""
    side, windows, places = 4, [], set()

    def plain(image, scale, *_):
        windows.append(image.shape[0] // scale)
        return downsample(image, scale)

    monkeypatch.setattr(degradation_dataset, 'degrade', plain)
    # Its pixels tell where they are: red the row, green the column.
    image = np.stack([*np.mgrid[:240, :240], np.random.default_rng(0).integers(0, 256, (240, 240))], 2).astype(np.uint8)
    image_file.write_png(tmp_path / 'places' / '0.png', image)
    whole = downsample(image, scale)
    more = {'dataroot_gt': str(tmp_path / 'places'), 'use_hflip': False, 'use_rot': False}
    data = DegradationDataset(options(scale=scale, gt_size=side * scale, **more))
    for _ in range(12):
        sample = data[0]
        lq, gt = to_uint8(sample['lq']), to_uint8(sample['gt'])
        top, left = map(int, gt[0, 0, :2])
        assert np.array_equal(gt, image[top : top + side * scale, left : left + side * scale])
        top, left = top // scale, left // scale
        assert np.array_equal(lq, whole[top : top + side, left : left + side])
        places.add((top, left))
    assert len(places) > 6
    # The margin before the crop varies, so that JPEG's blocks begin at other places.
    assert 32 + side <= max(windows) <= 32 + 7 + side and len(set(windows)) > 1


def test_a_sample_depends_on_its_place_alone(options):
    data = ExactDataset(DegradationDataset(options()), seed=3)

    def epoch(number, workers):
        sampler = PlaceSampler(data, batch=2, seed=3, ratio=2)
        sampler.set_epoch(number)
        return torch.cat([batch['lq'] for batch in DataLoader(data, 2, sampler=sampler, num_workers=workers)])

    first = epoch(0, 0)
    assert torch.equal(epoch(0, 2), first)
    assert len({lq.numpy().tobytes() for lq in (*first, *epoch(1, 0))}) == 8


def test_validation_depends_on_the_name_alone(options, folder, tmp_path):
    validation = {'phase': 'val', 'gt_size': None, 'use_hflip': None, 'use_rot': None}
    data = DegradationDataset(options(**validation))
    first = [data[index] for index in range(2)]
    assert [tuple(sample['lq'].shape) for sample in first] == [(3, 55, 65), (3, 55, 65)]
    assert [tuple(sample['gt'].shape) for sample in first] == [(3, 110, 130), (3, 110, 130)]
    lmdb = tmp_path / 'HR.lmdb'
    sources = [Source(name, folder / f'{name}.png', (110 + seed, 131)) for seed, name in enumerate('ab')]
    write_lmdbs(sources, {1: lmdb}, None, 1, 'test')
    of_lmdb = DegradationDataset(options(**validation, dataroot_gt=str(lmdb), io_backend={'type': 'lmdb'}))
    torch.manual_seed(1)
    np.random.seed(1)
    assert all(torch.equal(of_lmdb[index]['lq'], first[index]['lq']) for index in (1, 0))
    (folder / 'a.png').rename(folder / 'c.png')
    renamed = DegradationDataset(options(**validation))
    assert renamed.paths[1].endswith('c.png') and not torch.equal(renamed[1]['lq'], first[0]['lq'])


def test_the_command_writes_the_images_of_validation(options, folder, tmp_path):
    data = DegradationDataset(options(phase='val', gt_size=None, use_hflip=None, use_rot=None))
    (target, _) = prepare_degraded([folder], tmp_path / 'out', [2], ['strong', 'light'])
    assert target == tmp_path / 'out' / tmp_path.name / 'LR_strong' / 'X2'
    assert np.array_equal(image_file.read(target / 'bx2.png'), to_uint8(data[1]['lq']))
    (target / 'bx2.png').write_bytes(b'kept')
    prepare_degraded([folder], tmp_path / 'out', [2], ['strong'])
    assert (target / 'bx2.png').read_bytes() == b'kept'


def test_hr_is_sharpened_in_training_only(options):
    def steepest(**changes):
        data = ExactDataset(DegradationDataset(options(**changes)), seed=0)
        place = next(iter(PlaceSampler(data, 1, 0))) if changes.get('phase') != 'val' else 0
        gt = data[place]['gt']
        return gt.diff(dim=1).abs().mean().item()

    assert steepest(gt_usm=True) > 1.1 * steepest(gt_usm=False)
    assert steepest(phase='val', gt_usm=True) == steepest(phase='val')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'degradation': None}, 'degradation: must be a preset'),
        ({'degradation': {'preset': 'light', 'first': {'jpeg_range': [5, 101]}}}, 'degradation:first:jpeg_range'),
        ({'dataroot_gt': None}, 'DegradationDataset needs the option dataroot_gt'),
    ],
    ids=['missing', 'range', 'folder'],
)
def test_wrong_options_are_named(options, changes, message):
    with pytest.raises(ValueError, match=message):
        DegradationDataset(options(**changes))


def test_options_become_the_degradation(options):
    assert DegradationDataset(options(degradation='light')).degradation == PRESETS['light']
