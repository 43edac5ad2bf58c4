"""The images of a data set: what is missing, unpaired, damaged or of another size is found, in folders and LMDBs."""

import io
import json
import shutil
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from PIL import Image

import spinsr.archs  # noqa: F401

from ..tiny_project import TEST, TRAIN, changed, write_images, write_outputs

# isort: split
from spinsr.check.images import images
from spinsr.models.registration import register

register()

LMDB = {'type': 'lmdb'}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with three pairs, 24x24 and 12x12, in hr/ and lr/ of a folder."""
    folder = tmp_path / 'Bilder ü größer'
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    write_images(folder, 3)
    return folder


def options(place, base=TEST, **changes):
    key = 'datasets:train' if base is TRAIN else 'datasets:test_1'
    given = {'dataroot_gt': str(place / 'hr'), 'dataroot_lq': str(place / 'lr'), **changes}
    base = {**base, 'datasets': {key.partition(':')[2]: base['datasets'][key.partition(':')[2]]}}
    return changed(base, {f'{key}:{name}': value for name, value in given.items()})


def look(options, **flags):
    seen = dict(images(options, **flags))
    assert len(seen) == 1
    return next(iter(seen.values()))


def said(options, **flags):
    return [f'{finding.level} {finding.message}' for finding in look(options, **flags).findings]


def random_image(height, width, *channels, dtype=np.uint8):
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (height, width, *channels), dtype=dtype)


def no_change(place):
    pass


def truncate(place):
    data = (place / 'hr' / '1.png').read_bytes()
    (place / 'hr' / '1.png').write_bytes(data[: len(data) // 2])


def flip_a_byte(place):
    data = bytearray((place / 'hr' / '1.png').read_bytes())
    data[len(data) // 2] ^= 255
    (place / 'hr' / '1.png').write_bytes(data)


def truncated_jpeg(place):
    cv2.imwrite(str(place / 'hr' / '1.jpg'), random_image(24, 24, 3))
    data = (place / 'hr' / '1.jpg').read_bytes()
    (place / 'hr' / '1.png').write_bytes(data[:-40])
    (place / 'hr' / '1.jpg').unlink()


def text(place):
    (place / 'hr' / '1.png').write_text('not an image')


def nothing_in_it(place):
    (place / 'lr' / '1.png').write_bytes(b'')


def one_pixel(place):
    Image.fromarray(random_image(1, 1, 3)).save(place / 'hr' / '1.png')


def wrong_size(place):
    Image.fromarray(random_image(24, 28, 3)).save(place / 'hr' / '1.png')
    Image.fromarray(random_image(24, 28, 3)).save(place / 'hr' / '2.png')


def no_lr(place):
    (place / 'lr' / '1.png').unlink()


def more_lr(place):
    shutil.copy(place / 'lr' / '1.png', place / 'lr' / '9.png')


def no_images(place):
    for side in ('hr', 'lr'):
        shutil.rmtree(place / side)
        (place / side).mkdir()


def deep_grey(place):
    for path in place.glob('*/*.png'):
        side = 24 if path.parent.name == 'hr' else 12
        Image.fromarray(random_image(side, side, dtype=np.uint16)).save(path.with_suffix('.tiff'))
        path.unlink()


def deep_colour(place):
    for path in place.glob('*/*.png'):
        side = 24 if path.parent.name == 'hr' else 12
        path.unlink()
        cv2.imwrite(str(path.with_suffix('.tiff')), random_image(side, side, 3, dtype=np.uint16))


def transparent(place):
    for path in place.glob('*/*.png'):
        side = 24 if path.parent.name == 'hr' else 12
        Image.fromarray(random_image(side, side, 4)).save(path.with_suffix('.webp'), lossless=True)
        path.unlink()


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (no_change, []),
        (truncate, ['error * cannot be read completely: *']),
        (truncated_jpeg, ['error * cannot be read completely: *']),
        (text, ['error *1.png is not an image, or its start is damaged']),
        (nothing_in_it, ['error *1.png is not an image, or its start is damaged']),
        (one_pixel, ['error 1.png (1x1 HxW) is not x2 of its LR image 1.png (12x12 HxW)']),
        (wrong_size, ['error 1.png (24x28 HxW) is not x2 of its LR image 1.png (12x12 HxW) (and 1 more)']),
        (no_lr, ["error 1.png of * has no LR image 1.png in * (filename_tmpl: '{}')"]),
        (more_lr, ['error 9.png of * has no partner in *']),
        (no_images, ['error no image found in *']),
        (deep_grey, ['warning 0.tiff of * has more than 8 bits a channel: BasicSR reads 8 (and 5 more)']),
        (deep_colour, ['warning 0.tiff of * has more than 8 bits a channel: BasicSR reads 8 (and 5 more)']),
        (transparent, ['warning 0.webp of * is transparent: only its colours are read (and 5 more)']),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_folder(place, change, expected):
    change(place)
    found = said(options(place))
    assert len(found) == len(expected)
    assert all(fits(text, pattern) for text, pattern in zip(found, expected, strict=True)), found


def fits(text, pattern):
    """Whether a text begins, goes on and ends with what stands between the stars."""
    head, *rest = pattern.split('*')
    if not text.startswith(head) or not text.endswith(rest[-1] if rest else head):
        return False
    return all(part in text for part in rest)


@pytest.mark.parametrize(('decode', 'count'), [(False, 0), (True, 1)], ids=['headers', 'decoded'])
def test_damage_in_the_middle_is_seen_only_when_decoded(place, decode, count):
    flip_a_byte(place)
    found = said(options(place), decode=decode)
    assert len(found) == count
    assert all('1.png cannot be read completely' in text for text in found)


def test_hr_with_a_rest_is_cut_in_testing_and_refused_in_training(place):
    Image.fromarray(random_image(25, 25, 3)).save(place / 'hr' / '1.png')
    assert said(options(place)) == []
    assert fits(said(options(place, TRAIN))[0], 'error 1.png (25x25 HxW) is not x2*')


def test_turned_jpeg_has_the_sides_that_opencv_gives_it(place):
    exif = Image.Exif()
    exif[0x0112] = 6
    (place / 'hr' / '1.png').unlink()
    (place / 'lr' / '1.png').unlink()
    Image.fromarray(random_image(24, 32, 3)).save(place / 'hr' / '1.jpg', exif=exif)
    cv2.imwrite(str(place / 'lr' / '1.jpg'), random_image(16, 12, 3))
    assert said(options(place)) == []


def test_template(place):
    for path in (place / 'lr').iterdir():
        path.rename(path.with_name(f'{path.stem}x2.png'))
    assert said(options(place, filename_tmpl='{}x2')) == []
    assert len(said(options(place))) == 2


def test_list_of_names(place):
    (place / 'list.txt').write_text('0.png (24,24,3)\n7.png (24,24,3)\n')
    found = said(options(place, meta_info_file=str(place / 'list.txt')))
    assert len(found) == 1
    assert fits(found[0], "error 7.png of * has no LR image 7.png in * (filename_tmpl: '{}')")


@pytest.mark.parametrize(
    ('content', 'line'),
    [
        (b'0.png\r\n0.png\r\n1.png \x0c', 'warning * has 0.png 2 times: it counts 2 times'),
        (b'0.png\n\n', None),
    ],
    ids=['duplicate', 'bad-list-which-another-check-names'],
)
def test_list_with(content, line, place):
    (place / 'list.txt').write_bytes(content)
    found = said(options(place, meta_info_file=str(place / 'list.txt')))
    assert len(found) == bool(line)
    assert not line or fits(found[0], line)


def test_small_images_and_a_large_batch(place):
    found = said(options(place, TRAIN, gt_size=32, batch_size_per_gpu=4))
    assert found == [
        'error 0.png (24x24 HxW) is smaller than gt_size, 32 (and 2 more)',
        'warning has 3 images for a batch of 4: they are repeated within it',
    ]


def test_bicubic_data_set_refuses_more_than_8_bits(place):
    deep_grey(place)
    (place / 'hr' / 'notes.txt').write_text('not listed')
    changes = {'type': 'BicubicImageDataset', 'max_images': 2}
    seen = look(options(place, **changes))
    assert seen.count == 2
    assert [finding.level for finding in seen.findings] == ['error']
    assert 'must have 8 bits a channel, got more (and 1 more)' in seen.findings[0].message


def test_data_set_of_several_scales_needs_room_for_the_largest(place):
    wrong = {'type': 'MultiScaleDataset', 'scales': [2, 4], 'gt_size': 14}
    assert said(options(place, base=TRAIN, **wrong)) == [
        'error 0.png (24x24 HxW) is smaller than the HR patch at the largest of scales, 28 (and 2 more)'
    ]
    assert said(options(place, base=TRAIN, **{**wrong, 'gt_size': 12})) == []


def test_single_images(place):
    changes = {'type': 'SingleImageDataset'}
    seen = look(options(place, **changes))
    assert (seen.findings, seen.count, seen.largest) == ([], 3, (12, 12))


def test_largest_lr_image(place):
    Image.fromarray(random_image(40, 60, 3)).save(place / 'hr' / '1.png')
    Image.fromarray(random_image(20, 30, 3)).save(place / 'lr' / '1.png')
    assert look(options(place)).largest == (20, 30)
    assert look(options(place, type='BicubicImageDataset')).largest == (20, 30)


def write_lmdb(path, folder, names):
    path.mkdir()
    with lmdb.open(str(path), map_size=2**20) as env, env.begin(write=True) as transaction:
        for name in names:
            transaction.put(name.encode(), (folder / f'{name}.png').read_bytes())
    (path / 'meta_info.txt').write_text(''.join(f'{name}.png (1,1,3) 1\n' for name in names))


@pytest.fixture
def databases(place):
    write_lmdb(place / 'hr.lmdb', place / 'hr', '012')
    write_lmdb(place / 'lr.lmdb', place / 'lr', '012')
    return place


def lmdb_options(place, **changes):
    roots = {'dataroot_gt': str(place / 'hr.lmdb'), 'dataroot_lq': str(place / 'lr.lmdb'), 'io_backend': LMDB}
    return options(place, **{**roots, **changes})


def add_a_name(place):
    for side in ('hr', 'lr'):
        with (place / f'{side}.lmdb' / 'meta_info.txt').open('a') as file:
            file.write('8.png (1,1,3) 1\n')


def drop_a_name(place):
    (place / 'lr.lmdb' / 'meta_info.txt').write_text('0.png (1,1,3) 1\n')


def unreadable(place):
    (place / 'hr.lmdb' / 'data.mdb').write_bytes(b'no database' * 1000)


def empty(place):
    for side in ('hr', 'lr'):
        (place / f'{side}.lmdb' / 'meta_info.txt').write_text('')


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (no_change, []),
        (add_a_name, ['8 of *lr.lmdb is missing, but meta_info.txt names it', '8 of *hr.lmdb is missing*']),
        (drop_a_name, ['1 of *hr.lmdb has no partner in *lr.lmdb (and 1 more)']),
        (unreadable, ['cannot be read: *']),
        (empty, ['no image found in *']),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_lmdb(databases, change, expected):
    change(databases)
    found = said(lmdb_options(databases))
    assert len(found) == len(expected)
    assert all(fits(text, f'error {pattern}') for text, pattern in zip(found, expected, strict=True)), found


def test_header_behind_much_metadata_in_an_lmdb(databases):
    """A TIFF may have its header at the end, a JPEG behind its metadata."""
    file = io.BytesIO()
    Image.fromarray(random_image(24, 24, 3)).save(file, 'JPEG')
    start, rest = file.getvalue()[:2], file.getvalue()[2:]
    comment = b'\xff\xfe' + (60_002).to_bytes(2, 'big') + b'x' * 60_000
    (databases / 'hr' / '1.png').write_bytes(start + 2 * comment + rest)
    write_lmdb(databases / 'other.lmdb', databases / 'hr', '012')
    assert said(lmdb_options(databases, dataroot_gt=str(databases / 'other.lmdb'))) == []


def test_images_of_an_lmdb(databases):
    one, other = random_image(24, 30, 3), (databases / 'hr' / '1.png').read_bytes()
    Image.fromarray(one).save(databases / 'hr' / '0.png')
    (databases / 'hr' / '1.png').write_bytes(other[: len(other) // 2])
    write_lmdb(databases / 'other.lmdb', databases / 'hr', '012')
    found = said(lmdb_options(databases, dataroot_gt=str(databases / 'other.lmdb')))
    assert fits(found[0], 'error 0 (24x30 HxW) is not x2 of its LR image 0 (12x12 HxW)')
    assert fits(found[1], 'error 1 of *other.lmdb cannot be read completely*')


def test_a_data_set_that_is_not_known_is_not_looked_at(place):
    assert dict(images(options(place, type='VideoTestDataset'))) == {}


def test_missing_folders_are_left_to_files(place):
    assert dict(images(options(place, dataroot_gt=str(Path('gone'))))) == {}


@pytest.fixture
def distillation(place):
    """The option file of a training that has a teacher's outputs, in folders."""
    write_outputs(place, 3)
    return options(place, TRAIN, type='DistillationDataset', dataroot_teacher=str(place / 'teacher'))


