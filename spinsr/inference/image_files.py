"""Files and folders of photographs through a network; importing this module does not import torch."""

from __future__ import annotations

import errno
import logging
import math
import os
import string
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from spinsr.data import frames, image_file, photograph, resample
from spinsr.data.formats import MAX_PIXELS
from spinsr.data.metadata import Metadata
from spinsr.data.photograph import Photograph
from spinsr.inference.output_size import OutputSize
from spinsr.utils.text import printable

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger('spinsr')

# After these, no other file can be written either.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_TICK = 1  # seconds
# What a template for names may contain.
NAME_FIELDS = ('stem', 'size', 'scale', 'ext')
NAME_TEMPLATE = '{stem}_{size}{ext}'
# Below it a JPEG is said to be of low quality: SPIN for clean images has lost more than 60 % of its gain over
# bicubic there, see docs/photographs.md.
LOW_JPEG_QUALITY = 85


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


class Found(NamedTuple):
    """An image among the inputs.

    Attributes:
        path: The file.
        folder: Its folder below the one that was searched; '.' for what was named or lies directly in it.
    """

    path: Path
    folder: Path = Path()


def find_images(inputs: Iterable[Path], out: Path, *, recursive: bool = False) -> dict[Path, Found]:
    """Finds the images of files and folders; reads and writes nothing.

    Args:
        inputs: Image files, and folders of images; hidden files and folders are left out.
        out: Folder of the outputs, which need not exist; or the output of the only image, if it ends as an image does
            and is not a folder.
        recursive: Search sub-folders too, except `out`. Links to folders are not followed.

    Returns:
        Resolved path -> image, in the order of the inputs and by name in a folder.

    Raises:
        ValueError: A file does not exist, is not a regular file, or does not have the ending of an image; a folder
            holds no image; `out` is among the inputs, is a file without the ending of an image, or names one file for
            several images.
    """
    if out.exists() and not out.is_dir() and not is_file_name(out):
        raise ValueError(f'output path is not a directory: {out}')
    sources: dict[Path, Found] = {}
    for path in inputs:
        if path.is_dir():
            if out.exists() and out.samefile(path):
                raise ValueError(f'the output folder must not be an input, got {out}')
            before = len(sources)
            for folder in _folders(path, out) if recursive else [path]:
                place, below = folder.resolve(), folder.relative_to(path)
                for source in _images_of(folder, required=not recursive):
                    sources.setdefault(_resolved(place, source), Found(source, below))
            if recursive and len(sources) == before:
                raise ValueError(f'no images ({", ".join(photograph.FORMATS)}) in {path} and its sub-folders')
        elif not path.exists():
            raise ValueError(f'{path} is missing')
        elif path.suffix.lower() not in photograph.FORMATS:
            raise ValueError(f'{path} must end in one of {", ".join(photograph.FORMATS)}')
        elif not path.is_file():
            raise ValueError(f'{path} is not a regular file')
        else:
            sources.setdefault(_resolved(path.parent.resolve(), path), Found(path))
    if is_file_name(out) and len(sources) > 1:
        raise ValueError(f'the output {out} names one file, got {len(sources)} images: name a folder')
    return sources


def is_file_name(out: Path) -> bool:
    """Whether an output names a file: it ends as an image does, and is not a folder."""
    return out.suffix.lower() in photograph.FORMATS and not out.is_dir()


def check_template(template: str) -> None:
    """Checks a template for the names of outputs.

    Raises:
        ValueError: It has a folder, an unknown field, or no field that tells the images apart.
    """
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        template.format(stem='', size='', scale=1, ext='')
    except (ValueError, LookupError, AttributeError):
        fields = {''}
    known = ', '.join(f'{{{name}}}' for name in NAME_FIELDS)
    if not fields <= set(NAME_FIELDS):
        raise ValueError(f'the fields of a name must be among {known}, got {template!r}')
    if 'stem' not in fields:
        raise ValueError(f'a template for names must contain {{stem}}, got {template!r}')
    if '/' in template or os.sep in template:
        raise ValueError(f'a template for names must not contain folders, got {template!r}: name them with -o')


