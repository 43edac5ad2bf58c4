"""Files that are there whole or not at all."""

import contextlib
import os
from pathlib import Path


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes a file under a hidden temporary name, in a folder that exists, and renames it.

    Raises:
        OSError: The file cannot be written; then it is as it was, and nothing else is left.
    """
    part = path.with_name(f'.{path.name}.part')
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise OSError(f'{path} cannot be written: {error.strerror or error}') from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
