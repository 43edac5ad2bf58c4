"""Files and folders of photographs through a network."""

import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import nn
from tqdm import tqdm

from spinsr.data import image_file, photograph
from spinsr.inference import upscale as upscaling

logger = logging.getLogger('spinsr')


class Report(NamedTuple):
    """What became of the images.

    Attributes:
        done: Outputs that were written.
        skipped: Outputs that were there before.
        failed: Input -> why there is no output.
    """

    done: list[Path]
    skipped: list[Path]
    failed: dict[Path, str]


def name_outputs(inputs: Iterable[Path], out: Path, scale: int) -> dict[Path, Path]:
    """Finds the images, and the name `<stem>_x<scale>.<same ending>` of each output; reads and writes nothing.

    Args:
        inputs: Image files, and folders, of which the images are taken (not those of folders in them, no hidden files).
        out: Folder of the outputs; need not exist.
        scale: Upscaling factor.

    Returns:
        Input -> output, in the order of the inputs and by name in a folder; an image that is named twice is there once.

    Raises:
        ValueError: There is no such file; it does not end as an image does; a folder holds none; two images would give
            one output; or an output would be among the inputs.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f'the output must be a folder, {out} is none')
    sources = {}
    for path in inputs:
        if path.is_dir():
            if out.exists() and out.samefile(path):
                raise ValueError(f'the output folder must be none of the inputs, got {out}')
            found = image_file.list_images(path, photograph.FORMATS)
            others = [file for file in path.iterdir() if file.is_file() and file not in found and file.name[0] != '.']
            if others:
                logger.warning('%s: left out, for they are no images of a known kind: %s', path, _names(others))
        elif not path.exists():
            raise ValueError(f'{path} is missing')
        elif path.suffix.lower() not in photograph.FORMATS:
            raise ValueError(f'{path} must end in one of {", ".join(photograph.FORMATS)}')
        else:
            found = [path]
        for source in found:
            sources.setdefault(source.resolve(), source)
    outputs, names = {}, {}
    for source in sources.values():
        target = out / f'{source.stem}_x{scale}{source.suffix}'
        # Not every file system tells capitals from small letters.
        other = names.setdefault(target.name.casefold(), source)
        if other is not source:
            raise ValueError(f'{other} and {source} would both become {target}')
        if target.resolve() in sources:
            raise ValueError(f'{target}, the output of {source}, is an input too')
        outputs[source] = target
    return outputs


def _names(files: list[Path]) -> str:
    names = sorted(file.name for file in files)
    return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def upscale_files(
    outputs: Mapping[Path, Path],
    net: nn.Module,
    *,
    tile: int | None = None,
    self_ensemble: bool = False,
    precision: str = 'fp32',
    overwrite: bool = False,
) -> Report:
    """Super-resolves image files, with a progress bar on stderr where that is a terminal.

    A file that cannot be read or upscaled is logged and left out, the others are done. Each output is there whole or
    not at all, also if the work is interrupted; what is there is not made again, so the same call continues.

    Args:
        outputs: Input -> output, as by `name_outputs`. The folders of the outputs are made.
        net: As for `spinsr.inference.upscale.upscale`, and so are `tile`, `self_ensemble` and `precision`.
        overwrite: Make outputs anew that are there.

    Returns:
        What was done, skipped, and failed.

    Raises:
        ValueError: The network takes no RGB images, or an argument is none of those allowed.
        OSError: An output cannot be written.

    Example:
        outputs = name_outputs([Path('photos')], Path('large'), scale=4)
        report = upscale_files(outputs, spinsr.load('SPIN', scale=4, weights='net_g_latest.pth'))
    """
    upscaling.check_options(tile, precision)
    scale = upscaling.scale_of(net)
    for folder in {target.parent for target in outputs.values()}:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder that cannot be written to is told now, and not after the first image's minutes.
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error
    report = Report([], [], {})
    for source, target in tqdm(outputs.items(), 'Upscaling', unit='image', disable=None):
        if os.path.lexists(target) and not overwrite:
            report.skipped.append(target)
            continue
        try:
            pixels, profile = photograph.read(source)
            photograph.check_room(target, scale * pixels.shape[0], scale * pixels.shape[1], pixels)
            pixels = upscaling.upscale(
                pixels, net, tile=tile, self_ensemble=self_ensemble, precision=precision, progress=True
            )
        except (ValueError, RuntimeError, MemoryError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            report.failed[source] = reason if str(source) in reason else f'{source}: {reason}'
            logger.error('%s', report.failed[source])
        else:
            photograph.write(target, photograph.Photograph(pixels, profile))
            report.done.append(target)
    return report
