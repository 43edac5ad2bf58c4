"""JPEG files whose data end early: libjpeg fills what is missing with grey, and its warnings do not reach Python.

A file that was cut and closed again with an end marker decodes without an error in Pillow and OpenCV. Here
libjpeg-turbo decodes it once more at an eighth of the size, by simplejpeg, which turns the warnings into errors. Most
changed bits inside the data go unnoticed: JPEG has no checksums.

The quality with which a file was saved is not in it; `estimate_quality` infers it from the quantization tables.
"""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

import simplejpeg
from PIL import Image

_MARKER = re.compile(rb'\xff+[^\x00\xff]')
# In a scan FF 00 stands for the byte FF, and D0 to D7 (RST) count the rows.
_END_OF_SCAN = re.compile(rb'\xff+[^\x00\xff\xd0-\xd7]')
_START, _END, _SCAN, _PROGRESSIVE = 0xD8, 0xD9, 0xDA, 0xC2
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# What these hold does not change which data a decoder needs: APP0 to APP15, and comments.
_METADATA = frozenset((*range(0xE0, 0xF0), 0xFE))
# The luminance table of the JPEG standard (Annex K), which libjpeg scales by the quality.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
# All samples were decoded before these bytes; some cameras and editors leave a few there.
_AFTER_THE_LAST_SAMPLE = re.compile(r'extraneous bytes before marker 0xd9$')


class _Segment(NamedTuple):
    marker: int
    content: bytes  # without marker and length
    scan: bytes  # the compressed data that follow, for the start of a scan


def check_complete(data: bytes) -> None:
    """Makes sure that a JPEG file has data for every sample of its (first) image.

    Raises:
        ValueError: It ends early, or lacks a scan; the message is the reason.
    """
    slim, missing = bytearray(b'\xff\xd8'), None
    for marker, content, scan in _segments(data):
        if marker in _METADATA:
            continue
        if marker in _FRAMES and missing is None and len(content) >= 6:
            components = content[6 : 6 + 3 * content[5] : 3]
            missing = {component: set(range(64)) for component in components}
        elif marker == _SCAN and missing is not None:
            _remove_scanned(missing, content)
        slim += bytes((0xFF, marker))
        if marker != _END:
            slim += (len(content) + 2).to_bytes(2, 'big') + content + scan
    if missing is None:
        raise ValueError('it has no frame')
    if any(missing.values()):
        raise ValueError('a scan is missing')
    try:
        colours = simplejpeg.decode_jpeg_header(bytes(slim))[2]
        colours = 'CMYK' if colours in ('CMYK', 'YCCK') else 'GRAY'
        simplejpeg.decode_jpeg(bytes(slim), colours, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        if not _AFTER_THE_LAST_SAMPLE.search(str(error)):
            raise


def estimate_quality(image: Image.Image) -> int | None:
    """The quality, as libjpeg counts it, at which a JPEG file has quantization steps as large as these.

    It is exact for files of libjpeg and all that scales the tables of the standard; other tables (those of cameras and
    Photoshop) get the quality of the same mean step. Only the table of the first component counts, the luminance:
    blocks and ringing are seen there. An earlier compression of the same image leaves no trace in it.

    Args:
        image: As Pillow opens it.

    Returns:
        1 to 100; None if it is not a JPEG file, or has no such table.
    """
    components = getattr(image, 'layer', None)
    table = (getattr(image, 'quantization', None) or {}).get(components[0][3] if components else 0)
    if not table:
        return None
    return min(range(1, 101), key=lambda quality: abs(_sum_of_steps(quality) - sum(table)))


@functools.cache
def _sum_of_steps(quality: int) -> int:
    """The sum of libjpeg's luminance table."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(min(max((value * percent + 50) // 100, 1), 255) for row in _LUMINANCE for value in row)


def _segments(data: bytes) -> Iterator[_Segment]:
    """The segments of the first image, its end included; bytes between segments that belong to none are left out."""
    position = 2
    while match := _MARKER.search(data, position):
        marker, position = data[match.end() - 1], match.end()
        if marker == _END:
            yield _Segment(marker, b'', b'')
            return
        if marker == _START or marker == 0x01 or 0xD0 <= marker <= 0xD7:  # without content
            continue
        length = int.from_bytes(data[position : position + 2], 'big')
        content, position = data[position + 2 : position + length], position + max(length, 2)
        scan = b''
        if marker == _SCAN:
            end = _END_OF_SCAN.search(data, position)
            scan = data[position : end.start() if end else len(data)]
            position += len(scan)
        yield _Segment(marker, content, scan)


def _remove_scanned(missing: dict[int, set[int]], header: bytes) -> None:
    """Takes the coefficients that a scan completes away from those that are missing, by component."""
    count = header[0] if header else 0
    if len(header) < 2 * count + 4:
        return
    first, last, precision = header[2 * count + 1 : 2 * count + 4]
    if precision & 15 == 0:  # no bits are left for later scans
        for component in header[1 : 2 * count + 1 : 2]:
            missing.get(component, set()).difference_update(range(first, last + 1))