def name_outputs(
    inputs: Iterable[Path] | Mapping[Path, Found],
    out: Path,
    scale: int,
    *,
    size: OutputSize | None = None,
    template: str = NAME_TEMPLATE,
    recursive: bool = False,
) -> dict[Path, Path]:
    """Finds the images, and the name of each output; reads and writes nothing.

    Args:
        inputs: Image files and folders of images, as for `find_images`, or what it has found.
        out: As for `find_images`. The outputs of images in sub-folders are in the same sub-folders of it.
        scale: Upscaling factor of the network.
        size: Size of the outputs; None is the network's own.
        template: Of the names, with the fields {stem} and {ext} of the input, {scale}, and {size}: x4, or what the
            size asks for (x1.5, w1920). The ending chooses the format; without one it is that of the input.
        recursive: As for `find_images`.

    Returns:
        Input -> output, in the order of the inputs and by name in a folder; an image that is named twice appears once.

    Raises:
        ValueError: As `find_images` and `check_template`; two images would have one output; or an output would be among
            the inputs.
    """
    check_template(template)
    sources = inputs if isinstance(inputs, Mapping) else find_images(inputs, out, recursive=recursive)
    label = (size and size.label) or f'x{scale}'
    outputs, names, places = {}, {}, {}
    for source, folder in sources.values():
        if is_file_name(out):
            target = out
        else:
            name = template.format(stem=source.stem, ext=source.suffix, scale=scale, size=label)
            if Path(name).suffix.lower() not in photograph.FORMATS:
                name += source.suffix
            target = out / folder / name
        # Not every file system distinguishes capitals from small letters.
        other = names.setdefault(str(target).casefold(), source)
        if other is not source:
            raise ValueError(f'{other} and {source} would both become {target}')
        if target.parent not in places:
            places[target.parent] = target.parent.resolve()
        if _resolved(places[target.parent], target) in sources:
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
    size: OutputSize | None = None,
    strip: bool = False,
    jpeg_advice: str | None = None,
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
        size: Size of the outputs; None is the network's own. Outputs smaller than the network's are resampled by
            `spinsr.data.resample.resize`. Larger ones are too, with a warning. Images that are no smaller than their
            output do not go through the network; a line says so.
        strip: Leave out EXIF, XMP, resolution and texts. What says what the colours mean stays.
        jpeg_advice: Logged with the name and the quality of the first JPEG below `LOW_JPEG_QUALITY`.
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
    options = {'tile': tile, 'self_ensemble': self_ensemble, 'precision': precision, 'progress': True}
    for source, target in _ticking(tqdm(outputs.items(), 'Upscaling', unit='image', disable=None)):
        shape = None
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
            several = frames.read(source, max_pixels)
            photo = several.first if several else photograph.read(source, max_pixels)
            if jpeg_advice and photo.jpeg_quality and photo.jpeg_quality < LOW_JPEG_QUALITY:
                logger.warning('%s: a JPEG of quality %d; %s', printable(source), photo.jpeg_quality, jpeg_advice)
                jpeg_advice = None
            shape = photo.pixels.shape[:2]
            height, width = size.of(shape[0], shape[1], scale) if size else (scale * side for side in shape)
            work = _Work(net, scale, size, strip, source, target, options, set())
            if several:
                frames.check_room(target, several, height, width)
                if several.timing:  # whose encoders hold all frames
                    result = several.count * height * width * photo.pixels[0, 0].nbytes
                    upscaling.check_result(shape[0], shape[1], result)
                frames.write(target, (work.enlarged(frame) for frame in several), several.timing)
            else:
                photograph.check_room(target, height, width, photo.pixels)
                photograph.write(target, work.enlarged(photo))
        except Exception as error:  # networks of others fail in their own ways
            report.failed[source] = _reason(source, error, shape, net)
            logger.error('%s', report.failed[source])
            if isinstance(error, OSError) and error.errno in _FULL:
                is_full = os.strerror(error.errno)
                logger.error('the remaining images are not started')
        else:
            report.done.append(target)
            if written:
                written(target, height, width)
    return report


