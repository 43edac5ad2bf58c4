"""The course of trainings from their log files: a table for each, and one picture of their validation curves.

    python scripts/training_log.py experiments/train_SPIN_x4_release experiments/train_RCAN_x4_light \
        --csv logs --plot curves.png

A training that was stopped and resumed has several log files; of iterations that were done twice the later are taken.
The picture's time is that of the median iteration times their number: what the machine did beside it does not count.
"""

import argparse
import csv
import io
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from spinsr.cli.arguments import path
from spinsr.files import write_bytes

_ITERATION = re.compile(r'\[epoch: *\d+, iter: *([\d,]+), lr:\(([^,)]+).*time \(data\): ([\d.]+) .*?\] (.*)')
_RESUMED = re.compile(r'(?:Resuming|Start) training from epoch: \d+, iter: (\d+)')
_VALIDATED = re.compile(r'INFO: Validation (\S+)')
_SCORE = re.compile(r'\t # (\w+): ([\d.]+)')

Rows = dict[int, dict[str, float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the logs of experiments, prints a line for each, and writes what is asked for."""
    args = parse(argv)
    logs = {folder.name: read(sorted(folder.glob('*.log'))) for folder in args.experiments}
    for name, rows in logs.items():
        if not rows:
            print(f'training_log: error: no log file in {name} has an iteration', file=sys.stderr)
            return 1
        last = [f'{key} {value:g}' for key, value in rows[max(rows)].items() if '/' in key]
        print(f'{name}: {max(rows)} iterations, {hours(rows, max(rows)):.2f} h; {", ".join(last) or "not validated"}')
        if args.csv:
            args.csv.mkdir(parents=True, exist_ok=True)
            write_bytes(args.csv / f'{name}.csv', table(rows).encode())
    if args.plot:
        write_bytes(args.plot, draw(logs, args.metric))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('experiments', nargs='+', type=path, help='folders with the log files of a training each')
    parser.add_argument('--csv', type=path, metavar='FOLDER', help='write EXPERIMENT.csv into it for each')
    parser.add_argument('--plot', type=path, metavar='FILE', help='draw the validation curves (PNG; needs matplotlib)')
    parser.add_argument('--metric', default='Set5/psnr', help='what the picture shows (default: %(default)s)')
    return parser.parse_args(argv)


def read(files: Sequence[Path]) -> Rows:
    """What the log files of one training say, the older files first.

    Returns:
        Iteration -> column -> number: `seconds` of an iteration (mean since the row before), `lr`, the losses, and
        `DATASET/METRIC` where the network was validated.
    """
    rows: Rows = {}
    for file in files:
        current, dataset = 0, ''
        for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
            if found := _RESUMED.search(line):
                current = int(found[1])
                rows = {iteration: row for iteration, row in rows.items() if iteration <= current}
            elif found := _ITERATION.search(line):
                current = int(found[1].replace(',', ''))
                losses = dict(zip(*[iter(found[4].replace(':', '').split())] * 2, strict=False))
                numbers = {'seconds': found[3], 'lr': found[2], **losses}
                rows[current] = {key: float(number) for key, number in numbers.items()}
            elif found := _VALIDATED.search(line):
                dataset = found[1]
            elif (found := _SCORE.match(line)) and current:
                rows.setdefault(current, {})[f'{dataset}/{found[1]}'] = float(found[2])
    return rows


def hours(rows: Rows, iteration: int) -> float:
    """How long so many iterations take at the median speed of the training."""
    return iteration * statistics.median(row['seconds'] for row in rows.values() if 'seconds' in row) / 3600


def table(rows: Rows) -> str:
    """A CSV table, a line for each iteration that the log has."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, ['iteration', *columns], lineterminator='\n')
    writer.writeheader()
    writer.writerows({'iteration': iteration, **rows[iteration]} for iteration in sorted(rows))
    return text.getvalue()


def draw(logs: Mapping[str, Rows], metric: str) -> bytes:
    """The validation curves over the hours, as the bytes of a PNG file."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4), dpi=110)
    for name, rows in logs.items():
        points = [(hours(rows, iteration), row[metric]) for iteration, row in sorted(rows.items()) if metric in row]
        axis.plot([hour for hour, _ in points], [score for _, score in points], marker='o', ms=3, label=name)
    axis.set_xlabel('hours at the median speed')
    axis.set_ylabel(metric)
    axis.grid(color='0.9')
    axis.legend()
    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format='png')
    pyplot.close(figure)
    return data.getvalue()


if __name__ == '__main__':
    sys.exit(main())
