"""Animations (GIF, WebP, PNG, AVIF) and TIFF of several pages, one frame at a time."""

import struct
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from PIL import Image, PngImagePlugin

from spinsr.data import formats, image_file, metadata, photograph
from spinsr.data.formats import MAX_PIXELS, RefusedError
from spinsr.data.photograph import FORMATS, Photograph
from spinsr.utils import atomic_write

# Formats of animations; the pages of a TIFF are images of their own.
ANIMATED = ('AVIF', 'GIF', 'PNG', 'WEBP')
_SUBFILE_TYPE = 254
_NOT_A_PAGE = 1 | 4  # an image of less resolution, a mask


class Timing(NamedTuple):
    """How an animation is played.

    Attributes:
        durations: Of each frame, in milliseconds.
        plays: How often; 0 means without end.
        has_still: Whether the first image of a PNG is not part of the animation, and has no duration.
    """

    durations: tuple[float, ...]
    plays: int
    has_still: bool = False


class Frames:
    """The frames of an animation, or the pages of a TIFF, decoded one at a time.

    Attributes:
        count: How many.
        first: The first one.
        timing: How the animation is played; None for pages.
    """

    def __init__(self, data: bytes, path: Path, max_pixels: int, offsets: list[int], timing: Timing | None):
        self._data, self._path, self._max_pixels, self._offsets = data, path, max_pixels, offsets
        self.timing = timing
        self.count = len(offsets) if timing is None else len(timing.durations) + timing.has_still
        if timing is not None:
            with _image(data, path, max_pixels) as image:
                self._mode = 'RGB' if _is_opaque(image, path) else 'RGBA'
        self.first = next(iter(self))

    def __iter__(self) -> Iterator[Photograph]:
        """The frames.

        Raises:
            ValueError: One is damaged, or not taken.
        """
        if self.timing is None:
            for offset in self._offsets:
                yield photograph.from_bytes(_page(self._data, offset), self._path, self._max_pixels)
            return
        opened = formats.open_data(self._data, self._path, self._max_pixels, more=True)
        with opened.image as image:
            more = metadata.read(image, opened.texts)
            for number in range(self.count):
                _seek(image, number, self._path)
                yield Photograph(np.array(image.convert(self._mode)), opened.icc_profile, opened.chunks, more)


def read(path: Path, max_pixels: int = MAX_PIXELS) -> Frames | None:
    """The frames of an animation, or the pages of a TIFF; None for a file of one image.

    Args:
        path: The file.
        max_pixels: Largest height times width of a frame, and of all frames of an animation together.

    Raises:
        ValueError: The file is damaged, or not taken. Every frame of an animation is decoded once to find out.
    """
    data = image_file.read_bytes(path)
    try:
        kind = formats.identify(data[:16], more=True)
        if kind == 'TIFF':
            try:
                offsets = _offsets(data)
            except struct.error:  # reading it as one image says what is wrong
                return None
            return Frames(data, path, max_pixels, offsets, None) if len(offsets) > 1 else None
        # Without this chunk a PNG is one image, and need not be opened.
        if kind not in ANIMATED or (kind == 'PNG' and b'acTL' not in data[: data.find(b'IDAT')]):
            return None
        with _image(data, path, max_pixels) as image:
            count = getattr(image, 'n_frames', 1)
            if count == 1:
                return None
            if formats.bit_depth(image, data) > 8:
                raise RefusedError('is an animation of 16 bits a channel, which cannot be read')
            formats.check_size(count * image.height, image.width, max_pixels)
            has_still = bool(getattr(image, 'default_image', False))
            durations = []
            for number in range(count):
                _seek(image, number, path)
                durations.append(float(image.info.get('duration', 0)))
            loop = image.info.get('loop', None if kind == 'GIF' else 0)
            # GIF counts repetitions, and has no count where it plays once.
            plays = (1 if loop is None else loop and loop + 1) if kind == 'GIF' else loop
        return Frames(data, path, max_pixels, [], Timing(tuple(durations[has_still:]), plays, has_still))
    except formats.DAMAGE as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise image_file.unreadable(path, error) from error


def check_room(path: Path, frames: Frames, height: int, width: int) -> None:
    """Makes sure that a file of this name can hold the frames.

    Args:
        path: Its ending chooses the format.
        frames: The input.
        height: Of the first frame, enlarged.
        width: Of the first frame, enlarged.

    Raises:
        ValueError: It cannot.
    """
    kind = FORMATS[path.suffix.lower()]
    if frames.timing is None and kind != 'TIFF':
        raise ValueError(f'{path}: {kind} cannot hold {frames.count} pages; TIFF can')
    if frames.timing is not None and kind not in ANIMATED:
        raise ValueError(f'{path}: {kind} cannot hold an animation; {", ".join(ANIMATED)} can')
    # The pages of a TIFF share its 4 GiB.
    photograph.check_room(path, height * (frames.count if kind == 'TIFF' else 1), width, frames.first.pixels)


