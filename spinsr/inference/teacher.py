"""A teacher's outputs, computed once and stored beside HR and LR: the targets of distillation.

The whole LR image goes through the network, not the patches of a training: at the border of a patch a teacher does not
see what is around it, and its outputs there are others.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from spinsr.data import image_file
from spinsr.data.lmdb_writer import LmdbWriter, part_of
from spinsr.inference import upscale as upscaling
from spinsr.utils.atomic_write import write_bytes

logger = logging.getLogger(__name__)

# In an LMDB of outputs, beside meta_info.txt.
META_FILE = 'teacher.json'
_LR, _TEACHER, _HR = 'LR_bicubic', 'teacher', 'HR'


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
    # As JSON gives it back.
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


def prepare_teacher(dataset: Path, net: nn.Module, teacher: Teacher, out: Path | None = None) -> Path:
    """Writes the outputs of a network for every LR image of a training set, as 16-bit PNG files in an LMDB.

    The keys are those of LR. Each image is written in its own transaction; the same call continues an interrupted run.

    Args:
        dataset: A folder with train_LR_bicubic_X<scale>.lmdb, as `prepare_images` makes it, or
            DIV2K_train_LR_bicubic_X<scale>_sub.lmdb, as `prepare_div2k` does; or one of these LMDBs.
        net: A network from `spinsr.load`.
        teacher: Its description, with the scale and tile to use.
        out: The LMDB; train_teacher_X<scale>.lmdb beside LR by default.

    Returns:
        The LMDB.

    Raises:
        ValueError: There is no LR, or HR does not fit it; an image is missing or damaged; the output is of another
            teacher or of other images; or the network gives NaN, infinity or another scale.
        MemoryError: An image does not fit into memory, whole, or in tiles where `teacher.tile` asks for them.
        OSError: The output cannot be written.
    """
    lr = find_lr(dataset, teacher.scale)
    out = out or lr.with_name(lr.name.replace(_LR, _TEACHER))
    if out.suffix != '.lmdb':
        raise ValueError(f'the name of an LMDB must end with .lmdb, got {out}')
    _check_teacher(out, teacher)
    sizes = read_sizes(lr)
    shapes = {key: (teacher.scale * height, teacher.scale * width) for key, (height, width) in sizes.items()}
    _check_hr(lr, shapes)
    writer = LmdbWriter(out, shapes, level=0)
    try:
        if not writer.finished:
            write_bytes(part_of(out) / META_FILE, json.dumps(teacher._asdict(), indent=2).encode() + b'\n')
            _fill(writer, lr, net, teacher)
        else:
            logger.info('%s is complete', out)
    finally:
        writer.close()
    return out


def find_lr(dataset: Path, scale: int) -> Path:
    """The LMDB of LR training images in a folder.

    Raises:
        ValueError: There is none, or more than one.
    """
    if dataset.suffix == '.lmdb' and _LR in dataset.name and dataset.is_dir():
        return dataset
    pattern = f'*train_{_LR}_X{scale}'
    found = sorted(path for name in (pattern, f'{pattern}_sub') for path in dataset.glob(f'{name}.lmdb'))
    if not found:
        raise ValueError(
            f'no train_{_LR}_X{scale}.lmdb found in {dataset}; make it with: spinsr prepare images, or prepare div2k'
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


def _check_teacher(out: Path, teacher: Teacher) -> None:
    for path in (out, part_of(out)):
        found = read_meta(path)
        if path == out and path.exists() and found is None:
            raise ValueError(f'{path} exists and has no {META_FILE}; remove it, or choose another name with -o')
        if found is not None and not found.agrees(teacher):
            raise ValueError(f'{path} is of {found}, not of {teacher}; remove it, or choose another name with -o')


def _check_hr(lr: Path, shapes: Mapping[str, tuple[int, int]]) -> None:
    hr = next((p for p in lr.parent.glob('*.lmdb') if p.name == _hr_name(lr.name)), None)
    if hr is None:
        return
    sizes = read_sizes(hr)
    if sizes.keys() != shapes.keys():
        key = min(sizes.keys() ^ shapes.keys())
        raise ValueError(f'{hr} and {lr} must have the same keys, got {key} in one of them only')
    for key, (height, width) in shapes.items():
        if sizes[key] != (height, width):
            raise ValueError(
                f'{key} of {hr} must be {height}x{width} (HxW), as {lr} and the scale say, '
                f'got {sizes[key][0]}x{sizes[key][1]}'
            )


def _hr_name(lr_name: str) -> str:
    stem, _, rest = lr_name.partition(f'{_LR}_X')
    return f'{stem}{_HR}{rest.lstrip("0123456789")}'


def _fill(writer: LmdbWriter, lr: Path, net: nn.Module, teacher: Teacher) -> None:
    with lmdb.open(str(lr), readonly=True, lock=False, readahead=False) as env, env.begin(buffers=True) as images:
        origins, todo = {}, []
        for key in writer.shapes:
            data = images.get(key.encode('ascii'))
            if data is None:
                raise ValueError(f'{key} of {lr} is missing, but meta_info.txt names it')
            origins[key] = f'{hashlib.sha256(data).hexdigest()} {teacher.sha256} {teacher.tile}'
            if not writer.holds(key, origins[key]):
                todo.append(key)
        done = len(origins) - len(todo)
        before = f', {done} were made before' if done else ''
        logger.info('%s: %d of %d images are to be made%s', writer.path.name, len(todo), len(origins), before)
        for key in tqdm(todo, desc=writer.path.name, unit='image', initial=done, total=len(origins), disable=None):
            image = image_file.decode(bytes(images.get(key.encode('ascii'))), f'{key} of {lr}')
            output = _output(image, net, teacher, f'{key} of {lr}')
            if output.shape[:2] != tuple(writer.shapes[key]):
                height, width = writer.shapes[key]
                raise ValueError(
                    f'the output of {key} must be {height}x{width} (HxW) at scale {teacher.scale}, '
                    f'got {output.shape[0]}x{output.shape[1]}'
                )
            writer.put(key, origins[key], [(key, image_file.encode_png16(output))])
        writer.finish()


def _output(image: np.ndarray, net: nn.Module, teacher: Teacher, name: str) -> np.ndarray:
    """The output of an LR image (h, w, 3), uint8: (h * scale, w * scale, 3), uint16."""
    x = torch.from_numpy(image.astype(np.float32) / np.float32(255)).permute(2, 0, 1).unsqueeze(0)
    try:
        y = upscaling.super_resolve(x, net, tile=teacher.tile, smaller_tiles=False)
    except MemoryError as error:
        advice = 'smaller tiles, or a device with more memory' if teacher.tile else 'tiles (--tile), which change it'
        raise MemoryError(f'{name}: {error}; use {advice}') from error
    if not y.isfinite().all():
        raise ValueError(f'{name}: the network must give numbers, got NaN or infinity')
    return (y[0].clamp(0, 1) * 65535).round().permute(1, 2, 0).numpy().astype(np.uint16)
