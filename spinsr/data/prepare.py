"""Preparation of training and evaluation data: the functions beneath `spinsr prepare`.

Every output is written under a temporary name and renamed when it is complete. A run that was stopped, in whatever way,
is continued by the same call; complete outputs are skipped and never overwritten.
"""

import itertools
import logging
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from spinsr.data import image_file
from spinsr.data.bicubic import downsample, mod_crop
from spinsr.data.lmdb_writer import COMPRESS_LEVEL, LmdbWriter, make_key
from spinsr.utils.text import printable

logger = logging.getLogger(__name__)

SCALES = (2, 3, 4, 8)
# Sub-images start and end at multiples of every scale, whichever are asked for: LMDBs of separate runs fit each other.
CUT_MULTIPLE = math.lcm(*SCALES)
# Official DIV2K: part, first image, last image.
DIV2K_PARTS = (('train', 1, 800), ('valid', 801, 900))


@dataclass(frozen=True)
class Cut:
    """How an image becomes sub-images: squares of `crop` HR pixels, `step` apart, the last one at the edge."""

    crop: int
    step: int


@dataclass(frozen=True)
class Source:
    """An image to be prepared.

    Args:
        key: Its name in the output.
        path: The HR file.
        size: Height and width of the HR image, after `shrink` and `multiple`.
        lr_paths: LR files that are to be used, by scale; the LR of other scales is made from HR.
        shrink: HR is the file's image made smaller by this factor.
        multiple: HR is cut at the bottom and to the right to multiples of this.
    """

    key: str
    path: Path
    size: tuple[int, int]
    lr_paths: Mapping[int, Path] = field(default_factory=dict)
    shrink: int = 1
    multiple: int = 1


def check_scales(scales: Iterable[int]) -> tuple[int, ...]:
    """Sorts scales and drops repeated ones.

    Raises:
        ValueError: A scale is not among SCALES, or none was given.
    """
    scales = tuple(sorted(set(scales)))
    if not scales or not set(scales) <= set(SCALES):
        raise ValueError(f'scales must be among {SCALES}, got {scales}')
    return scales


def prepare_div2k(
    source: Path, out: Path, scales: Sequence[int] = SCALES, workers: int = 1, subset: bool = False
) -> list[Path]:
    """Makes LMDBs of DIV2K: sub-images of the training part, whole images of the validation part, HR and LR.

    Args:
        source: The official folder, with DIV2K_train_HR/0001.png … 0800.png and DIV2K_valid_HR/0801.png … 0900.png. LR
            is taken from DIV2K_train_LR_bicubic/X2/0001x2.png … (x8: DIV2K_train_LR_x8/0001x8.png …) where these
            folders exist, else made from HR.
        out: Where DIV2K_train_HR_sub.lmdb, DIV2K_train_LR_bicubic_X2_sub.lmdb, …, DIV2K_valid_HR.lmdb,
            DIV2K_valid_LR_bicubic_X2.lmdb, … go.
        scales: Among SCALES.
        workers: Processes; 1 works in this one.
        subset: Take all images of the folders, whatever their names and however many.

    Returns:
        The LMDBs.

    Raises:
        ValueError: An image is missing, damaged, or of a wrong size; or an output exists and holds other images.
        OSError: The output cannot be written.
    """
    scales = check_scales(scales)
    parts = {
        part: _div2k_sources(source, part, first, last, scales, subset)
        for part, first, last in DIV2K_PARTS
        if not subset or (source / f'DIV2K_{part}_HR').is_dir()
    }
    if not parts:
        raise ValueError(f'{source} must hold DIV2K_train_HR or DIV2K_valid_HR, got neither')
    outputs = []
    for part, sources in parts.items():
        ending, cut = ('_sub', Cut(480, 240)) if part == 'train' else ('', None)
        paths = {1: out / f'DIV2K_{part}_HR{ending}.lmdb'}
        paths |= {scale: out / f'DIV2K_{part}_LR_bicubic_X{scale}{ending}.lmdb' for scale in scales}
        outputs += write_lmdbs(sources, paths, cut, workers, title=f'DIV2K {part}')
    return outputs


