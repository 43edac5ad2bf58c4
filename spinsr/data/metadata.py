"""What image files say beside pixels and colours: EXIF, XMP, resolution, texts and comments.

EXIF is changed in place and not rewritten, except in TIFF: makers' notes hold offsets that only they understand.
"""

import io
import logging
import re
import struct
from typing import Any, BinaryIO, NamedTuple, cast

from PIL import Image, TiffImagePlugin

from spinsr.data import png
from spinsr.utils.text import printable

logger = logging.getLogger('spinsr')

_ORIENTATION, _EXIF, _GPS, _XMP = 274, 34665, 34853, 700
_WIDTH, _HEIGHT = 0xA002, 0xA003  # of the picture, in EXIF's own directory
# Tags of a TIFF that describe the picture: description, camera, software, date, artist, computer, copyright.
_DESCRIPTIVE = (270, 271, 272, 305, 306, 315, 316, 33432)
_SHORT, _LONG = 3, 4
_IFH = b'II*\0\0\0\0\0'
# What Pillow raises on damaged EXIF.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, struct.error)
_LONGEST_IN_JPEG = {'EXIF': 65533 - 6, 'XMP': 65533 - 29, 'comment': 65533}
# What a format can hold.
_HELD = {
    'AVIF': ('EXIF', 'XMP'),
    'BMP': ('resolution',),
    'GIF': ('comment',),
    'HEIC': ('EXIF', 'XMP'),
    'JPEG': ('EXIF', 'XMP', 'resolution', 'comment'),
    'JPEG XL': ('EXIF', 'XMP'),
    'PNG': ('EXIF', 'XMP', 'resolution', 'text'),
    'TIFF': ('EXIF', 'XMP', 'resolution'),
    'WEBP': ('EXIF', 'XMP'),
}