def no_output(place):
    (place / 'teacher' / '1.png').unlink()


def wrong_output(place):
    cv2.imwrite(str(place / 'teacher' / '1.png'), random_image(24, 20, 3, dtype=np.uint16))


def truncated_output(place):
    data = (place / 'teacher' / '1.png').read_bytes()
    (place / 'teacher' / '1.png').write_bytes(data[:500])


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (no_change, []),
        (no_output, ['error 1.png of * has no output 1.png in *']),
        (wrong_output, ['error 1.png (24x20 HxW) is not x2 of its LR image 1.png (12x12 HxW)']),
        (truncated_output, ['error * cannot be read completely: *']),
        (more_lr, ['error 9.png of * has no partner in *']),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_outputs_of_a_teacher_in_a_folder(place, distillation, change, expected):
    change(place)
    found = said(distillation)
    assert len(found) == len(expected)
    assert all(fits(text, pattern) for text, pattern in zip(found, expected, strict=True)), found


TEACHER = {'arch': 'RCAN', 'arch_args': {}, 'weights': 'a.pth', 'sha256': '01', 'scale': 2, 'tile': None}


def same(place):
    (place / 'teacher.lmdb' / 'teacher.json').write_text(json.dumps(TEACHER))


def no_json(place):
    pass


def other_scale(place):
    (place / 'teacher.lmdb' / 'teacher.json').write_text(json.dumps({**TEACHER, 'scale': 4}))