def prepare_benchmark(
    folders: Sequence[Path], out: Path, scales: Sequence[int] = SCALES, workers: int = 1, overwrite: bool = False
) -> list[Path]:
    """Makes a benchmark folder of each folder of HR images: see `write_benchmark`.

    Args:
        folders: Each gives `out`/NAME, where NAME is the folder's name, or its parent's if it is called HR.
        out: Where the benchmark folders go.
        scales: Among SCALES.
        workers: Processes; 1 works in this one.
        overwrite: Overwrite existing files.

    Returns:
        The benchmark folders.

    Raises:
        ValueError: A folder holds no images, or two of one name; an image is damaged or too small; or a file exists
            that is of another size.
        OSError: The output cannot be written.
    """
    scales = check_scales(scales)
    targets: dict[Path, list[Source]] = {}
    for folder in [folder / 'HR' if _holds_only_hr(folder) else folder for folder in folders]:
        # Resolved, so that '.' and 'HR' have the names they have elsewhere.
        absolute = folder.resolve()
        target = out / (absolute.parent.name if absolute.name == 'HR' else absolute.name)
        if target in targets:
            raise ValueError(f'folders must have different names, got {target.name} twice ({folder})')
        paths = image_file.list_images(folder)
        if absolute == (target / 'HR').resolve() and any(path.suffix != '.png' for path in paths):
            raise ValueError(f'{folder} is where the output goes, so it must hold .png files only; choose another -o')
        targets[target] = [Source(path.stem, path, image_file.inspect(path)) for path in paths]
    for target, sources in targets.items():
        write_benchmark(sources, target, scales, workers, overwrite)
    return list(targets)


def write_benchmark(
    sources: Sequence[Source], folder: Path, scales: Sequence[int], workers: int = 1, overwrite: bool = False
) -> None:
    """Writes HR/NAME.png, and for each scale s HR_mod/Xs/NAME.png and LR_bicubic/Xs/NAMExs.png.

    HR is the whole image, as in the published sets, where one HR serves all scales; HR_mod is cut to multiples of the
    scale, which is what LR is made from and what an output of the network is compared with.

    Raises:
        ValueError: Two sources of one name; an image is too small; or a file exists that is of another size.
        OSError: The output cannot be written.
    """
    jobs = []
    _check_names(sources)
    for source in sources:
        if min(source.size) < max(scales):
            raise ValueError(f'{source.path}: sides must be at least the scale {max(scales)}, got {_hw(source.size)}')
        files = _missing_files(source, folder, scales, overwrite)
        if files:
            jobs.append((source, files))
    _say_what_is_left(folder, len(jobs), len(sources))
    for _ in _work(_write_files, jobs, workers, title=folder.name, done=len(sources) - len(jobs)):
        pass


def write_lmdbs(
    sources: Sequence[Source], paths: Mapping[int, Path], cut: Cut | None, workers: int, title: str
) -> list[Path]:
    """Writes LMDBs of HR and LR with the same keys.

    Args:
        sources: The images, in the order of their keys.
        paths: LMDBs by scale; 1 means HR.
        cut: Sub-images with keys NAME_s001, NAME_s002, … row by row, or None for whole images with keys NAME.
        workers: Processes; 1 works in this one.
        title: What the progress bar says.

    Returns:
        The LMDBs.

    Raises:
        ValueError: An image is damaged or of a wrong size; or an LMDB exists and holds other images.
        OSError: The LMDBs cannot be written.
    """
    _check_keys(sources, cut)
    writers: dict[int, LmdbWriter] = {}
    try:
        for scale, path in paths.items():
            shapes = {key: size for source in sources for key, size in _shapes(source, cut, scale).items()}
            writers[scale] = LmdbWriter(path, shapes)
        jobs = []
        for source in sources:
            todo = tuple(scale for scale, w in writers.items() if not w.holds(source.key, _origin(source, cut, scale)))
            if todo:
                jobs.append((source, cut, todo))
        _say_what_is_left(title, len(jobs), len(sources))
        results = _work(_encode, jobs, workers, title, done=len(sources) - len(jobs))
        for (source, _, _), images in zip(jobs, results, strict=True):
            for scale, encoded in images.items():
                writers[scale].put(source.key, _origin(source, cut, scale), encoded)
        for writer in writers.values():
            writer.finish()
    finally:
        for writer in writers.values():
            writer.close()
    return list(paths.values())


def cut_starts(side: int, cut: Cut) -> list[int]:
    """Where the sub-images begin along a side, as in BasicSR's extract_subimages: step by step, and one at the edge.

    The side is first cut to a multiple of CUT_MULTIPLE (24), so that all starts are multiples of it.

    Raises:
        ValueError: The side is shorter than a sub-image.
    """
    side -= side % CUT_MULTIPLE
    if side < cut.crop:
        raise ValueError(f'sides must be at least the size of a sub-image, got {side=}, crop={cut.crop}')
    starts = list(range(0, side - cut.crop + 1, cut.step))
    if starts[-1] != side - cut.crop:
        starts.append(side - cut.crop)
    return starts