class Metadata(NamedTuple):
    """What a file says beside pixels and colours.

    Attributes:
        exif: As in a file of its own: it begins with the byte order, unless it is damaged.
        xmp: A packet.
        dpi: Pixels an inch, horizontally and vertically.
        texts: Chunks of a PNG with text, except XMP.
        comment: Of a JPEG or GIF.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    texts: tuple[png.Chunk, ...] = ()
    comment: bytes | None = None


def read(image: Image.Image, texts: tuple[png.Chunk, ...] = ()) -> Metadata:
    """The metadata of a file; what is damaged is left out.

    Args:
        image: As Pillow opens it; its pixels are not loaded yet.
        texts: Chunks of a PNG with text, which Pillow did not see; XMP is among them.
    """
    if image.format == 'PNG' and 'exif' not in image.info:
        image.load()  # EXIF may be behind the pixels
    info = image.info
    exif = _of_tiff(image) if image.format == 'TIFF' else info.get('exif')
    exif = re.sub(b'^(Exif\0\0)+', b'', exif) if isinstance(exif, bytes) else None
    xmp = cast(TiffImagePlugin.TiffImageFile, image).tag_v2.get(_XMP) if image.format == 'TIFF' else info.get('xmp')
    packet = next((content for name, content in texts if _is_xmp(name, content)), None)
    if packet is not None:
        xmp = packet[len(png.XMP_START) :]
    dpi = info.get('dpi')
    is_sound = isinstance(dpi, tuple) and len(dpi) == 2 and all(0 < float(value) < 1e6 for value in dpi)
    comment = info.get('comment')
    return Metadata(
        exif or None,
        bytes(xmp) if isinstance(xmp, (bytes, bytearray)) and xmp else None,
        (float(dpi[0]), float(dpi[1])) if dpi and is_sound else None,
        tuple((name, content) for name, content in texts if not _is_xmp(name, content)),
        comment if isinstance(comment, bytes) and comment else None,
    )


def of_output(metadata: Metadata, height: int, width: int, name: object) -> Metadata:
    """The metadata of an upright image of another size: EXIF and XMP name its sides, and orientation 1.

    The thumbnail of a turned picture is left out: it is not upright.

    Args:
        metadata: Of the input.
        height: Of the output.
        width: Of the output.
        name: What a warning calls the file.
    """
    exif, xmp = metadata.exif, metadata.xmp
    if exif:
        exif = bytearray(exif)
        try:
            _patch(exif, height, width)
        except struct.error:
            logger.warning('%s: damaged EXIF is left out', printable(name))
            exif = None
        else:
            exif = bytes(exif)
    if xmp:
        for names, value in (
            (b'tiff:Orientation', 1),
            (b'tiff:ImageWidth|exif:PixelXDimension', width),
            (b'tiff:ImageLength|exif:PixelYDimension', height),
        ):
            pattern = rb'((?:' + names + rb')\s*(?:=\s*["\']|>)\s*)\d+'
            xmp = re.sub(pattern, rb'\g<1>' + str(value).encode(), xmp)
    return metadata._replace(exif=exif, xmp=xmp)


def for_format(metadata: Metadata, kind: str, name: object) -> Metadata:
    """What of metadata a format can hold; the rest is named in a warning.

    Args:
        metadata: The metadata.
        kind: The format, as in `spinsr.data.photograph.FORMATS`.
        name: What the warning calls the file.
    """
    lost = []
    for what, field in (('EXIF', 'exif'), ('XMP', 'xmp'), ('resolution', 'dpi'), ('text', 'texts'), ('comment',) * 2):
        value = getattr(metadata, field)
        is_long = kind == 'JPEG' and what in _LONGEST_IN_JPEG and len(value or b'') > _LONGEST_IN_JPEG[what]
        if value and (what not in _HELD[kind] or is_long):
            lost.append(f'long {what}' if is_long else what)
            metadata = metadata._replace(**{field: () if field == 'texts' else None})
    # EXIF holds the resolution too.
    lost = [what for what in lost if what != 'resolution' or not metadata.exif]
    if lost:
        logger.warning('%s: %s cannot hold %s', printable(name), kind, ', '.join(lost))
    return metadata


def png_chunks(metadata: Metadata) -> list[png.Chunk]:
    """Chunks of a PNG that hold metadata."""
    chunks = []
    if metadata.dpi:
        chunks.append((b'pHYs', struct.pack('>IIB', *(round(value / 0.0254) for value in metadata.dpi), 1)))
    if metadata.exif:
        chunks.append((b'eXIf', metadata.exif))
    if metadata.xmp:
        chunks.append((b'iTXt', png.XMP_START + metadata.xmp))
    return [*chunks, *metadata.texts]


def pillow_options(metadata: Metadata) -> dict[str, Any]:
    """Arguments of Pillow's `save` that hold metadata."""
    options = {
        'exif': metadata.exif and b'Exif\0\0' + metadata.exif,
        'xmp': metadata.xmp,
        'dpi': metadata.dpi,
        'comment': metadata.comment,
    }
    return {key: value for key, value in options.items() if value}


