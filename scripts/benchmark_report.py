"""What benchmark.py prints, and the JSON file that it writes."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark_session import Check, Session

from spinsr.utils.atomic_write import write_bytes


def pair_of(backends: Sequence[str]) -> tuple[str, str] | None:
    """Whose times are divided: reference by auto, or the first by the second of two."""
    if 'reference' in backends and 'auto' in backends:
        return 'reference', 'auto'
    return (backends[0], backends[1]) if len(backends) == 2 else None


def make_report(
    settings: Mapping[str, Any],
    session: Session,
    agreement: Mapping[str, Sequence[Check]],
    macs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything in one mapping, as it is written to the JSON file."""
    counted = [count['macs'] for count in macs.values() if count['macs']]
    rate = statistics.median(session.matmul_rates)
    floor = min(counted) / rate if counted else None
    results: dict[str, dict[str, Any] | None] = {}
    for name in settings['backends']:
        results[name] = None
        if name not in session.failed:
            seconds = [run['seconds'] for run in session.runs[name]]
            median = statistics.median(seconds)
            results[name] = {
                'seconds_median': median,
                'seconds_iqr': interquartile_range(seconds),
                'seconds': seconds,
                'peak_rss_bytes': session.runs[name][-1]['peak_rss_bytes'],
                'baseline_rss_bytes': session.baseline[name],
                'peak_device_bytes': session.runs[name][-1]['peak_device_bytes'],
                'macs': macs[name]['macs'],
                'macs_unknown_because': macs[name]['why'],
                'times_floor': median / floor if floor else None,
            }
    pair = pair_of(settings['backends'])
    reason = why_no_ratio(pair, session.failed, agreement)
    ratio = None if reason else results[pair[0]]['seconds_median'] / results[pair[1]]['seconds_median']
    return {
        **settings,
        'results': results,
        'ratio': ratio,
        'compared': pair,
        'no_ratio_because': reason,
        'failed': session.failed,
        'agreement': {
            name: [{**check._asdict(), 'value': finite(check.value)} for check in checks]
            for name, checks in agreement.items()
        },
        'macs_per_second': rate,
        'floor_seconds': floor,
    }


def why_no_ratio(
    pair: tuple[str, str] | None, failed: Mapping[str, str], agreement: Mapping[str, Sequence[Check]]
) -> str | None:
    """The reason why there is no ratio, or None where there is one."""
    if pair is None:
        return 'a ratio is that of reference to auto, or of two backends'
    for name in pair:
        if name in failed:
            return f'{name} failed'
    for name, checks in agreement.items():
        for check in checks:
            if not check.holds:
                return f'{name} differs: {check.rule} must be within {check.limit:.0e}, got {check.value:.2e}'
    return None


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no other numbers


def interquartile_range(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    quartiles = statistics.quantiles(values, n=4, method='inclusive')
    return quartiles[2] - quartiles[0]


def print_report(report: Mapping[str, Any]) -> None:
    height, width = report['lr_size']
    mode = f'{report["mode"]} with recompute' if report['recompute'] else report['mode']
    print(
        f'{report["arch"]} x{report["scale"]}, LR {height}x{width}, {mode}, batch {report["batch"]}, '
        f'{report["dtype"]}, {report["repeats"]} runs each in turns\n'
        f'{report["machine"]}, {report["threads"]} threads, {report["device"]}, torch {report["torch"]}\n'
    )
    rows = [('backend', 'median', 'IQR', 'peak memory', 'before the run', 'multiply-adds', 'times the floor')]
    for name, result in report['results'].items():
        if result is None:
            rows.append((name, 'failed', *[''] * 5))
            continue
        macs, times = result['macs'], result['times_floor']
        rows.append(
            (
                name,
                f'{result["seconds_median"]:.4g} s',
                f'{result["seconds_iqr"]:.2g} s',
                megabytes(result['peak_rss_bytes']),
                megabytes(result['baseline_rss_bytes']),
                f'{macs / 1e9:.2f} G' if macs else 'unknown',
                f'{times:.2f}' if times else 'unknown',
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(x.rjust(n) for x, n in zip(others, widths[1:], strict=True))]
        print('  '.join(cells).rstrip())
    print()
    for name, result in report['results'].items():
        if result and result['peak_device_bytes'] is not None:
            print(f'device memory  {name}: {megabytes(result["peak_device_bytes"])}')
        if result and result['macs_unknown_because']:
            print(f'multiply-adds  {name}: {result["macs_unknown_because"]}')
    for name, checks in report['agreement'].items():
        for check in checks:
            value = 'not a number' if check['value'] is None else f'{check["value"]:.2e}'
            print(f'agreement  {name}: {check["rule"]} {value} (limit {check["limit"]:.0e})')
    if report['floor_seconds']:
        print(f'floor      {report["floor_seconds"]:.4g} s: the fewest multiply-adds above', end=' ')
        print(f'at {report["macs_per_second"] / 1e9:.1f} G a second (matmul, measured between the runs)')
    if report['ratio'] is None:
        print(f'no ratio   {report["no_ratio_because"]}')
    else:
        print(f'ratio      {report["ratio"]:.3f} ({" / ".join(report["compared"])})')


def megabytes(count: int) -> str:
    return f'{count / 1e6:,.0f} MB'


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Writes the file: it is there whole or not at all."""
    write_bytes(path, (json.dumps(report, indent=2, allow_nan=False) + '\n').encode())
