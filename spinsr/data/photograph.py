"""Photographs of users: read and written with the depth, channels, orientation and colours that they have.

`image_file` reads what networks are trained and measured on: 8 bits, three channels. Here a 16-bit, grey or transparent
file stays one. Pillow decodes and checks every file; the pixels of 16-bit colour files, which Pillow halves to 8 bits
without a word, come from OpenCV.
"""

import io
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import Image

from spinsr.data import formats, image_file, jpeg, metadata, png
from spinsr.data.formats import MAX_PIXELS, RefusedError
from spinsr.data.metadata import Metadata
from spinsr.utils import atomic_write
from spinsr.utils.text import printable

logger = logging.getLogger('spinsr')

FORMATS = {
    '.apng': 'PNG',
    '.avif': 'AVIF',
    '.bmp': 'BMP',
    '.gif': 'GIF',
    '.heic': 'HEIC',
    '.heif': 'HEIC',
    '.jfif': 'JPEG',
    '.jpeg': 'JPEG',
    '.jpg': 'JPEG',
    '.jxl': 'JPEG XL',
    '.png': 'PNG',
    '.tif': 'TIFF',
    '.tiff': 'TIFF',
    '.webp': 'WEBP',
}
# Bytes a pixel that Pillow, and libwebp below it, hold beside the image while they write it.
_COPIES = {
    'AVIF': 12, 'BMP': 4, 'GIF': 8, 'HEIC': 12, 'JPEG': 4, 'JPEG XL': 16, 'PNG': 0, 'TIFF': 0, 'WEBP': 12
}  # fmt: skip
# What Pillow calls them, where that is another name, and how they are written: lossless where that is usual.
_NAMES = {'HEIC': 'HEIF', 'JPEG XL': 'JXL'}
_OPTIONS = {
    'AVIF': {'quality': 90, 'subsampling': '4:4:4'},
    'BMP': {},
    'HEIC': {'quality': 90, 'chroma': 444},
    'JPEG': {'quality': 95, 'subsampling': 0},
    'JPEG XL': {'lossless': True, 'use_container': True},
    'WEBP': {'lossless': True, 'exact': True},
}
# By Pillow; its plugin of JPEG XL writes none.
_HOLD_PROFILES = ('AVIF', 'HEIC', 'JPEG', 'PNG', 'WEBP')
# Largest side, in pixels.
_LONGEST = {'AVIF': 65536, 'GIF': 65535, 'HEIC': 16384, 'JPEG': 65500, 'WEBP': 16383}


class Photograph(NamedTuple):
    """An image as a file holds it.

    Attributes:
        pixels: uint8 or uint16; grey (H, W), grey with alpha (H, W, 2), RGB (H, W, 3) or RGB with alpha (H, W, 4);
            turned upright.
        icc_profile: What the colours mean; None where the file does not say.
        png_chunks: Name and content of the chunks of a PNG that say what its colours mean (gAMA, cHRM, cICP, …).
        metadata: EXIF, XMP, resolution, texts.
        jpeg_quality: Of a JPEG file that was read, by `jpeg.estimate_quality`; None for other formats.
    """

    pixels: np.ndarray
    icc_profile: bytes | None = None
    png_chunks: tuple[png.Chunk, ...] = ()
    metadata: Metadata = Metadata()
    jpeg_quality: int | None = None


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
    return from_bytes(image_file.read_bytes(path), path, max_pixels)


def from_bytes(data: bytes, path: Path, max_pixels: int = MAX_PIXELS) -> Photograph:
    """As `read`, with the content of the file.

    Raises:
        ValueError: As `read`.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns before it raises, and of odd tags, which do no harm here.
            warnings.simplefilter('ignore')
            opened = formats.open_data(data, path, max_pixels, more=True)
            del data
            with opened.image:
                if reason := _refusal(opened):
                    raise RefusedError(reason)
                if opened.image.format in ('AVIF', 'HEIF') and (bits := formats.reduced_depth(opened.data)):
                    logger.warning('%s: %d bits a channel are reduced to 8', printable(path), bits)
                profile = None if opened.image.mode == 'CMYK' else opened.icc_profile
                found = metadata.read(opened.image, opened.texts)
                quality = jpeg.estimate_quality(opened.image)
                return Photograph(_pixels(opened, path), profile, opened.chunks, found, quality)
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
        ValueError: The format cannot hold 16 bits, alpha, or as many pixels, or a package for it is missing.
    """
    kind = FORMATS[path.suffix.lower()]
    try:
        formats.require(kind)
    except RefusedError as error:
        raise ValueError(f'{path} {error}') from None
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    longest = _LONGEST.get(kind, 2**31 - 1)
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

    PNG, TIFF (deflate), BMP, WebP and JPEG XL are lossless, GIF has 256 colours; JPEG has quality 95, AVIF and HEIC 90,
    with full colour resolution (4:4:4). The colour profile is kept (BMP, GIF and JPEG XL get sRGB), and in PNG the
    chunks that say what the colours mean. EXIF, XMP, resolution and texts are written as far as the format can hold
    them, with orientation 1 and the sides of the image; a warning names the others.

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
    height, width = photograph.pixels.shape[:2]
    kept = metadata.of_output(photograph.metadata, height, width, path)
    kept = metadata.for_format(kept, kind, path)
    with atomic_write.open_file(path) as file:
        _write(file, photograph._replace(metadata=kept), kind)


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
    pixels, profile, chunks, more, _ = photograph
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if kind == 'PNG':
        png.write(file, pixels, profile, [*chunks, *metadata.png_chunks(more)])
    elif kind == 'TIFF':
        write_pages(file, [photograph])
    elif kind == 'BMP' and channels == 4:
        # Pillow leaves the alpha of a BMP out of its header.
        pixels = np.asarray(to_pillow(photograph, kind))
        file.write(cv2.imencode('.bmp', cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA))[1].tobytes())
    else:
        to_pillow(photograph, kind).save(file, _NAMES.get(kind, kind), **pillow_options(photograph, kind))


