"""Image files, read strictly: OpenCV fills what a truncated file lacks with grey or black and says nothing."""

import logging
import os
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np

from spinsr.data import formats, jpeg, png
from spinsr.data.formats import DAMAGE, bit_depth
from spinsr.utils.atomic_write import write_bytes
from spinsr.utils.text import printable

logger = logging.getLogger('spinsr')

EXTENSIONS = ('.bmp', '.jfif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
PNG_END = b'\x00\x00\x00\x00IEND\xaeB`\x82'


def list_images(folder: Path, extensions: Collection[str] = EXTENSIONS, *, required: bool = True) -> list[Path]:
    """Image files of a folder, by name; hidden files and other files are left out.

    Args:
        folder: Not searched recursively.
        extensions: Endings of the names, in lower case; capitals are accepted too.
        required: Whether a folder without images is an error.

    Raises:
        ValueError: The folder does not exist, or holds no image.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if _is_called_image(entry.name, extensions)]
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f'not a directory: {folder}') from None
    paths, others = [], []
    for entry in found:
        # A link to nothing stays: reading it says so.
        (others if not is_file(entry) and os.path.exists(entry.path) else paths).append(folder / entry.name)
    if others:
        logger.warning('%s: skipped, not a regular file: %s', printable(folder), name_some(others))
    if required and not paths:
        raise ValueError(f'no images ({", ".join(extensions)}) in {folder}')
    return sorted(paths)


def is_file(entry: os.DirEntry) -> bool:
    """`entry.is_file()`, and False for a link that leads to itself, which that raises an error for."""
    try:
        return entry.is_file()
    except OSError:
        return False


def name_some(files: Collection[Path]) -> str:
    """The first five names of files, and how many more there are, for a line of a log."""
    names = sorted(printable(file.name) for file in files)
    return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def inspect(path: Path) -> tuple[int, int]:
    """Height and width of an image file, from its header; a PNG's end is looked at too, so truncation is seen early.

    Raises:
        ValueError: The file is missing, not an image, truncated, or not of 8 bits a channel; the message names it.
    """
    try:
        _check_regular(path)
        with open(path, 'rb') as file:
            head = file.read(33)
            file.seek(0)
            is_png = formats.identify(head[:16]) == 'PNG'
            if is_png:
                # Not by Pillow, which reads texts first and gives up where they are long.
                height, width, depth = png.read_header(head)
                formats.check_size(height, width, formats.MAX_PIXELS)
            else:
                with formats.open_image(file) as image:
                    height, width, depth = image.height, image.width, bit_depth(image, head)
            _check_depth(depth)
            file.seek(-min(len(PNG_END), os.fstat(file.fileno()).st_size), os.SEEK_END)
            complete = not is_png or file.read() == PNG_END
    except FileNotFoundError:
        raise ValueError(f'{path} is missing') from None
    except DAMAGE as error:
        raise unreadable(path, error) from error
    if not complete:
        # Bytes after the end are legal, if odd: only decoding tells.
        read(path)
    return height, width


def read(path: Path) -> np.ndarray:
    """Reads an image file; it is read completely or not at all.

    Returns:
        (H, W, 3), uint8, RGB; greyscale is repeated, transparency dropped, CMYK converted.

    Raises:
        ValueError: The file is missing, not an image, truncated, damaged, or not of 8 bits a channel; the message names
            it.
    """
    return decode(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        ValueError: It is missing, cannot be read, or is not a regular file.
    """
    try:
        _check_regular(path)
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f'{path} is missing') from None
    except (OSError, formats.RefusedError) as error:
        raise unreadable(path, error) from error


def decode(data: bytes, name: Path | str) -> np.ndarray:
    """Decodes the content of an image file; it is decoded completely or not at all.

    Args:
        data: The file's bytes.
        name: What errors call it.

    Returns:
        (H, W, 3), uint8, RGB; greyscale is repeated, transparency dropped, CMYK converted.

    Raises:
        ValueError: Not an image, truncated, damaged, or not of 8 bits a channel; the message names it.
    """
    try:
        opened = formats.open_data(data, name)
        with opened.image as image:
            _check_depth(bit_depth(image, opened.data))
            formats.load(image)
            if image.mode == 'CMYK':
                return np.array(formats.from_cmyk(image, opened.icc_profile, name))
            return np.array(image.convert('RGB'))
    except DAMAGE as error:
        raise unreadable(name, error) from error


def verify(data: bytes, name: Path | str, *, inflate: bool = True) -> None:
    """Checks that the content of an image file is complete, at the least cost.

    A PNG is checked by its checksums and by decompressing it, a JPEG by decoding it at an eighth of its size; others
    are decoded.

    Args:
        data: The file's bytes.
        name: What errors call it.
        inflate: Decompress a PNG. Without it a PNG that lacks a whole chunk passes, in a fraction of the time.

    Raises:
        ValueError: Not an image, truncated or damaged; the message names it.
    """
    try:
        kind = formats.identify(data[:16])
        if kind == 'JPEG':
            jpeg.check_complete(data)
            return
        with formats.open_data(data, name).image as image:
            if kind != 'PNG':
                formats.load(image)
            elif inflate:
                png.check_complete(data)
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
    """Writes a PNG file; it is either complete or absent.

    Args:
        path: Where to write; the folder is made.
        image: (H, W, 3), uint8, RGB.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, encode_png(image, level=3))


def unreadable(name: Path | str, error: Exception) -> ValueError:
    """What to raise, in one form, for what opening and decoding raise on a file (`DAMAGE`)."""
    if isinstance(error, formats.RefusedError):
        return ValueError(f'{name} {error}')
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return ValueError(f'{name} cannot be read completely: {reason.splitlines()[0]}')


def _is_called_image(name: str, extensions: Collection[str]) -> bool:
    return name[0] != '.' and os.path.splitext(name)[1].lower() in extensions


def _check_regular(path: Path) -> None:
    # Opening a FIFO waits for somebody to write.
    if not path.is_file() and path.exists():
        raise formats.RefusedError('is not a regular file')


def _check_depth(depth: int) -> None:
    # Pillow halves the depth of colours of 16 bits without a word.
    if depth > 8:
        raise formats.RefusedError(f'must have 8 bits a channel, has {depth}')
