"""The page: what was found out, as one HTML file that needs no other."""

import functools
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from spinsr.evaluation.benchmark import PROTOCOLS
from spinsr.report.pictures import BRIGHTEST, CROP_SIDE, JPEG_QUALITY, LONGEST, LOSSLESS_BYTES, Box

# Of which the page shows every image; of the others the mean.
MAIN_PROTOCOL = 'y_crop_scale'


@dataclass(frozen=True)
class Picture:
    """A picture of an image: what it shows, and the data URI."""

    label: str
    uri: str


@dataclass(frozen=True)
class Entry:
    """An image of the page.

    Attributes:
        name: Its name.
        size: H and W of the super-resolved image.
        layers: For the slider: bicubic, the network, HR where there is one.
        lossless: Whether they are.
        maps: Superpixels, error maps; they can be laid into the slider, too.
        crops: Part of the image -> its pictures, labelled as the layers.
    """

    name: str
    size: tuple[int, int]
    layers: Sequence[Picture]
    lossless: bool
    maps: Sequence[Picture] = ()
    crops: Sequence[tuple[Box, Sequence[Picture]]] = ()


@dataclass(frozen=True)
class Report:
    """All that the page says.

    Attributes:
        title: The heading.
        method: What the network is called.
        scale: Upscaling factor.
        count: Images in the folder.
        entries: Those that are shown.
        scores: Method -> protocols, as `spinsr.evaluation.benchmark.evaluate` gives them; empty without HR.
        charts: Title, text and SVG of each curve.
        facts: What there is to say in the head, name -> value.
        details: What there is to say about the network and the machine.
        block: Of which the superpixels are; None where there are none.
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
    folder = resources.files('spinsr.report')
    style, script = ((folder / name).read_text(encoding='utf-8') for name in ('page.css', 'page.js'))
    sections = {
        'Scores': _scores(report) if report.scores else '',
        'Images': ''.join(_entry(entry, report) for entry in report.entries),
        'Training': ''.join(_chart(*chart) for chart in report.charts),
        'About': _about(report),
    }
    sections = {name: text for name, text in sections.items() if text}
    ids = {name: name.lower() for name in sections}
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{_safe(report.title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="eyebrow">spinsr report</p>
<h1>{_safe(report.title)}</h1>
<dl class="facts">{''.join(_fact(*fact) for fact in report.facts.items())}</dl>
<nav aria-label="Sections">{''.join(f'<a href="#{ids[name]}">{name}</a>' for name in sections)}</nav>
</header>
<main>
{''.join(f'<section id="{ids[name]}"><h2>{name}</h2>{text}</section>' for name, text in sections.items())}
</main>
<script>
{script}</script>
</body>
</html>
"""


def score(value: float | None, digits: int) -> str:
    """A number as the page writes it."""
    return 'n/a' if value is None else '∞' if math.isinf(value) else f'{value:.{digits}f}'


