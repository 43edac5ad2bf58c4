"""What the page does with an image: the work of `spinsr upscale`, with progress, an end on request, and pictures."""

import contextlib
import functools
import hashlib
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from spinsr.analysis.superpixels import draw, find_superpixels
from spinsr.archs.spin_arch import SPIN
from spinsr.data import bicubic, photograph
from spinsr.data.photograph import Photograph
from spinsr.inference import upscale as upscaling
from spinsr.inference.image_files import name_outputs, upscale_files
from spinsr.inference.load import load
from spinsr.weights.models import PHOTO, find_model

# A browser shows larger pictures slowly, or not at all; in pixels.
SHOWN_SIDE = 4096
PREVIEW_SIDE = 800
# Superpixels are drawn of the middle of a larger image: their network takes no tiles.
SUPERPIXEL_SIDE = 512
_REPORT_INTERVAL = 0.3  # seconds

# Called with the share that is done, in [0, 1], and what is being done.
Report = Callable[[float, str], None]


class Cancelled(BaseException):
    """The user has ended the job. Not an Exception, as KeyboardInterrupt: `upscale_files` goes on after those."""


class Result(NamedTuple):
    """What there is to show and to download.

    Attributes:
        file: The output, as `spinsr upscale` writes it.
        before: The input, enlarged bicubically to the size of `after`; a PNG.
        after: The output, reduced if a side is longer than `SHOWN_SIDE`; a PNG.
        superpixels: Pictures (H, W, 3), uint8, RGB, with a caption.
        summary: Sizes, options, seconds and warnings, in words.
    """

    file: Path
    before: Path
    after: Path
    superpixels: list[tuple[np.ndarray, str]]
    summary: str


