"""Preparation: cuts, pairs, layouts, errors that name the file, and runs that are interrupted."""

import os
import signal
import subprocess
import sys
import time

import lmdb
import numpy as np
import pytest

from spinsr.data import image_file
from spinsr.data.bicubic import downsample, mod_crop
from spinsr.data.prepare import CUT_MULTIPLE, Cut, cut_starts, prepare_benchmark, prepare_div2k
from spinsr.utils.atomic_write import temporary_name

DIV2K_OUTPUTS = {
    *('DIV2K_train_HR_sub.lmdb', 'DIV2K_valid_HR.lmdb'),
    *(f'DIV2K_train_LR_bicubic_X{scale}_sub.lmdb' for scale in (2, 3, 4, 8)),
    *(f'DIV2K_valid_LR_bicubic_X{scale}.lmdb' for scale in (2, 3, 4, 8)),
}


def read_lmdb(path):
    env = lmdb.open(str(path), readonly=True, lock=False)
    with env.begin() as transaction:
        images = {key.decode(): image_file.decode(value, key) for key, value in transaction.cursor()}
    env.close()
    return images


def keys(path):
    return [line.split('.')[0] for line in (path / 'meta_info.txt').read_text().splitlines()]


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


@pytest.fixture
def div2k(tmp_path, write_photo):
    """A small DIV2K: two training images, of which one has sides that are no multiples of 24, a validation image."""
    root = tmp_path / 'DIV2K'
    write_photo(root / 'DIV2K_train_HR' / '0001.png', 732, 516, 1)
    write_photo(root / 'DIV2K_train_HR' / '0002.png', 480, 480, 2)
    write_photo(root / 'DIV2K_valid_HR' / '0801.png', 93, 130, 3)
    return root


@pytest.fixture
def official_div2k(tmp_path, write_photo):
    """900 files with the official names; hard links of one image."""
    root = tmp_path / 'official'
    write_photo(tmp_path / 'one.png', 480, 480)
    for part, first, last in (('train', 1, 800), ('valid', 801, 900)):
        (root / f'DIV2K_{part}_HR').mkdir(parents=True)
        for number in range(first, last + 1):
            os.link(tmp_path / 'one.png', root / f'DIV2K_{part}_HR' / f'{number:04d}.png')
    return root


@pytest.fixture
def add_lr(photo):
    """Writes LR images as the official folders have them, recognisable by their grey value."""

    def add(root, folder, name, height, width, value):
        image_file.write_png(root / folder / name, np.full((height, width, 3), value, np.uint8))

    return add


@pytest.mark.parametrize(
    ('side', 'expected'),
    [
        (480, [0]),
        (503, [0]),
        (504, [0, 24]),
        (720, [0, 240]),
        (1404, [0, 240, 480, 720, 912]),
        (2040, [0, 240, 480, 720, 960, 1200, 1440, 1560]),
    ],
)
def test_cut_starts(side, expected):
    assert cut_starts(side, Cut(480, 240)) == expected
    assert {start % CUT_MULTIPLE for start in expected} == {0}


def test_cut_starts_of_a_short_side():
    with pytest.raises(ValueError, match='got side=456, crop=480'):
        cut_starts(479, Cut(480, 240))


@pytest.mark.parametrize('workers', [1, 2])
def test_div2k_outputs_and_keys(tmp_path, div2k, workers):
    paths = prepare_div2k(div2k, tmp_path / 'out', workers=workers, subset=True)
    assert {path.name for path in paths} == {path.name for path in (tmp_path / 'out').iterdir()} == DIV2K_OUTPUTS
    # 732 -> 720: starts 0 and 240; 516 -> 504: starts 0 and 24.
    assert {tuple(keys(path)) for path in paths if 'train' in path.name} == {
        ('0001_s001', '0001_s002', '0001_s003', '0001_s004', '0002_s001')
    }
    assert {tuple(keys(path)) for path in paths if 'valid' in path.name} == {('0801',)}


