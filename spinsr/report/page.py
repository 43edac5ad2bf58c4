"""The page as one self-contained HTML file, from the template page.html."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from spinsr.evaluation.benchmark import PROTOCOLS
from spinsr.report.pictures import BRIGHTEST, CROP_SIDE, JPEG_QUALITY, LONGEST, LOSSLESS_BYTES, Box

# Of which the page shows every image; of the others the mean.
MAIN_PROTOCOL = 'y_crop_scale'


@dataclass(frozen=True)
class Picture:
    """A picture of an image.

    Attributes:
        label: What it shows.
        uri: The data URI.
        nearest: Whether the page enlarges it without interpolation.
    """

    label: str
    uri: str
    nearest: bool = False


@dataclass(frozen=True)
class Entry:
    """An image of the page.

    Attributes:
        name: Its name.
        size: H and W of the super-resolved image.
        layers: For the slider: bicubic, the network, HR where there is one, LR.
        lossless: Whether they are.
        maps: Superpixels, error maps; they can be laid into the slider, too.
        crops: Part of the image -> its pictures, labelled as the layers, without LR.
    """

    name: str
    size: tuple[int, int]
    layers: Sequence[Picture]
    lossless: bool
    maps: Sequence[Picture] = ()
    crops: Sequence[tuple[Box, Sequence[Picture]]] = ()


@dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    Attributes:
        title: The heading.
        method: What the network is called.
        scale: Upscaling factor.
        count: Images in the folder.
        entries: Those that are shown.
        scores: Method -> protocols, as `spinsr.evaluation.benchmark.evaluate` returns them; empty without HR.
        charts: Title, text and SVG of each curve.
        facts: Name -> value, in the head.
        details: Name -> value, about the network and the machine.
        block: Whose superpixels are shown; None for networks without superpixels.
    """

    title: str
    method: str
    scale: int
    count: int
    entries: Sequence[Entry]
    scores: Mapping[str, Mapping[str, Any]]
    charts: Sequence[tuple[str, str, str]]
    facts: Mapping[str, str]
    details: Mapping[str, str]
    block: int | None = None

    @functools.cached_property
    def anchors(self) -> dict[str, str]:
        """Where in the page each shown image is, by name."""
        return {entry.name: f'image-{index}' for index, entry in enumerate(self.entries)}


def render(report: Report) -> str:
    """The whole page."""
    page, style, script = (_read(name) for name in ('page.html', 'page.css', 'page.js'))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {'score': score, 'gain': gain, 'rules': _rules}
    text = environment.from_string(page).render(
        report=report,
        main=MAIN_PROTOCOL,
        longest=LONGEST,
        notes=_notes(report),
        style=Markup(style),
        script=Markup(script),
    )
    # A file name need not be UTF-8: bytes that are not become question marks.
    return text.lstrip().encode('utf-8', 'replace').decode()


def score(value: float | None, digits: int) -> str:
    """A number as the page writes it."""
    return 'n/a' if value is None else '∞' if math.isinf(value) else f'{value:.{digits}f}'


def gain(scores: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """How much PSNR is above another, with its sign; empty where that says nothing."""
    values = scores['psnr'], before['psnr']
    if any(value is None or math.isinf(value) for value in values):
        return ''
    return f'{values[0] - values[1]:+.2f}'.replace('-', '\N{MINUS SIGN}')


def _read(name: str) -> str:
    return (resources.files('spinsr.report') / name).read_text(encoding='utf-8')


def _rules(name: str, scale: int) -> str:
    rules = PROTOCOLS[name]
    words = ['on Y' if rules.y else 'on RGB', 'not rounded' if rules.unrounded else 'rounded to 8 bits']
    return f'{", ".join(words)}, border of {scale + rules.extra_border} left out'


def _notes(report: Report) -> list[str]:
    has_hr = bool(report.scores)
    notes = []
    if len(report.entries) < report.count:
        notes.append(f'Pictures of the first {len(report.entries)} of {report.count} images, by name.')
    lossy = [entry.name for entry in report.entries if not entry.lossless]
    shrunk = [entry.name for entry in report.entries if max(entry.size) > LONGEST]
    notes.append(
        f'Pictures in the slider are lossless up to {LOSSLESS_BYTES / 1e6:g} MB for one image, else JPEG of quality '
        f'{JPEG_QUALITY} (here: {_list(lossy)}), and shrunk where the longer side is above {LONGEST} pixels '
        f'(here: {_list(shrunk)}). The pictures below it are JPEG. Crops are lossless and never shrunk.'
    )
    value = 'the mean squared error of bicubic on Y' if has_hr else 'the variance of bicubic on Y'
    notes.append(
        f'Crops are the squares of {CROP_SIDE} pixels, or of the whole shorter side where that is less, with {value} '
        'largest, none overlapping another; they are framed in the slider.'
    )
    if has_hr:
        notes.append(f'Error maps show |image − HR| on Y: black is 0, yellow is {BRIGHTEST} of 255 and more.')
    if report.block is not None:
        notes.append(
            f'Superpixels are those of block {report.block}, counted from 0: their boundaries over the result, and '
            'each filled with the mean colour of its pixels in the low-resolution image.'
        )
    return notes


def _list(names: Sequence[str]) -> str:
    if len(names) > 6:
        return f'{len(names)} images'
    return ', '.join(names) or 'none'