def pillow_options(photograph: Photograph, kind: str) -> dict[str, Any]:
    """How Pillow writes a photograph; `kind` is not TIFF."""
    options = _OPTIONS.get(kind, {}) | metadata.pillow_options(photograph.metadata)
    # Without one, WebP takes bytes only.
    return options | ({'icc_profile': photograph.icc_profile or b''} if kind in _HOLD_PROFILES else {})


def to_pillow(photograph: Photograph, kind: str) -> Image.Image:
    """Pixels as an image for an encoder: GIF has no alpha between 0 and 255; it, BMP and JPEG XL get sRGB."""
    formats.require(kind)
    image = Image.fromarray(photograph.pixels)
    if kind not in _HOLD_PROFILES and photograph.icc_profile and image.mode in ('RGB', 'RGBA'):
        image = formats.to_srgb(image, photograph.icc_profile, kind)
    if kind == 'GIF' and image.mode in ('LA', 'RGBA'):
        image = image.convert('RGBA')
        image.putalpha(image.getchannel('A').point([255 * (alpha >= 128) for alpha in range(256)]))
    return image


def write_pages(file: BinaryIO, photographs: Iterable[Photograph]) -> None:
    """Writes a TIFF of one page or more; only one at a time is held."""
    tags = []
    with tifffile.TiffWriter(file, byteorder='<') as writer:
        for pixels, profile, _, more, _ in photographs:
            channels = 1 if pixels.ndim == 2 else pixels.shape[2]
            tags.append(metadata.TiffTags(more))
            writer.write(
                pixels,
                photometric='minisblack' if channels < 3 else 'rgb',
                planarconfig='contig' if channels > 1 else None,
                compression='zlib',
                predictor=True,
                extrasamples=('unassalpha',) if channels in (2, 4) else None,
                iccprofile=profile,
                metadata=None,
                software=False,
                **tags[-1].options,
            )
    for page, of_page in enumerate(tags):
        of_page.finish(file, page)


def _refusal(opened: formats.Opened) -> str | None:
    """Why an image that could be decoded is not taken."""
    image = opened.image
    if image.format not in (*FORMATS.values(), *_NAMES.values(), 'MPO'):
        return formats.not_taken(str(image.format), more=True)
    # Telephones write MPO and HEIC with more pictures, of which the first, or the main one, is the photograph.
    frames = getattr(image, 'n_frames', 1)
    if frames > 1 and image.format not in ('MPO', 'HEIF'):
        return f'must hold one image, has {frames} (an animation, or pages)'
    depth = formats.bit_depth(image, opened.data)
    if image.mode == 'LAB' or (image.mode == 'CMYK' and depth > 8):
        return f'must be grey, RGB or 8-bit CMYK, is {image.mode} of {depth} bits'
    if depth not in (1, 2, 4, 8, 16) or image.mode == 'F':
        return f'must have integers of 8 or 16 bits, has {depth} bits'
    if depth == 16 and image.format == 'TIFF':
        if formats.tiff_tags(image).get(formats.PLANES) == 2 or 1 in formats.extra_samples(image):
            return 'is a 16-bit TIFF with separate planes or premultiplied alpha, which cannot be read'
    return None


def _pixels(opened: formats.Opened, path: Path) -> np.ndarray:
    image, data = opened.image, opened.data
    # Before Pillow reads the pixels, because it turns a TIFF by itself then, and OpenCV does too.
    is_tiff = image.format == 'TIFF'
    # JPEG XL has an orientation of its own, which the decoder has followed already.
    orientation = 1 if is_tiff or image.format == 'JXL' else formats.orientation(image)
    is_inverted = is_tiff and formats.tiff_tags(image).get(formats.PHOTOMETRIC) == 0
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