def _ticking(bar: tqdm) -> Iterator[Any]:
    """The items of a bar whose elapsed time goes on while one image is worked on, which can take minutes."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(_TICK):
            bar.refresh()

    if not bar.disable:
        threading.Thread(target=tick, daemon=True).start()
    try:
        yield from bar
    finally:
        ended.set()


class _Work(NamedTuple):
    """How the image or the frames of one file become those of another; the arguments are those of `upscale_files`."""

    net: nn.Module
    scale: int
    size: OutputSize | None
    strip: bool
    source: Path
    target: Path
    options: Mapping[str, Any]
    told: set[tuple[int, int]]  # sizes of which a line said how they are made

    def enlarged(self, photo: Photograph) -> Photograph:
        """A photograph of the wanted size, by the network and, where that is not its own size, by resampling."""
        from spinsr.inference import upscale as upscaling

        pixels, scale = photo.pixels, self.scale
        if self.strip:
            photo = photo._replace(metadata=Metadata())
        height, width = pixels.shape[:2]
        size = self.size.of(height, width, scale) if self.size else (scale * height, scale * width)
        if scale > 1 and size[0] <= height and size[1] <= width:
            self._tell(size, 'is not larger than the image, which is resampled without the network')
            return photo._replace(pixels=resample.resize(pixels, *size))
        if size[0] > scale * height or size[1] > scale * width:
            self._tell(size, f'is more than x{scale}, the scale of the network; the rest is interpolated')
        more = photograph.memory_to_write(self.target, *size)
        if size != (scale * height, scale * width):
            more = max(more, resample.memory_to_resize(pixels, scale)) + math.prod(size) * pixels[0, 0].nbytes
        upscaling.check_result(height, width, scale**2 * pixels.nbytes, more)
        return photo._replace(pixels=resample.resize(upscaling.upscale(pixels, self.net, **self.options), *size))

    def _tell(self, size: tuple[int, int], how: str) -> None:
        """Says how outputs of a size are made, once for all frames."""
        if size not in self.told:
            self.told.add(size)
            logger.warning('%s: %dx%d %s', printable(self.source), *reversed(size), how)


def _folders(folder: Path, out: Path) -> Iterator[Path]:
    """A folder and those below it by name, without hidden ones and the one of the outputs."""
    place = out.resolve()
    for root, names, _ in os.walk(folder):
        names[:] = sorted(name for name in names if name[0] != '.' and (Path(root) / name).resolve() != place)
        yield Path(root)


def _images_of(folder: Path, required: bool) -> list[Path]:
    found = image_file.list_images(folder, photograph.FORMATS, required=required)
    names = {file.name for file in found}
    with os.scandir(folder) as entries:
        others = [folder / entry.name for entry in entries if entry.name not in names and _is_odd(entry)]
    if others:
        logger.warning('%s: skipped, unsupported file type: %s', printable(folder), image_file.name_some(others))
    return found


def _is_odd(entry: os.DirEntry) -> bool:
    """Whether a file of a folder is neither an image nor hidden; what only has the name of one is reported already."""
    is_called_image = os.path.splitext(entry.name)[1].lower() in photograph.FORMATS
    return entry.name[0] != '.' and not is_called_image and image_file.is_file(entry)


def _resolved(place: Path, path: Path) -> Path:
    """`path.resolve()` for a path in a folder that is resolved already: for ten thousands of files that counts."""
    # Unlike resolve(), realpath() takes a link that leads to itself.
    return Path(os.path.realpath(path)) if path.is_symlink() else place / path.name


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
    if isinstance(error, MemoryError) and not str(error):
        reason = 'out of memory while reading it' if size is None else 'out of memory'
    if size is None or isinstance(error, (ValueError, MemoryError, OSError)):
        return printable(f'{source}: {reason}')
    kind = type(error).__name__
    reason = kind if reason == kind else f'{kind}: {reason}'
    return printable(f'{source}: {type(net).__name__} failed on a {size[0]}x{size[1]} (HxW) image: {reason}')
