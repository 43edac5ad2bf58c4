"""The table of `spinsr complexity`. It needs no torch, so kept counts show at once."""

from collections.abc import Mapping, Sequence
from typing import Any

from spinsr.utils.text import markdown_table

COLUMNS = (
    'arch',
    'scale',
    'input',
    'parameters',
    'multiply-adds',
    'of convolutions',
    'activations',
    'latency',
    'peak memory',
)


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of the rows: 'arch', 'scale', 'size' (H, W), what `count` and, if wanted, `measure` return."""
    shown = len(COLUMNS) if any('latency' in row for row in rows) else COLUMNS.index('latency')
    return markdown_table([line[:shown] for line in (COLUMNS, *map(_cells, rows))])


def _cells(row: Mapping[str, Any]) -> list[str]:
    height, width = row['size']
    memory = row.get('peak_memory')
    return [
        row['arch'],
        f'x{row["scale"]}',
        f'{height}x{width}',
        f'{row["parameters"]:,}',
        f'{_rounded(row["multiply_adds"] / 1e9)} G',
        f'{_rounded(row["convolution_multiply_adds"] / 1e9)} G',
        f'{_rounded(row["activations"] / 1e6)} M',
        f'{row["latency"]:.3g} s' if 'latency' in row else '',
        f'{memory / 1e6:,.0f} MB' if memory is not None else '',
    ]


def _rounded(number: float) -> str:
    return f'{number:,.1f}' if number >= 0.1 or number == 0 else f'{number:.2g}'
