"""Photographs of users: read and written with the depth, channels, orientation and colour profile that they have.

`image_file` reads what networks are trained and measured on: 8 bits, three channels. Here a 16-bit, grey or transparent
file stays one. Pillow decodes and checks every file; the pixels of 16-bit colour files, which Pillow halves to 8 bits
without a word, come from OpenCV. Neither writes those with a colour profile: tifffile does, and PNG is written here.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import Image

from spinsr.data import image_file
from spinsr.utils.atomic_write import write_bytes

FORMATS = {
    '.bmp': 'BMP',
    '.jpeg': 'JPEG',
    '.jpg': 'JPEG',
    '.png': 'PNG',
    '.tif': 'TIFF',
    '.tiff': 'TIFF',
    '.webp': 'WEBP',
}
ORIENTATION, PHOTOMETRIC, PLANES, EXTRA_SAMPLES = 274, 262, 284, 338


class Photograph(NamedTuple):
    """An image as a file holds it.

    Attributes:
        pixels: uint8 or uint16; grey (H, W), grey with alpha (H, W, 2), RGB (H, W, 3) or RGB with alpha (H, W, 4); the
            right way up.
        icc_profile: What the colours mean; None where the file does not say.
    """

    pixels: np.ndarray
    icc_profile: bytes | None = None


def read(path: Path) -> Photograph:
    """Reads an image file, whole or not at all.

    1-bit images become grey of 8 bits, palettes become RGB, with alpha where they have transparency. The pixels are
    turned as the EXIF orientation says.

    Raises:
        ValueError: The file cannot be opened, is no image, truncated or damaged; or it is an animation, has several
            pages, CMYK colours, more than 16 bits a channel or floating-point numbers. The message names it.
    """
    try:
        data = path.read_bytes()
        with warnings.catch_warnings():
            # Pillow warns before it raises, and of large images and odd tags, which do no harm here.
            warnings.simplefilter('ignore')
            # Decoding does not compare a PNG's checksums.
            with Image.open(io.BytesIO(data)) as image:
                image.verify()
            with Image.open(io.BytesIO(data)) as image:
                if reason := _refusal(image, data):
                    raise _RefusedError(f'{path} {reason}')
                return Photograph(_pixels(image, data), image.info.get('icc_profile'))
    except _RefusedError:
        raise
    except FileNotFoundError:
        raise ValueError(f'{path} is missing') from None
    except image_file.DAMAGE as error:
        raise image_file.unreadable(path, error) from error


def check_room(path: Path, height: int, width: int, pixels: np.ndarray) -> None:
    """Makes sure that a file of this name can hold an image.

    Args:
        path: Its ending chooses the format.
        height, width: What the image will have.
        pixels: An image of the type and the channels that it will have.

    Raises:
        ValueError: The format has no room for 16 bits, for alpha, or for as many pixels.
    """
    kind = FORMATS[path.suffix.lower()]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    longest = {'JPEG': 65500, 'WEBP': 16383}.get(kind, 2**31 - 1)
    if max(height, width) > longest:
        raise ValueError(f'{path}: {kind} ends at {longest} pixels a side, got {height}x{width} (HxW)')
    if kind == 'TIFF' and height * width * channels * pixels.itemsize >= 2**32:
        raise ValueError(f'{path}: TIFF ends at 4 GiB, got {height}x{width} (HxW) pixels')
    if kind not in ('PNG', 'TIFF') and pixels.dtype != np.uint8:
        raise ValueError(f'{path}: {kind} has 8 bits a channel, got 16')
    if (kind, channels) in (('JPEG', 2), ('JPEG', 4), ('BMP', 2)) or (kind, channels, pixels.itemsize) == (
        'TIFF',
        2,
        2,
    ):
        raise ValueError(f'{path}: {kind} has no alpha for such an image')


def write(path: Path, photograph: Photograph) -> None:
    """Writes an image file under a hidden temporary name and renames it: the file is there whole or not at all.

    PNG, TIFF (deflate), BMP and WebP are lossless; JPEG has quality 95 with full colour resolution (4:4:4). The colour
    profile is kept (BMP has none); other metadata are not written.

    Args:
        path: Its ending chooses the format.
        photograph: As `read` gives it; `check_room` says whether it fits.

    Raises:
        OSError: The file cannot be written.
    """
    write_bytes(path, encode(photograph, FORMATS[path.suffix.lower()]))


def encode(photograph: Photograph, kind: str) -> bytes:
    """The content of an image file.

    Args:
        photograph: As `read` gives it.
        kind: One of the values of `FORMATS`.
    """
    pixels, profile = photograph
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if pixels.dtype == np.uint16 and channels > 1:
        return (_png_of_16_bits if kind == 'PNG' else _tiff_of_16_bits)(pixels, profile)
    if kind == 'BMP' and channels == 4:
        # Pillow leaves the alpha of a BMP out of its header.
        return cv2.imencode('.bmp', cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA))[1].tobytes()
    options = {
        'BMP': {},
        'JPEG': {'quality': 95, 'subsampling': 0, 'icc_profile': profile},
        'PNG': {'icc_profile': profile},
        'TIFF': {'compression': 'tiff_adobe_deflate', 'icc_profile': profile},
        'WEBP': {'lossless': True, 'exact': True, 'icc_profile': profile or b''},
    }
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options[kind])
    return file.getvalue()


class _RefusedError(ValueError):
    pass


def _refusal(image: Image.Image, data: bytes) -> str | None:
    """Why an image that could be decoded is not taken."""
    tags = image.tag_v2 if image.format == 'TIFF' else {}
    if image.format not in (*FORMATS.values(), 'MPO'):
        return f'must be one of {", ".join(dict.fromkeys(FORMATS.values()))}, is {image.format}'
    # MPO is what telephones write: a JPEG with more pictures, of which the first is the photograph.
    if getattr(image, 'n_frames', 1) > 1 and image.format != 'MPO':
        return f'must hold one image, has {image.n_frames} (an animation, or pages)'
    if image.mode in ('CMYK', 'LAB'):
        return f'must be grey or RGB, is {image.mode}'
    depth = image_file.bit_depth(image, data)
    if depth not in (1, 2, 4, 8, 16) or image.mode == 'F':
        return f'must have integers of 8 or 16 bits, has {depth} bits'
    if depth == 16 and (tags.get(PLANES) == 2 or tags.get(EXTRA_SAMPLES) == (1,)):
        return 'is a 16-bit TIFF with separate planes or premultiplied alpha, which cannot be read'
    return None


def _pixels(image: Image.Image, data: bytes) -> np.ndarray:
    # Before Pillow reads the pixels, because it turns a TIFF by itself then, and OpenCV does too.
    is_turned = image.format == 'TIFF'
    orientation = 1 if is_turned else image.getexif().get(ORIENTATION, 1)
    is_inverted = is_turned and image.tag_v2.get(PHOTOMETRIC) == 0
    is_deep = image_file.bit_depth(image, data) == 16
    image.load()  # all of it, so that damage is seen
    if is_deep and not image.mode.startswith('I'):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.dtype != np.uint16 or pixels.shape[:2] != image.size[::-1]:
            raise ValueError('OpenCV does not decode it')
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
        if image.format == 'PNG' and data[25] == 4:  # grey with alpha: three equal channels
            pixels = pixels[..., [0, 3]]
    elif is_deep:
        pixels = np.array(image).astype(np.uint16)
        if is_inverted:
            pixels = 65535 - pixels
        if 'transparency' in image.info:
            pixels = np.stack((pixels, np.where(pixels == image.info['transparency'], 0, 65535)), 2).astype(np.uint16)
    else:
        is_grey = image.mode in ('1', 'L', 'LA', 'La')
        alpha = 'A' if image.has_transparency_data or image.mode in ('La', 'RGBa') else ''
        pixels = np.array(image.convert(('L' if is_grey else 'RGB') + alpha))
    return np.ascontiguousarray(_turn(pixels, orientation))


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF's orientation 1 to 8 asks for; others are as 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _png_of_16_bits(pixels: np.ndarray, profile: bytes | None) -> bytes:
    height, width, channels = pixels.shape
    rows = pixels.astype('>u2').view(np.uint8).reshape(height, -1)
    # Filter 2, the difference to the row above: simple, and most of what filters gain.
    filtered = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    filtered = np.concatenate((np.full((height, 1), 2, np.uint8), filtered), axis=1)
    colour_type = {2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, colour_type, 0, 0, 0))]
    if profile:
        chunks.append((b'iCCP', b'ICC profile\0\0' + zlib.compress(profile)))
    chunks += [(b'IDAT', zlib.compress(filtered)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))
        for name, content in chunks
    )


def _tiff_of_16_bits(pixels: np.ndarray, profile: bytes | None) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        pixels,
        photometric='rgb',
        compression='zlib',
        predictor=True,
        extrasamples=('unassalpha',) if pixels.shape[2] == 4 else None,
        iccprofile=profile,
        metadata=None,
        software=False,
    )
    return file.getvalue()
