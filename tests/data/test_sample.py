"""The embedded sample is complete, paired, and made without a network."""

import importlib.util

import pytest

from spinsr.data import image_file, sample
from spinsr.data.bicubic import downsample, mod_crop


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp('sample')
    return out, sample.prepare_sample(out, scales=(4,))


def test_outputs(prepared):
    out, paths = prepared
    names = ['train_HR_sub.lmdb', 'train_LR_bicubic_X4_sub.lmdb', 'val']
    assert [str(path.relative_to(out)) for path in paths] == names
    assert sorted(path.name for path in out.iterdir()) == names


@pytest.mark.parametrize('name', sample.TRAINING)
def test_every_training_image_is_there(prepared, name):
    meta_info = (prepared[0] / 'train_HR_sub.lmdb' / 'meta_info.txt').read_text()
    assert f'{name.partition(".")[0]}_s001.png (240,240,3)' in meta_info


def test_training_pairs_are_read_by_basicsr(prepared):
    from spinsr import compat

    compat.install()
    from basicsr.data.paired_image_dataset import PairedImageDataset

    options = {'io_backend': {'type': 'lmdb'}, 'phase': 'val', 'scale': 4}
    hr, lr = prepared[1][:2]
    dataset = PairedImageDataset(options | {'dataroot_gt': str(hr), 'dataroot_lq': str(lr)})
    item = dataset[len(dataset) // 2]
    assert (item['gt'].shape, item['lq'].shape) == ((3, 240, 240), (3, 60, 60))


@pytest.mark.parametrize('name', sample.VALIDATION)
def test_validation_is_a_benchmark_folder(prepared, name):
    folder, stem = prepared[0] / 'val', name.partition('.')[0]
    hr = image_file.read(folder / 'HR' / f'{stem}.png')
    lr = image_file.read(folder / 'LR_bicubic' / 'X4' / f'{stem}x4.png')
    assert (downsample(mod_crop(hr, 4), 4) == lr).all()


def test_missing_scikit_image_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='pip install scikit-image'):
        sample.prepare_sample(tmp_path)


def test_a_missing_photograph_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, 'photograph_folder', lambda: tmp_path)
    with pytest.raises(ValueError, match='astronaut.png is missing; reinstall scikit-image'):
        sample.prepare_sample(tmp_path / 'out')
