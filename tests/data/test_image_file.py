"""Image files are read whole or not at all."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from spinsr.data import image_file
from spinsr.data import png as png_file


@pytest.fixture
def png(tmp_path, write_photo):
    path = tmp_path / 'a.png'
    write_photo(path, 60, 80)
    return path


@pytest.mark.parametrize('level', [0, 1, 9])
def test_encode_and_decode(photo, level):
    image = photo(31, 20)
    np.testing.assert_array_equal(image_file.decode(image_file.encode_png(image, level), 'it'), image)


def test_16_bits_are_kept():
    image = np.random.default_rng(0).integers(0, 65536, (31, 20, 3), dtype=np.uint16)
    data = image_file.encode_png16(image)
    image_file.verify(data, 'it')
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded[..., ::-1], image)


def test_write_and_read(tmp_path, photo):
    path = tmp_path / 'new' / 'a.png'
    image_file.write_png(path, photo(31, 20))
    np.testing.assert_array_equal(image_file.read(path), photo(31, 20))
    assert image_file.inspect(path) == (31, 20)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'P', '1'])
def test_all_modes_become_rgb(tmp_path, photo, mode):
    image = Image.fromarray(photo(20, 30)).convert(mode)
    image.save(tmp_path / 'a.png')
    result = image_file.read(tmp_path / 'a.png')
    np.testing.assert_array_equal(result, np.array(image.convert('RGB')))
    assert result.shape == (20, 30, 3)


def test_truncated_png_is_seen_without_decoding(png, truncate):
    truncate(png)
    with pytest.raises(ValueError, match='a.png cannot be read completely'):
        image_file.inspect(png)


def test_truncated_png_is_not_read(png, truncate):
    truncate(png)
    with pytest.raises(ValueError, match='a.png cannot be read completely'):
        image_file.read(png)


def test_png_without_its_end_is_seen(png):
    png.write_bytes(png.read_bytes()[: -len(image_file.PNG_END)])
    with pytest.raises(ValueError, match='a.png cannot be read completely'):
        image_file.inspect(png)


def test_png_with_bytes_after_its_end_is_read(png):
    size = image_file.inspect(png)
    png.write_bytes(png.read_bytes() + b'more')
    assert image_file.inspect(png) == size


def test_a_flipped_bit_is_seen(png, corrupt):
    corrupt(png)
    with pytest.raises(ValueError, match='a.png cannot be read completely'):
        image_file.read(png)


def without_chunk(data, name, number):
    """A PNG without one of its chunks of a name; all checksums are right."""
    parts = list(png_file.chunks(data))
    del parts[[index for index, part in enumerate(parts) if part[0] == name][number]]
    return data[:8] + b''.join(part[2] for part in parts)


@pytest.mark.parametrize('number', [0, 1, -1], ids=['first', 'middle', 'last'])
def test_png_without_one_of_its_chunks_is_refused(photo, number):
    data = image_file.encode_png(photo(90, 80), 0)
    image_file.verify(data, 'it')
    assert sum(part[0] == b'IDAT' for part in png_file.chunks(data)) > 2
    for function in (image_file.verify, image_file.decode):
        with pytest.raises(ValueError, match='it cannot be read completely'):
            function(without_chunk(data, b'IDAT', number), 'it')


@pytest.mark.parametrize('shape', [(1, 1), (3, 9), (13, 10)], ids=str)
def test_interlaced_png_is_complete_with_its_last_row_only(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    # The seven images inside an interlaced file, each row after its filter, none; Pillow and OpenCV write no such file.
    starts_and_steps = (
        ((0, 8), (0, 8)),
        ((0, 8), (4, 8)),
        ((4, 8), (0, 4)),
        ((0, 4), (2, 4)),
        ((2, 4), (0, 2)),
        ((0, 2), (1, 2)),
        ((1, 2), (0, 1)),
    )
    parts = [pixels[top::down, left::right] for (top, down), (left, right) in starts_and_steps]
    rows = [b'\0' + row.tobytes() for part in parts for row in part if part.size]
    header = struct.pack('>IIBBBBB', *shape[::-1], 8, 0, 0, 0, 1)

    def file(rows):
        body = [(b'IHDR', header), (b'IDAT', zlib.compress(b''.join(rows))), (b'IEND', b'')]
        return png_file.SIGNATURE + b''.join(
            struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
            for name, data in body
        )

    assert np.array_equal(image_file.decode(file(rows), 'it')[..., 0], pixels)
    image_file.verify(file(rows), 'it')
    with pytest.raises(ValueError, match='it cannot be read completely'):
        image_file.verify(file(rows[:-1]), 'it')


def test_truncated_jpeg_is_not_read(tmp_path, photo, truncate):
    path = tmp_path / 'a.jpg'
    Image.fromarray(photo(60, 80)).save(path)
    truncate(path)
    with pytest.raises(ValueError, match='a.jpg cannot be read completely'):
        image_file.read(path)


@pytest.mark.parametrize('function', [image_file.inspect, image_file.read])
@pytest.mark.parametrize(
    ('content', 'message'),
    [(None, 'is missing'), (b'', 'is not an image'), (b'hello', 'is not an image')],
    ids=['missing', 'empty', 'text'],
)
def test_what_is_no_image_is_named(tmp_path, function, content, message):
    path = tmp_path / 'a.png'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f'a.png {message}'):
        function(path)


def png_of_16_bits(channels: int) -> bytes:
    import cv2

    shape = (8, 8) if channels == 1 else (8, 8, channels)
    return cv2.imencode('.png', np.full(shape, 40000, np.uint16))[1].tobytes()


@pytest.mark.parametrize('function', [image_file.inspect, image_file.read])
@pytest.mark.parametrize('channels', [1, 3], ids=['grey', 'colour'])
def test_16_bits_are_refused(tmp_path, function, channels):
    path = tmp_path / 'a.png'
    path.write_bytes(png_of_16_bits(channels))
    with pytest.raises(ValueError, match='a.png must have 8 bits a channel'):
        function(path)


def test_decode_names_what_it_was_given(photo):
    file = io.BytesIO()
    Image.fromarray(photo(9, 9)).save(file, 'PNG')
    with pytest.raises(ValueError, match='0001_s001 of x.lmdb cannot be read completely'):
        image_file.decode(file.getvalue()[:60], '0001_s001 of x.lmdb')


def test_list_images_sorts_and_leaves_out_the_rest(tmp_path):
    for name in ('b.PNG', 'a.jpg', '.hidden.png', '.c.png.part', 'Thumbs.db'):
        (tmp_path / name).touch()
    assert [path.name for path in image_file.list_images(tmp_path)] == ['a.jpg', 'b.PNG']


@pytest.mark.parametrize(('name', 'message'), [('.', 'no images .* in '), ('nowhere', 'not a directory: ')])
def test_a_folder_without_images_is_named(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        image_file.list_images(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs FIFOs')
def test_what_only_has_the_name_of_an_image_is_skipped_with_a_line(tmp_path, caplog):
    (tmp_path / 'a.png').touch()
    (tmp_path / 'album.png').mkdir()
    os.mkfifo(tmp_path / 'pipe\x1b[2J.png')
    (tmp_path / 'broken.png').symlink_to('nowhere')  # reading it is an error that names it
    (tmp_path / 'loop.png').symlink_to('loop.png')
    assert [path.name for path in image_file.list_images(tmp_path)] == ['a.png', 'broken.png', 'loop.png']
    (line,) = caplog.messages
    assert line == f'{tmp_path}: skipped, not a regular file: album.png, pipe\\x1b[2J.png'


def test_jfif_is_a_jpeg(tmp_path, photo):
    Image.fromarray(photo(20, 30)).save(tmp_path / 'a.jfif', 'JPEG')
    assert image_file.list_images(tmp_path) == [tmp_path / 'a.jfif']
    assert image_file.read(tmp_path / 'a.jfif').shape == (20, 30, 3)