def _div2k_sources(root: Path, part: str, first: int, last: int, scales: Sequence[int], subset: bool) -> list[Source]:
    folder = root / f'DIV2K_{part}_HR'
    paths = image_file.list_images(folder)
    if not subset:
        expected = [f'{number:04d}.png' for number in range(first, last + 1)]
        found = {path.name for path in paths}
        hint = f'{folder.name} holds {expected[0]} to {expected[-1]} (--subset takes any images)'
        for name in expected:
            if name not in found:
                raise ValueError(f'{folder / name} is missing; {hint}')
        for name in sorted(found - set(expected)):
            raise ValueError(f'{folder / name} does not belong there; {hint}')
    lr_folders = {}
    for scale in scales:
        name = f'DIV2K_{part}_LR_x8' if scale == 8 else f'DIV2K_{part}_LR_bicubic/X{scale}'
        if (root / name).is_dir():
            lr_folders[scale] = root / name
        logger.info('%s x%d: LR %s', folder.name, scale, f'from {name}' if scale in lr_folders else 'made from HR')
    sources = []
    for path in tqdm(paths, desc=f'Checking {folder.name}', unit='image', disable=None, leave=False):
        lr_paths = {scale: lr / f'{path.stem}x{scale}.png' for scale, lr in lr_folders.items()}
        source = Source(make_key(path.stem), path, image_file.inspect(path), lr_paths)
        smallest = Cut(480, 240).crop if part == 'train' else max(scales)
        if min(source.size) < smallest:
            raise ValueError(f'{path}: sides must be at least {smallest}, got {_hw(source.size)}')
        for scale, lr_path in lr_paths.items():
            _check_lr_size(source, scale, image_file.inspect(lr_path))
        sources.append(source)
    return sources


def _check_lr_size(source: Source, scale: int, size: tuple[int, int]) -> None:
    # MATLAB rounds the size up where HR was not mod-cropped.
    for hr_side, lr_side in zip(source.size, size, strict=True):
        if lr_side not in (hr_side // scale, -(-hr_side // scale)):
            raise ValueError(
                f'{source.lr_paths[scale]} must be the HR image ({_hw(source.size)}) made {scale} times smaller, '
                f'got {_hw(size)}'
            )


def _holds_only_hr(folder: Path) -> bool:
    """Whether it is a benchmark folder itself: the HR images lie in HR."""
    images = (
        (path for path in folder.iterdir() if path.suffix.lower() in image_file.EXTENSIONS) if folder.is_dir() else ()
    )
    return (folder / 'HR').is_dir() and not any(images)


def _say_what_is_left(title: object, left: int, total: int) -> None:
    before = f', {total - left} exist already' if left < total else ''
    logger.info('%s: %d of %d images to make%s', printable(title), left, total, before)


def _check_names(sources: Sequence[Source]) -> None:
    names: dict[str, Path] = {}
    for source in sources:
        if source.key in names:
            raise ValueError(
                f'{names[source.key]} and {source.path} would both become {source.key}.png; rename one of them'
            )
        names[source.key] = source.path


def _check_keys(sources: Sequence[Source], cut: Cut | None) -> None:
    # Of sub-images too: 'a' gives a_s001, which may be the name of another file.
    keys: dict[str, Path] = {}
    for source in sources:
        for key in _boxes(source, cut, 1):
            other = keys.setdefault(key, source.path)
            if other != source.path:
                raise ValueError(f'{other} and {source.path} would both have the key {key}; rename one of them')


def _hw(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]} (HxW)'


