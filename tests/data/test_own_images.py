"""Own images to LMDBs, without those that belong to a benchmark."""

import logging

import cv2
import lmdb
import numpy as np
import pytest

from spinsr.data import image_file
from spinsr.data.bicubic import downsample, mod_crop
from spinsr.data.leaks import B100, find_leaks
from spinsr.data.own_images import prepare_images


def picture(seed, height=96, width=120):
    """A smooth random picture: thumbnails of white noise are all the same grey."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def save(path, image, quality=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = [] if quality is None else [cv2.IMWRITE_JPEG_QUALITY, quality]
    assert cv2.imwrite(str(path), image[..., ::-1], flags)
    return path


def read(path, key):
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return image_file.decode(transaction.get(key.encode()), key)


def keys(path):
    return [line.split('.')[0] for line in (path / 'meta_info.txt').read_text().splitlines()]


def test_pairs_of_whole_images_are_exact_at_every_scale(tmp_path):
    image = picture(0, 100, 125)
    save(tmp_path / 'mine/1.png', image)
    save(tmp_path / 'yours/1.png', picture(1))
    folders = [tmp_path / 'mine', tmp_path / 'yours']
    hr_path, *lr_paths = prepare_images(folders, tmp_path / 'out', (2, 3, 4))
    assert keys(hr_path) == ['mine_1', 'yours_1']
    hr = read(hr_path, 'mine_1')
    assert np.array_equal(hr, mod_crop(image, 12))
    for scale, path in zip((2, 3, 4), lr_paths, strict=True):
        assert path.name == f'train_LR_bicubic_X{scale}.lmdb'
        assert np.array_equal(read(path, 'mine_1'), downsample(hr, scale))


def test_same_command_again_and_another_scale_later(tmp_path):
    save(tmp_path / 'mine/1.png', picture(0))
    first = prepare_images([tmp_path / 'mine'], tmp_path / 'out', (2,))
    again = prepare_images([tmp_path / 'mine'], tmp_path / 'out', (2, 4))
    assert [path.name for path in again] == [*(path.name for path in first), 'train_LR_bicubic_X4.lmdb']


def test_small_images_are_left_out_and_said(tmp_path, caplog):
    save(tmp_path / 'mine/large.png', picture(0, 48, 60))
    save(tmp_path / 'mine/small.png', picture(1, 47, 60))
    with caplog.at_level(logging.INFO):
        hr_path, _ = prepare_images([tmp_path / 'mine'], tmp_path / 'out', (4,), min_side=48)
    assert keys(hr_path) == ['mine_large']
    assert 'small.png: smaller than 48' in caplog.text


TURNS = {
    'as-it-is': lambda image: image,
    'turned': lambda image: np.rot90(image),
    'mirrored': lambda image: image[:, ::-1],
    'cropped': lambda image: image[3:, 2:],
    'larger': lambda image: cv2.resize(image, None, fx=1.4, fy=1.4),
}


@pytest.mark.parametrize('turn', TURNS.values(), ids=TURNS)
@pytest.mark.parametrize('has_hr', [True, False], ids=['benchmark-folder', 'folder-of-images'])
def test_image_of_a_benchmark_is_left_out(tmp_path, caplog, turn, has_hr):
    save(tmp_path / 'Set/HR/known.png' if has_hr else tmp_path / 'Set/known.png', picture(0))
    save(tmp_path / 'mine/leak.jpg', turn(picture(0)), quality=60)
    for seed in range(1, 8):
        save(tmp_path / f'mine/{seed}.png', picture(seed))
    with caplog.at_level(logging.INFO):
        hr_path, _ = prepare_images([tmp_path / 'mine'], tmp_path / 'out', (4,), exclude=[str(tmp_path / 'Set')])
    assert keys(hr_path) == [f'mine_{seed}' for seed in range(1, 8)]
    assert 'leak.jpg: it is' in caplog.text and 'known.png' in caplog.text
    assert '7 of 8 images: 1 belong to benchmarks, 0 are too small' in caplog.text


def test_b100_is_known_by_its_names(tmp_path):
    paths = [save(tmp_path / f'bsds/{name}.jpg', picture(seed)) for seed, name in enumerate(('3096', '3097', '86000'))]
    assert find_leaks(paths, ['B100']) == {paths[0]: '3096 of B100', paths[2]: '86000 of B100'}
    assert find_leaks(paths, []) == {}
    assert len(B100) == 100 and all(name.isdecimal() for name in B100)


@pytest.mark.parametrize(
    ('folders', 'options', 'line'),
    [
        pytest.param(['mine', 'other/mine'], {}, 'folders must have different names', id='names'),
        pytest.param(['mine'], {'exclude': ['B10']}, 'a benchmark must be a folder, or one of B100, got B10', id='set'),
        pytest.param(['mine'], {'min_side': 500}, 'none of 1 images remains', id='none-left'),
        pytest.param(['empty'], {}, 'no images', id='empty'),
        pytest.param(['damaged'], {}, 'damaged.1.png is not an image', id='damaged'),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, folders, options, line):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 'mine/1.png', picture(0))
    save(tmp_path / 'other/mine/1.png', picture(0))
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'damaged').mkdir()
    (tmp_path / 'damaged/1.png').write_text('text')
    with pytest.raises(ValueError, match=line):
        prepare_images([tmp_path / folder for folder in folders], tmp_path / 'out', (4,), **options)
    assert not (tmp_path / 'out').exists()


def test_names_and_folders_that_basicsr_could_not_look_up_become_keys(tmp_path):
    for number, name in enumerate(('Mr._Lee_0', 'Kraków', 'a b', 'c-d')):
        save(tmp_path / f'photos.v2/{name}.png', picture(number))
    hr_path, lr_path = prepare_images([tmp_path / 'photos.v2'], tmp_path / 'out', (2,))
    expected = ['photos_v2_Krak_w', 'photos_v2_Mr__Lee_0', 'photos_v2_a_b', 'photos_v2_c-d']
    assert sorted(keys(hr_path)) == sorted(keys(lr_path)) == expected
    assert np.array_equal(read(hr_path, 'photos_v2_Krak_w'), mod_crop(picture(1), 12))


def test_two_names_of_one_key_are_an_error_that_names_both(tmp_path):
    save(tmp_path / 'mine/a.b.png', picture(0))
    save(tmp_path / 'mine/a_b.png', picture(1))
    with pytest.raises(ValueError, match=r'mine/a\.b\.png and .*mine/a_b\.png would both .*mine_a_b'):
        prepare_images([tmp_path / 'mine'], tmp_path / 'out', (2,))
    assert not (tmp_path / 'out').exists()
