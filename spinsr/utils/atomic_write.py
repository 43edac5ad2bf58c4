"""Files that are either complete or absent, whatever interrupts the writing."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from spinsr.utils.text import printable


def check_target(path: Path, overwrite: bool, endings: Sequence[str], what: str) -> None:
    """Refuses, before the work, a file that cannot be written after it.

    Args:
        path: The file.
        overwrite: Whether an existing file may be replaced.
        endings: What it may end in.
        what: The kind of file, for the message.

    Raises:
        ValueError: Another ending.
        OSError: The file exists, and `overwrite` is not set; or the folder is missing.
    """
    if path.suffix not in endings:
        raise ValueError(f'{what} must end in {", ".join(endings)}, got {printable(path)}')
    if path.is_dir():
        raise IsADirectoryError(f'{printable(path)} is a folder, not a file to write')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'the folder of {printable(path)} does not exist')
    if path.exists() and not overwrite:
        raise FileExistsError(f'{printable(path)} exists; --overwrite replaces it')


def write_bytes(path: Path, data: bytes | memoryview, *, sync: bool = False) -> None:
    """Writes a file; see `open_file`.

    Args:
        path: The file; an existing one is replaced.
        data: Its content.
        sync: Flush the file and its folder to the disk, so that it survives a power failure.

    Raises:
        OSError: As `open_file`.
    """
    with open_file(path, sync=sync) as file:
        file.write(data)


@contextlib.contextmanager
def open_file(path: Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Opens a file for writing under a hidden temporary name, in a folder that exists; renames it at the end.

    Args:
        path: The file; an existing one is replaced.
        sync: Flush the file and its folder to the disk, so that it survives a power failure.

    Raises:
        OSError: The file cannot be written; an existing one is left unchanged, and no temporary file remains. Its
            `errno` is that of the cause.
    """
    part = temporary_name(path)
    try:
        with open(part, 'w+b') as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        failure = OSError(f'{path} cannot be written: {error.strerror or error}')
        failure.errno = error.errno
        raise failure from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def temporary_name(path: Path) -> Path:
    """The name under which a file is written: short, so that it exists for every name that the file system takes.

    The same file always has the same one: what a killed process left is overwritten by the next.
    """
    return path.with_name(f'.{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.part')


def _sync_folder(folder: Path) -> None:
    if os.name == 'nt':  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