def _boxes(source: Source, cut: Cut | None, scale: int) -> dict[str, tuple[slice, slice]]:
    """Which part of the image of a scale each key stands for."""
    height, width = source.size
    if cut is None:
        return {source.key: (slice(0, height // scale), slice(0, width // scale))}
    try:
        corners = itertools.product(cut_starts(height, cut), cut_starts(width, cut))
    except ValueError as error:
        raise ValueError(f'{source.path}: {error}') from None
    return {
        f'{source.key}_s{number:03d}': (
            slice(top // scale, (top + cut.crop) // scale),
            slice(left // scale, (left + cut.crop) // scale),
        )
        for number, (top, left) in enumerate(corners, start=1)
    }


def _shapes(source: Source, cut: Cut | None, scale: int) -> dict[str, tuple[int, int]]:
    boxes = _boxes(source, cut, scale)
    return {key: (rows.stop - rows.start, columns.stop - columns.start) for key, (rows, columns) in boxes.items()}


def _origin(source: Source, cut: Cut | None, scale: int) -> str:
    """What the images of a source are made from, and how: another file, or a changed one, has another origin."""
    path = source.lr_paths.get(scale, source.path)
    status = path.stat()
    return f'{path.resolve()} {status.st_size} {status.st_mtime_ns} {source.size} {source.shrink} {scale} {cut}'


def _read_hr(source: Source) -> np.ndarray:
    image = image_file.read(source.path)
    if source.shrink > 1:
        image = downsample(mod_crop(image, source.shrink), source.shrink)
    if source.multiple > 1:
        image = mod_crop(image, source.multiple)
    # The file may have changed since it was inspected.
    if image.shape[:2] != tuple(source.size):
        raise ValueError(f'{source.path} must be {_hw(source.size)}, got {_hw(image.shape[:2])}')
    return image


def _read_lr(source: Source, scale: int) -> np.ndarray:
    image = image_file.read(source.lr_paths[scale])
    _check_lr_size(source, scale, image.shape[:2])
    return image


def _encode(source: Source, cut: Cut | None, scales: Sequence[int]) -> dict[int, list[tuple[str, bytes]]]:
    """Keys and PNG files of an image by scale; 1 means HR."""
    hr = _read_hr(source) if set(scales) - set(source.lr_paths) else None
    result = {}
    for scale in scales:
        if scale in source.lr_paths:
            image = _read_lr(source, scale)
        else:
            assert hr is not None
            image = hr if scale == 1 else downsample(mod_crop(hr, scale), scale)
        result[scale] = [
            (key, image_file.encode_png(image[box], COMPRESS_LEVEL)) for key, box in _boxes(source, cut, scale).items()
        ]
    return result


def _missing_files(source: Source, folder: Path, scales: Sequence[int], overwrite: bool) -> list[tuple[str, int, Path]]:
    """Kind (HR, HR_mod, LR_bicubic), scale and path of the files of an image that are to be written."""
    files = [('HR', 1, folder / 'HR' / f'{source.key}.png')]
    for scale in scales:
        files.append(('HR_mod', scale, folder / 'HR_mod' / f'X{scale}' / f'{source.key}.png'))
        files.append(('LR_bicubic', scale, folder / 'LR_bicubic' / f'X{scale}' / f'{source.key}x{scale}.png'))
    missing = []
    for kind, scale, path in files:
        if not path.exists():
            missing.append((kind, scale, path))
        elif path.samefile(source.path):
            continue
        elif overwrite:
            missing.append((kind, scale, path))
        else:
            height, width = (side // scale * (1 if kind == 'LR_bicubic' else scale) for side in source.size)
            size = height, width
            if image_file.inspect(path) != size:
                raise ValueError(f'{path} exists and must be {_hw(size)}, got another size (--overwrite replaces it)')
    return missing


def _write_files(source: Source, files: Sequence[tuple[str, int, Path]]) -> None:
    hr = _read_hr(source)
    for kind, scale, path in files:
        image = mod_crop(hr, scale)
        image_file.write_png(path, downsample(image, scale) if kind == 'LR_bicubic' else image)


def _work(function: Callable, jobs: Sequence[tuple], workers: int, title: str, done: int) -> Iterable:
    """Results of function(*job), in the order of the jobs, from several processes, with a progress bar."""
    if workers < 1:
        raise ValueError(f'workers must be at least 1, got {workers}')
    results = _in_processes(function, jobs, workers) if workers > 1 and len(jobs) > 1 else _here(function, jobs)
    return tqdm(results, desc=title, unit='image', initial=done, total=done + len(jobs), disable=None)


def _here(function: Callable, jobs: Sequence[tuple]) -> Iterator:
    for job in jobs:
        yield function(*job)


def _in_processes(function: Callable, jobs: Sequence[tuple], workers: int) -> Iterator:
    # Spawned, because a fork copies the locks of threads (the progress bar's, torch's) in whatever state they are.
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker) as executor:
        waiting = iter(jobs)
        # No more than this many results wait in memory.
        futures = deque(executor.submit(function, *job) for job in itertools.islice(waiting, 2 * workers))
        try:
            while futures:
                result = futures.popleft().result()
                futures.extend(executor.submit(function, *job) for job in itertools.islice(waiting, 1))
                yield result
        finally:
            for future in futures:
                future.cancel()


def _start_worker() -> None:
    # Ctrl-C reaches all processes of a terminal: the first one stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