def write(path: Path, enlarged: Iterable[Photograph], timing: Timing | None) -> None:
    """Writes an animation, or the pages of a TIFF; the file is either complete or absent.

    Pages are written as they come. The encoders of animations hold all frames. GIF has 256 colours a frame and no alpha
    between 0 and 255.

    Args:
        path: Its ending chooses the format.
        enlarged: The frames, at least one.
        timing: That of the input; None for pages.

    Raises:
        OSError: The file cannot be written.
    """
    kind = FORMATS[path.suffix.lower()]
    with atomic_write.open_file(path) as file:
        if timing is None:
            photograph.write_pages(file, (_for_format(photo, kind, path) for photo in enlarged))
        else:
            _write_animation(file, iter(enlarged), timing, kind, path)


def _write_animation(file: BinaryIO, frames: Iterator[Photograph], timing: Timing, kind: str, path: Path) -> None:
    if timing.has_still and kind != 'PNG':
        next(frames)
    first = _for_format(next(frames), kind, path)
    options = photograph.pillow_options(first, kind)
    durations = timing.durations
    if kind in ('AVIF', 'WEBP'):
        durations = tuple(round(duration) for duration in durations)
    options |= {'duration': list(durations), 'loop': timing.plays}
    if kind == 'GIF':
        options |= {'loop': timing.plays and timing.plays - 1, 'disposal': 2}
        if timing.plays == 1:
            del options['loop']
    elif kind == 'PNG':
        texts = PngImagePlugin.PngInfo()
        for name, content in (*first.png_chunks, *metadata.png_chunks(first.metadata)):
            texts.add(name, content)
        options |= {'default_image': timing.has_still, 'pnginfo': texts, 'blend': 0}
    others = (photograph.to_pillow(frame, kind) for frame in frames)
    # Pillow goes through those of a PNG twice, and makes a list of those of AVIF and WebP itself.
    others = others if kind == 'GIF' else list(others)
    photograph.to_pillow(first, kind).save(file, kind, save_all=True, append_images=others, **options)


def _for_format(photo: Photograph, kind: str, path: Path) -> Photograph:
    height, width = photo.pixels.shape[:2]
    kept = metadata.of_output(photo.metadata, height, width, path)
    return photo._replace(metadata=metadata.for_format(kept, kind, path))


def _image(data: bytes, path: Path, max_pixels: int) -> Image.Image:
    return formats.open_data(data, path, max_pixels, more=True).image


def _seek(image: Image.Image, number: int, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            image.seek(number)
            formats.load(image)
    except formats.DAMAGE as error:
        raise image_file.unreadable(path, error) from error


def _is_opaque(image: Image.Image, path: Path) -> bool:
    for number in range(getattr(image, 'n_frames', 1)):
        _seek(image, number, path)
        if image.has_transparency_data and cast(Any, image.convert('RGBA').getextrema())[3][0] < 255:
            return False
    return True


def _offsets(data: bytes) -> list[int]:
    """Where the directories of the pages of a TIFF are."""
    order, is_big = '<' if data[:2] == b'II' else '>', data[2:4] in (b'+\0', b'\0+')
    pointer, count, entry = ('Q', 'Q', 20) if is_big else ('I', 'H', 12)
    (offset,) = struct.unpack_from(order + pointer, data, 8 if is_big else 4)
    seen, pages = set(), []
    while offset and offset not in seen:
        seen.add(offset)
        (entries,) = struct.unpack_from(order + count, data, offset)
        start = offset + struct.calcsize('=' + count)
        kinds = [
            struct.unpack_from(order + 'I', data, place + entry - struct.calcsize('=' + pointer))[0]
            for place in range(start, start + entry * entries, entry)
            if struct.unpack_from(order + 'H', data, place)[0] == _SUBFILE_TYPE
        ]
        if not any(kind & _NOT_A_PAGE for kind in kinds):
            pages.append(offset)
        (offset,) = struct.unpack_from(order + pointer, data, start + entry * entries)
    return pages


def _page(data: bytes, offset: int) -> bytes:
    """A TIFF with one page of another: its header points there, and no page follows."""
    order, is_big = '<' if data[:2] == b'II' else '>', data[2:4] in (b'+\0', b'\0+')
    pointer, count, entry = ('Q', 'Q', 20) if is_big else ('I', 'H', 12)
    page = bytearray(data)
    struct.pack_into(order + pointer, page, 8 if is_big else 4, offset)
    (entries,) = struct.unpack_from(order + count, page, offset)
    struct.pack_into(order + pointer, page, offset + struct.calcsize('=' + count) + entry * entries, 0)
    return bytes(page)
