"""Training curves: the scalars of a TensorBoard log, and charts of them as SVG."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape

from spinsr.evaluation.protocols import PROTOCOLS
from spinsr.training import option_files
from spinsr.utils.errors import OptionError

# At most so many points are drawn; of more, the means of groups of neighbours.
POINTS = 200
SIZE = (400, 220)
MARGIN = (48, 10, 12, 26)  # left, top, right, bottom


class Series(NamedTuple):
    """A scalar of a log.

    Attributes:
        tag: As BasicSR calls it: losses/l_pix, metrics/Set5/psnr.
        steps: Iterations, ascending.
        values: As many.
    """

    tag: str
    steps: np.ndarray
    values: np.ndarray


def read_log(folder: str | os.PathLike) -> list[Series]:
    """Losses and validation metrics of a training, from the event files that BasicSR writes to tb_logger/NAME.

    Values that are not finite are left out, and of iterations that a resumed training repeated the later ones count.

    Raises:
        ImportError: The package tensorboard is missing.
        ValueError: The folder holds no event files, or none of these scalars.
    """
    folder = Path(folder)
    if not any(folder.glob('*tfevents*')):
        raise ValueError(f'{folder} holds no TensorBoard log (events.out.tfevents…)')
    try:
        from tensorboard.backend.event_processing import event_accumulator
    except ImportError as error:
        raise ImportError('reading a log needs tensorboard: pip install tensorboard') from error
    kinds = (event_accumulator.IMAGES, event_accumulator.TENSORS, event_accumulator.COMPRESSED_HISTOGRAMS)
    # 0 keeps every scalar; of the kinds that are not looked at, one.
    sizes = {event_accumulator.SCALARS: 0, **dict.fromkeys(kinds, 1)}
    log = event_accumulator.EventAccumulator(str(folder), size_guidance=sizes)
    log.Reload()
    found = []
    for tag in sorted(log.Tags()['scalars'], key=_order):
        # By step: of what was computed twice, the later one.
        values = {event.step: event.value for event in log.Scalars(tag) if math.isfinite(event.value)}
        if tag.startswith(('losses/', 'metrics/')) and values:
            steps = sorted(values)
            found.append(Series(tag, np.array(steps), np.array([values[step] for step in steps])))
    if not found:
        raise ValueError(f'the TensorBoard log in {folder} holds neither losses nor metrics')
    return found


def _order(tag: str) -> tuple[bool, str]:
    return not tag.startswith('metrics/'), tag


def read_protocols(folder: str | os.PathLike) -> dict[str, str]:
    """The protocol of each validation metric, from the option file that BasicSR keeps in experiments/NAME.

    Args:
        folder: The log, tb_logger/NAME; the option file is looked for in ../../experiments/NAME.

    Returns:
        Metric -> a name in `spinsr.evaluation.benchmark.PROTOCOLS`, or the rules in words; empty without the file.

    Raises:
        OptionError: The file is damaged.
    """
    log = Path(os.path.abspath(folder))
    files = sorted((log.parent.parent / 'experiments' / log.name).glob('*.yml'), key=os.path.getmtime)
    if not files:
        return {}
    options = option_files.read(files[-1])
    metrics: Any = options
    for key in ('val', 'metrics'):
        metrics = metrics.get(key) or {}
        if not isinstance(metrics, Mapping):
            raise OptionError(f'{files[-1]}: {key} must be a mapping, got {metrics!r}')
    scale = options.get('scale')
    return {name: _protocol(rules, scale) for name, rules in metrics.items() if isinstance(rules, Mapping)}


def _protocol(rules: Mapping[str, Any], scale: Any) -> str:
    rules = dict(rules)
    kind = rules.pop('type', '')
    if kind in ('calculate_psnr', 'calculate_ssim') and isinstance(scale, int):
        y, border = rules.get('test_y_channel', False), rules.get('crop_border')
        for name, protocol in PROTOCOLS.items():
            # BasicSR scores images that are rounded to 8 bits.
            if not protocol.unrounded and (protocol.y, scale + protocol.extra_border) == (y, border):
                return name
    return ', '.join([str(kind), *(f'{key} {value}' for key, value in rules.items())])


def chart(series: Series, protocols: Mapping[str, str]) -> tuple[str, str, Markup]:
    """One curve: its title, what it says in words, and its drawing, an <svg>.

    Args:
        series: What to draw.
        protocols: As of `read_protocols`.
    """
    kind, *middle, name = series.tag.split('/')
    steps, values, size = _thinned(series)
    last = f'{_number(series.values[-1])} at iteration {series.steps[-1]:,}'
    if kind == 'metrics':
        title = f'{name.upper()} on {"/".join(middle)}'
        protocol = protocols.get(name, 'unknown protocol (no option file in experiments/ beside the log)')
        text = f'Validation, {protocol}: last {last}.'
    else:
        title, text = f'Training loss {name}', f'Last {last}.'
    if size > 1:
        text += f' Each point is the mean of {size}.'
    if _spans_powers(values):
        text += ' The vertical axis is logarithmic.'
    return title, text, _draw(steps, values, f'{title}. {text}')


def _thinned(series: Series) -> tuple[np.ndarray, np.ndarray, int]:
    """At most POINTS points: the means of groups, at the last step of each; and how many values a group has."""
    size = -(-len(series.steps) // POINTS)
    starts = np.arange(0, len(series.steps), size)
    ends = np.minimum(starts + size, len(series.steps))
    means = np.add.reduceat(series.values, starts) / (ends - starts)
    return series.steps[ends - 1], means, size


def _draw(steps: np.ndarray, values: np.ndarray, label: str) -> Markup:
    left, top = MARGIN[:2]
    right, bottom = SIZE[0] - MARGIN[2], SIZE[1] - MARGIN[3]
    first, final = int(steps[0]), max(int(steps[-1]), int(steps[0]) + 1)
    low, high = float(values.min()), float(values.max())
    logarithmic = _spans_powers(values)
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
        values = np.log10(values)
    margin = 0.06 * (high - low) or max(abs(high) * 0.01, 1e-6)
    low, high = low - margin, high + margin
    ticks = _decades(low, high) if logarithmic else _steps(low, high)

    def x(step: float) -> float:
        return round(left + (step - first) / (final - first) * (right - left), 1)

    def y(value: float) -> float:
        return round(bottom - (value - low) / (high - low) * (bottom - top), 1)

    parts = [f'<svg viewBox="0 0 {SIZE[0]} {SIZE[1]}" role="img" aria-label="{escape(label)}">']
    for value, text in ticks:
        parts.append(f'<path class="grid" d="M{left} {y(value)}H{right}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4}" text-anchor="end">{text}</text>')
    for step in sorted({first, final}):
        anchor = 'start' if step == first else 'end'
        parts.append(f'<text x="{x(step)}" y="{SIZE[1] - 6}" text-anchor="{anchor}">{step:,}</text>')
    points = ' '.join(f'{x(step)},{y(value)}' for step, value in zip(steps, values, strict=True))
    parts.append(f'<text x="{(left + right) / 2}" y="{SIZE[1] - 6}" text-anchor="middle">iterations</text>')
    parts.append(f'<polyline points="{points}"/>')
    parts.append(f'<circle cx="{x(steps[-1])}" cy="{y(values[-1])}" r="3.5"/></svg>')
    return Markup(''.join(parts))


def _spans_powers(values: np.ndarray) -> bool:
    """Whether the axis is logarithmic: of a loss, which falls steeply at first, the rest would be a flat line."""
    return 0 < 4 * values.min() < values.max()


def round_step(span: float, lines: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides a span into at most so many parts."""
    power = 10 ** math.floor(math.log10(span / lines))
    return next(digit * power for digit in (1, 2, 5, 10) if span / (digit * power) <= lines)


def _steps(low: float, high: float) -> list[tuple[float, str]]:
    step = round_step(high - low, 4)
    digits = max(0, -math.floor(math.log10(step)))
    return [(i * step, f'{i * step:.{digits}f}') for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """1, 2, 3, 5, 7 times the powers of ten on an axis of logarithms; fewer where it is long."""
    digits = (1, 2, 3, 5, 7) if high - low < 1 else (1, 3) if high - low < 2 else (1,)
    numbers = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in digits]
    return [(math.log10(number), f'{number:g}') for number in numbers if low <= math.log10(number) <= high]


def _number(value: float) -> str:
    return f'{value:.2f}' if abs(value) >= 10 else f'{value:.4g}'