def test_div2k_hr_is_cut_row_by_row(tmp_path, div2k, photo):
    prepare_div2k(div2k, tmp_path, scales=[2], subset=True)
    images, hr = read_lmdb(tmp_path / 'DIV2K_train_HR_sub.lmdb'), photo(732, 516, 1)
    np.testing.assert_array_equal(images['0001_s001'], hr[:480, :480])
    np.testing.assert_array_equal(images['0001_s002'], hr[:480, 24:504])
    np.testing.assert_array_equal(images['0001_s003'], hr[240:720, :480])
    np.testing.assert_array_equal(images['0002_s001'], photo(480, 480, 2))


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
def test_div2k_lr_is_a_part_of_the_whole_lr(tmp_path, div2k, photo, scale):
    prepare_div2k(div2k, tmp_path, scales=[scale], subset=True)
    images = read_lmdb(tmp_path / f'DIV2K_train_LR_bicubic_X{scale}_sub.lmdb')
    lr = downsample(mod_crop(photo(732, 516, 1), scale), scale)
    part = lr[240 // scale : 720 // scale, 24 // scale : 504 // scale]
    np.testing.assert_array_equal(images['0001_s004'], part)


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
def test_div2k_validation_images_are_whole(tmp_path, div2k, photo, scale):
    prepare_div2k(div2k, tmp_path, scales=[scale], subset=True)
    hr = photo(93, 130, 3)
    np.testing.assert_array_equal(read_lmdb(tmp_path / 'DIV2K_valid_HR.lmdb')['0801'], hr)
    lr = read_lmdb(tmp_path / f'DIV2K_valid_LR_bicubic_X{scale}.lmdb')['0801']
    np.testing.assert_array_equal(lr, downsample(mod_crop(hr, scale), scale))


@pytest.mark.parametrize(('part', 'phase', 'count'), [('train', 'train', 5), ('valid', 'val', 1)])
@pytest.mark.parametrize('scale', [3, 8])
def test_basicsr_reads_the_lmdbs(tmp_path, div2k, part, phase, count, scale):
    from spinsr import compat

    compat.install()
    from basicsr.data.paired_image_dataset import PairedImageDataset

    prepare_div2k(div2k, tmp_path, scales=[scale], subset=True)
    ending = '_sub.lmdb' if part == 'train' else '.lmdb'
    dataset = PairedImageDataset(
        {
            'dataroot_gt': str(tmp_path / f'DIV2K_{part}_HR{ending}'),
            'dataroot_lq': str(tmp_path / f'DIV2K_{part}_LR_bicubic_X{scale}{ending}'),
            'io_backend': {'type': 'lmdb'},
            'phase': phase,
            'scale': scale,
            'gt_size': 480,
            'use_hflip': False,
            'use_rot': False,
        }
    )
    item = dataset[0]
    assert len(dataset) == count
    assert item['gt'].shape[1] == item['lq'].shape[1] * scale
    assert item['gt'].shape[2] == item['lq'].shape[2] * scale


@pytest.mark.parametrize('workers', [1, 2])
def test_scales_of_separate_runs_fit(tmp_path, div2k, workers):
    prepare_div2k(div2k, tmp_path, scales=[2], workers=workers, subset=True)
    prepare_div2k(div2k, tmp_path, scales=[3, 8], workers=workers, subset=True)
    assert keys(tmp_path / 'DIV2K_train_LR_bicubic_X3_sub.lmdb') == keys(tmp_path / 'DIV2K_train_HR_sub.lmdb')


def test_official_lr_is_used_where_it_is(tmp_path, div2k, add_lr):
    add_lr(div2k, 'DIV2K_train_LR_bicubic/X2', '0001x2.png', 366, 258, 11)
    add_lr(div2k, 'DIV2K_train_LR_bicubic/X2', '0002x2.png', 240, 240, 12)
    prepare_div2k(div2k, tmp_path, scales=[2, 4], subset=True)
    images = read_lmdb(tmp_path / 'DIV2K_train_LR_bicubic_X2_sub.lmdb')
    assert {key: (image.shape, image.max()) for key, image in images.items()} == {
        **{f'0001_s00{n}': ((240, 240, 3), 11) for n in (1, 2, 3, 4)},
        '0002_s001': ((240, 240, 3), 12),
    }
    assert read_lmdb(tmp_path / 'DIV2K_train_LR_bicubic_X4_sub.lmdb')['0001_s001'].max() > 12


def test_official_x8_has_its_own_folder_and_may_be_rounded_up(tmp_path, div2k, add_lr):
    # 93 / 8 = 11.6 and 130 / 8 = 16.25.
    add_lr(div2k, 'DIV2K_valid_LR_x8', '0801x8.png', 12, 17, 13)
    prepare_div2k(div2k, tmp_path, scales=[8], subset=True)
    image = read_lmdb(tmp_path / 'DIV2K_valid_LR_bicubic_X8.lmdb')['0801']
    assert (image.shape, image.max()) == ((11, 16, 3), 13)


def test_official_lr_of_another_size_is_named(tmp_path, div2k, add_lr):
    add_lr(div2k, 'DIV2K_train_LR_bicubic/X2', '0001x2.png', 366, 259, 0)
    with pytest.raises(ValueError, match=r'0001x2.png must be the HR image \(732x516.*2 times smaller, got 366x259'):
        prepare_div2k(div2k, tmp_path / 'out', subset=True)
    assert not (tmp_path / 'out').exists()


def test_official_lr_that_is_missing_is_named(tmp_path, div2k, add_lr):
    add_lr(div2k, 'DIV2K_train_LR_bicubic/X2', '0001x2.png', 366, 258, 0)
    with pytest.raises(ValueError, match='0002x2.png is missing'):
        prepare_div2k(div2k, tmp_path / 'out', subset=True)


@pytest.mark.parametrize(
    'name', ['DIV2K_train_HR/0005.png', 'DIV2K_train_HR/0800.png', 'DIV2K_valid_HR/0850.png'], ids=str
)
def test_a_missing_image_is_named(tmp_path, official_div2k, name):
    (official_div2k / name).unlink()
    with pytest.raises(ValueError, match=f'{name} is missing; .*--subset'):
        prepare_div2k(official_div2k, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_an_image_too_many_is_named(tmp_path, official_div2k):
    (official_div2k / 'DIV2K_train_HR/0800.png').rename(official_div2k / 'DIV2K_valid_HR/0800.png')
    with pytest.raises(ValueError, match='DIV2K_train_HR/0800.png is missing'):
        prepare_div2k(official_div2k, tmp_path / 'out')
    os.link(tmp_path / 'one.png', official_div2k / 'DIV2K_train_HR/0800.png')
    with pytest.raises(ValueError, match='DIV2K_valid_HR/0800.png does not belong there'):
        prepare_div2k(official_div2k, tmp_path / 'out')


@pytest.mark.parametrize('subset', [False, True])
def test_a_folder_that_is_not_div2k_is_named(tmp_path, subset):
    with pytest.raises(ValueError, match='DIV2K_train_HR'):
        prepare_div2k(tmp_path, tmp_path / 'out', subset=subset)


def test_a_truncated_image_stops_before_the_work(tmp_path, div2k, truncate):
    truncate(div2k / 'DIV2K_valid_HR' / '0801.png')
    with pytest.raises(ValueError, match='0801.png cannot be read completely'):
        prepare_div2k(div2k, tmp_path / 'out', subset=True)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('workers', [1, 2])
def test_a_damaged_image_is_named_and_replaced(tmp_path, div2k, write_photo, corrupt, workers):
    path = div2k / 'DIV2K_train_HR' / '0002.png'
    corrupt(path)
    with pytest.raises(ValueError, match='0002.png cannot be read completely'):
        prepare_div2k(div2k, tmp_path / 'out', scales=[2], workers=workers, subset=True)
    assert {name.suffix for name in (tmp_path / 'out').iterdir()} == {'.part'}
    image = write_photo(path, 480, 480, 7)
    prepare_div2k(div2k, tmp_path / 'out', scales=[2], workers=workers, subset=True)
    np.testing.assert_array_equal(read_lmdb(tmp_path / 'out/DIV2K_train_HR_sub.lmdb')['0002_s001'], image)


def test_an_image_smaller_than_a_sub_image_is_named(tmp_path, div2k, write_photo):
    write_photo(div2k / 'DIV2K_train_HR' / '0003.png', 479, 600)
    with pytest.raises(ValueError, match=r'0003.png: sides must be at least 480, got 479x600'):
        prepare_div2k(div2k, tmp_path / 'out', subset=True)


@pytest.mark.parametrize(
    ('name', 'message'),
    [('0001.bmp', '0001.bmp and .*0001.png would both have the key 0001_s001')],
    ids=['twice'],
)
def test_names_of_one_key_are_an_error(tmp_path, div2k, name, message):
    data = (div2k / 'DIV2K_train_HR' / '0001.png').read_bytes()
    (div2k / 'DIV2K_train_HR' / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        prepare_div2k(div2k, tmp_path / 'out', subset=True)


def test_names_that_basicsr_could_not_look_up_become_keys(tmp_path, div2k):
    (div2k / 'DIV2K_train_HR' / '0001.png').rename(div2k / 'DIV2K_train_HR' / 'Mr._Lé_0.png')
    hr_path, *_ = prepare_div2k(div2k, tmp_path / 'out', scales=[2], subset=True)
    assert 'Mr__L__0_s001.png' in (hr_path / 'meta_info.txt').read_text()


def test_finished_lmdbs_are_not_replaced_by_others(tmp_path, div2k, write_photo):
    prepare_div2k(div2k, tmp_path / 'out', scales=[2], subset=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.mdb')}
    write_photo(div2k / 'DIV2K_train_HR' / '0003.png', 480, 480)
    with pytest.raises(ValueError, match='DIV2K_train_HR_sub.lmdb exists and holds other images'):
        prepare_div2k(div2k, tmp_path / 'out', scales=[2], subset=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.mdb')} == before


@pytest.mark.parametrize('scales', [[], [5], [2, 6], [1]], ids=str)
def test_other_scales_are_an_error(tmp_path, div2k, scales):
    with pytest.raises(ValueError, match=r'scales must be among \(2, 3, 4, 8\)'):
        prepare_div2k(div2k, tmp_path / 'out', scales=scales, subset=True)


def test_workers_must_be_some(tmp_path, div2k):
    with pytest.raises(ValueError, match='at least 1, got 0'):
        prepare_div2k(div2k, tmp_path / 'out', workers=0, subset=True)


@pytest.fixture(scope='module')
def many(tmp_path_factory, write_photo):
    """Enough images for a run to be stopped in the middle, and what an undisturbed run makes of them."""
    root = tmp_path_factory.mktemp('many')
    for number in range(1, 9):
        write_photo(root / 'DIV2K' / 'DIV2K_train_HR' / f'{number:04d}.png', 720, 720, number)
    prepare_div2k(root / 'DIV2K', root / 'out', scales=[2], subset=True)
    return root / 'DIV2K', {path.name: read_lmdb(path) for path in (root / 'out').iterdir()}


def wait_for_bytes(path, count):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_size >= count):
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='needs signals')
@pytest.mark.parametrize('name', ['SIGKILL', 'SIGTERM', 'SIGINT'])
def test_a_stopped_run_is_continued(tmp_path, many, name, hears_ctrl_c):
    (source, expected), out = many, tmp_path / 'out'
    command = [sys.executable, '-m', 'spinsr.cli', 'prepare', 'div2k', str(source), '-o', str(out), '--scale', '2']
    command += ['--subset', '--workers', '2']
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hears_ctrl_c,
    )
    # LR comes after HR, and an image gives 0.55 MB of it: one is complete, and a second being written.
    wait_for_bytes(out / 'DIV2K_train_LR_bicubic_X2_sub.lmdb.part' / 'data.mdb', 700_000)
    stop = os.kill if name == 'SIGKILL' else os.killpg
    stop(process.pid, getattr(signal, name))
    errors = process.communicate(timeout=30)[1]
    assert process.returncode != 0
    assert {path.suffix for path in out.iterdir()} == {'.part'}
    assert ('run the same command again' in errors) == (name == 'SIGINT')
    assert 'Traceback' not in errors

    again = subprocess.run(command, capture_output=True, text=True, check=True)
    done = int(again.stderr.partition('DIV2K train: ')[2].split()[0])
    assert 0 < done < 8
    actual = {path.name: read_lmdb(path) for path in out.iterdir()}
    assert {name: images.keys() for name, images in actual.items()} == {
        name: images.keys() for name, images in expected.items()
    }
    assert all(np.array_equal(actual[name][key], expected[name][key]) for name in expected for key in expected[name])


@pytest.fixture
def hr_folder(tmp_path, write_photo):
    folder = tmp_path / 'Mine' / 'HR'
    write_photo(folder / 'a.png', 50, 67, 1)
    write_photo(folder / 'b.png', 48, 72, 2)
    return folder


def test_benchmark_layout(tmp_path, hr_folder):
    assert prepare_benchmark([hr_folder], tmp_path / 'out', scales=[2, 3]) == [tmp_path / 'out' / 'Mine']
    assert tree(tmp_path / 'out') == {
        *('Mine/HR/a.png', 'Mine/HR/b.png'),
        *('Mine/HR_mod/X2/a.png', 'Mine/HR_mod/X2/b.png', 'Mine/HR_mod/X3/a.png', 'Mine/HR_mod/X3/b.png'),
        *('Mine/LR_bicubic/X2/ax2.png', 'Mine/LR_bicubic/X2/bx2.png'),
        *('Mine/LR_bicubic/X3/ax3.png', 'Mine/LR_bicubic/X3/bx3.png'),
    }


@pytest.mark.parametrize('workers', [1, 2])
@pytest.mark.parametrize('scale', [2, 3, 4, 8])
def test_benchmark_images(tmp_path, hr_folder, photo, scale, workers):
    prepare_benchmark([hr_folder], tmp_path, scales=[scale], workers=workers)
    hr, target = photo(50, 67, 1), tmp_path / 'Mine'
    hr_mod = mod_crop(hr, scale)
    np.testing.assert_array_equal(image_file.read(target / 'HR' / 'a.png'), hr)
    np.testing.assert_array_equal(image_file.read(target / 'HR_mod' / f'X{scale}' / 'a.png'), hr_mod)
    lr = image_file.read(target / 'LR_bicubic' / f'X{scale}' / f'ax{scale}.png')
    np.testing.assert_array_equal(lr, downsample(hr_mod, scale))


def test_benchmark_makes_grey_images_colour(tmp_path):
    import cv2

    (tmp_path / 'Grey').mkdir()
    cv2.imwrite(str(tmp_path / 'Grey' / 'a.bmp'), np.arange(64, dtype=np.uint8).reshape(8, 8))
    prepare_benchmark([tmp_path / 'Grey'], tmp_path / 'out', scales=[2])
    image = cv2.imread(str(tmp_path / 'out/Grey/LR_bicubic/X2/ax2.png'), cv2.IMREAD_UNCHANGED)
    assert image.shape == (4, 4, 3)


def test_benchmark_of_several_folders(tmp_path, write_photo):
    write_photo(tmp_path / 'one' / 'a.png', 16, 16)
    write_photo(tmp_path / 'two' / 'HR' / 'a.png', 16, 16)
    paths = prepare_benchmark([tmp_path / 'one', tmp_path / 'two' / 'HR'], tmp_path / 'out')
    assert [path.name for path in paths] == ['one', 'two']


def test_benchmark_folders_of_one_name_are_an_error(tmp_path, write_photo):
    write_photo(tmp_path / 'x' / 'one' / 'a.png', 16, 16)
    write_photo(tmp_path / 'y' / 'one' / 'a.png', 16, 16)
    with pytest.raises(ValueError, match='different names, got one twice'):
        prepare_benchmark([tmp_path / 'x' / 'one', tmp_path / 'y' / 'one'], tmp_path / 'out')


def test_benchmark_continues_and_keeps_what_is_there(tmp_path, hr_folder):
    prepare_benchmark([hr_folder], tmp_path / 'out', scales=[2])
    target = tmp_path / 'out' / 'Mine'
    kept = target / 'LR_bicubic/X2/bx2.png'
    before = kept.stat().st_mtime_ns
    left = temporary_name(target / 'LR_bicubic/X2/ax2.png')
    (target / 'LR_bicubic/X2/ax2.png').rename(left)
    prepare_benchmark([hr_folder], tmp_path / 'out', scales=[2])
    assert image_file.inspect(target / 'LR_bicubic/X2/ax2.png') == (25, 33)
    assert not left.exists()
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize('overwrite', [False, True])
def test_benchmark_overwrites_when_asked(tmp_path, hr_folder, write_photo, overwrite):
    prepare_benchmark([hr_folder], tmp_path / 'out', scales=[2])
    changed = write_photo(hr_folder / 'a.png', 50, 67, 9)
    prepare_benchmark([hr_folder], tmp_path / 'out', scales=[2], overwrite=overwrite)
    lr = image_file.read(tmp_path / 'out/Mine/LR_bicubic/X2/ax2.png')
    assert np.array_equal(lr, downsample(mod_crop(changed, 2), 2)) == overwrite


def test_benchmark_names_a_file_of_another_size(tmp_path, hr_folder, write_photo):
    prepare_benchmark([hr_folder], tmp_path / 'out', scales=[2])
    write_photo(hr_folder / 'a.png', 60, 67)
    with pytest.raises(ValueError, match=r'a.png exists and must be 60x67 \(HxW\).*--overwrite'):
        prepare_benchmark([hr_folder], tmp_path / 'out', scales=[2])


def test_benchmark_beside_its_own_hr(tmp_path, hr_folder):
    before = (hr_folder / 'a.png').stat().st_mtime_ns
    prepare_benchmark([hr_folder], tmp_path, scales=[4], overwrite=True)
    assert (hr_folder / 'a.png').stat().st_mtime_ns == before
    assert (hr_folder.parent / 'LR_bicubic/X4/ax4.png').exists()


def test_benchmark_beside_its_own_hr_needs_png(tmp_path, hr_folder):
    (hr_folder / 'b.png').rename(hr_folder / 'b.bmp')
    with pytest.raises(ValueError, match='HR is where the output goes'):
        prepare_benchmark([hr_folder], tmp_path, scales=[4])


@pytest.mark.parametrize('workers', [1, 2])
def test_benchmark_names_a_damaged_image(tmp_path, hr_folder, corrupt, workers):
    corrupt(hr_folder / 'b.png')
    with pytest.raises(ValueError, match='b.png cannot be read completely'):
        prepare_benchmark([hr_folder], tmp_path / 'out', workers=workers)


def test_benchmark_names_an_image_smaller_than_the_scale(tmp_path, hr_folder, write_photo):
    write_photo(hr_folder / 'c.png', 7, 30)
    with pytest.raises(ValueError, match=r'c.png: sides must be at least the scale 8, got 7x30'):
        prepare_benchmark([hr_folder], tmp_path / 'out')


def test_benchmark_names_images_of_one_name(tmp_path, hr_folder):
    (hr_folder / 'a.bmp').write_bytes((hr_folder / 'a.png').read_bytes())
    with pytest.raises(ValueError, match='a.bmp and .*a.png would both become a.png'):
        prepare_benchmark([hr_folder], tmp_path / 'out')


def test_benchmark_equals_the_published_set(tmp_path, benchmark_folder):
    prepare_benchmark([benchmark_folder / 'Set5' / 'HR'], tmp_path, scales=[3])
    published = benchmark_folder / 'Set5' / 'LR_bicubic' / 'X3'
    ours = tmp_path / 'Set5' / 'LR_bicubic' / 'X3'
    assert tree(ours) == tree(published)
    assert all(np.array_equal(image_file.read(ours / name), image_file.read(published / name)) for name in tree(ours))
