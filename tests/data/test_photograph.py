"""Photographs come and go with depth, channels, orientation and profile, or not at all."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from spinsr.data import photograph
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
    with pytest.raises(ValueError, match=rf'{path.name} (cannot be read whole|is no image)'), warnings.catch_warnings():
        warnings.simplefilter('error')
        read(path)


@pytest.mark.parametrize('bits', [8, 16])
def test_a_flipped_bit_of_a_png_is_seen(tmp_path, bits):
    data = bytearray(photograph.encode(Photograph(noise(40, 50, 3, dtype=np.dtype(f'u{bits // 8}'))), 'PNG'))
    data[len(data) // 2] ^= 1
    (tmp_path / 'a.png').write_bytes(data)
    with pytest.raises(ValueError, match='a.png cannot be read whole'):
        read(tmp_path / 'a.png')


@pytest.mark.parametrize('bits', [8, 16])
def test_a_png_with_a_wrong_checksum_is_not_read(tmp_path, bits):
    pixels = noise(40, 50, 3, dtype=np.uint16)
    data = saved(Image.fromarray(pixels.astype(np.uint8)), 'PNG', compress_level=0) if bits == 8 else png(pixels)
    at = data.index(b'IEND') - 5  # the last byte of the checksum before it; the pixels are as they were
    (tmp_path / 'a.png').write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(ValueError, match='a.png cannot be read whole'):
        read(tmp_path / 'a.png')


def test_a_tiff_with_a_damaged_second_page_is_not_read(tmp_path):
    data = bytearray(tiff(noise(9, 14)))
    (tags,) = struct.unpack_from('<H', data, 8)
    struct.pack_into('<I', data, 8 + 2 + 12 * tags, len(data))  # where the second page begins: it has no tags
    (tmp_path / 'a.tif').write_bytes(data + bytes(6))
    with pytest.raises(ValueError, match='a.tif cannot be read whole'):
        read(tmp_path / 'a.tif')


def test_a_damaged_tiff_of_16_bits_is_not_read(tmp_path):
    data = bytearray(photograph.encode(Photograph(noise(40, 50, 3, dtype=np.uint16)), 'TIFF'))
    data[2000:2010] = bytes(10)
    (tmp_path / 'a.tif').write_bytes(data)
    with pytest.raises(ValueError, match='a.tif cannot be read whole'):
        read(tmp_path / 'a.tif')


RGB = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
SECOND = [Image.fromarray(np.full((8, 8, 3), 200, np.uint8))]


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'a.png is no image'),
        (b'hello', 'a.png is no image'),
        (saved(RGB.convert('CMYK'), 'JPEG'), 'a.png must be grey or RGB, is CMYK'),
        (saved(RGB, 'WEBP', save_all=True, append_images=SECOND), 'a.png must hold one image, has 2'),
        (saved(RGB, 'TIFF', save_all=True, append_images=SECOND), 'a.png must hold one image, has 2'),
        (saved(RGB, 'PNG', save_all=True, append_images=SECOND), 'a.png must hold one image, has 2'),
        (saved(RGB, 'GIF'), 'a.png must be one of BMP, JPEG, PNG, TIFF, WEBP, is GIF'),
        (saved(RGB.convert('I'), 'TIFF'), 'a.png must have integers of 8 or 16 bits, has 32 bits'),
        (saved(RGB.convert('F'), 'TIFF'), 'a.png must have integers of 8 or 16 bits, has 32 bits'),
        (tiff(np.zeros((8, 8, 3), np.uint16), (284, 2)), 'a.png is a 16-bit TIFF with separate planes'),
        (tiff(np.zeros((8, 8, 4), np.uint16), (338, 1)), 'a.png is a 16-bit TIFF with .* premultiplied alpha'),
    ],
    ids=['empty', 'text', 'cmyk', 'animated_webp', 'pages', 'animated_png', 'gif', 'int32', 'float', 'planes', 'alpha'],
)  # fmt: skip
def test_what_is_not_taken_is_named_with_the_reason(tmp_path, data, message):
    (tmp_path / 'a.png').write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / 'a.png')


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match='a.png is missing'):
        read(tmp_path / 'a.png')
    with pytest.raises(ValueError, match='cannot be read whole'):
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
        ('a.jpg', (9, 9), noise(1, 1, 4), 'JPEG has no alpha for such'),
        ('a.jpg', (9, 9), noise(1, 1, 2), 'JPEG has no alpha for such'),
        ('a.bmp', (9, 9), noise(1, 1, 2), 'BMP has no alpha for such'),
        ('a.tif', (9, 9), noise(1, 1, 2, dtype=np.uint16), 'TIFF has no alpha for such'),
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