def gain(scores: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """How much PSNR is above another, with its sign; empty where that says nothing."""
    values = scores['psnr'], before['psnr']
    if any(value is None or math.isinf(value) for value in values):
        return ''
    return f'{values[0] - values[1]:+.2f}'.replace('-', '\N{MINUS SIGN}')


def _safe(text: str) -> str:
    # A file name need not be UTF-8: what it holds else cannot be written.
    return html.escape(text.encode('utf-8', 'replace').decode())


def _fact(name: str, value: str) -> str:
    return f'<div><dt>{_safe(name)}</dt><dd>{_safe(value)}</dd></div>'


def _scores(report: Report) -> str:
    methods = list(report.scores)
    rows = []
    for name in report.scores[report.method][MAIN_PROTOCOL]['images']:
        values = [report.scores[method][MAIN_PROTOCOL]['images'][name] for method in methods]
        link = f'<a href="#{report.anchors[name]}">{_safe(name)}</a>' if name in report.anchors else _safe(name)
        rows.append(f'<tr><th scope="row">{link}</th>{_cells(values)}</tr>')
    values = [report.scores[method][MAIN_PROTOCOL] for method in methods]
    rows.append(f'<tr class="mean"><th scope="row">mean</th>{_cells(values)}</tr>')
    caption = f'Each image, protocol <code>{MAIN_PROTOCOL}</code>: PSNR in dB, below it SSIM'
    images = _table(caption, ['image', *methods, 'gain'], rows)

    rows = []
    for name in report.scores[report.method]:
        values = [report.scores[method].get(name) for method in methods]
        about = f'<code>{name}</code><small>{_rules(name, report.scale)}</small>'
        rows.append(f'<tr><th scope="row">{about}</th>{_cells(values)}</tr>')
    caption = 'Means over all images, by protocol: PSNR in dB, below it SSIM'
    return f'<div class="tables">{images}{_table(caption, ["protocol", *methods, "gain"], rows)}</div>'


def _table(caption: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    cells = ''.join(f'<th scope="col">{_safe(head)}</th>' for head in heads)
    return f'<table><caption>{caption}</caption><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _cells(values: Sequence[Mapping[str, Any] | None]) -> str:
    """PSNR and SSIM of bicubic and of the network, and the gain."""
    cells = [
        '<td>–</td>' if one is None else f'<td>{score(one["psnr"], 2)}<small>{score(one["ssim"], 4)}</small></td>'
        for one in values
    ]
    before, after = values
    return f'{"".join(cells)}<td class="gain">{gain(after, before) if before else "–"}</td>'


def _rules(name: str, scale: int) -> str:
    rules = PROTOCOLS[name]
    words = ['on Y' if rules.y else 'on RGB', 'not rounded' if rules.unrounded else 'rounded to 8 bits']
    return f'{", ".join(words)}, border of {scale + rules.extra_border} left out'


def _entry(entry: Entry, report: Report) -> str:
    name, (height, width) = _safe(entry.name), entry.size
    numbers = ''
    if report.scores:
        before, after = (report.scores[method][MAIN_PROTOCOL]['images'][entry.name] for method in report.scores)
        numbers = (
            f'<p class="numbers"><code>{MAIN_PROTOCOL}</code> <span>{score(before["psnr"], 2)} → '
            f'<strong>{score(after["psnr"], 2)} dB</strong></span> <span>SSIM {score(before["ssim"], 4)} → '
            f'<strong>{score(after["ssim"], 4)}</strong></span></p>'
        )
    return f"""<article id="{report.anchors[entry.name]}" aria-label="{name}">
<header><h3>{name}</h3><p class="size">{width} × {height}</p>{numbers}</header>
<div class="looks">{_viewer(entry, name)}{_crops(entry, name)}</div>
{_maps(entry, name)}
</article>
"""


def _viewer(entry: Entry, name: str) -> str:
    height, width = entry.size
    labels = [picture.label for picture in (*entry.layers, *entry.maps)]
    selects = []
    for index, side in enumerate(('left', 'right')):
        options = ''.join(
            f'<option{" selected" if i == index else ""}>{_safe(label)}</option>' for i, label in enumerate(labels)
        )
        selects.append(
            f'<label class="{side}"><span>{side}</span><select data-side="{side}" '
            f'aria-label="{side.title()} picture of {name}">{options}</select></label>'
        )
    images = ''.join(
        f'<img class="{("left", "right", "")[index]}" src="{picture.uri}" alt="{name}, {_safe(picture.label)}">'
        for index, picture in enumerate(entry.layers)
    )
    boxes = ''.join(
        f'<span class="box" style="top:{100 * box.top / height:.3f}%;left:{100 * box.left / width:.3f}%;'
        f'height:{100 * box.height / height:.3f}%;width:{100 * box.width / width:.3f}%">{letter}</span>'
        for letter, (box, _) in zip('ABC', entry.crops, strict=False)
    )
    # A small image may be shown at twice its size, and none higher than the window.
    wide = max(min(2 * width, 640), min(width, LONGEST))
    return f"""<div class="viewer" style="--ratio:{width / height:.5f};--wide:{wide}px">
<div class="choose">{''.join(selects)}</div>
<div class="stage" style="--at:50%">{images}<div class="boxes" aria-hidden="true">{boxes}</div>\
<div class="line" aria-hidden="true"></div>\
<input type="range" min="0" max="100" value="50" aria-label="Divider between the two pictures of {name}"></div>
</div>"""


def _crops(entry: Entry, name: str) -> str:
    rows = []
    for letter, (_, pictures) in zip('ABC', entry.crops, strict=False):
        cells = ''.join(
            f'<img src="{picture.uri}" alt="{name}, crop {letter}, {_safe(picture.label)}">' for picture in pictures
        )
        rows.append(f'<div class="row"><span class="letter" aria-hidden="true">{letter}</span>{cells}</div>')
    if not rows:
        return ''
    heads = ''.join(f'<span>{_safe(picture.label)}</span>' for picture in entry.layers)
    rows.insert(0, f'<div class="row heads" aria-hidden="true"><span></span>{heads}</div>')
    return f'<div class="crops" style="--columns:{len(entry.layers)}">{"".join(rows)}</div>'


def _maps(entry: Entry, name: str) -> str:
    figures = ''.join(
        f'<figure><button type="button" data-layer="{_safe(picture.label)}" aria-label="Show in the slider: {name}, '
        f'{_safe(picture.label)}"><img src="{picture.uri}" alt="{name}, {_safe(picture.label)}"></button>'
        f'<figcaption>{_safe(picture.label)}</figcaption></figure>'
        for picture in entry.maps
    )
    return f'<div class="maps">{figures}</div>' if figures else ''


def _chart(title: str, text: str, drawing: str) -> str:
    return f'<figure class="chart"><h3>{_safe(title)}</h3>{drawing}<figcaption>{_safe(text)}</figcaption></figure>'


def _about(report: Report) -> str:
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
    details = ''.join(_fact(*detail) for detail in report.details.items())
    return f'<dl class="details">{details}</dl><ul>{"".join(f"<li>{_safe(note)}</li>" for note in notes)}</ul>'


def _list(names: Sequence[str]) -> str:
    if len(names) > 6:
        return f'{len(names)} images'
    return ', '.join(names) or 'none'
