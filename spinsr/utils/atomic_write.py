"""Files that are either complete or absent, whatever interrupts the writing."""

import contextlib
import os
from pathlib import Path


def write_bytes(path: Path, data: bytes | memoryview, *, sync: bool = False) -> None:
    """Writes a file under a hidden temporary name, in a folder that exists, and renames it.

    Args:
        path: The file; an existing one is replaced.
        data: Its content.
        sync: Flush the file and its folder to the disk, so that it survives a power failure.

    Raises:
        OSError: The file cannot be written; an existing one is left unchanged, and no temporary file remains.
    """
    part = path.with_name(f'.{path.name}.part')
    try:
        with open(part, 'wb') as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        raise OSError(f'{path} cannot be written: {error.strerror or error}') from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _sync_folder(folder: Path) -> None:
    if os.name == 'nt':  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
