"""PNG files by their chunks: what Pillow and OpenCV neither read nor write.

Text of more than a megabyte, as image generators and editors store it, makes Pillow refuse the image: here the chunks
that do not concern the pixels are left out before decoding. The writer works in bands of rows, so that an image of a
gigabyte takes no second one.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

SIGNATURE = b'\x89PNG\r\n\x1a\n'
# The meaning of the colours; they stay true when an image is enlarged.
COLOUR_CHUNKS = (b'cHRM', b'gAMA', b'cICP', b'sRGB', b'mDCV', b'cLLI')
XMP_START = b'XML:com.adobe.xmp\0\0\0\0\0'  # of an iTXt chunk, not compressed
_TEXT = (b'tEXt', b'zTXt', b'iTXt')
_LARGEST_PROFILE = 2**26  # bytes; the largest tables of colours take a few megabytes
# Of each pass of an interlaced file: first row, distance of rows, first column, distance of columns.
_ADAM7 = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
_BAND = 2**20  # bytes of the rows that are filtered and compressed at once

Chunk = tuple[bytes, bytes]


class Slim(NamedTuple):
    """A PNG file without what does not concern the pixels.

    Attributes:
        data: The file without texts and colour profile.
        icc_profile: The colour profile; None if the file has none.
        chunks: Name and content of those in `COLOUR_CHUNKS`.
        texts: Name and content of those with text; XMP is one of them.
        lost: What of the meaning of the colours cannot be kept, for a warning; '' for nothing.
    """

    data: bytes
    icc_profile: bytes | None
    chunks: tuple[Chunk, ...]
    texts: tuple[Chunk, ...]
    lost: str


def slim(data: bytes) -> Slim:
    """Takes the texts and the colour profile out of a PNG file; what is damaged stays, so that decoding finds it."""
    kept, profile, colours, texts, lost = [data[:8]], None, [], [], ''
    position = 8
    for name, content, whole in chunks(data):
        position += len(whole)
        is_sound = zlib.crc32(name + content).to_bytes(4, 'big') == whole[-4:]
        if name == b'iCCP':
            profile = _profile(content) if is_sound else None
            lost = lost or ('' if profile else 'the colour profile is damaged')
        elif name in _TEXT:
            if is_sound:
                texts.append((name, content))
        else:
            kept.append(whole)
            if name in COLOUR_CHUNKS and is_sound:
                colours.append((name, content))
    return Slim(b''.join((*kept, data[position:])), profile, tuple(colours), tuple(texts), lost)


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Name, content and all bytes of the chunks, as far as they are whole."""
    position = 8
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], 'big')
        if end > len(data):
            return
        yield data[position + 4 : position + 8], data[position + 8 : end - 4], data[position:end]
        position = end


def check_complete(data: bytes) -> None:
    """Makes sure that the pixels are all there, which the checksums of the chunks do not tell where one is missing.

    It decompresses them, which takes about half as long as decoding.

    Args:
        data: A PNG file whose header is sound.

    Raises:
        ValueError: There are fewer pixels than the header says, or they cannot be decompressed.
    """
    decompressor, missing = zlib.decompressobj(), _raw_size(data)
    try:
        for name, content, _ in chunks(data):
            if name == b'IDAT' and missing > 0:
                missing -= len(decompressor.decompress(content, missing))
    except zlib.error as error:
        raise ValueError('the compressed pixels are damaged') from error
    if missing:
        raise ValueError('a part of the pixels is missing')


def _raw_size(data: bytes) -> int:
    """Bytes of the pixels before compression, with the number of the filter in front of each row."""
    width, height, depth, colour_type, _, _, interlaced = struct.unpack('>IIBBBBB', data[16:29])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    passes = _ADAM7 if interlaced else ((0, 1, 0, 1),)
    sizes = (
        ((height - top + down - 1) // down, (width - left + right - 1) // right) for top, down, left, right in passes
    )
    return sum(rows * (1 + (columns * bits + 7) // 8) for rows, columns in sizes if rows > 0 and columns > 0)


def read_header(head: bytes) -> tuple[int, int, int]:
    """Height, width and bits of a channel, from the first 33 bytes of a file.

    Raises:
        ValueError: They are not the start of a PNG file, or damaged.
    """
    name, content = head[12:16], head[16:29]
    if len(head) < 33 or not head.startswith(SIGNATURE) or zlib.crc32(name + content).to_bytes(4, 'big') != head[29:33]:
        raise ValueError('the header is damaged')
    width, height, depth = struct.unpack('>IIB', content[:9])
    return height, width, depth


def write(file: BinaryIO, pixels: np.ndarray, profile: bytes | None = None, more: Iterable[Chunk] = ()) -> None:
    """Writes a PNG file.

    Args:
        file: Open for writing.
        pixels: uint8 or uint16; (H, W), or (H, W, 1 to 4): grey, grey with alpha, RGB, RGB with alpha.
        profile: ICC profile.
        more: Further chunks, of `COLOUR_CHUNKS`.
    """
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = pixels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    file.write(SIGNATURE)
    file.write(_chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8 * pixels.itemsize, colour_type, 0, 0, 0)))
    for name, content in more:
        file.write(_chunk(name, content))
    if profile:
        file.write(_chunk(b'iCCP', b'ICC profile\0\0' + zlib.compress(profile)))
    compressor = zlib.compressobj()
    for rows in _filtered_bands(pixels):
        if data := compressor.compress(rows.data):
            file.write(_chunk(b'IDAT', data))
    file.write(_chunk(b'IDAT', compressor.flush()))
    file.write(_chunk(b'IEND', b''))


def _profile(content: bytes) -> bytes | None:
    place = content.find(b'\0') + 2
    decompressor = zlib.decompressobj()
    try:
        profile = decompressor.decompress(content[place:], _LARGEST_PROFILE)
    except zlib.error:
        return None
    return profile if profile and decompressor.eof else None


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def _filtered_bands(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """The rows, each after the filter that leaves the smallest values, with its number in front: (rows, 1 + bytes)."""
    height, width, channels = pixels.shape
    step = channels * pixels.itemsize
    count = max(1, _BAND // (width * step))
    above = np.zeros((1, width * step), np.uint8)
    for top in range(0, height, count):
        band = np.ascontiguousarray(pixels[top : top + count])
        rows = band.astype(f'>u{pixels.itemsize}').view(np.uint8).reshape(len(band), -1)
        yield _filtered(rows, np.concatenate((above, rows[:-1])), step)
        above = rows[-1:]


def _filtered(rows: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    left, corner = (np.pad(part, ((0, 0), (step, 0)))[:, : rows.shape[1]] for part in (rows, above))
    a, b, c = (part.astype(np.int16) for part in (left, above, corner))
    to_a, to_b, to_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    paeth = np.where((to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, above, corner))
    candidates = {1: rows - left, 2: rows - above, 4: rows - paeth}
    costs = [np.minimum(part, -part).sum(1, dtype=np.int64) for part in candidates.values()]
    best = np.argmin(costs, 0)
    result = np.empty((rows.shape[0], 1 + rows.shape[1]), np.uint8)
    for place, (number, part) in enumerate(candidates.items()):
        chosen = best == place
        result[chosen, 0], result[chosen, 1:] = number, part[chosen]
    return result
