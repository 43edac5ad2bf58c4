"""A teacher's outputs, computed once and stored beside HR and LR: the targets of distillation.

The whole LR image goes through the network, not the patches of a training: at the border of a patch a teacher does not
see what is around it, and its outputs there are others.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import lmdb
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from spinsr.data import image_file
from spinsr.data.lmdb_writer import LmdbWriter, part_of
from spinsr.data.teacher_outputs import LR_NAME, META_FILE, Teacher, find_lr, read_meta, read_sizes
from spinsr.inference import upscale as upscaling
from spinsr.utils.atomic_write import write_bytes

logger = logging.getLogger(__name__)

_TEACHER, _HR = 'teacher', 'HR'


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
    out = out or lr.with_name(lr.name.replace(LR_NAME, _TEACHER))
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
    stem, _, rest = lr_name.partition(f'{LR_NAME}_X')
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
            data = images.get(key.encode('ascii'))
            assert data is not None
            image = image_file.decode(bytes(data), f'{key} of {lr}')
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
