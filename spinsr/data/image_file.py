"""Image files, read strictly: OpenCV fills what a truncated file lacks with grey or black and says nothing."""

import io
import os
import struct
import zlib
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from spinsr.utils.atomic_write import write_bytes

EXTENSIONS = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
PNG_END = b'\x00\x00\x00\x00IEND\xaeB`\x82'
# What Pillow raises on damaged files, depending on where the damage is.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def list_images(folder: Path, extensions: Collection[str] = EXTENSIONS) -> list[Path]:
    """Image files of a folder, by name; hidden files and other files are left out.

    Args:
        folder: Where; folders in it are not looked into.
        extensions: What the names end in, in lower case; in the names capitals are as good.

    Raises:
        ValueError: The folder does not exist, or holds no image.
    """
    if not folder.is_dir():
        raise ValueError(f'{folder} is no folder')
    paths = [path for path in folder.iterdir() if path.suffix.lower() in extensions and path.name[0] != '.']
    if not paths:
        raise ValueError(f'{folder} holds no images ({", ".join(extensions)})')
    return sorted(paths)


def inspect(path: Path) -> tuple[int, int]:
    """Height and width of an image file, from its header; a PNG's end is looked at too, so truncation is seen early.

    Raises:
        ValueError: The file is missing, no image, truncated, or not of 8 bits a channel; the message names it.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(25)
            file.seek(0)
            with Image.open(file) as image:
                _check_depth(image, path, head)
                size, is_png = (image.height, image.width), image.format == 'PNG'
            file.seek(-min(len(PNG_END), os.fstat(file.fileno()).st_size), os.SEEK_END)
            complete = not is_png or file.read() == PNG_END
    except FileNotFoundError:
        raise ValueError(f'{path} is missing') from None
    except DAMAGE as error:
        raise unreadable(path, error) from error
    if not complete:
        # Bytes after the end are legal, if odd: only decoding tells.
        read(path)
    return size


def read(path: Path) -> np.ndarray:
    """Reads an image file, whole or not at all.

    Returns:
        (H, W, 3), uint8, RGB; greyscale is repeated, transparency dropped.

    Raises:
        ValueError: The file is missing, no image, truncated, damaged, or not of 8 bits a channel; the message names it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f'{path} is missing') from None
    except OSError as error:
        raise unreadable(path, error) from error
    return decode(data, path)


def decode(data: bytes, name: Path | str) -> np.ndarray:
    """Decodes the content of an image file, whole or not at all.

    Args:
        data: The file's bytes.
        name: What errors call it.

    Returns:
        (H, W, 3), uint8, RGB; greyscale is repeated, transparency dropped.

    Raises:
        ValueError: No image, truncated, damaged, or not of 8 bits a channel; the message names it.
    """
    try:
        # Decoding does not compare a PNG's checksums.
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
        with Image.open(io.BytesIO(data)) as image:
            _check_depth(image, name, data[:25])
            return np.array(image.convert('RGB'))
    except DAMAGE as error:
        raise unreadable(name, error) from error


def verify(data: bytes, name: Path | str) -> None:
    """Checks that the content of an image file is whole, at the least cost: a PNG by its checksums, others decoded.

    Args:
        data: The file's bytes.
        name: What errors call it.

    Raises:
        ValueError: No image, truncated or damaged; the message names it.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == 'PNG':
                image.verify()
            else:
                image.load()
    except DAMAGE as error:
        raise unreadable(name, error) from error


def encode_png(image: np.ndarray, level: int) -> bytes:
    """PNG file of an image.

    Args:
        image: (H, W, 3), uint8, RGB.
        level: zlib's compression level, 0 to 9.
    """
    done, data = cv2.imencode('.png', image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, level])
    assert done
    return data.tobytes()


def encode_png16(image: np.ndarray) -> bytes:
    """PNG file of a 16-bit image, neither filtered nor compressed: noise in the low bits leaves nothing to compress.

    Against zlib's level 1 the file is about 30 % larger, and decoding takes about a fifth of the time.

    Args:
        image: (H, W, 3), uint16, RGB.
    """
    parameters = [cv2.IMWRITE_PNG_COMPRESSION, 0]
    if hasattr(cv2, 'IMWRITE_PNG_FILTER'):  # drop when opencv-python >= 4.12 is required
        parameters += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    done, data = cv2.imencode('.png', image[..., ::-1], parameters)
    assert done
    return data.tobytes()


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes a PNG file under a temporary name and renames it: the file is there whole or not at all.

    Args:
        path: Where to write; the folder is made.
        image: (H, W, 3), uint8, RGB.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, encode_png(image, level=3))


def bit_depth(image: Image.Image, head: bytes) -> int:
    """Bits of a channel in the file; Pillow's mode hides those of 16-bit colours, which it halves without a word.

    Args:
        image: The opened file.
        head: Its first 25 bytes or more.
    """
    if image.format == 'PNG':
        return head[24]
    if image.format == 'TIFF':
        return max(image.tag_v2.get(258, (1,)))  # BitsPerSample
    return 32 if image.mode == 'F' else 16 if image.mode.startswith('I') else 8


def _check_depth(image: Image.Image, name: Path | str, head: bytes) -> None:
    if bit_depth(image, head) > 8:
        raise _WrongDepthError(f'{name} must have 8 bits a channel, got more')


class _WrongDepthError(ValueError):
    pass


def unreadable(name: Path | str, error: Exception) -> ValueError:
    """What to raise, in one form, for what opening and decoding raise on a file (`DAMAGE`)."""
    if isinstance(error, _WrongDepthError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return ValueError(f'{name} is no image, or its start is damaged')
    return ValueError(f'{name} cannot be read whole: {error}')
