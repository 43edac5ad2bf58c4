"""Trainings from their log files: a table for each, and one plot of their validation curves.

    python scripts/training_log.py experiments/train_SPIN_x4_release experiments/train_RCAN_x4_light \\
        --csv logs --plot curves.png

A training that was stopped and resumed has several log files; of iterations that were done twice the later are taken.
Hours are iterations times the median of their seconds, of each patch size by itself: what the machine did beside the
training does not count.
"""

import argparse
import collections
import csv
import io
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from spinsr.cli.arguments import path
from spinsr.evaluation import plot
from spinsr.utils.atomic_write import write_bytes

_OPTION = re.compile(r' +(val_freq|total_iter): (\d+)$')
_ITERATION = re.compile(r'\[epoch: *\d+, iter: *([\d,]+), lr:\(([^,)]+).*time \(data\): ([\d.]+) .*?\] (.*)')
_ENTERED = re.compile(r'(Resuming|Start) training from epoch: \d+, iter: (\d+)')
_STAGE = re.compile(r'patches of .*, since iteration (\d+)')
_VALIDATED = re.compile(r'INFO: Validation (.+)')
_SCORE = re.compile(r'\t # (.+?): (\S+)')


class Log(NamedTuple):
    """A training.

    Attributes:
        rows: Iteration -> column -> number: `seconds` of an iteration (BasicSR's mean over the last 100 to 200 or so),
            `lr`, the losses, and `DATASET/METRIC` where the network was validated.
        stages: The iterations, from 1, at which iterations began to take another time: where patches grow.
    """

    rows: dict[int, dict[str, float]]
    stages: list[int]


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the logs of experiments, prints a line for each, and writes the files of --csv and --plot."""
    args = parse(argv)
    logs = {folder.name: read(sorted(folder.glob('*.log'))) for folder in args.experiments}
    if len(logs) < len(args.experiments):
        return _fail('the folders must have different names')
    for name, log in logs.items():
        if not any('seconds' in row for row in log.rows.values()):
            return _fail(f'no log file of {name} has an iteration')
    if args.plot and not any(args.metric in row for log in logs.values() for row in log.rows.values()):
        known = sorted({key for log in logs.values() for row in log.rows.values() for key in row if '/' in key})
        return _fail(f'no training was validated by {args.metric}; there is {", ".join(known) or "nothing"}')
    for name, log in logs.items():
        last = max(log.rows)
        scores = [f'{key} {value:g}' for key, value in log.rows[last].items() if '/' in key]
        print(f'{name}: {last} iterations, {hours(log, last):.2f} h; {", ".join(scores) or "not validated"}')
        if args.csv:
            args.csv.mkdir(parents=True, exist_ok=True)
            write_bytes(args.csv / f'{name}.csv', table(log).encode())
    if args.plot:
        write_bytes(args.plot, draw(logs, args.metric, args.bottom))
    return 0


def _fail(reason: str) -> int:
    print(f'training_log: error: {reason}', file=sys.stderr)
    return 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('experiments', nargs='+', type=path, help='folders with the log files of a training each')
    parser.add_argument('--csv', type=path, metavar='FOLDER', help='write EXPERIMENT.csv into it for each')
    parser.add_argument('--plot', type=path, metavar='FILE', help='draw the validation curves (PNG)')
    parser.add_argument('--metric', default='Set5/psnr', help='what the picture shows (default: %(default)s)')
    parser.add_argument('--bottom', type=float, help='where the scale of the picture begins (default: the least value)')
    return parser.parse_args(argv)


def read(files: Sequence[Path]) -> Log:
    """What the log files of one training say, the older files first."""
    rows: dict[int, dict[str, float]] = {}
    stages = {1}
    for file in files:
        options: dict[str, int] = {}
        validations: collections.Counter[str] = collections.Counter()
        entered, dataset, running, ended = 0, '', False, False
        for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
            if found := _OPTION.match(line):
                options[found[1]] = int(found[2])
            elif found := _ENTERED.search(line):
                entered, running = int(found[2]), found[1] == 'Start'
                rows = {iteration: row for iteration, row in rows.items() if iteration <= entered}
            elif found := _STAGE.search(line):
                stages.add(int(found[1]))
            elif found := _ITERATION.search(line):
                losses = dict(zip(*[iter(found[4].replace(':', '').split())] * 2, strict=False))
                numbers = {'seconds': found[3], 'lr': found[2], **losses}
                rows[int(found[1].replace(',', ''))] = {key: float(number) for key, number in numbers.items()}
            elif 'INFO: End of training' in line:
                ended = True
            elif found := _VALIDATED.search(line):
                dataset = found[1]
                validations[dataset] += running
            elif found := _SCORE.match(line):
                # The log does not say of which iteration a validation is, but they come in order.
                every = options.get('val_freq', 1)
                iteration = (entered // every + validations[dataset]) * every
                if ended:
                    iteration = options.get('total_iter', max(rows, default=entered))
                rows.setdefault(iteration if running else entered, {})[f'{dataset}/{found[1]}'] = float(found[2])
    return Log(rows, sorted(stages))


def hours(log: Log, iteration: int) -> float:
    """How long so many iterations take at the median speed of the training, of each stage by itself."""
    seconds = 0.0
    for first, after in zip(log.stages, [*log.stages[1:], math.inf], strict=True):
        own = [row['seconds'] for at, row in log.rows.items() if 'seconds' in row and first <= at < after]
        count = min(iteration, after - 1) - first + 1
        seconds += max(count, 0) * statistics.median(own) if own else 0
    return seconds / 3600


def table(log: Log) -> str:
    """A CSV table, a line for each iteration that the log has."""
    columns = list(dict.fromkeys(key for row in log.rows.values() for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, ['iteration', *columns], lineterminator='\n')
    writer.writeheader()
    writer.writerows({'iteration': iteration, **row} for iteration, row in sorted(log.rows.items()))
    return text.getvalue()


def draw(logs: Mapping[str, Log], metric: str, bottom: float | None = None) -> bytes:
    """The validation curves over the hours, as the bytes of a PNG file."""
    figure = plot.new_figure(7, 4, dpi=110)
    axis = figure.add_subplot()
    for name, log in logs.items():
        points = [(hours(log, iteration), row[metric]) for iteration, row in sorted(log.rows.items()) if metric in row]
        axis.plot([hour for hour, _ in points], [score for _, score in points], marker='o', ms=3, label=name)
    axis.set_xlabel('hours at the median speed')
    axis.set_ylabel(metric)
    axis.set_ylim(bottom=bottom)
    axis.grid(color='0.9')
    axis.legend()
    return plot.to_png(figure)


if __name__ == '__main__':
    sys.exit(main())