class TiffTags:
    """Metadata as tags of a TIFF that `tifffile` writes."""

    def __init__(self, metadata: Metadata):
        tags = Image.Exif()
        self._directories: dict[int, TiffImagePlugin.ImageFileDirectory_v2] = {}
        extra = []
        try:
            if metadata.exif:
                tags.load(metadata.exif)
            extra = [(tag, 's', 0, str(tags[tag]).encode(), True) for tag in _DESCRIPTIVE if tags.get(tag)]
            for tag in (_EXIF, _GPS):
                if values := _directory(tags, tag):
                    directory = TiffImagePlugin.ImageFileDirectory_v2(ifh=_IFH)
                    for key, value in values.items():
                        directory[key] = value
                    directory.tobytes(8)  # shows whether it can be written
                    self._directories[tag] = directory
        except _DAMAGE:
            logger.warning('damaged EXIF is left out')
        if metadata.xmp:
            extra.append((_XMP, 'B', len(metadata.xmp), metadata.xmp, True))
        self.options: dict[str, Any] = {'extratags': extra}
        if metadata.dpi:
            self.options |= {'resolution': metadata.dpi, 'resolutionunit': 'INCH'}

    def finish(self, file: BinaryIO, page: int = 0) -> None:
        """Appends what `tifffile` does not write, EXIF's own directories, and the page's directory with them."""
        if not self._directories:
            return
        pointer = 4
        for _ in range(page):
            offset = _unpacked(file, pointer, '<I')
            pointer = offset + 2 + 12 * _unpacked(file, offset, '<H')
        offset = _unpacked(file, pointer, '<I')
        count = _unpacked(file, offset, '<H')
        file.seek(offset + 2)
        entries = [file.read(12) for _ in range(count)]
        following = file.read(4)
        for tag, directory in self._directories.items():
            place = _append(file, b'')
            _append(file, directory.tobytes(place))
            entries.append(struct.pack('<HHII', tag, _LONG, 1, place))
        entries.sort(key=lambda entry: entry[1::-1])
        place = _append(file, struct.pack('<H', len(entries)) + b''.join(entries) + following)
        file.seek(pointer)
        file.write(struct.pack('<I', place))
        file.seek(0, io.SEEK_END)


def _unpacked(file: BinaryIO, offset: int, format: str) -> int:
    file.seek(offset)
    return struct.unpack(format, file.read(struct.calcsize(format)))[0]


def _append(file: BinaryIO, data: bytes) -> int:
    """Appends to a file from an even offset on, and returns that."""
    offset = file.seek(0, io.SEEK_END)
    offset += file.write(bytes(offset % 2))
    file.write(data)
    return offset


def _is_xmp(name: bytes, content: bytes) -> bool:
    return name == b'iTXt' and content.startswith(png.XMP_START)


def _directory(tags: Image.Exif, tag: int) -> dict[int, Any]:
    try:
        return dict(tags.get_ifd(tag))
    except _DAMAGE:
        return {}


def _of_tiff(image: Image.Image) -> bytes | None:
    """The descriptive tags of a TIFF, and EXIF's own directories, as EXIF."""
    exif = Image.Exif()
    try:
        tags = image.getexif()
        for tag in _DESCRIPTIVE:
            # The shape that tifffile writes as the description would contradict the output.
            if tag in tags and not str(tags[tag]).startswith('{"shape":'):
                exif[tag] = tags[tag]
        for tag in (_EXIF, _GPS):
            if tag in tags and (directory := _directory(tags, tag)):
                exif[tag] = directory
        return exif.tobytes() if len(exif) else None
    except _DAMAGE:
        return None  # metadata never cost the pixels


def _patch(exif: bytearray, height: int, width: int) -> None:
    if exif[:4] not in (b'II*\0', b'MM\0*'):
        raise struct.error('no byte order')
    order = '<' if exif[:2] == b'II' else '>'

    def entries(offset: int) -> list[tuple[int, int]]:
        (count,) = struct.unpack_from(order + 'H', exif, offset)
        places = [offset + 2 + 12 * number for number in range(count)]
        return [(struct.unpack_from(order + 'H', exif, place)[0], place) for place in places]

    def put(place: int, value: int) -> None:
        if value < 2**16:
            struct.pack_into(order + 'HIHH', exif, place + 2, _SHORT, 1, value, 0)
        else:
            struct.pack_into(order + 'HII', exif, place + 2, _LONG, 1, value)

    (first,) = struct.unpack_from(order + 'I', exif, 4)
    found = entries(first)
    for tag, place in found:
        if tag == _ORIENTATION:
            if struct.unpack_from(order + 'H', exif, place + 8)[0] != 1:
                struct.pack_into(order + 'I', exif, first + 2 + 12 * len(found), 0)  # no thumbnail follows
            put(place, 1)
        elif tag == _EXIF:
            (offset,) = struct.unpack_from(order + 'I', exif, place + 8)
            for name, where in entries(offset):
                if name in (_WIDTH, _HEIGHT):
                    put(where, width if name == _WIDTH else height)
