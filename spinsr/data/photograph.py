"""Photographs of users: read and written with the depth, channels, orientation and colours that they have.

`image_file` reads what networks are trained and measured on: 8 bits, three channels. Here a 16-bit, grey or transparent
file stays one. Pillow decodes and checks every file; the pixels of 16-bit colour files, which Pillow halves to 8 bits
without a word, come from OpenCV.
"""

import io
import logging
import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import Image

from spinsr.data import formats, image_file, png
from spinsr.data.formats import MAX_PIXELS, RefusedError
from spinsr.utils import atomic_write
from spinsr.utils.text import printable

logger = logging.getLogger('spinsr')

FORMATS = {
    '.bmp': 'BMP',
    '.jfif': 'JPEG',
    '.jpeg': 'JPEG',
    '.jpg': 'JPEG',
    '.png': 'PNG',
    '.tif': 'TIFF',
    '.tiff': 'TIFF',
    '.webp': 'WEBP',
}
# Bytes a pixel that Pillow, and libwebp below it, hold beside the image while they write it.
_COPIES = {'BMP': 4, 'JPEG': 4, 'PNG': 0, 'TIFF': 0, 'WEBP': 12}


class Photograph(NamedTuple):
    """An image as a file holds it.

    Attributes:
        pixels: uint8 or uint16; grey (H, W), grey with alpha (H, W, 2), RGB (H, W, 3) or RGB with alpha (H, W, 4);
            turned upright.
        icc_profile: What the colours mean; None where the file does not say.
        png_chunks: Name and content of the chunks of a PNG that say what its colours mean (gAMA, cHRM, cICP, …).
    """

    pixels: np.ndarray
    icc_profile: bytes | None = None
    png_chunks: tuple[png.Chunk, ...] = ()


def read(path: Path, max_pixels: int = MAX_PIXELS) -> Photograph:
    """Reads an image file; it is read completely or not at all.

    1-bit images become grey of 8 bits, palettes become RGB, with alpha where they have transparency. CMYK becomes sRGB.
    The pixels are turned as the EXIF orientation says. Of a TIFF, channels beyond the colours that are not said to be
    alpha are left out, with a warning.

    Args:
        path: The file.
        max_pixels: Largest height times width.

    Raises:
        ValueError: The file cannot be opened, is not an image, truncated or damaged; or it is an animation, has several
            pages, Lab colours, more than `max_pixels`, or numbers that are not unsigned integers of at most 16 bits.
            The message names it.
    """
    data = image_file.read_bytes(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns before it raises, and of odd tags, which do no harm here.
            warnings.simplefilter('ignore')
            opened = formats.open_data(data, path, max_pixels)
            del data
            with opened.image:
                if reason := _refusal(opened):
                    raise RefusedError(reason)
                profile = None if opened.image.mode == 'CMYK' else opened.icc_profile
                return Photograph(_pixels(opened, path), profile, opened.chunks)
    except formats.DAMAGE as error:
        raise image_file.unreadable(path, error) from error


def check_room(path: Path, height: int, width: int, pixels: np.ndarray) -> None:
    """Makes sure that a file of this name can hold an image.

    Args:
        path: Its ending chooses the format.
        height: Of the image.
        width: Of the image.
        pixels: An image of the type and the channels that it will have.

    Raises:
        ValueError: The format cannot hold 16 bits, alpha, or as many pixels.
    """
    kind = FORMATS[path.suffix.lower()]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    longest = {'JPEG': 65500, 'WEBP': 16383}.get(kind, 2**31 - 1)
    if max(height, width) > longest:
        raise ValueError(f'{path}: {kind} ends at {longest} pixels a side, got {height}x{width} (HxW)')
    if kind in ('BMP', 'TIFF') and height * width * channels * pixels.itemsize >= 2**32:
        raise ValueError(f'{path}: {kind} ends at 4 GiB, got {height}x{width} (HxW) pixels')
    if kind not in ('PNG', 'TIFF') and pixels.dtype != np.uint8:
        raise ValueError(f'{path}: {kind} has 8 bits a channel, got 16')
    if (kind, channels) in (('JPEG', 2), ('JPEG', 4), ('BMP', 2)) or (kind, channels, pixels.itemsize) == (
        'TIFF',
        2,
        2,
    ):
        raise ValueError(f'{path}: {kind} cannot hold alpha for such an image')


def memory_to_write(path: Path, height: int, width: int) -> int:
    """Bytes that writing an image takes beside its pixels; PNG and TIFF are written in bands and strips of rows."""
    return _COPIES[FORMATS[path.suffix.lower()]] * height * width


def write(path: Path, photograph: Photograph) -> None:
    """Writes an image file under a hidden temporary name and renames it: the file is either complete or absent.

    PNG, TIFF (deflate), BMP and WebP are lossless; JPEG has quality 95 with full colour resolution (4:4:4). The colour
    profile is kept (BMP has none), and in PNG the chunks that say what the colours mean; other metadata are not
    written.

    Args:
        path: Its ending chooses the format.
        photograph: As `read` returns it; `check_room` says whether it fits.

    Raises:
        OSError: The file cannot be written.
    """
    kind = FORMATS[path.suffix.lower()]
    if photograph.png_chunks and kind != 'PNG':
        names = ', '.join(name.decode() for name, _ in photograph.png_chunks)
        logger.warning('%s: %s cannot hold %s, which say what the colours mean', printable(path), kind, names)
    with atomic_write.open_file(path) as file:
        _write(file, photograph, kind)


def encode(photograph: Photograph, kind: str) -> bytes:
    """The content of an image file.

    Args:
        photograph: As `read` returns it.
        kind: One of the values of `FORMATS`.
    """
    file = io.BytesIO()
    _write(file, photograph, kind)
    return file.getvalue()


def _write(file: BinaryIO, photograph: Photograph, kind: str) -> None:
    pixels, profile, chunks = photograph
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if kind == 'PNG':
        png.write(file, pixels, profile, chunks)
    elif kind == 'TIFF':
        tifffile.imwrite(
            file,
            pixels,
            photometric='minisblack' if channels < 3 else 'rgb',
            planarconfig='contig' if channels > 1 else None,
            compression='zlib',
            predictor=True,
            extrasamples=('unassalpha',) if channels in (2, 4) else None,
            iccprofile=profile,
            metadata=None,
            software=False,
        )
    elif kind == 'BMP' and channels == 4:
        # Pillow leaves the alpha of a BMP out of its header.
        file.write(cv2.imencode('.bmp', cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA))[1].tobytes())
    else:
        options = {
            'BMP': {},
            'JPEG': {'quality': 95, 'subsampling': 0, 'icc_profile': profile},
            'WEBP': {'lossless': True, 'exact': True, 'icc_profile': profile or b''},
        }
        Image.fromarray(pixels).save(file, kind, **options[kind])


