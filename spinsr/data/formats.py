"""The formats of image files, by content: Pillow's other formats start programs or have rules of their own."""

import io
import logging
import struct
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, cast

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from spinsr.data import jpeg, png
from spinsr.utils.patching import replaced
from spinsr.utils.text import printable

logger = logging.getLogger('spinsr')

# In pixels: 200-megapixel telephones stay below it, files that are made to fill the memory do not.
MAX_PIXELS = 2**28
# What Pillow raises on damaged files, depending on where the damage is.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, struct.error, zlib.error)
# Pillow's limit on pixels is one for all threads; ours replaces it, see `check_size`.
_limit_lock = threading.Lock()
ORIENTATION, PHOTOMETRIC, PLANES, EXTRA_SAMPLES = 274, 262, 284, 338  # tags of TIFF; the first one of EXIF too
_BITS, _COMPRESSION, _SAMPLES, _SAMPLE_FORMAT, _JPEG_TABLES = 258, 259, 277, 339, 347
_JPEG = 7  # a value of _COMPRESSION
_PLACES = ((273, 279), (324, 325))  # offsets and lengths of strips, and of tiles
_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3}  # by photometric interpretation; one for the others
_NUMBERS = {2: 'signed integers', 3: 'floating-point numbers', 5: 'complex integers', 6: 'complex numbers'}
_STARTS = {
    'BMP': (b'BM',),
    'JPEG': (b'\xff\xd8\xff',),
    'PNG': (png.SIGNATURE,),
    'PPM': (b'P1', b'P2', b'P3', b'P4', b'P5', b'P6'),
    'TIFF': (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'),
}
_OTHERS = {
    'PostScript': (b'%!PS', b'\xc5\xd0\xd3\xc6'),
    'PDF': (b'%PDF',),
    'GIF': (b'GIF8',),
    'JPEG XL': (b'\xff\x0a', b'\0\0\0\x0cJXL '),
    'JPEG 2000': (b'\0\0\0\x0cjP  ', b'\xff\x4f\xff\x51'),
    'Photoshop (PSD)': (b'8BPS',),
    'OpenEXR': (b'v/1\x01',),
    'Radiance HDR': (b'#?',),
    'floating-point PFM': (b'PF', b'Pf'),
    'DDS': (b'DDS ',),
    'icon (ICO)': (b'\0\0\x01\0',),
    'SVG or XML': (b'<svg', b'<?xml'),
    'HTML': (b'<!DOCTYPE', b'<!doctype', b'<html', b'<HTML'),
    'a Git LFS pointer; fetch the file with: git lfs pull': (b'version https://',),
    'ZIP': (b'PK\x03\x04',),
}
# Formats of photographs, which no dataset has.
MORE = ('AVIF', 'GIF', 'HEIC', 'JPEG XL')
_BRANDS = {b'avif': 'AVIF', b'avis': 'AVIF', b'crx ': 'Canon raw (CR3)'} | dict.fromkeys(
    (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1'), 'HEIC'
)


class RefusedError(ValueError):
    """A file that may be sound, and is not taken; the message continues after the file's name."""


class Opened(NamedTuple):
    """An image file whose pixels are still to be decoded.

    Attributes:
        image: As Pillow opens it, without the texts and the colour profile of a PNG.
        data: What it is decoded from.
        icc_profile: The colour profile; None if the file has none.
        chunks: Chunks of a PNG that say what its colours mean.
        texts: Chunks of a PNG that hold text.
    """

    image: Image.Image
    data: bytes
    icc_profile: bytes | None
    chunks: tuple[png.Chunk, ...] = ()
    texts: tuple[png.Chunk, ...] = ()


def identify(head: bytes, more: bool = False) -> str:
    """The format of a file by its first 16 bytes.

    Args:
        head: These bytes.
        more: Whether those of photographs are known too: AVIF, GIF, HEIC and JPEG XL.

    Raises:
        RefusedError: It is of none of the formats that are read.
    """
    if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
        return 'WEBP'
    for name, starts in _STARTS.items():
        if head.startswith(starts):
            return name
    if head[4:8] == b'ftyp' and head[8:12] in _BRANDS:
        name = _BRANDS[head[8:12]]
        if more and name in MORE:
            return name
        raise RefusedError(not_taken(name, more))
    for name, starts in _OTHERS.items():
        if head.startswith(starts):
            if more and name in MORE:
                return name
            raise RefusedError(not_taken(name, more))
    raise RefusedError('is not an image, or its start is damaged')


def require(kind: str) -> None:
    """Makes sure that a format of photographs can be read and written here, and registers its encoder in Pillow.

    Raises:
        RefusedError: A package is missing.
    """
    try:
        if kind == 'HEIC':
            import pillow_heif  # pyright: ignore[reportMissingImports]  # an extra

            pillow_heif.register_heif_opener()
        elif kind == 'JPEG XL':
            import pillow_jxl  # noqa: F401  # pyright: ignore[reportMissingImports]  # an extra
        elif kind == 'AVIF' and not features.check('avif'):
            raise ImportError
    except ImportError:
        package = {'HEIC': 'pillow-heif', 'JPEG XL': 'pillow-jxl-plugin', 'AVIF': 'Pillow 11.3'}[kind]
        raise RefusedError(f"is {kind}, which needs {package}: pip install 'spinsr[formats]'") from None


def _maker(kind: str) -> Callable[[BinaryIO, str], Image.Image]:
    require(kind)
    if kind == 'GIF':
        return GifImagePlugin.GifImageFile
    if kind == 'HEIC':
        from pillow_heif import HeifImageFile  # pyright: ignore[reportMissingImports]  # an extra

        return HeifImageFile
    if kind == 'JPEG XL':
        from pillow_jxl.JpegXLImagePlugin import JXLImageFile  # pyright: ignore[reportMissingImports]  # an extra

        return JXLImageFile
    from PIL import AvifImagePlugin

    return AvifImagePlugin.AvifImageFile


def reduced_depth(data: bytes) -> int:
    """Bits of a channel of a HEIC or AVIF file if they are more than the 8 that Pillow decodes, else 0."""
    if (place := data.find(b'av1C')) > 0 and data[place + 6] & 0x40:
        return 12 if data[place + 6] & 0x20 else 10
    if (place := data.find(b'hvcC')) > 0 and data[place + 21] & 7:
        return 8 + (data[place + 21] & 7)
    return 0


def open_image(file: BinaryIO, max_pixels: int = MAX_PIXELS, more: bool = False) -> Image.Image:
    """Opens an image by Pillow, as `Image.open`, in the formats that are read and whatever its name; no pixels yet.

    Args:
        file: At its start.
        max_pixels: Largest height times width.
        more: As for `identify`.

    Raises:
        RefusedError: It is of no format that is read, has too many pixels, or, in TIFF, numbers that are not unsigned
            integers.
        DAMAGE: The header is damaged.
    """
    kind = identify(file.read(16), more)
    file.seek(0)
    if kind == 'TIFF':
        _check_numbers(_tiff_tags(file))
        file.seek(0)
    makers = {
        'BMP': BmpImagePlugin.BmpImageFile,
        'JPEG': JpegImagePlugin.jpeg_factory,
        'PNG': PngImagePlugin.PngImageFile,
        'PPM': PpmImagePlugin.PpmImageFile,
        'TIFF': TiffImagePlugin.TiffImageFile,
        'WEBP': WebPImagePlugin.WebPImageFile,
    }
    make = makers.get(kind) or _maker(kind)
    try:
        if kind == 'WEBP':  # it looks at Pillow's limit here
            with _limit_lock, replaced(Image, MAX_IMAGE_PIXELS=None):
                image = make(file, '')
        else:
            image = make(file, '')
    except DAMAGE as error:
        raise RefusedError('is not an image, or its start is damaged') from error
    check_size(image.height, image.width, max_pixels)
    return image


def open_data(data: bytes, name: object, max_pixels: int = MAX_PIXELS, more: bool = False) -> Opened:
    """Opens the content of an image file, and makes sure that it is complete as far as that shows before decoding.

    Args:
        data: The file's bytes.
        name: What warnings call it.
        max_pixels: Largest height times width.
        more: As for `identify`.

    Raises:
        RefusedError: As `open_image`.
        DAMAGE: The file is damaged.
    """
    kind, profile, chunks, texts = identify(data[:16], more), None, (), ()
    if kind == 'PNG':
        check_size(*png.read_header(data[:33])[:2], max_pixels)
        data, profile, chunks, texts, lost = png.slim(data)
        if lost:
            logger.warning('%s: %s and is left out', printable(name), lost)
        # Decoding does not compare the checksums.
        with open_image(io.BytesIO(data), max_pixels) as image:
            image.verify()
    image = open_image(io.BytesIO(data), max_pixels, more)
    if kind == 'JPEG':
        jpeg.check_complete(data)
    elif kind == 'TIFF' and tiff_tags(image).get(_COMPRESSION) == _JPEG:
        _check_strips(tiff_tags(image), data)
    return Opened(image, data, profile or image.info.get('icc_profile') or None, chunks, texts)


def load(image: Image.Image) -> None:
    """`image.load()` without Pillow's limit on pixels, which it applies to TIFF once more.

    Raises:
        DAMAGE: The file is damaged.
    """
    if Image.MAX_IMAGE_PIXELS is None or image.width * image.height <= Image.MAX_IMAGE_PIXELS:
        image.load()
        return
    with _limit_lock, replaced(Image, MAX_IMAGE_PIXELS=None):
        image.load()


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Refuses images that are too large.

    Raises:
        RefusedError: More than `max_pixels`.
    """
    if height * width > max_pixels:
        raise RefusedError(f'must have at most {max_pixels:,} pixels (max_pixels), has {height}x{width} (HxW)')


def bit_depth(image: Image.Image, head: bytes) -> int:
    """Bits of a channel in the file; Pillow's mode hides those of 16-bit colours, which it halves without a word.

    Args:
        image: The opened file.
        head: Its first 25 bytes or more.
    """
    if image.format == 'PNG':
        return head[24]
    if image.format == 'TIFF':
        return max(tiff_tags(image).get(_BITS, (1,)))
    return 32 if image.mode == 'F' else 16 if image.mode.startswith('I') else 8


def extra_samples(image: Image.Image) -> tuple[int, ...]:
    """What the channels of a TIFF beyond its colours are: 0 unspecified, 1 premultiplied alpha, 2 alpha.

    A file that should say so and does not is taken to have alpha, as Pillow and OpenCV take it.
    """
    tags = tiff_tags(image)
    count = max(tags.get(_SAMPLES, 1) - _COLOURS.get(tags.get(PHOTOMETRIC, -1), 1), 0)
    return (tuple(tags.get(EXTRA_SAMPLES, (2,))) + (0,) * count)[:count]


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 if none can be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (*DAMAGE, AttributeError):  # metadata never cost the pixels
        return 1
    return found if found in range(1, 9) else 1


def tiff_tags(image: Image.Image) -> TiffImagePlugin.ImageFileDirectory_v2:
    """The tags of an open TIFF file."""
    return cast(TiffImagePlugin.TiffImageFile, image).tag_v2


def from_cmyk(image: Image.Image, profile: bytes | None, name: object) -> Image.Image:
    """A CMYK image in sRGB: by its colour profile, else (1 - C)(1 - K), (1 - M)(1 - K), (1 - Y)(1 - K)."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile('sRGB'), outputMode='RGB')
            return cast(Image.Image, converted)  # not in place
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            logger.warning('%s: the colour profile cannot be used: %s', printable(name), printable(error))
    return image.convert('RGB')


def to_srgb(image: Image.Image, profile: bytes, name: object) -> Image.Image:
    """A grey or RGB image, perhaps with alpha, in sRGB by its colour profile; for formats that hold no profile."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if cast(Any, source.profile).xcolor_space.strip() != 'RGB' or 'sRGB' in ImageCms.getProfileDescription(source):
            return image
        return cast(Image.Image, ImageCms.profileToProfile(image, source, ImageCms.createProfile('sRGB')))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        logger.warning('%s: the colour profile cannot be used: %s', printable(name), printable(error))
        return image


def not_taken(kind: str, more: bool) -> str:
    """Why a file of another format is refused, as the end of a line that begins with its name."""
    if more:
        return f'must be AVIF, BMP, GIF, HEIC, JPEG, JPEG XL, PNG, TIFF or WebP, is {kind}'
    return f'must be BMP, JPEG, PGM, PNG, PPM, TIFF or WebP, is {kind}'


def _tiff_tags(file: BinaryIO) -> Mapping[int, Any]:
    """The tags of the first page; Pillow does not open a page whose numbers it does not know."""
    header = file.read(8)
    if header[2:4] in (b'+\0', b'\0+'):
        header += file.read(8)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        return dict(tags)
    except DAMAGE as error:
        raise RefusedError('is not an image, or its start is damaged') from error


def _check_strips(tags: Mapping[int, Any], data: bytes) -> None:
    """Makes sure that the JPEG data in a TIFF are complete; libtiff fills them up, too."""
    tables = bytes(tags.get(_JPEG_TABLES, b''))[2:-2]  # without the markers of start and end
    for offsets, lengths in _PLACES:
        for offset, length in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=True):
            jpeg.check_complete(b'\xff\xd8' + tables + data[offset + 2 : offset + length])


def _check_numbers(tags: Mapping[int, Any]) -> None:
    bits, kinds = (tags.get(tag, (1,)) for tag in (_BITS, _SAMPLE_FORMAT))
    bits, kinds = (value if isinstance(value, tuple) else (value,) for value in (bits, kinds))
    kind = next((_NUMBERS[kind] for kind in kinds if kind in _NUMBERS), None)
    if kind or max(bits) > 16:
        raise RefusedError(
            f'must have unsigned integers of 8 or 16 bits a channel, has {kind or "unsigned integers"} '
            f'of {max(bits)} bits'
        )
