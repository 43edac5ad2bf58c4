"""Files and folders of photographs through a network; importing this module does not import torch."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from spinsr.data import image_file, photograph
from spinsr.data.formats import MAX_PIXELS
from spinsr.utils.text import printable

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger('spinsr')

# After these, no other file can be written either.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class Report(NamedTuple):
    """Result for each image.

    Attributes:
        done: Outputs that were written.
        skipped: Outputs that existed before.
        failed: Input -> why there is no output.
    """

    done: list[Path]
    skipped: list[Path]
    failed: dict[Path, str]


def find_images(inputs: Iterable[Path], out: Path) -> dict[Path, Path]:
    """Finds the images of files and folders; reads and writes nothing.

    Args:
        inputs: Image files, and folders of images (not searched recursively, hidden files are left out).
        out: Folder of the outputs; need not exist.

    Returns:
        Resolved path -> path, in the order of the inputs and by name in a folder.

    Raises:
        ValueError: A file does not exist, is not a regular file, or does not end as an image does; a folder holds no
            image; or `out` is a file, or among the inputs.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f'output path is not a directory: {out}')
    sources: dict[Path, Path] = {}
    for path in inputs:
        if path.is_dir():
            if out.exists() and out.samefile(path):
                raise ValueError(f'the output folder must not be an input, got {out}')
            found, place = image_file.list_images(path, photograph.FORMATS), path.resolve()
            names = {file.name for file in found}
            with os.scandir(path) as entries:
                others = [path / entry.name for entry in entries if entry.name not in names and _is_odd(entry)]
            if others:
                logger.warning('%s: skipped, unsupported file type: %s', printable(path), image_file.name_some(others))
        elif not path.exists():
            raise ValueError(f'{path} is missing')
        elif path.suffix.lower() not in photograph.FORMATS:
            raise ValueError(f'{path} must end in one of {", ".join(photograph.FORMATS)}')
        elif not path.is_file():
            raise ValueError(f'{path} is not a regular file')
        else:
            found, place = [path], path.parent.resolve()
        for source in found:
            sources.setdefault(_resolved(place, source), source)
    return sources


def name_outputs(inputs: Iterable[Path] | Mapping[Path, Path], out: Path, scale: int) -> dict[Path, Path]:
    """Finds the images, and the name `<stem>_x<scale>.<same ending>` of each output; reads and writes nothing.

    Args:
        inputs: Image files and folders of images, as for `find_images`, or what it has found.
        out: Folder of the outputs; need not exist.
        scale: Upscaling factor.

    Returns:
        Input -> output, in the order of the inputs and by name in a folder; an image that is named twice appears once.

    Raises:
        ValueError: As `find_images`; two images would have one output; or an output would be among the inputs.
    """
    sources = inputs if isinstance(inputs, Mapping) else find_images(inputs, out)
    outputs, names, place = {}, {}, out.resolve()
    for source in sources.values():
        target = out / f'{source.stem}_x{scale}{source.suffix}'
        # Not every file system distinguishes capitals from small letters.
        other = names.setdefault(target.name.casefold(), source)
        if other is not source:
            raise ValueError(f'{other} and {source} would both become {target}')
        if _resolved(place, target) in sources:
            raise ValueError(f'{target}, the output of {source}, is an input too')
        outputs[source] = target
    return outputs


def upscale_files(
    outputs: Mapping[Path, Path],
    net: nn.Module,
    *,
    tile: int | None = None,
    self_ensemble: bool = False,
    precision: str = 'fp32',
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    written: Callable[[Path, int, int], None] | None = None,
) -> Report:
    """Super-resolves image files, with a progress bar on stderr if that is a terminal.

    A file that cannot be read, upscaled or written is logged and skipped; the others are processed. Only a full or
    broken disk ends the work. Each output is either complete or absent, also if the work is interrupted; existing ones
    are not made again, so the same call continues.

    Args:
        outputs: Input -> output, as by `name_outputs`. The folders of the outputs are made.
        net: As for `spinsr.inference.upscale.upscale`, and so are `tile`, `self_ensemble` and `precision`.
        overwrite: Overwrite existing outputs.
        max_pixels: Largest height times width of an input.
        written: Called after each output with its path, height and width.

    Returns:
        What was done, skipped, and failed.

    Raises:
        ValueError: The network takes neither RGB nor grey images, or an argument is not among those allowed.
        OSError: An output folder cannot be written to.

    Example:
        outputs = name_outputs([Path('photos')], Path('large'), scale=4)
        report = upscale_files(outputs, spinsr.load('SPIN', scale=4, weights='net_g_latest.pth'))
    """
    from spinsr.inference import upscale as upscaling

    upscaling.check_options(tile, precision)
    scale = upscaling.scale_of(net)
    for folder in {target.parent for target in outputs.values()}:
        folder.mkdir(parents=True, exist_ok=True)
        # Before the first image's minutes.
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error
    report, is_full = Report([], [], {}), ''
    for source, target in tqdm(outputs.items(), 'Upscaling', unit='image', disable=None):
        size = None
        if is_full:
            report.failed[source] = printable(f'{source}: not started, {is_full}')
            continue
        try:
            if _exists(target):
                if not overwrite:
                    report.skipped.append(target)
                    continue
                if target.is_dir():
                    raise ValueError(f'{target} is a directory')
            photo = photograph.read(source, max_pixels)
            size = photo.pixels.shape[:2]
            height, width = (scale * side for side in size)
            photograph.check_room(target, height, width, photo.pixels)
            more = photograph.memory_to_write(target, height, width)
            upscaling.check_result(*size, scale**2 * photo.pixels.nbytes, more)
            pixels = upscaling.upscale(
                photo.pixels, net, tile=tile, self_ensemble=self_ensemble, precision=precision, progress=True
            )
            photograph.write(target, photo._replace(pixels=pixels))
        except Exception as error:  # networks of others fail in their own ways
            report.failed[source] = _reason(source, error, size, net)
            logger.error('%s', report.failed[source])
            if isinstance(error, OSError) and error.errno in _FULL:
                is_full = os.strerror(error.errno)
                logger.error('the remaining images are not started')
        else:
            report.done.append(target)
            if written:
                written(target, height, width)
    return report


def _is_odd(entry: os.DirEntry) -> bool:
    """Whether a file of a folder is neither an image nor hidden; what only has the name of one is reported already."""
    is_called_image = os.path.splitext(entry.name)[1].lower() in photograph.FORMATS
    return entry.name[0] != '.' and not is_called_image and entry.is_file()


def _resolved(place: Path, path: Path) -> Path:
    """`path.resolve()` for a path in a folder that is resolved already: for ten thousands of files that counts."""
    return path.resolve() if path.is_symlink() else place / path.name


def _exists(path: Path) -> bool:
    # os.path.lexists says no to a name that is too long, too.
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ValueError(f'{path} cannot be written: {error.strerror}') from error
    return True


def _reason(source: Path, error: Exception, size: tuple[int, int] | None, net: nn.Module) -> str:
    if str(source) in str(error):  # a name may hold line ends
        return printable(error)
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if size is None or isinstance(error, (ValueError, MemoryError, OSError)):
        return printable(f'{source}: {reason}')
    kind = type(error).__name__
    reason = kind if reason == kind else f'{kind}: {reason}'
    return printable(f'{source}: {type(net).__name__} failed on a {size[0]}x{size[1]} (HxW) image: {reason}')