class Jobs:
    """Runs one job at a time, for several sessions (open pages).

    Args:
        folder: Where the results go, in a folder for each session.
        device: Where the networks run.
        max_bytes: Largest file.
        max_pixels: Largest height times width of an image.
    """

    def __init__(self, folder: Path, device: str | torch.device, max_bytes: int, max_pixels: int) -> None:
        self._folder, self._device = folder, torch.device(device)
        self._max_bytes, self._max_pixels = max_bytes, max_pixels
        self._running = threading.Lock()
        self._cancelled: dict[str, threading.Event] = {}  # by session, of the job that runs or waits
        self._is_closed = False
        self._network = functools.lru_cache(maxsize=2)(self._load)

    @property
    def limits(self) -> str:
        """What an image may have, in words."""
        return f'at most {self._max_bytes / 2**20:g} MB and {self._max_pixels / 1e6:g} megapixels'

    def check(self, source: Path) -> Photograph:
        """Reads an image, if it is one that the page takes.

        Raises:
            ValueError: It is not; the message names the file without its folder.
        """
        with _without_folders(source.parent):
            name_outputs([source], self._folder, 1)
            size = source.stat().st_size
            if size > self._max_bytes:
                limit = f'{self._max_bytes / 2**20:g} MB (max_mb)'
                raise ValueError(f'{source.name} must have at most {limit}, has {size / 2**20:.1f} MB')
            return photograph.read(source, self._max_pixels)

    def preview(self, source: Path) -> tuple[np.ndarray, str]:
        """An image reduced to `PREVIEW_SIDE`, (H, W, 3), uint8, RGB, and its size in words.

        Raises:
            ValueError: As `check`.
        """
        photo = self.check(source)
        height, width = photo.pixels.shape[:2]
        return upscaling.rgb8(_limited(photo.pixels, PREVIEW_SIDE)), f'{source.name}: {width}x{height}'

    def blocks(self, model: str, scale: int) -> int:
        """Number of blocks with superpixels; 0 for a network that has none."""
        net = self._network(model, scale).net
        return len(net.blocks) if isinstance(net, SPIN) else 0

    def run(
        self,
        session: str,
        source: Path,
        model: str,
        scale: int,
        *,
        tile: int | None = None,
        block: int | None = None,
        report: Report | None = None,
    ) -> Result:
        """Super-resolves an image; the result of the session's last job is deleted.

        Args:
            session: Whose job it is, for `cancel` and `forget`.
            source: The image.
            model, scale: A shipped network, as for `find_model`.
            tile: As for `upscale`.
            block: Draw the superpixels of this block of a SPIN.
            report: Gets the progress, a few times a second.

        Raises:
            ValueError, MemoryError, OSError: The image is not taken, or the work failed.
            Cancelled: By `cancel`, `forget` or `close`.
        """
        cancelled = self._cancelled[session] = threading.Event()
        try:
            with self._running:
                if self._is_closed:
                    raise Cancelled
                return self._run(session, source, model, scale, tile, block, report, cancelled)
        except Cancelled:
            self._delete(session)
            raise
        finally:
            if self._cancelled.get(session) is cancelled:
                del self._cancelled[session]

    def _run(
        self,
        session: str,
        source: Path,
        model: str,
        scale: int,
        tile: int | None,
        block: int | None,
        report: Report | None,
        cancelled: threading.Event,
    ) -> Result:
        start = time.monotonic()
        photo = self.check(source)
        folder = self._folder_of(session)
        self._delete(session)
        (folder / 'shown').mkdir(parents=True)
        network = self._network(model, scale)
        outputs = name_outputs([source], folder, scale)
        height, width = photo.pixels.shape[:2]
        warnings: list[str] = []
        on_cpu = self._device.type == 'cpu'
        with (
            _without_folders(source.parent, folder),
            _collected(warnings),
            upscaling.limited_memory() if on_cpu else contextlib.nullcontext(),
        ):
            with network.watched(functools.partial(_count_tiles, height, width), cancelled, report):
                done = upscale_files(
                    outputs,
                    network.net,
                    tile=tile,
                    overwrite=True,
                    max_pixels=self._max_pixels,
                    jpeg_advice=_advice(model),
                )
            if done.failed:
                raise ValueError(done.failed[source])
            (file,) = done.done
            with network.watched(None, cancelled, None):
                pictures = [] if block is None else _superpixels(photo.pixels, network.net, block)
            seconds = time.monotonic() - start
            before, after = (folder / 'shown' / f'{name}.png' for name in ('before', 'after'))
            shown, enlarged = _pair(photo, photograph.read(file, scale**2 * self._max_pixels), scale)
            photograph.write(before, shown)
            photograph.write(after, enlarged)
        tiles = 'whole image' if tile is None else f'tiles of {tile}'
        lines = [
            f'{file.name}: {width}x{height} to {scale * width}x{scale * height}, {model} x{scale}, {tiles}, '
            f'{seconds:.1f} s'
        ]
        if enlarged.pixels.shape[:2] != (scale * height, scale * width):
            lines.append(f'The comparison is reduced to {SHOWN_SIDE} pixels a side; the download is not.')
        lines += [_shortened(line, source.parent, folder) for line in warnings]
        return Result(file, before, after, pictures, '\n'.join(lines))

    def cancel(self, session: str) -> None:
        """Ends the session's job, if it has one, at the next layer of the network."""
        if cancelled := self._cancelled.get(session):
            cancelled.set()

    def forget(self, session: str) -> None:
        """Ends the session's job and deletes its result: its page is closed."""
        self.cancel(session)
        self._delete(session)

    def close(self) -> None:
        """Ends all jobs, and waits until none runs."""
        self._is_closed = True
        for session in list(self._cancelled):
            self.cancel(session)
        with self._running:
            pass

    def _delete(self, session: str) -> None:
        shutil.rmtree(self._folder_of(session), ignore_errors=True)

    def _folder_of(self, session: str) -> Path:
        # The name comes from the browser, and may be a path.
        return self._folder / hashlib.sha256(session.encode()).hexdigest()[:32]

    def _load(self, model: str, scale: int) -> '_Watched':
        return _Watched(load(weights=find_model(model, scale).path, device=self._device))


