"""The metadata of a teacher's outputs, and the names of their LMDBs and files."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

# In an LMDB of outputs, beside meta_info.txt.
META_FILE = 'teacher.json'
LR_NAME = 'LR_bicubic'


class Teacher(NamedTuple):
    """What outputs are made by: the content of teacher.json.

    Attributes:
        arch: The network's name.
        arch_args: Its further arguments.
        weights: The name of the weights file, without its folder.
        sha256: Of the weights file, in hexadecimal.
        scale: Upscaling factor.
        tile: Side of the tiles in LR pixels; None where whole images went through the network.
    """

    arch: str
    arch_args: dict[str, Any]
    weights: str
    sha256: str
    scale: int
    tile: int | None = None

    def agrees(self, other: 'Teacher') -> bool:
        """Whether both make the same outputs; a weights file may be renamed."""
        return self._replace(weights='') == other._replace(weights='')

    def __str__(self) -> str:
        tiles = '' if self.tile is None else f', tiles of {self.tile}'
        arguments = ''.join(f', {key}={value}' for key, value in self.arch_args.items())
        return f'{self.arch} x{self.scale} ({self.weights}, SHA-256 {self.sha256[:12]}…{arguments}{tiles})'


def describe(
    arch: str, weights: Path, scale: int, tile: int | None = None, arch_args: Mapping[str, Any] | None = None
) -> Teacher:
    """The teacher of a weights file.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    # As it comes back from JSON.
    arguments = json.loads(json.dumps(dict(arch_args or {})))
    return Teacher(arch, arguments, weights.name, digest, scale, tile)


def read_meta(lmdb_path: Path) -> Teacher | None:
    """The teacher of an LMDB, finished or not; None where it has no teacher.json.

    Raises:
        ValueError: teacher.json is damaged.
    """
    path = lmdb_path / META_FILE
    try:
        return Teacher(**json.loads(path.read_text(encoding='utf-8')))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f'{path} cannot be read: {error}; remove {lmdb_path} and run again') from error


def find_lr(dataset: Path, scale: int) -> Path:
    """The LMDB of LR training images in a folder.

    Raises:
        ValueError: None was found, or more than one.
    """
    if dataset.suffix == '.lmdb' and LR_NAME in dataset.name and dataset.is_dir():
        return dataset
    pattern = f'*train_{LR_NAME}_X{scale}'
    found = sorted(path for name in (pattern, f'{pattern}_sub') for path in dataset.glob(f'{name}.lmdb'))
    if not found:
        raise ValueError(
            f'no train_{LR_NAME}_X{scale}.lmdb found in {dataset}; make it with: spinsr prepare images or prepare div2k'
        )
    if len(found) > 1:
        raise ValueError(f'{dataset} has several LMDBs of LR: {", ".join(path.name for path in found)}; name one')
    return found[0]


def read_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Height and width of the images of an LMDB by key, from its meta_info.txt.

    Raises:
        ValueError: It is missing, or a line is not of the form `key.png (h,w,c) level`.
    """
    meta_info, sizes = path / 'meta_info.txt', {}
    try:
        lines = meta_info.read_text(encoding='utf-8').splitlines()
    except OSError as error:
        raise ValueError(f'{meta_info} cannot be read: {error.strerror or error}') from error
    for line in lines:
        try:
            name, shape, *_ = line.split()
            height, width, _ = (int(side) for side in shape.strip('()').split(','))
        except ValueError:
            raise ValueError(f'{meta_info}: a line must be of the form key.png (h,w,c) level, got {line!r}') from None
        # BasicSR's rule: the key is what stands before the first dot.
        sizes[name.split('.')[0]] = height, width
    if not sizes:
        raise ValueError(f'{meta_info} names no images')
    return sizes


def teacher_file(root: str, name: str) -> str:
    """The file of a teacher's output for an HR image, by the image's name in its folder."""
    return os.path.join(root, f'{os.path.splitext(name)[0]}.png')
