"""Files and folders of photographs through a network."""

import errno
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from spinsr.data import frames, photograph
from spinsr.data.photograph import Photograph
from spinsr.inference import image_files
from spinsr.inference import upscale as upscaling
from spinsr.inference.image_files import name_outputs, upscale_files
from spinsr.inference.output_size import OutputSize
from spinsr.utils import memory


class Twice(nn.Upsample):
    def __init__(self):
        super().__init__(scale_factor=2)


def write(path: Path, value: int = 50, shape: tuple[int, ...] = (4, 5, 3), dtype: type = np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph.write(path, Photograph(np.full(shape, value, dtype)))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def photos(tmp_path):
    """A folder with two images, and other files."""
    folder = tmp_path / 'photos'
    write(folder / 'a.png')
    write(folder / 'b.JPG')
    write(folder / '.hidden.png')
    write(folder / 'below' / 'c.png')
    (folder / 'notes.txt').write_text('x')
    return folder


def test_names_of_files_and_folders(photos, tmp_path):
    extra = write(tmp_path / 'Bild ä.webp')
    outputs = name_outputs([extra, photos], tmp_path / 'out', 3)
    assert {source.name: target for source, target in outputs.items()} == {
        'Bild ä.webp': tmp_path / 'out' / 'Bild ä_x3.webp',
        'a.png': tmp_path / 'out' / 'a_x3.png',
        'b.JPG': tmp_path / 'out' / 'b_x3.JPG',
    }
    assert list(outputs) == [extra, photos / 'a.png', photos / 'b.JPG']
    assert not (tmp_path / 'out').exists()


def test_an_image_that_is_named_twice_is_done_once(photos, tmp_path):
    assert len(name_outputs([photos / 'a.png', photos, photos / 'below' / '..' / 'a.png'], tmp_path / 'out', 4)) == 2


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda p: [p / 'photos', write(p / 'more' / 'a.png')], r'photos/a.png and .*more/a.png would both become'),
        (lambda p: [p / 'photos', write(p / 'more' / 'A.PNG')], r'photos/a.png and .*more/A.PNG would both become'),
        (lambda p: [p / 'photos', write(p / 'out' / 'a_x4.png')], r'a_x4.png, the output of .*a.png, is an input too'),
        (lambda p: [write(p / 'out' / 'a.png').parent], 'the output folder must not be an input'),
        (lambda p: [p / 'nowhere.png'], 'nowhere.png is missing'),
        (lambda p: [p / 'photos' / 'notes.txt'], r'notes.txt must end in one of \.apng'),
        (lambda p: [(p / 'empty').mkdir() or p / 'empty'], 'no images .*empty'),
    ],
    ids=['two_of_a_name', 'two_in_capitals', 'output_is_input', 'folder_is_out', 'missing', 'ending', 'empty'],
)
def test_what_cannot_be_done_is_said_before_the_work(photos, tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        name_outputs(make(tmp_path), tmp_path / 'out', 4)


def test_output_that_is_a_file(photos):
    with pytest.raises(ValueError, match='output path is not a directory: .*notes.txt'):
        name_outputs([photos], photos / 'notes.txt', 4)
    with pytest.raises(ValueError, match='a.png names one file, got 2 images'):
        name_outputs([photos], photos / 'a.png', 4)
    with pytest.raises(ValueError, match='a.png, the output of .*a.png, is an input too'):
        name_outputs([photos / 'a.png'], photos / 'a.png', 4)
    assert name_outputs([photos / 'a.png'], photos / 'c.JPG', 4) == {photos / 'a.png': photos / 'c.JPG'}


def test_sub_folders_keep_their_tree(photos, tmp_path):
    write(photos / 'below' / 'deep' / 'a.png')
    write(photos / '.cache' / 'd.png')
    write(photos / 'large' / 'below' / 'old.png')
    outputs = name_outputs([photos], photos / 'large', 2, recursive=True)
    assert {str(source.relative_to(photos)): str(target.relative_to(photos)) for source, target in outputs.items()} == {
        'a.png': 'large/a_x2.png',
        'b.JPG': 'large/b_x2.JPG',
        'below/c.png': 'large/below/c_x2.png',
        'below/deep/a.png': 'large/below/deep/a_x2.png',
    }
    assert len(upscale_files(outputs, Twice()).done) == 4
    (tmp_path / 'none' / 'below').mkdir(parents=True)
    with pytest.raises(ValueError, match='no images .* sub-folders'):
        name_outputs([tmp_path / 'none'], photos / 'large', 2, recursive=True)


@pytest.mark.parametrize(
    ('template', 'size', 'name'),
    [
        ('{stem}_{size}{ext}', OutputSize(outscale=1.5), 'b_x1.5.JPG'),
        ('{stem}_{size}{ext}', OutputSize(width=1920), 'b_w1920.JPG'),
        ('{stem}_{size}', OutputSize(max_side=99), 'b_max99.JPG'),
        ('{scale:02}-{stem}.large.png', None, '02-b.large.png'),
    ],
    ids=['outscale', 'width', 'max_side', 'ending'],
)
def test_names_by_a_template(photos, tmp_path, template, size, name):
    outputs = name_outputs([photos / 'b.JPG'], tmp_path, 2, size=size, template=template)
    assert outputs == {photos / 'b.JPG': tmp_path / name}


@pytest.mark.parametrize('template', ['{stem', '{}', '{nothing}{stem}', 'name', 'a/{stem}', '{stem.x}', '{0}{stem}'])
def test_templates_that_cannot_name_outputs(photos, tmp_path, template):
    with pytest.raises(ValueError, match='name'):
        name_outputs([photos / 'b.JPG'], tmp_path, 2, template=template)


@pytest.mark.parametrize(
    ('size', 'expected', 'said'),
    [
        ({'outscale': 1.5}, (6, 8), ''),
        ({'width': 7}, (6, 7), ''),
        ({'max_side': 8}, (6, 8), ''),
        ({'max_side': 99}, (8, 10), ''),
        ({'outscale': 3}, (12, 15), '15x12 is more than x2, the scale of the network'),
        ({'width': 3}, (2, 3), '3x2 is not larger than the image'),
    ],
    ids=['outscale', 'width', 'max_side', 'below_max_side', 'beyond', 'smaller'],
)
def test_size_of_the_output(tmp_path, caplog, size, expected, said):
    path = write(tmp_path / 'a.png')
    size = OutputSize(**size)
    (target,) = upscale_files(name_outputs([path], tmp_path / 'out', 2, size=size), Twice(), size=size).done
    assert np.array_equal(photograph.read(target).pixels, np.full((*expected, 3), 50, np.uint8))
    assert said in caplog.text if said else not caplog.messages


def test_files_are_upscaled_and_nothing_else_is_there(photos, tmp_path):
    out = tmp_path / 'a new' / 'földer'
    report = upscale_files(name_outputs([photos], out, 2), Twice())
    assert report == ([out / 'a_x2.png', out / 'b_x2.JPG'], [], {})
    assert names(out) == ['a_x2.png', 'b_x2.JPG']
    assert np.array_equal(photograph.read(out / 'a_x2.png').pixels, np.full((8, 10, 3), 50, np.uint8))


@pytest.mark.parametrize(
    ('name', 'shape', 'dtype'),
    [
        ('a.tiff', (4, 5), np.uint16),
        ('a.png', (4, 5, 4), np.uint16),
        ('a.webp', (4, 5, 4), np.uint8),
        ('a.bmp', (1, 1, 3), np.uint8),
        ('a.png', (4, 5, 2), np.uint8),
    ],
    ids=['grey_tiff_16', 'rgba_png_16', 'rgba_webp', 'one_pixel', 'grey_alpha'],
)
def test_depth_and_channels_stay(tmp_path, name, shape, dtype):
    path = write(tmp_path / name, np.iinfo(dtype).max // 3, shape, dtype)
    (target,) = upscale_files(name_outputs([path], tmp_path / 'out', 2), Twice()).done
    found = photograph.read(target).pixels
    expected = np.full((2 * shape[0], 2 * shape[1], *shape[2:]), np.iinfo(dtype).max // 3, dtype)
    assert found.dtype == dtype
    assert np.array_equal(found, expected)


def test_profile_stays(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    photograph.write(tmp_path / 'a.png', Photograph(np.zeros((4, 5, 3), np.uint8), profile))
    (target,) = upscale_files(name_outputs([tmp_path / 'a.png'], tmp_path / 'out', 2), Twice()).done
    assert Image.open(target).info['icc_profile'] == profile


def test_what_is_there_is_skipped(photos, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'a_x2.png').write_text('mine')
    report = upscale_files(name_outputs([photos], out, 2), Twice())
    assert report == ([out / 'b_x2.JPG'], [out / 'a_x2.png'], {})
    assert (out / 'a_x2.png').read_text() == 'mine'


def test_overwrite_replaces_it(photos, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'a_x2.png').write_text('mine')
    report = upscale_files(name_outputs([photos], out, 2), Twice(), overwrite=True)
    assert (len(report.done), report.skipped) == (2, [])
    assert photograph.read(out / 'a_x2.png').pixels.shape == (8, 10, 3)


class Picky(Twice):
    """Fails on images of 5 columns."""

    def forward(self, x):
        if x.shape[3] == 5:
            raise RuntimeError('no room for 5\nmore')
        return super().forward(x)


def test_broken_files_and_failures_are_named_and_the_rest_is_done(photos, tmp_path, caplog):
    data = (photos / 'a.png').read_bytes()
    (photos / 'broken.png').write_bytes(data[:-20])
    (photos / 'text.png').write_text('x')
    write(photos / 'wide.jpg', shape=(1, 40000, 3))
    write(photos / 'good.bmp', shape=(3, 3, 3))
    report = upscale_files(name_outputs([photos], tmp_path / 'out', 2), Picky())
    assert [path.name for path in report.done] == ['good_x2.bmp']
    assert names(tmp_path / 'out') == ['good_x2.bmp']
    reasons = {path.name: reason for path, reason in report.failed.items()}
    assert reasons['a.png'] == f'{photos}/a.png: Picky failed on a 4x5 (HxW) image: RuntimeError: no room for 5'
    assert reasons['broken.png'].startswith(f'{photos}/broken.png cannot be read completely')
    assert reasons['text.png'].startswith(f'{photos}/text.png is not an image')
    assert 'wide_x2.jpg: JPEG ends at 65500 pixels a side, got 2x80000' in reasons['wide.jpg']
    left_out, *failures = caplog.messages
    assert left_out.endswith('photos: skipped, unsupported file type: notes.txt')
    assert failures == list(report.failed.values())


def test_options_reach_the_network(photos, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(upscaling, 'upscale', lambda image, net, **options: seen.append(options) or image)
    upscale_files(
        name_outputs([photos / 'a.png'], tmp_path / 'out', 2), Twice(), tile=40, self_ensemble=True, precision='bf16'
    )
    assert seen == [{'tile': 40, 'self_ensemble': True, 'precision': 'bf16', 'progress': True}]


@pytest.mark.parametrize('options', [{'tile': 5}, {'precision': 'fp8'}], ids=str)
def test_wrong_options_are_an_error_and_not_a_failure_of_each_image(photos, tmp_path, options):
    with pytest.raises(ValueError, match='must be'):
        upscale_files(name_outputs([photos], tmp_path / 'out', 2), Twice(), **options)


@pytest.mark.parametrize('where', ['network', 'rename'])
def test_an_interruption_leaves_whole_files_only(photos, tmp_path, monkeypatch, where):
    def interrupt(*_):
        raise KeyboardInterrupt

    out = tmp_path / 'out'
    net = Twice()
    if where == 'network':
        calls = iter([False, False, True])
        net.register_forward_pre_hook(lambda *_: interrupt() if next(calls) else None)
    else:
        replace = os.replace
        monkeypatch.setattr(
            os, 'replace', lambda old, new: interrupt() if Path(new).suffix == '.JPG' else replace(old, new)
        )
    with pytest.raises(KeyboardInterrupt):
        upscale_files(name_outputs([photos], out, 2), net)
    assert names(out) == ['a_x2.png']
    monkeypatch.undo()
    net._forward_pre_hooks.clear()
    report = upscale_files(name_outputs([photos], out, 2), net)
    assert (report.done, report.skipped) == ([out / 'b_x2.JPG'], [out / 'a_x2.png'])


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(photos, tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, 'Permission denied', f'{dir}/tmpxyz')

    monkeypatch.setattr(tempfile, 'TemporaryFile', refuse)
    monkeypatch.setattr(upscaling, 'upscale', lambda *_, **__: pytest.fail('worked'))
    with pytest.raises(PermissionError) as error:
        upscale_files(name_outputs([photos], tmp_path / 'out', 2), Twice())
    assert error.value.filename == str(tmp_path / 'out')


def test_an_image_for_which_memory_does_not_suffice_is_a_failure(photos, tmp_path):
    class Full(Twice):
        def forward(self, x):
            if x.shape[2] > 8:
                raise torch.OutOfMemoryError('CUDA out of memory')
            return super().forward(x)

    write(photos / 'large.png', shape=(50, 50, 3))
    report = upscale_files(name_outputs([photos], tmp_path / 'out', 2), Full())
    assert list(report.failed) == [photos / 'large.png']
    assert report.failed[photos / 'large.png'].endswith(
        'out of memory for a 50x50 image (tried: whole image, 32-px tiles)'
    )
    assert len(report.done) == 2


class Even(Twice):
    """Stands for networks of others that need even sides and fail in a way of their own."""

    def forward(self, x):
        if x.shape[2] % 2 or x.shape[3] % 2:
            raise AssertionError
        return super().forward(x)


def test_no_exception_of_a_network_ends_a_folder(photos, tmp_path):
    write(photos / 'even.png', shape=(4, 6, 3))
    report = upscale_files(name_outputs([photos], tmp_path / 'out', 2), Even())
    assert [path.name for path in report.done] == ['even_x2.png']
    assert report.failed[photos / 'a.png'] == f'{photos}/a.png: Even failed on a 4x5 (HxW) image: AssertionError'


def test_the_longest_output_names_are_written(tmp_path):
    path = write(tmp_path / ('a' * 247 + '.png'))
    report = upscale_files(name_outputs([path], tmp_path / 'out', 2), Twice())
    assert names(tmp_path / 'out') == ['a' * 247 + '_x2.png'] and len(report.done) == 1


def test_a_name_that_is_too_long_is_a_failure_before_the_work(tmp_path, photos, monkeypatch):
    path = write(photos / ('a' * 249 + '.png'))
    calls = []
    monkeypatch.setattr(upscaling, 'upscale', lambda image, *_, **__: calls.append(1) or image)
    report = upscale_files(name_outputs([photos], tmp_path / 'out', 2), Twice())
    assert list(report.failed) == [path] and 'cannot be written' in report.failed[path]
    assert len(report.done) == len(calls) == 2


def test_an_output_that_is_a_directory_is_a_failure_before_the_work(tmp_path, photos, monkeypatch):
    (tmp_path / 'out/a_x2.png').mkdir(parents=True)
    report = upscale_files(name_outputs([photos], tmp_path / 'out', 2), Twice(), overwrite=True)
    assert report.failed == {photos / 'a.png': f'{photos}/a.png: {tmp_path}/out/a_x2.png is a directory'}
    assert names(tmp_path / 'out') == ['a_x2.png', 'b_x2.JPG']


def test_one_output_that_cannot_be_written_does_not_end_the_work(tmp_path, photos, monkeypatch):
    once = photograph.write
    monkeypatch.setattr(
        photograph, 'write', lambda path, photo: raise_(errno.EACCES) if path.stem == 'a_x2' else once(path, photo)
    )
    report = upscale_files(name_outputs([photos], tmp_path / 'out', 2), Twice())
    assert list(report.failed) == [photos / 'a.png'] and len(report.done) == 1


def raise_(number: int) -> None:
    raise OSError(number, os.strerror(number))


def test_a_full_disk_ends_the_work_and_the_rest_is_counted(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(photograph, 'write', lambda *_: raise_(errno.ENOSPC))
    computed = []
    monkeypatch.setattr(upscaling, 'upscale', lambda image, *_, **__: computed.append(1) or image)
    report = upscale_files(name_outputs([photos], tmp_path / 'out', 2), Twice())
    assert list(report.failed) == [photos / 'a.png', photos / 'b.JPG'] and len(computed) == 1
    assert 'not started' in report.failed[photos / 'b.JPG']


def test_an_error_of_writing_keeps_its_number(tmp_path):
    with pytest.raises(OSError) as error:
        photograph.write(tmp_path / 'nowhere' / 'a.png', Photograph(np.zeros((4, 4, 3), np.uint8)))
    assert error.value.errno == errno.ENOENT and 'nowhere' in str(error.value)


def test_the_scan_of_a_folder_compares_each_file_a_few_times(tmp_path, monkeypatch):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for number in range(100):
        (folder / f'{number}.png').touch()
        (folder / f'{number}.txt').touch()
    compared, equal = [], Path.__eq__
    monkeypatch.setattr(Path, '__eq__', lambda one, other: compared.append(1) or equal(one, other))
    assert len(name_outputs([folder], tmp_path / 'out', 2)) == 100
    assert len(compared) < 1000


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs FIFOs')
def test_fifos_and_folders_with_the_name_of_an_image_are_skipped(photos, tmp_path, caplog):
    os.mkfifo(photos / 'pipe.png')
    (photos / 'album.png').mkdir()
    report = upscale_files(name_outputs([photos], tmp_path / 'out', 2), Twice())
    assert len(report.done) == 2 and not report.failed
    assert f'{photos}: skipped, not a regular file: album.png, pipe.png' in caplog.messages
    with pytest.raises(ValueError, match='pipe.png is not a regular file'):
        name_outputs([photos / 'pipe.png'], tmp_path / 'out', 2)


def test_links_that_lead_nowhere_end_no_folder(photos, tmp_path):
    for name in ('loop.png', 'loop.txt'):
        (photos / name).symlink_to(name)
    (photos / 'broken.png').symlink_to('nowhere')
    report = upscale_files(name_outputs([photos], tmp_path / 'out', 2), Twice())
    assert len(report.done) == 2
    assert sorted(path.name for path in report.failed) == ['broken.png', 'loop.png']


def test_names_reach_the_log_without_control_sequences(tmp_path, caplog):
    folder = tmp_path / 'photos'
    write(folder / 'a.png')
    (folder / 'evil\x1b[2J\nname.png').write_text('x')
    (folder / os.fsdecode(b'\xff.png')).write_text('x')
    report = upscale_files(name_outputs([folder], tmp_path / 'out', 2), Twice())
    assert len(report.failed) == 2
    assert any('evil\\x1b[2J\\nname.png is not an image' in line for line in caplog.messages)
    assert all(line.isprintable() for line in [*caplog.messages, *report.failed.values()])


def test_an_image_whose_result_does_not_fit_is_a_failure_before_the_work(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, 'available', lambda: 200)
    monkeypatch.setattr(upscaling, 'upscale', lambda *_, **__: pytest.fail('worked'))
    report = upscale_files(name_outputs([photos / 'a.png'], tmp_path / 'out', 2), Twice())
    assert 'out of memory for a 4x5 image: the result takes 0.00 GiB' in report.failed[photos / 'a.png']


def test_an_image_that_memory_does_not_hold_is_a_failure(photos, tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(photograph, 'read', full)
    outputs = name_outputs([photos / 'a.png'], tmp_path / 'out', 2)
    (reason,) = upscale_files(outputs, Twice()).failed.values()
    assert reason == f'{photos / "a.png"}: out of memory while reading it'


def test_more_pixels_than_allowed_are_a_failure(photos, tmp_path):
    report = upscale_files(name_outputs([photos / 'a.png'], tmp_path / 'out', 2), Twice(), max_pixels=19)
    assert 'a.png must have at most 19 pixels' in report.failed[photos / 'a.png']


def test_an_animation_goes_through_the_network_frame_by_frame(tmp_path, caplog):
    images = [Image.new('RGB', (5, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    images[0].save(tmp_path / 'a.gif', save_all=True, append_images=images[1:], duration=[100, 200], loop=0)
    size = OutputSize(outscale=2.5)
    outputs = name_outputs([tmp_path / 'a.gif'], tmp_path, 2, size=size)
    (target,) = upscale_files(outputs, Twice(), size=size).done
    assert len(caplog.messages) == 1 and '12x10 is more than x2' in caplog.text  # not one for each frame
    found = frames.read(target)
    assert [frame.pixels.shape for frame in found] == [(10, 12, 3)] * 2
    assert found.timing == frames.read(tmp_path / 'a.gif').timing
    report = upscale_files({tmp_path / 'a.gif': tmp_path / 'b.jpg'}, Twice())
    assert 'JPEG cannot hold an animation' in report.failed[tmp_path / 'a.gif']


@pytest.mark.parametrize('strip', [False, True])
def test_metadata_reach_the_output_unless_they_are_stripped(tmp_path, strip):
    exif = Image.Exif()
    exif[271], exif[274] = 'Maker', 3
    Image.new('RGB', (5, 4)).save(tmp_path / 'a.jpg', exif=exif, dpi=(300, 300), comment=b'hello')
    (target,) = upscale_files(name_outputs([tmp_path / 'a.jpg'], tmp_path, 2), Twice(), strip=strip).done
    with Image.open(target) as image:
        assert dict(image.getexif()) == ({} if strip else {271: 'Maker', 274: 1})
        assert image.info.get('comment') == (None if strip else b'hello')
        assert image.info.get('dpi') == (None if strip else (300, 300))


def test_the_time_goes_on_while_one_image_is_worked_on(monkeypatch):
    ticked = threading.Event()

    class Bar(list):
        disable = False

        def refresh(self):
            ticked.set()

    monkeypatch.setattr(image_files, '_TICK', 0.01)
    for _ in image_files._ticking(Bar('a')):
        assert ticked.wait(5)


def test_size_of_each_output_is_told(photos, tmp_path):
    told = []
    upscale_files(name_outputs([photos], tmp_path / 'out', 2), Twice(), written=lambda *what: told.append(what))
    assert told == [(tmp_path / 'out/a_x2.png', 8, 10), (tmp_path / 'out/b_x2.JPG', 8, 10)]


def test_colour_chunks_of_a_png_reach_the_output(tmp_path):
    chunks = ((b'gAMA', b'\0\1\x86\xa0'), (b'cICP', b'\x09\x10\0\1'))
    photograph.write(tmp_path / 'a.png', Photograph(np.zeros((4, 5, 3), np.uint8), None, chunks))
    (target,) = upscale_files(name_outputs([tmp_path / 'a.png'], tmp_path / 'out', 2), Twice()).done
    assert photograph.read(target).png_chunks == chunks


def test_advice_for_jpegs_of_low_quality_is_given_once(tmp_path, caplog):
    image = Image.new('RGB', (5, 4))
    for name, quality in {'a.jpg': 85, 'b.jpg': 84, 'c.jpg': 30}.items():
        image.save(tmp_path / name, quality=quality)
    image.save(tmp_path / 'a.png')
    outputs = name_outputs([tmp_path], tmp_path / 'out', 2)
    upscale_files(outputs, Twice())
    assert caplog.messages == []
    upscale_files(outputs, Twice(), overwrite=True, jpeg_advice='take another')
    assert caplog.messages == [f'{tmp_path / "b.jpg"}: a JPEG of quality 84; take another']