class _Watched:
    """A network that reports how far it is, and stops on request: each of its modules is a step."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._steps = 0
        self._count_tiles: Callable[[int], int] | None = None
        self._cancelled: threading.Event | None = None
        self._report: Report | None = None
        for module in net.modules():
            module.register_forward_pre_hook(self._step)
        upscaling.scale_of(net)  # one run
        self._steps_of_tile = self._steps

    @contextlib.contextmanager
    def watched(
        self, count_tiles: Callable[[int], int] | None, cancelled: threading.Event, report: Report | None
    ) -> Iterator[None]:
        """Reports, and raises `Cancelled` once `cancelled` is set.

        Args:
            count_tiles: From the longer side of a tile to the number of tiles.
            cancelled: May be set by another thread.
            report: Gets the progress.
        """
        self._count_tiles, self._cancelled, self._report = count_tiles, cancelled, report
        self._size, self._tile, self._last = None, 0, -math.inf
        if cancelled.is_set():
            raise Cancelled
        try:
            yield
        finally:
            self._cancelled = self._report = None

    def _step(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._steps += 1
        if self._cancelled is None:
            return
        if self._cancelled.is_set():
            raise Cancelled
        if self._report is None:
            return
        if module is self.net:
            size = inputs[0].shape[2:]
            # Other tiles than before: memory has run out, and all begins again.
            self._tile = self._tile + 1 if size == self._size else 1
            self._size, self._steps = size, 0
        if time.monotonic() - self._last < _REPORT_INTERVAL:
            return
        self._last = time.monotonic()
        assert self._count_tiles is not None and self._size is not None
        tiles = max(self._count_tiles(max(self._size)), self._tile)
        share = (self._tile - 1 + min(self._steps / self._steps_of_tile, 1)) / tiles
        self._report(share, f'Tile {self._tile} of {tiles}' if tiles > 1 else 'Upscaling')


def _advice(model: str) -> str | None:
    """What to say about JPEGs of low quality."""
    return None if model == PHOTO.name else f'the model {PHOTO.name} (x{PHOTO.scale}) may do better'


def _count_tiles(height: int, width: int, side: int) -> int:
    return len(upscaling.tile_starts(height, side)) * len(upscaling.tile_starts(width, side))


def _superpixels(pixels: np.ndarray, net: nn.Module, block: int) -> list[tuple[np.ndarray, str]]:
    if not isinstance(net, SPIN):
        return []
    part = _middle(pixels, SUPERPIXEL_SIDE)
    found = find_superpixels(part, net, block)
    height, width = part.shape[:2]
    where = '' if part.shape == pixels.shape else f' of the middle {width}x{height} pixels'
    rows, columns = found.shape
    pictures = draw(found)
    return [
        (pictures['boundaries'], f'{rows}x{columns} superpixels{where}'),
        (pictures['colours'], f'Their mean colours{where}'),
    ]


def _middle(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
    return pixels[top : top + side, left : left + side]


def _pair(photo: Photograph, result: Photograph, scale: int) -> tuple[Photograph, Photograph]:
    """The input and the output in one size that a browser shows, in 8 bits and without alpha."""
    before, after = _visible(photo), _visible(result)
    small = _limited(after.pixels, SHOWN_SIDE)
    if small is after.pixels:
        return before._replace(pixels=bicubic.upsample(before.pixels, scale)), after
    size = small.shape[1::-1]
    larger = size[0] > before.pixels.shape[1]
    resized = cv2.resize(before.pixels, size, interpolation=cv2.INTER_CUBIC if larger else cv2.INTER_AREA)
    return before._replace(pixels=resized), after._replace(pixels=small)


def _visible(photo: Photograph) -> Photograph:
    pixels = upscaling.rgb8(photo.pixels)
    is_grey = photo.pixels.ndim == 2 or photo.pixels.shape[2] < 3
    # A grey image stays one: the colour profile of the file is for grey.
    pixels = np.ascontiguousarray(pixels[..., 0]) if is_grey else pixels
    return Photograph(pixels, photo.icc_profile, photo.png_chunks)


def _limited(pixels: np.ndarray, side: int) -> np.ndarray:
    """Reduces an image whose longer side is longer than this."""
    height, width = pixels.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return pixels
    size = max(round(factor * width), 1), max(round(factor * height), 1)
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


@contextlib.contextmanager
def _without_folders(*folders: Path) -> Iterator[None]:
    """Leaves folders of the server, which say nothing to the user, out of error messages."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(_shortened(str(error), *folders)) from error


def _shortened(text: str, *folders: Path) -> str:
    for folder in folders:
        text = text.replace(f'{folder}{os.sep}', '')
    return text


@contextlib.contextmanager
def _collected(messages: list[str]) -> Iterator[None]:
    """Adds the warnings that this thread logs to a list."""
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread and record.levelno == logging.WARNING:
                messages.append(record.getMessage())

    handler, logger = Collector(), logging.getLogger('spinsr')
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