def damaged_json(place):
    (place / 'teacher.lmdb' / 'teacher.json').write_text('{')


def other_keys(place):
    same(place)
    meta_info = place / 'teacher.lmdb' / 'meta_info.txt'
    meta_info.write_text(meta_info.read_text().replace('2.png', '7.png'))


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (same, ['note * is of RCAN x2 (a.pth, SHA-256 01…)']),
        (no_json, ['warning * has no teacher.json: nothing says whose outputs it holds']),
        (other_scale, ['error * is of RCAN x4 (a.pth, SHA-256 01…), but the scale is 2']),
        (damaged_json, ['error *teacher.json cannot be read: *']),
        (
            other_keys,
            [
                'error 2 of *hr.lmdb has no partner in *teacher.lmdb',
                'error 7 of *teacher.lmdb has no partner in *hr.lmdb',
            ]
            + ['note * is of RCAN x2*'],
        ),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_outputs_of_a_teacher_in_an_lmdb(databases, change, expected):
    write_outputs(databases, 3)
    write_lmdb(databases / 'teacher.lmdb', databases / 'teacher', '012')
    change(databases)
    found = said(lmdb_options(databases, type='DistillationDataset', dataroot_teacher=str(databases / 'teacher.lmdb')))
    assert len(found) == len(expected), found
    assert all(fits(text, pattern) for text, pattern in zip(found, expected, strict=True)), found