def _refusal(opened: formats.Opened) -> str | None:
    """Why an image that could be decoded is not taken."""
    image = opened.image
    if image.format not in (*FORMATS.values(), 'MPO'):
        return f'must be one of {", ".join(dict.fromkeys(FORMATS.values()))}, is {image.format}'
    # MPO is what telephones write: a JPEG with more pictures, of which the first is the photograph.
    if getattr(image, 'n_frames', 1) > 1 and image.format != 'MPO':
        return f'must hold one image, has {image.n_frames} (an animation, or pages)'
    depth = formats.bit_depth(image, opened.data)
    if image.mode == 'LAB' or (image.mode == 'CMYK' and depth > 8):
        return f'must be grey, RGB or 8-bit CMYK, is {image.mode} of {depth} bits'
    if depth not in (1, 2, 4, 8, 16) or image.mode == 'F':
        return f'must have integers of 8 or 16 bits, has {depth} bits'
    if depth == 16 and image.format == 'TIFF':
        if image.tag_v2.get(formats.PLANES) == 2 or 1 in formats.extra_samples(image):
            return 'is a 16-bit TIFF with separate planes or premultiplied alpha, which cannot be read'
    return None


def _pixels(opened: formats.Opened, path: Path) -> np.ndarray:
    image, data = opened.image, opened.data
    # Before Pillow reads the pixels, because it turns a TIFF by itself then, and OpenCV does too.
    is_tiff = image.format == 'TIFF'
    orientation = 1 if is_tiff else formats.orientation(image)
    is_inverted = is_tiff and image.tag_v2.get(formats.PHOTOMETRIC) == 0
    extra = formats.extra_samples(image) if is_tiff else ()
    has_alpha = bool(extra) and extra[0] in (1, 2)
    if len(extra) > has_alpha:
        logger.warning(
            '%s: left out, %d channel(s) that are neither colour nor alpha', printable(path), len(extra) - has_alpha
        )
    is_deep = formats.bit_depth(image, data) == 16
    formats.load(image)  # all of it, so that damage is seen
    if is_deep and not image.mode.startswith('I'):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.dtype != np.uint16 or pixels.shape[:2] != image.size[::-1]:
            raise ValueError('OpenCV does not decode it')
        pixels = pixels[..., [2, 1, 0, 3][: 3 if is_tiff and not has_alpha else pixels.shape[2]]]
        if image.format == 'PNG' and data[25] == 4:  # grey with alpha: three equal channels
            pixels = pixels[..., [0, 3]]
    elif is_deep:
        pixels = np.array(image).astype(np.uint16)
        if is_inverted:
            pixels = 65535 - pixels
        if 'transparency' in image.info:
            pixels = np.stack((pixels, np.where(pixels == image.info['transparency'], 0, 65535)), 2).astype(np.uint16)
    elif image.mode == 'CMYK':
        pixels = np.array(formats.from_cmyk(image, opened.icc_profile, path))
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
