"""PSNR against parameters as a picture, as in Figure 1 of the SPIN paper; drawn with Pillow alone."""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

SIZE = (1200, 800)
MARGIN = (110, 70, 40, 90)  # left, top, right, bottom
SMOOTH = 2  # drawn larger and shrunk, for smooth edges
GAP = 14 * SMOOTH  # between a point and its name
MARGIN_OF_NAME = 3 * SMOOTH  # around a name
INK, GRID, PUBLISHED, OURS = '#222222', '#e3e3e3', '#5b7fa6', '#d1495b'
_Box = tuple[float, float, float, float]  # left, top, right, bottom


class Point(NamedTuple):
    """A network in the picture: `ours` are those measured here."""

    name: str
    parameters: int
    psnr: float
    ours: bool = False


def draw(points: Sequence[Point], title: str) -> Image.Image:
    """Draws points with their names; parameters on a logarithmic axis.

    Args:
        points: At least one; parameters above 0, PSNR finite.
        title: The line above.

    Returns:
        RGB image of SIZE.

    Raises:
        ValueError: There is no point, or one that has no place on the axes.
    """
    if not points:
        raise ValueError('a picture needs at least one point')
    for point in points:
        if point.parameters < 1 or not math.isfinite(point.psnr):
            raise ValueError(f'parameters must be above 0 and the PSNR finite, got {point}')
    image = Image.new('RGB', (SIZE[0] * SMOOTH, SIZE[1] * SMOOTH), 'white')
    canvas = ImageDraw.Draw(image)
    left, top, right, bottom = (x * SMOOTH for x in MARGIN)
    right, bottom = image.width - right, image.height - bottom
    xs, ys = [math.log10(p.parameters) for p in points], [p.psnr for p in points]
    x_low, x_high = _padded(min(xs), max(xs), 0.2)
    y_low, y_high = _padded(min(ys), max(ys), 0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - x_low) / (x_high - x_low) * (right - left), bottom - (y - y_low) / (y_high - y_low) * (
            bottom - top
        )

    for number in _decades(x_low, x_high):
        x, _ = place(math.log10(number), y_low)
        canvas.line((x, top, x, bottom), GRID, SMOOTH)
        canvas.text((x, bottom + 10 * SMOOTH), _short(number), INK, _font(18), 'mt')
    step = round_step(y_high - y_low, 10)
    for i in range(math.ceil(y_low / step), math.floor(y_high / step) + 1):
        _, y = place(x_low, i * step)
        canvas.line((left, y, right, y), GRID, SMOOTH)
        canvas.text((left - 10 * SMOOTH, y), f'{i * step:.{1 if step >= 0.1 else 2}f}', INK, _font(18), 'rm')
    canvas.rectangle((left, top, right, bottom), outline=INK, width=SMOOTH)
    canvas.text(((left + right) / 2, top / 2), title, INK, _font(26), 'mm')
    canvas.text(((left + right) / 2, image.height - 25 * SMOOTH), 'parameters', INK, _font(20), 'mm')
    _vertical(image, 'PSNR (dB)', (25 * SMOOTH, (top + bottom) // 2))

    centres = [place(x, y) for x, y in zip(xs, ys, strict=True)]
    radius = 9 * SMOOTH
    boxes = [(x - radius, y - radius, x + radius, y + radius) for x, y in centres]
    # As wide as a name keeps away from its own point: a name closer to another would be taken for that one's.
    taken = [(x - GAP, y - GAP, x + GAP, y + GAP) for x, y in centres]
    labels = place_names([point.name for point in points], centres, taken, (left, top, right, bottom))
    for point, (x, y), box, label in zip(points, centres, boxes, labels, strict=True):
        colour = OURS if point.ours else PUBLISHED
        if point.ours:
            canvas.polygon([(x, box[1]), (box[2], y), (x, box[3]), (box[0], y)], colour)
        else:
            canvas.ellipse(box, colour)
        if label.line:
            canvas.line((x, y, *label.place), colour, SMOOTH)
        canvas.text(label.place, point.name, colour, _font(20), label.anchor)
    # In the corner that large, good networks leave free.
    legend = [(OURS, 'measured here')] * any(p.ours for p in points)
    legend += [(PUBLISHED, 'as published')] * any(not p.ours for p in points)
    for i, (colour, text) in enumerate(legend):
        canvas.text((right - 15 * SMOOTH, bottom - (20 + 28 * i) * SMOOTH), text, colour, _font(20), 'rm')
    return image.resize(SIZE, Image.Resampling.LANCZOS)


class Label(NamedTuple):
    """Where a name is written; the line to its point as boxes, none where it is beside it."""

    place: tuple[float, float]
    anchor: str
    box: _Box
    line: list[_Box]


def place_names(
    texts: Sequence[str], centres: Sequence[tuple[float, float]], taken: Sequence[_Box], frame: _Box
) -> list[Label]:
    """Finds a place for each name beside its point, or at a line to it, where it covers least.

    All are placed more than once: at first the early ones do not know of the later.

    Args:
        texts: The names.
        centres: (x, y) of their points, in pixels.
        taken: Boxes (left, top, right, bottom) that names and lines should not cover, those of the points among them.
        frame: Box that the names should not leave.

    Returns:
        A label for each name.
    """
    labels: dict[int, Label] = {}
    for _ in range(3):
        for i, (text, centre) in enumerate(zip(texts, centres, strict=True)):
            others = [label for j, label in labels.items() if j != i]
            names, lines = [_wider(label.box) for label in others], [box for label in others for box in label.line]
            labels[i] = _best(_options(text, centre), [*taken, *names, *lines], frame)
    return list(labels.values())


def _wider(box: _Box) -> _Box:
    return box[0] - MARGIN_OF_NAME, box[1] - MARGIN_OF_NAME, box[2] + MARGIN_OF_NAME, box[3] + MARGIN_OF_NAME


def _options(text: str, centre: tuple[float, float]) -> Iterator[Label]:
    """Near the point or at a line to it, the best to read first."""
    x, y = centre
    for far in (1, 2, 3, 4):
        for right, down in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            place = x + far * right * GAP, y + far * down * GAP
            anchor = 'mlr'[right] + 'mtb'[down]
            box = _font(20).getbbox(text, anchor=anchor)
            box = tuple(side + place[i % 2] for i, side in enumerate(box))
            steps = [(x + n / 2 * right * GAP, y + n / 2 * down * GAP) for n in range(3, 2 * far)]
            line = [(i - GAP / 4, j - GAP / 4, i + GAP / 4, j + GAP / 4) for i, j in steps]
            yield Label(place, anchor, box, line)


def _best(options: Iterable[Label], taken: Sequence[_Box], frame: _Box) -> Label:
    def price(label: Label) -> tuple[bool, float]:
        box = label.box
        outside = box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]
        return outside, sum(_overlap(mine, other) for mine in (box, *label.line) for other in taken)

    return min(options, key=price)


def _overlap(a: _Box, b: _Box) -> float:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _vertical(image: Image.Image, text: str, centre: tuple[int, int]) -> None:
    font = _font(20)
    _, _, width, height = (math.ceil(x) for x in font.getbbox(text))
    label = Image.new('RGB', (width + 4, height + 4), 'white')
    ImageDraw.Draw(label).text((2, 2), text, INK, font)
    label = label.rotate(90, expand=True)
    image.paste(label, (centre[0] - label.width // 2, centre[1] - label.height // 2))


def _padded(low: float, high: float, least: float) -> tuple[float, float]:
    margin = max(least, 0.12 * (high - low))
    return low - margin, high + margin


def _decades(low: float, high: float) -> list[int]:
    """1, 2, 5 times the powers of ten within the axis."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    numbers = [digit * 10**power for power in powers if power >= 0 for digit in (1, 2, 5)]
    return [number for number in numbers if low <= math.log10(number) <= high]


def round_step(span: float, lines: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides a span into at most so many parts."""
    power = 10 ** math.floor(math.log10(span / lines))
    return next(digit * power for digit in (1, 2, 5, 10) if span / (digit * power) <= lines)


def _short(number: int) -> str:
    for unit, name in ((10**6, 'M'), (10**3, 'K')):
        if number >= unit:
            return f'{number / unit:g}{name}'
    return str(number)


@functools.cache
def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size * SMOOTH)
