"""Photographs come and go with depth, channels, orientation and profile, or not at all."""

import io
import os
import struct
import sys
import warnings
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps, features

from spinsr.data import formats, image_file, photograph
from spinsr.data import png as png_file
from spinsr.data.metadata import Metadata
from spinsr.data.photograph import Photograph, check_room, read, write

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
LOSSLESS = ('.bmp', '.png', '.tif', '.tiff', '.webp')


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.randint(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


def png(pixels: np.ndarray, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits by the book, without filters; `more` chunks come before the pixels."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = pixels.shape
    header = struct.pack('>IIBBBBB', width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    chunks = [(b'IHDR', header), *more, (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
    packed = [
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data)) for name, data in chunks
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(packed)


def tiff(pixels: np.ndarray, *more: tuple[int, int], byte_order: str = '<') -> bytes:
    """An uncompressed TIFF by the book; `more` tags replace or add to those that it needs. Pixels come last."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = pixels.shape
    tags = {256: width, 257: height, 259: 1, 262: 2 if channels > 2 else 1, 277: channels, 278: height, 284: 1}
    tags |= {258: 8 * pixels.itemsize, 279: pixels.nbytes} | dict(more)
    tags[273] = bits_at = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[273] += 2 * channels
    bits = struct.pack(byte_order + 'H' * channels, *[8 * pixels.itemsize] * channels)
    entries = b''
    for tag in sorted(tags):
        count, kind, value = 1, 4, struct.pack(byte_order + 'I', tags[tag])
        if tag == 258 and channels > 2:
            count, kind, value = channels, 3, struct.pack(byte_order + 'I', bits_at)
        entries += struct.pack(byte_order + 'HHI', tag, kind, count) + value
    head = (b'II' if byte_order == '<' else b'MM') + struct.pack(byte_order + 'HIH', 42, 8, len(tags))
    return head + entries + bytes(4) + bits + pixels.astype(pixels.dtype.newbyteorder(byte_order)).tobytes()


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize('shape', [(9, 14), (9, 14, 3), (9, 14, 4), (1, 1, 3)], ids=str)
@pytest.mark.parametrize('ending', LOSSLESS)
def test_8_bits_come_back(tmp_path, ending, shape):
    pixels = noise(*shape)
    write(tmp_path / f'a{ending}', Photograph(pixels, PROFILE))
    back = read(tmp_path / f'a{ending}')
    # WebP knows no grey.
    assert same(back.pixels, np.stack((pixels,) * 3, 2) if ending == '.webp' and len(shape) == 2 else pixels)
    assert back.icc_profile == (None if ending == '.bmp' else PROFILE)


@pytest.mark.parametrize('ending', ['.png', '.tif'])
def test_grey_with_alpha_comes_back(tmp_path, ending):
    pixels = noise(9, 14, 2)
    write(tmp_path / f'a{ending}', Photograph(pixels))
    assert same(read(tmp_path / f'a{ending}').pixels, pixels)


@pytest.mark.parametrize('profile', [None, PROFILE], ids=['plain', 'profile'])
@pytest.mark.parametrize(
    ('ending', 'shape'),
    [
        *(('.png', shape) for shape in [(9, 15), (9, 15, 2), (9, 15, 3), (9, 15, 4), (1, 1, 3)]),
        *(('.tif', shape) for shape in [(9, 15), (9, 15, 3), (9, 15, 4), (1, 1, 3)]),
    ],
    ids=str,
)
def test_16_bits_come_back(tmp_path, ending, shape, profile):
    pixels = noise(*shape, dtype=np.uint16)
    path = tmp_path / f'a{ending}'
    write(path, Photograph(pixels, profile))
    back = read(path)
    assert same(back.pixels, pixels)
    assert back.icc_profile == profile


@pytest.mark.parametrize('ending', ['.png', '.tif'])
@pytest.mark.parametrize('channels', [3, 4])
def test_others_read_our_16_bits(tmp_path, ending, channels):
    pixels = noise(9, 15, channels, dtype=np.uint16)
    write(tmp_path / f'a{ending}', Photograph(pixels, PROFILE))
    found = cv2.imread(str(tmp_path / f'a{ending}'), cv2.IMREAD_UNCHANGED)
    assert same(found[..., [2, 1, 0, 3][:channels]], pixels)


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_16_bit_png_of_others(tmp_path, channels):
    pixels = noise(9, 14, channels, dtype=np.uint16)
    (tmp_path / 'a.png').write_bytes(png(pixels))
    assert same(read(tmp_path / 'a.png').pixels, pixels[..., 0] if channels == 1 else pixels)


@pytest.mark.parametrize('byte_order', ['<', '>'], ids=['little', 'big'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('channels', [1, 3])
def test_tiff_of_others(tmp_path, channels, dtype, byte_order):
    pixels = noise(9, 14, channels, dtype=dtype)
    (tmp_path / 'a.tif').write_bytes(tiff(pixels, byte_order=byte_order))
    assert same(read(tmp_path / 'a.tif').pixels, pixels[..., 0] if channels == 1 else pixels)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_tiff_in_which_white_is_zero(tmp_path, dtype):
    pixels = noise(9, 14, dtype=dtype)
    (tmp_path / 'a.tif').write_bytes(tiff(pixels, (262, 0)))
    assert same(read(tmp_path / 'a.tif').pixels, np.iinfo(dtype).max - pixels)


def test_jpeg_is_close_and_keeps_its_profile(tmp_path):
    y, x = np.mgrid[:32, :48]
    pixels = np.stack((4 * x, 5 * y, 200 - 4 * x), 2).astype(np.uint8)
    write(tmp_path / 'a.JPG', Photograph(pixels, PROFILE))
    back = read(tmp_path / 'a.JPG')
    assert abs(back.pixels.astype(int) - pixels).max() <= 6
    assert back.icc_profile == PROFILE


def test_jpeg_keeps_the_resolution_of_colours(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, ::2] = (255, 0, 0)
    write(tmp_path / 'a.jpeg', Photograph(pixels))
    assert abs(read(tmp_path / 'a.jpeg').pixels.astype(int) - pixels).max() <= 12


def test_grey_jpeg_stays_grey(tmp_path):
    write(tmp_path / 'a.jpg', Photograph(np.full((8, 8), 100, np.uint8)))
    assert same(read(tmp_path / 'a.jpg').pixels, np.full((8, 8), 100, np.uint8))


@pytest.mark.parametrize('orientation', range(1, 10))
@pytest.mark.parametrize(
    ('kind', 'colour'),
    [('png8', 1), ('png8', 3), ('png16', 1), ('png16', 3), ('tiff8', 3), ('tiff16', 1), ('tiff16', 3), ('webp', 3)],
)
def test_pixels_are_turned_and_the_output_has_no_tag(tmp_path, kind, orientation, colour):
    pixels = noise(9, 14, colour, dtype=np.uint16 if kind.endswith('16') else np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f'a.{kind.rstrip("168")}'
    if kind.startswith('tiff'):
        path.write_bytes(tiff(pixels, (274, orientation)))
    elif kind == 'png16':
        path.write_bytes(png(pixels, (b'eXIf', exif.tobytes().removeprefix(b'Exif\0\0'))))
    else:
        image = Image.fromarray(pixels.squeeze())
        path.write_bytes(
            saved(image, kind.rstrip('8').upper(), exif=exif, **{'lossless': True} if kind == 'webp' else {})
        )
    # What Pillow makes of the position of each pixel.
    positions = Image.fromarray(np.arange(9 * 14, dtype=np.uint8).reshape(9, 14))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(saved(positions, 'PNG', exif=exif))))
    expected = pixels.reshape(-1, colour)[np.array(turned)].squeeze()
    found = read(path)
    assert same(found.pixels, expected)
    write(path, found)
    assert same(read(path).pixels, expected)


def palette(**options) -> bytes:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), 'P')
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    return saved(image, 'PNG', **options)


@pytest.mark.parametrize(
    ('data', 'expected'),
    [
        (palette(), [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]),
        (palette(transparency=1), [[[10, 20, 30, 255], [40, 50, 60, 0], [70, 80, 90, 255]]]),
        (palette(transparency=b'\x07\x08\x09'), [[[10, 20, 30, 7], [40, 50, 60, 8], [70, 80, 90, 9]]]),
        (saved(Image.fromarray(np.array([[5, 6]], np.uint8)), 'PNG', transparency=6), [[[5, 255], [6, 0]]]),
        (saved(Image.fromarray(np.array([[True, False]])), 'PNG'), [[255, 0]]),
        (saved(Image.fromarray(np.array([[True, False]])), 'TIFF', compression='group4'), [[255, 0]]),
        (saved(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), 'PNG', transparency=(4, 5, 6)),
         [[[1, 2, 3, 255], [4, 5, 6, 0]]]),
    ],
    ids=['palette', 'palette_transparent', 'palette_alphas', 'grey_transparent', '1_bit', 'fax', 'rgb_transparent'],
)  # fmt: skip
def test_other_modes(tmp_path, data, expected):
    (tmp_path / 'a.png').write_bytes(data)
    assert same(read(tmp_path / 'a.png').pixels, np.array(expected, np.uint8))


@pytest.mark.parametrize('channels', [1, 3])
def test_transparent_colour_of_16_bits(tmp_path, channels):
    pixels = np.arange(6 * channels, dtype=np.uint16).reshape(2, 3, channels) * 999
    (tmp_path / 'a.png').write_bytes(png(pixels, (b'tRNS', struct.pack('>' + 'H' * channels, *pixels[1, 2].tolist()))))
    found = read(tmp_path / 'a.png').pixels
    assert same(found[..., :-1], pixels)
    assert found[..., -1].tolist() == [[65535] * 3, [65535, 65535, 0]]


@pytest.mark.parametrize('kind', ['.bmp', '.jpg', '.png', '.tif', '.webp', 'png16', 'grey16', 'tiff16', 'tiff8'])
@pytest.mark.parametrize('share', [0.5, 0.9])
def test_truncated_files_are_not_read(tmp_path, kind, share):
    others = {
        'png16': lambda: png(noise(40, 50, 3, dtype=np.uint16)),
        'grey16': lambda: png(noise(40, 50, dtype=np.uint16)),
        'tiff16': lambda: tiff(noise(40, 50, 3, dtype=np.uint16)),
        'tiff8': lambda: tiff(noise(40, 50, 3)),
    }
    path = tmp_path / f'a{kind if kind[0] == "." else ".png"}'
    if kind[0] == '.':
        write(path, Photograph(noise(40, 50, 3)))
    else:
        path.write_bytes(others[kind]())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with (
        pytest.raises(ValueError, match=rf'{path.name} (cannot be read completely|is not an image)'),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('error')
        read(path)


@pytest.mark.parametrize('bits', [8, 16])
def test_a_flipped_bit_of_a_png_is_seen(tmp_path, bits):
    data = bytearray(photograph.encode(Photograph(noise(40, 50, 3, dtype=np.dtype(f'u{bits // 8}'))), 'PNG'))
    data[len(data) // 2] ^= 1
    (tmp_path / 'a.png').write_bytes(data)
    with pytest.raises(ValueError, match='a.png cannot be read completely'):
        read(tmp_path / 'a.png')


@pytest.mark.parametrize('bits', [8, 16])
def test_a_png_with_a_wrong_checksum_is_not_read(tmp_path, bits):
    pixels = noise(40, 50, 3, dtype=np.uint16)
    data = saved(Image.fromarray(pixels.astype(np.uint8)), 'PNG', compress_level=0) if bits == 8 else png(pixels)
    at = data.index(b'IEND') - 5  # the last byte of the checksum before it; the pixels are as they were
    (tmp_path / 'a.png').write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(ValueError, match='a.png cannot be read completely'):
        read(tmp_path / 'a.png')


def test_a_tiff_with_a_damaged_second_page_is_not_read(tmp_path):
    data = bytearray(tiff(noise(9, 14)))
    (tags,) = struct.unpack_from('<H', data, 8)
    struct.pack_into('<I', data, 8 + 2 + 12 * tags, len(data))  # where the second page begins: it has no tags
    (tmp_path / 'a.tif').write_bytes(data + bytes(6))
    with pytest.raises(ValueError, match='a.tif cannot be read completely'):
        read(tmp_path / 'a.tif')


def test_a_damaged_tiff_of_16_bits_is_not_read(tmp_path):
    data = bytearray(photograph.encode(Photograph(noise(40, 50, 3, dtype=np.uint16)), 'TIFF'))
    data[2000:2010] = bytes(10)
    (tmp_path / 'a.tif').write_bytes(data)
    with pytest.raises(ValueError, match='a.tif cannot be read completely'):
        read(tmp_path / 'a.tif')


RGB = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
SECOND = [Image.fromarray(np.full((8, 8, 3), 200, np.uint8))]


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'a.png is not an image'),
        (b'hello', 'a.png is not an image'),
        (saved(RGB.convert('LAB'), 'TIFF'), 'a.png must be grey, RGB or 8-bit CMYK, is LAB'),
        (saved(RGB, 'WEBP', save_all=True, append_images=SECOND), 'a.png must hold one image, has 2'),
        (saved(RGB, 'TIFF', save_all=True, append_images=SECOND), 'a.png must hold one image, has 2'),
        (saved(RGB, 'PNG', save_all=True, append_images=SECOND), 'a.png must hold one image, has 2'),
        (saved(RGB, 'ICO'), 'a.png must be AVIF, BMP, .* TIFF or WebP, is icon'),
        (saved(RGB.convert('I'), 'TIFF'), 'a.png must have unsigned .*signed integers of 32 bits'),
        (saved(RGB.convert('F'), 'TIFF'), 'a.png must have unsigned .*floating-point numbers of 32 bits'),
        (tiff(np.zeros((8, 8, 3), np.uint16), (284, 2)), 'a.png is a 16-bit TIFF with separate planes'),
        (tiff(np.zeros((8, 8, 4), np.uint16), (338, 1)), 'a.png is a 16-bit TIFF with .* premultiplied alpha'),
    ],
    ids=['empty', 'text', 'lab', 'animated_webp', 'pages', 'animated_png', 'icon', 'int32', 'float', 'planes', 'alpha'],
)  # fmt: skip
def test_what_is_not_taken_is_named_with_the_reason(tmp_path, data, message):
    (tmp_path / 'a.png').write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / 'a.png')


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match='a.png is missing'):
        read(tmp_path / 'a.png')
    with pytest.raises(ValueError, match='is not a regular file'):
        read(tmp_path)


def test_photograph_of_a_telephone_is_the_first_picture(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(saved(RGB, 'MPO', save_all=True, append_images=SECOND))
    assert same(read(tmp_path / 'a.jpg').pixels, np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ('name', 'size', 'pixels', 'message'),
    [
        ('a.jpg', (9, 70000), noise(1, 1, 3), 'JPEG ends at 65500 pixels a side, got 9x70000'),
        ('a.webp', (16384, 9), noise(1, 1, 3), 'WEBP ends at 16383 pixels a side, got 16384x9'),
        ('a.tif', (40000, 40000), noise(1, 1, 3), 'TIFF ends at 4 GiB'),
        ('a.jpg', (9, 9), noise(1, 1, 3, dtype=np.uint16), 'JPEG has 8 bits a channel, got 16'),
        ('a.BMP', (9, 9), noise(1, 1, dtype=np.uint16), 'BMP has 8 bits a channel, got 16'),
        ('a.webp', (9, 9), noise(1, 1, dtype=np.uint16), 'WEBP has 8 bits a channel, got 16'),
        ('a.jpg', (9, 9), noise(1, 1, 4), 'JPEG cannot hold alpha for such'),
        ('a.jpg', (9, 9), noise(1, 1, 2), 'JPEG cannot hold alpha for such'),
        ('a.bmp', (9, 9), noise(1, 1, 2), 'BMP cannot hold alpha for such'),
        ('a.tif', (9, 9), noise(1, 1, 2, dtype=np.uint16), 'TIFF cannot hold alpha for such'),
    ],
    ids=lambda value: str(value) if isinstance(value, (str, tuple)) else '',
)
def test_what_a_format_has_no_room_for(tmp_path, name, size, pixels, message):
    with pytest.raises(ValueError, match=f'{name}: {message}'):
        check_room(tmp_path / name, *size, pixels)


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
@pytest.mark.parametrize(
    'pixels', [noise(1, 1, dtype=np.uint16), noise(1, 1, 4, dtype=np.uint16)], ids=['grey', 'rgba']
)
def test_what_there_is_room_for(tmp_path, name, pixels):
    check_room(tmp_path / name, 20000, 20000, pixels)


def test_nothing_is_left_of_what_could_not_be_written(tmp_path):
    (tmp_path / 'a.png').mkdir()
    with pytest.raises(OSError):
        write(tmp_path / 'a.png', Photograph(noise(4, 4, 3)))
    assert list(tmp_path.iterdir()) == [tmp_path / 'a.png']


def tiff_of(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ('pixels', 'type_'),
    [
        (np.full((8, 8), -5000, np.int16), 'signed integers of 16 bits'),
        (np.full((8, 8), -100, np.int8), 'signed integers of 8 bits'),
        (np.full((8, 8, 3), -100, np.int8), 'signed integers of 8 bits'),
        (np.full((8, 8, 3), -5000, np.int16), 'signed integers of 16 bits'),
        (np.full((8, 8, 3), 7, np.uint32), 'unsigned integers of 32 bits'),
        (np.full((8, 8), 7, np.uint32), 'unsigned integers of 32 bits'),
        (np.full((8, 8, 3), 0.5, np.float32), 'floating-point numbers of 32 bits'),
        (np.full((8, 8), 0.5, np.float16), 'floating-point numbers of 16 bits'),
        (np.full((8, 8), 0.5, np.float64), 'floating-point numbers of 64 bits'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
@pytest.mark.parametrize('reader', [read, image_file.read], ids=['photograph', 'image_file'])
def test_tiff_of_other_numbers_is_refused_by_their_type(tmp_path, reader, pixels, type_):
    (tmp_path / 'a.tif').write_bytes(tiff_of(pixels, photometric='rgb' if pixels.ndim == 3 else 'minisblack'))
    with pytest.raises(ValueError, match=f'a.tif must have .*, has {type_}'):
        reader(tmp_path / 'a.tif')


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_fourth_sample_that_is_not_alpha_is_left_out_with_a_warning(tmp_path, caplog, dtype):
    pixels = noise(9, 14, 4, dtype=dtype)
    (tmp_path / 'a.tif').write_bytes(tiff_of(pixels, photometric='rgb', extrasamples=['unspecified']))
    assert same(read(tmp_path / 'a.tif').pixels, pixels[..., :3])
    (line,) = caplog.messages
    assert line.endswith('a.tif: left out, 1 channel(s) that are neither colour nor alpha')


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('is_said', [True, False], ids=['said', 'not-said'])
def test_fourth_sample_that_is_alpha_or_of_which_nothing_is_said_stays(tmp_path, caplog, dtype, is_said):
    pixels = noise(9, 14, 4, dtype=dtype)
    data = tiff_of(pixels, photometric='rgb', extrasamples=['unassalpha']) if is_said else tiff(pixels)
    (tmp_path / 'a.tif').write_bytes(data)
    assert same(read(tmp_path / 'a.tif').pixels, pixels)
    assert not caplog.messages


COLOURS = (
    (b'gAMA', struct.pack('>I', 100000)),
    (b'cHRM', struct.pack('>8I', *range(1, 9))),
    (b'cICP', b'\x09\x10\0\1'),
)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_colour_chunks_of_a_png_come_back(tmp_path, dtype):
    file = io.BytesIO()
    png_file.write(file, noise(9, 14, 3, dtype=dtype), None, COLOURS)
    (tmp_path / 'a.png').write_bytes(file.getvalue())
    write(tmp_path / 'b.png', read(tmp_path / 'a.png'))
    found = read(tmp_path / 'b.png')
    assert found.png_chunks == COLOURS
    assert [name for name, *_ in png_file.chunks((tmp_path / 'b.png').read_bytes())].count(b'gAMA') == 1


def test_colour_chunks_that_the_format_cannot_hold_are_named(tmp_path, caplog):
    write(tmp_path / 'a.webp', Photograph(noise(4, 4, 3), None, COLOURS))
    (line,) = caplog.messages
    assert line.endswith('a.webp: WEBP cannot hold gAMA, cHRM, cICP, which say what the colours mean')


LONG = b'Comment\0' + bytes(range(32, 127)) * 30_000  # 2.8 MB


@pytest.mark.parametrize(
    'chunk',
    [
        (b'tEXt', LONG),
        (b'zTXt', b'Comment\0\0' + zlib.compress(LONG)),
        (b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + LONG),
    ],
    ids=['text', 'compressed', 'xmp'],
)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_png_with_a_long_text_is_read(tmp_path, chunk, dtype):
    pixels, path = noise(9, 14, 3, dtype=dtype), tmp_path / 'a.png'
    file = io.BytesIO()
    png_file.write(file, pixels, None, [chunk])
    path.write_bytes(file.getvalue())
    assert same(read(path).pixels, pixels)
    if dtype == np.uint8:
        assert image_file.inspect(path) == (9, 14)
        assert np.array_equal(image_file.read(path), pixels)
        image_file.verify(path.read_bytes(), path)


def test_long_colour_profile_of_a_png_comes_back(tmp_path):
    profile = PROFILE + np.random.default_rng(0).bytes(2**21)
    write(tmp_path / 'a.png', Photograph(noise(9, 14, 3), profile))
    assert read(tmp_path / 'a.png').icc_profile == profile


def test_damaged_colour_profile_of_a_png_costs_a_warning_only(tmp_path, caplog):
    file, pixels = io.BytesIO(), noise(9, 14, 3)
    png_file.write(file, pixels, None, [(b'iCCP', b'x\0\0nothing')])
    (tmp_path / 'a.png').write_bytes(file.getvalue())
    found = read(tmp_path / 'a.png')
    assert same(found.pixels, pixels) and found.icc_profile is None
    assert 'colour profile is damaged' in caplog.text


@pytest.mark.parametrize('kind', ['JPEG', 'TIFF'])
def test_cmyk_becomes_rgb(tmp_path, kind):
    values = (
        np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8).repeat(8, 0).repeat(8, 1)
    )
    path = tmp_path / 'a.jfif'
    path.write_bytes(saved(Image.fromarray(values, 'CMYK'), kind, **({'quality': 100} if kind == 'JPEG' else {})))
    expected = np.array([[[255] * 3, [0, 255, 255], [255, 0, 0], [0] * 3]]).repeat(8, 0).repeat(8, 1)
    for found in (read(path).pixels, image_file.read(path)):
        assert found.shape == (8, 32, 3)
        assert abs(found.astype(int) - expected).max() <= 3


def test_cmyk_with_an_unusable_profile_is_converted_by_the_formula(tmp_path, caplog):
    image = Image.fromarray(np.zeros((8, 8, 4), np.uint8), 'CMYK')
    (tmp_path / 'a.tif').write_bytes(saved(image, 'TIFF', icc_profile=PROFILE))  # one of RGB
    found = read(tmp_path / 'a.tif')
    assert same(found.pixels, np.full((8, 8, 3), 255, np.uint8)) and found.icc_profile is None
    assert 'the colour profile cannot be used' in caplog.text


@pytest.mark.parametrize('reader', [image_file.read, image_file.inspect])
@pytest.mark.parametrize(
    ('data', 'kind'),
    [
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n', 'PostScript'),
        (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic', 'HEIC'),
        (b'\0\0\0\x18ftypavif\0\0\0\0mif1avif', 'AVIF'),
        (saved(Image.new('RGB', (8, 8)), 'GIF'), 'GIF'),
        (saved(Image.new('RGB', (8, 8)), 'ICO'), 'icon'),
        (b'%PDF-1.7\n', 'PDF'),
        (b'<!doctype html>\n', 'HTML'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'a Git LFS pointer'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_other_formats_are_named_and_not_opened(tmp_path, reader, data, kind):
    (tmp_path / 'HR.png').write_bytes(data)
    with pytest.raises(ValueError, match=f'HR.png must be BMP, JPEG, PGM, PNG, PPM, TIFF or WebP, is {kind}'):
        reader(tmp_path / 'HR.png')


@pytest.mark.parametrize(
    ('kind', 'module', 'brand'),
    [
        ('HEIC', 'pillow_heif', b'\0\0\0\x18ftypheic\0\0\0\0mif1heic'),
        ('JPEG XL', 'pillow_jxl', b'\0\0\0\x0cJXL \r\n\x87\n'),
    ],
    ids=['heic', 'jxl'],
)
def test_a_format_without_its_package_is_refused_with_the_extra(tmp_path, monkeypatch, kind, module, brand):
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / f'a{next(ending for ending, of in photograph.FORMATS.items() if of == kind)}'
    path.write_bytes(brand)
    message = rf"{path.name} is {kind}, which needs pillow-.*: pip install 'spinsr\[formats\]'"
    with pytest.raises(ValueError, match=message):
        read(path)
    with pytest.raises(ValueError, match=message):
        check_room(path, 9, 9, noise(1, 1, 3))


@pytest.mark.parametrize('ending', ['.avif', '.gif', '.heic', '.jxl'])
def test_further_formats_come_back_with_metadata(tmp_path, ending):
    if ending in ('.heic', '.jxl'):
        plugin = {'.heic': 'pillow_heif', '.jxl': 'pillow_jxl'}[ending]
        pytest.importorskip(plugin, reason=f'Pillow reads {ending} by a plugin: the extra formats')
    elif ending == '.avif' and not features.check('avif'):
        pytest.skip('Pillow without AVIF')
    y, x = np.mgrid[:16, :24]
    pixels = np.stack((4 * x, 5 * y, 200 - 4 * x, np.where(x < 9, 0, 255)), 2).astype(np.uint8)
    exif = Image.Exif()
    exif[271] = 'Maker'
    write(tmp_path / f'a{ending}', Photograph(pixels, PROFILE, metadata=Metadata(exif.tobytes()[6:])))
    back = read(tmp_path / f'a{ending}')
    is_visible = pixels[..., 3:] > 0
    assert back.pixels.shape == pixels.shape and np.array_equal(back.pixels[..., 3] > 127, pixels[..., 3] > 127)
    assert (abs(back.pixels.astype(int) - pixels) * is_visible).max() <= (0 if ending == '.jxl' else 12)
    assert b'Maker' in (back.metadata.exif or b'') or ending == '.gif'
    assert back.icc_profile == PROFILE or ending in ('.gif', '.jxl')


def test_a_format_without_profiles_gets_srgb(tmp_path):
    source = ImageCms.ImageCmsProfile(io.BytesIO(PROFILE)).tobytes().replace(b's\0R\0G\0B', b'X\0R\0G\0B')
    pixels = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    seen = []
    convert = ImageCms.profileToProfile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageCms, 'profileToProfile', lambda *what: seen.append(1) or convert(*what))
        write(tmp_path / 'a.gif', Photograph(pixels, source))
        write(tmp_path / 'b.gif', Photograph(pixels, PROFILE))
        write(tmp_path / 'a.bmp', Photograph(np.dstack([pixels, pixels[..., :1]]), source))
    assert seen == [1, 1] and read(tmp_path / 'a.bmp').pixels[0, 0, 3] == 200
    assert abs(read(tmp_path / 'a.gif').pixels.astype(int) - pixels).max() <= 2


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'TIFF', 'BMP', 'WEBP', 'MPO'])
def test_images_above_the_limit_of_pillow_are_read(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    options = {'save_all': True, 'append_images': SECOND} if kind == 'MPO' else {}
    (tmp_path / 'a.png').write_bytes(saved(Image.new('RGB', (20, 10)), kind, **options))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 50)
    assert read(tmp_path / 'a.png').pixels.shape == image_file.read(tmp_path / 'a.png').shape == (10, 20, 3)
    assert Image.MAX_IMAGE_PIXELS == 50


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'TIFF', 'BMP', 'WEBP'])
def test_images_of_more_than_the_limit_are_refused_before_decoding(tmp_path, kind):
    path = tmp_path / 'a.png'
    path.write_bytes(saved(Image.new('RGB', (20, 10)), kind))
    with pytest.raises(ValueError, match=r'must have at most 199 pixels \(max_pixels\), has 10x20'):
        read(path, max_pixels=199)
    assert read(path, max_pixels=200).pixels.shape == (10, 20, 3)


def test_an_image_of_200_megapixels_is_opened(tmp_path):
    file = io.BytesIO()
    png_file.write(file, np.broadcast_to(np.uint8(0), (1, 1)))
    data = bytearray(file.getvalue())
    data[16:24] = struct.pack('>II', 20000, 10000)
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    (tmp_path / 'a.png').write_bytes(data)
    assert image_file.inspect(tmp_path / 'a.png') == (10000, 20000)
    assert formats.open_data(bytes(data), 'a').image.size == (20000, 10000)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs FIFOs')
@pytest.mark.parametrize('reader', [read, image_file.read, image_file.inspect])
def test_a_fifo_is_refused_and_does_not_hang(tmp_path, reader):
    os.mkfifo(tmp_path / 'a.png')
    with pytest.raises(ValueError, match='a.png is not a regular file'):
        reader(tmp_path / 'a.png')


def test_orientation_in_damaged_exif_costs_no_pixels(tmp_path):
    pixels = noise(9, 14, 3)
    (tmp_path / 'a.webp').write_bytes(
        saved(Image.fromarray(pixels), 'WEBP', lossless=True, exif=b'Exif\0\0II*\0\xff\xff')
    )
    assert same(read(tmp_path / 'a.webp').pixels, pixels)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_bands_of_a_large_image_come_back(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(png_file, '_BAND', 100)
    pixels = noise(33, 14, 3)
    path = tmp_path / f'a.{kind.lower()}'
    write(path, Photograph(pixels))
    assert same(read(path).pixels, pixels)


def test_the_longest_names_can_be_written(tmp_path):
    path = tmp_path / ('a' * 251 + '.png')
    write(path, Photograph(noise(4, 4, 3)))
    assert os.listdir(tmp_path) == [path.name]
