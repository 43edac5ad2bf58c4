"""Plots as PNG files: PSNR against parameters, as in Figure 1 of the SPIN paper, or latency; what other plots share."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (1200, 800)
FONT = 13
# More names than this are written smaller.
CROWD = 20
PUBLISHED, OURS = '#5b7fa6', '#d1495b'


class Point(NamedTuple):
    """A network in the plot: its PSNR in dB over `x`, parameters or seconds; `ours` are those measured here."""

    name: str
    x: float
    psnr: float
    ours: bool = False


def new_figure(width: float, height: float, dpi: int = 100) -> 'Figure':
    """A matplotlib figure of a size in inches, independent of pyplot and its backends.

    Raises:
        ImportError: matplotlib or adjustText is missing; the message says how to install them.
    """
    try:
        import adjustText  # noqa: F401  so that what is missing shows before the work
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plots need matplotlib and adjustText ({error}): pip install 'spinsr[plot]'") from error
    return Figure((width, height), dpi=dpi, layout='constrained')


def to_png(figure: 'Figure') -> bytes:
    """The PNG file of a figure."""
    data = io.BytesIO()
    figure.savefig(data, format='png', metadata={'Software': None})
    return data.getvalue()


def draw(points: Sequence[Point], title: str, axis: str = 'parameters') -> bytes:
    """Draws points with their names over parameters, or anything else, on a logarithmic axis.

    Args:
        points: At least one; x above 0, PSNR finite.
        title: The line above.
        axis: What x is.

    Returns:
        PNG file of SIZE.

    Raises:
        ValueError: No points, or one that has no place on the axes.
        ImportError: As `new_figure`.
    """
    if not points:
        raise ValueError('a plot needs at least one point')
    for point in points:
        if point.x <= 0 or not math.isfinite(point.psnr):
            raise ValueError(f'{axis} must be above 0 and the PSNR finite, got {point}')
    figure = new_figure(SIZE[0] / 100, SIZE[1] / 100)
    from matplotlib.ticker import LogLocator, NullLocator

    axes = figure.add_subplot(xscale='log')
    axes.set_title(title, size=FONT + 3, pad=12)
    axes.set_xlabel(axis, size=FONT)
    axes.set_ylabel('PSNR (dB)', size=FONT)
    axes.tick_params(labelsize=FONT - 1)
    axes.set_axisbelow(True)
    axes.grid(color='0.9')
    for label, colour, marker, ours in (('measured here', OURS, 'D', True), ('as published', PUBLISHED, 'o', False)):
        own = [point for point in points if point.ours == ours]
        if own:
            xs, ys = [point.x for point in own], [point.psnr for point in own]
            axes.plot(xs, ys, marker, color=colour, ms=8, label=label)
    axes.margins(0.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_short)
    axes.legend(loc='lower right', fontsize=FONT)
    _add_names(figure, axes, points)
    return to_png(figure)


def _add_names(figure: 'Figure', axes: Any, points: Sequence[Point]) -> None:
    """Writes each name near its point where it covers nothing, with a line to the point if it is further away."""
    from adjustText import adjust_text
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # the layout, in which the places of the names are found
    figure.set_layout_engine('none')
    size = FONT if len(points) <= CROWD else FONT - 4
    names = [
        axes.text(point.x, point.psnr, point.name, color=OURS if point.ours else PUBLISHED, size=size)
        for point in points
    ]
    centres = axes.transData.transform([(point.x, point.psnr) for point in points])
    to_data = axes.transData.inverted()
    boxes = [Bbox(to_data.transform([(x - 9, y - 9), (x + 9, y + 9)])) for x, y in centres]  # in data coordinates
    # The time that it may take by default would make the result depend on the machine.
    adjust_text(
        names,
        objects=boxes,
        ax=axes,
        expand=(1.05, 1.2),
        force_text=(0.2, 0.4),
        force_static=(0.2, 0.4),
        force_pull=(0.02, 0.02),
        iter_lim=1500,
        arrowprops={'arrowstyle': '-', 'color': '0.6', 'lw': 0.8, 'shrinkB': 6},
    )


def _short(number: float, _: float | None = None) -> str:
    for unit, name in ((10**6, 'M'), (10**3, 'K')):
        if number >= unit:
            return f'{number / unit:g}{name}'
    return f'{number:g}'
