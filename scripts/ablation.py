"""How much the choices in SPIN, and in its and RCAN's training, matter: small networks, equal budget, several seeds.

    spinsr prepare images T91 BSDS500 DIV2K_test_LRx4 -o datasets/ablation --scale 2 3 4 --min-side 128 \\
        --exclude B100 Set5 Set14
    python scripts/ablation.py --data datasets/ablation --benchmark datasets/benchmark/Set5 datasets/benchmark/Set14

trains each row of a study with each seed by `python -m spinsr.train`, in OUT/experiments, scores it, and writes
OUT/<study>.md, .json and .png from the finished rows. The same command resumes where it was stopped. A finished row is
skipped unless its options have changed. The studies of recipes (--study recipe_SPIN, recipe_RCAN) also need a teacher's
outputs, by `spinsr prepare teacher`.
"""

import argparse
import concurrent.futures
import contextlib
import copy
import hashlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spinsr.cli.arguments import path, positive
from spinsr.evaluation import plot
from spinsr.training import option_files, progressive_learning
from spinsr.utils.atomic_write import write_bytes

SCALE = 4
PROTOCOL = 'y_crop_scale'
# Half of the iterations.
HALF = object()


@dataclass(frozen=True)
class Study:
    """Trainings to compare. The keys are those of an option file, as `section:key`.

    Attributes:
        rows: What each changes of the study's own recipe. The first row is the one that the others are compared with.
        changes: What the study changes of the release recipe of SPIN.
        has_teacher: Whether the data have a teacher's outputs.
    """

    rows: Mapping[str, Mapping[str, Any]]
    changes: Mapping[str, Any]
    has_teacher: bool = False

    @property
    def default(self) -> str:
        return next(iter(self.rows))


# A SPIN for patches of 24x24: its cells are half as large as the paper's, and a patch has 16, 9, 4 and 4 of them.
SMALL_SPIN = {'num_feat': 24, 'num_block': 4, 'qk_dim': 12, 'mlp_dim': 40, 'stoken_size': [6, 8, 10, 12]}
SMALL_RCAN = {
    'type': 'RCAN_spinsr',
    'num_in_ch': 3,
    'num_out_ch': 3,
    'num_feat': 24,
    'num_group': 2,
    'num_block': 4,
    'squeeze_factor': 6,
    'upscale': SCALE,
    'res_scale': 1,
    'img_range': 255.0,
    'rgb_mean': [0.4488, 0.4371, 0.4040],
}
VARIANT = {'network_g:type': 'SPINVariant'}
LONGER = {'network_g:num_block': 6, 'network_g:stoken_size': [6, 8, 10, 12, 6, 8]}
VARIANTS: dict[str, dict[str, Any]] = {
    'SPIN': {},
    'only ISPA, 6 blocks': VARIANT | LONGER | {'network_g:interaction': 'only_intra'},
    'only SPCA, 6 blocks': VARIANT | LONGER | {'network_g:interaction': 'only_cross'},
    'parallel': VARIANT | {'network_g:interaction': 'parallel'},
    'mixture (SVQ)': VARIANT | {'network_g:aggregation': 'mixture'},
    'patches': VARIANT | {'network_g:aggregation': 'patch'},
    '1 round': {'network_g:num_iter': 1},
    '5 rounds': {'network_g:num_iter': 5},
    'top 36': VARIANT | {'network_g:top_n': 36},
    'top 144': VARIANT | {'network_g:top_n': 144},
    'differentiable': VARIANT | {'network_g:differentiable': True},
    'exponential': VARIANT | {'network_g:association': 'exponential'},
    'positions': VARIANT | {'network_g:position_weight': 1.0},
    'values of ignored pixels only': VARIANT | {'network_g:own_values': 'ignored'},
    'L2 loss': {'train:pixel_opt:type': 'MSELoss'},
    'constant learning rate': {'train:scheduler:eta_min': 1e-3},
}


def recipe_rows(low: float, middle: float, high: float) -> dict[str, dict[str, Any]]:
    """Targets and optimizers, with three learning rates of Muon."""

    def l1(weight: float) -> dict[str, Any]:
        return {'type': 'L1Loss', 'loss_weight': weight, 'reduction': 'mean'}

    def muon(lr: float, weight_decay: float = 0.0) -> dict[str, Any]:
        adam = {'lr': 1e-3, 'betas': [0.9, 0.99], 'weight_decay': 0.0, 'params': ['conv_first', 'conv_last']}
        return {
            'train:optim_g': {
                'type': 'Muon',
                'lr': lr,
                'momentum': 0.95,
                'weight_decay': weight_decay,
                'adam': adam,
            }
        }

    adamw = {'train:optim_g': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.01, 'betas': [0.9, 0.99]}}
    teacher = {'train:pixel_opt': None, 'train:distill_opt': l1(1)}
    both = {'train:pixel_opt': l1(0.5), 'train:distill_opt': l1(0.5)}
    then_hr = {'train:distill_opt': l1(1), 'train:distill_iters': HALF, 'train:pixel_after': HALF}
    return {
        'HR, Adam': {},
        'HR, AdamW': adamw,
        f'HR, Muon {middle}': muon(middle),
        'teacher, Adam': teacher,
        'teacher, AdamW': teacher | adamw,
        f'teacher, Muon {low}': teacher | muon(low),
        f'teacher, Muon {middle}': teacher | muon(middle),
        f'teacher, Muon {middle}, decay 0.1': teacher | muon(middle, 0.1),
        f'teacher, Muon {high}': teacher | muon(high),
        'HR and teacher, Adam': both,
        f'HR and teacher, Muon {middle}': both | muon(middle),
        'teacher, then HR, Adam': then_hr,
        f'teacher, then HR, Muon {middle}': then_hr | muon(middle),
    }


STUDIES = {
    'ablation': Study(VARIANTS, {f'network_g:{key}': value for key, value in SMALL_SPIN.items()}),
    'recipe_SPIN': Study(
        recipe_rows(0.003, 0.01, 0.02), {f'network_g:{key}': value for key, value in SMALL_SPIN.items()}, True
    ),
    'recipe_RCAN': Study(recipe_rows(0.002, 0.005, 0.01), {'network_g': SMALL_RCAN}, True),
}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    for folder in (*args.benchmark, args.data):
        if not folder.is_dir():
            sys.stderr.write(f'ablation.py: error: not a directory: {folder}\n')
            return 1
    runs = [(row, seed) for seed in args.seeds for row in args.rows]
    for name in ('options', 'logs', 'scores'):
        (args.out / name).mkdir(parents=True, exist_ok=True)
    workers = Workers(args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        try:
            failures = sum(pool.map(lambda run: workers.finish(*run), runs))
        except KeyboardInterrupt:
            workers.stop()
            sys.stderr.write('ablation.py: interrupted; run the same command to resume\n')
            failures = len(runs)
    report(args, [(row, seed) for row, seed in runs if is_done(args, row, seed)])
    return int(failures > 0)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('--data', metavar='DIR', type=path, required=True, help='made by `spinsr prepare images`, x4')
    parser.add_argument(
        '--benchmark',
        metavar='DIR',
        type=path,
        nargs='+',
        required=True,
        help='folders of the scores, the first counts',
    )
    parser.add_argument('--study', choices=STUDIES, default='ablation', help='default: %(default)s')
    parser.add_argument('-o', '--out', metavar='DIR', type=path, help='default: the name of the study')
    parser.add_argument('--rows', metavar='NAME', nargs='+', default=[], help='default: all rows')
    parser.add_argument('--seeds', metavar='N', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--iterations', metavar='N', type=positive, default=2000, help='default: %(default)s')
    parser.add_argument(
        '--jobs', metavar='N', type=positive, default=os.cpu_count() or 1, help='trainings at once, with a thread each'
    )
    args = parser.parse_args(argv)
    args.name, args.study = args.study, STUDIES[args.study]
    args.out = args.out or Path(args.name)
    known = list(args.study.rows)
    if unknown := [row for row in args.rows if row not in known]:
        parser.error(f'argument --rows: {unknown[0]!r} is not a row of {args.name}, which has {", ".join(known)}')
    args.rows = [row for row in known if row in (*(args.rows or known), args.study.default)]
    args.seeds = sorted(set(args.seeds))
    return args


def options(args: argparse.Namespace, row: str, seed: int) -> dict[str, Any]:
    """The option file of one training: the release recipe, smaller, without growing patches, and the row's changes."""
    opt = option_files.read(option_files.find(f'train_SPIN_x{SCALE}_release.yml'))
    opt |= {'name': f'{slug(row)}_{seed}', 'manual_seed': seed, 'num_gpu': 0}
    del opt['datasets']['val'], opt['val']
    for key in progressive_learning.KEYS:
        opt['datasets']['train'].pop(key, None)
    data = args.data.resolve()
    if args.study.has_teacher:
        opt['datasets']['train']['type'] = 'DistillationDataset'
        opt['datasets']['train']['dataroot_teacher'] = str(data / f'train_teacher_X{SCALE}.lmdb')
    changes = {
        'datasets:train:dataroot_gt': str(data / 'train_HR.lmdb'),
        'datasets:train:dataroot_lq': str(data / f'train_LR_bicubic_X{SCALE}.lmdb'),
        'datasets:train:gt_size': 24 * SCALE,
        'datasets:train:batch_size_per_gpu': 4,
        'train:precision': 'fp32',
        'train:ema_decay': 0.99,
        'train:scheduler:periods': [args.iterations],
        'train:scheduler:restart_weights': [1],
        'train:total_iter': args.iterations,
        'train:warmup_iter': min(100, args.iterations),
        'logger:print_freq': 100,
        'logger:save_checkpoint_freq': 250,
        'logger:keep_last': 1,
        **args.study.changes,
        **args.study.rows[row],
    }
    for key, value in changes.items():
        *sections, last = key.split(':')
        section = opt
        for name in sections:
            section = section[name]
        section[last] = args.iterations // 2 if value is HALF else copy.deepcopy(value)
    return opt


class Workers:
    """Trains and scores; several at once, each a process."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.processes: set[subprocess.Popen] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def finish(self, row: str, seed: int) -> bool:
        """Finishes one training; returns whether it failed."""
        if self.stopped or is_done(self.args, row, seed):
            return False
        opt = options(self.args, row, seed)
        out = self.args.out.resolve()
        file = out / 'options' / f'{opt["name"]}.yml'
        text = yaml.safe_dump(opt, sort_keys=False)
        resume = ['--auto_resume'] if file.exists() and file.read_text(encoding='utf-8') == text else []
        old = out / 'experiments' / opt['name']
        if not resume and old.exists():
            # BasicSR does it too, but when we are stopped before, the next run would continue from these states.
            old.rename(old.with_name(f'{old.name}_archived_{time.strftime("%Y%m%d_%H%M%S")}'))
        write_bytes(file, text.encode())
        start = time.monotonic()
        status = self.run([sys.executable, '-m', 'spinsr.train', '-opt', str(file), *resume], out, opt['name'])
        if self.stopped:  # SIGTERM ends a training with a checkpoint and status 0
            return True
        if status:
            sys.stderr.write(f'ablation.py: {opt["name"]} failed, see {out / "logs" / opt["name"]}.log\n')
            return True
        try:
            scores = evaluate(opt, out, self.args.benchmark)
        except (OSError, ValueError) as error:
            sys.stderr.write(f'ablation.py: {opt["name"]} cannot be scored: {error}\n')
            return True
        write_bytes(result_file(self.args, opt), json.dumps({'options': digest(opt), 'psnr': scores}).encode())
        print(f'{opt["name"]}: {scores} ({time.monotonic() - start:.0f} s)', flush=True)
        return False

    def run(self, command: list[str], folder: Path, name: str) -> int:
        with (folder / 'logs' / f'{name}.log').open('ab') as output:
            with self.lock:
                if self.stopped:
                    return 1
                process = subprocess.Popen(
                    command, cwd=folder, stdout=output, stderr=output, env={**os.environ, 'OMP_NUM_THREADS': '1'}
                )
                self.processes.add(process)
            status = process.wait()
        with self.lock:
            self.processes.discard(process)
        return status

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for process in self.processes:
                with contextlib.suppress(OSError):
                    process.terminate()


def evaluate(opt: Mapping[str, Any], out: Path, benchmarks: Sequence[Path]) -> dict[str, float]:
    """Mean PSNR on each benchmark, of the EMA weights."""
    import spinsr
    from spinsr.evaluation import benchmark

    arch_args = {key: value for key, value in opt['network_g'].items() if key not in ('type', 'upscale')}
    weights = out / 'experiments' / opt['name'] / 'models' / 'net_g_latest.pth'
    net = spinsr.load(opt['network_g']['type'], SCALE, weights, **arch_args)
    results = benchmark.evaluate(benchmarks, [SCALE], benchmark.network({SCALE: net}), protocols=[PROTOCOL])
    return {result['dataset']: result['protocols'][PROTOCOL]['psnr'] for result in results}


def slug(row: str) -> str:
    return ''.join(c if c.isalnum() else '_' for c in row)


def digest(opt: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(opt, sort_keys=True).encode()).hexdigest()


def result_file(args: argparse.Namespace, opt: Mapping[str, Any]) -> Path:
    return args.out.resolve() / 'scores' / f'{opt["name"]}.json'


def read_scores(args: argparse.Namespace, row: str, seed: int) -> dict[str, float] | None:
    opt = options(args, row, seed)
    file = result_file(args, opt)
    if not file.exists():
        return None
    result = json.loads(file.read_text(encoding='utf-8'))
    names = {folder.resolve().name for folder in args.benchmark}
    return result['psnr'] if result['options'] == digest(opt) and names <= set(result['psnr']) else None


def is_done(args: argparse.Namespace, row: str, seed: int) -> bool:
    return read_scores(args, row, seed) is not None


def summarize(scores: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """Means, spreads, and which differences from the default are larger than chance makes them.

    A row and the default are compared seed by seed: with one seed both see the same patches in the same order. How much
    these differences spread is one number s for all rows, since three seeds say little about the variance of one row:
    a score is taken as row + seed + noise, and s^2 is twice the variance of the noise. (The mean variance of the
    differences would not do: all contain the default's own noise, so that they are no independent estimates.) A mean is
    called a difference if it exceeds t s / sqrt(seeds), t the 97.5 % quantile of Student's distribution: one row in 20
    that change nothing is called one.

    Args:
        scores: Row -> seed -> PSNR, dB; first the default.
    """
    from scipy.stats import t

    default, base = next(iter(scores.items()))
    differences = {
        row: [psnr - base[seed] for seed, psnr in values.items() if seed in base]
        for row, values in scores.items()
        if row != default
    }
    squares, degrees = noise(scores)
    spread = math.sqrt(2 * squares / degrees) if degrees else math.nan
    rows = {}
    for row, values in scores.items():
        psnr = list(values.values())
        rows[row] = {
            'seeds': len(psnr),
            'mean': statistics.mean(psnr),
            'sd': statistics.stdev(psnr) if len(psnr) > 1 else math.nan,
        }
        if differences.get(row):
            mean = statistics.mean(differences[row])
            limit = float(t.ppf(0.975, degrees)) * spread / math.sqrt(len(differences[row])) if degrees else math.nan
            rows[row] |= {'difference': mean, 'limit': limit, 'is_difference': abs(mean) > limit}
    return {'spread_of_differences': spread, 'rows': rows}


def noise(scores: Mapping[str, Mapping[int, float]]) -> tuple[float, int]:
    """What the least squares of row + seed leave of the scores: the sum of squares, and its degrees of freedom."""
    import numpy as np

    seeds = sorted({seed for values in scores.values() for seed in values})
    cells = [(row, seed, psnr) for row, values in scores.items() for seed, psnr in values.items()]
    design = np.array([[row == r for r in scores] + [seed == s for s in seeds] for row, seed, _ in cells], float)
    psnr = np.array([psnr for _, _, psnr in cells])
    fit, _, rank, _ = np.linalg.lstsq(design, psnr - psnr.mean(), rcond=None)
    return float(((psnr - psnr.mean() - design @ fit) ** 2).sum()), len(cells) - int(rank)


def report(args: argparse.Namespace, done: Sequence[tuple[str, int]]) -> None:
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for row, seed in sorted(done, key=lambda run: (list(args.study.rows).index(run[0]), run[1])):
        for name, psnr in (read_scores(args, row, seed) or {}).items():
            scores.setdefault(name, {}).setdefault(row, {})[seed] = psnr
    scores = {name: rows for name, rows in scores.items() if args.study.default in rows}
    if not scores:
        return
    summaries = {name: summarize(rows) for name, rows in scores.items()}
    write_bytes(args.out / f'{args.name}.md', table(args, summaries).encode())
    write_bytes(args.out / f'{args.name}.json', json.dumps({'psnr': scores, 'summary': summaries}, indent=1).encode())
    draw(args.out / f'{args.name}.png', scores, summaries)
    print(table(args, summaries), end='')


def table(args: argparse.Namespace, summaries: Mapping[str, Any]) -> str:
    """Markdown: mean and standard deviation of each row, and its difference from the default."""
    default = args.study.default
    heads = [cell for name in summaries for cell in (f'{name}, dB', f'to {default}, dB')]
    lines = [
        f'PSNR x{SCALE} ({PROTOCOL}) after {args.iterations} iterations: mean and standard deviation over the seeds;',
        f'mean difference to {default} with the same seed, with what it must exceed (95 %) to be one; of 20 rows that',
        'change nothing one exceeds it.',
        '',
        f'| row | seeds | {" | ".join(heads)} |',
        f'| --- | --- |{" --- |" * len(heads)}',
    ]
    for row in next(iter(summaries.values()))['rows']:
        cells, seeds = [], 0
        for summary in summaries.values():
            values = summary['rows'].get(row, {})
            seeds = max(seeds, values.get('seeds', 0))
            cells.append(f'{values["mean"]:.3f} ({values["sd"]:.3f})' if values else '')
            cells.append(verdict(values))
        lines.append(f'| {row} | {seeds} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def verdict(values: Mapping[str, Any]) -> str:
    if 'difference' not in values:
        return ''
    if math.isnan(values['limit']):
        return f'{values["difference"]:+.3f}, too few seeds to judge'
    inside = '' if values['is_difference'] else ', inside the spread'
    return f'{values["difference"]:+.3f} ± {values["limit"]:.3f}{inside}'


def draw(
    file: Path, scores: Mapping[str, Mapping[str, Mapping[int, float]]], summaries: Mapping[str, Mapping[str, Any]]
) -> None:
    """Differences from the default: a dot for each seed, a bar for the mean, grey what chance would make, too."""
    default, *rows = next(iter(scores.values()))
    figure = plot.new_figure(3 + 3.5 * len(scores), 1 + 0.3 * len(rows), dpi=110)
    axes = figure.subplots(1, len(scores), sharey=True, squeeze=False)
    for axis, (name, values) in zip(axes[0], scores.items(), strict=True):
        axis.axvline(0, color='0.5', lw=1)
        for place, row in enumerate(rows):
            summary = summaries[name]['rows'].get(row, {})
            if 'difference' not in summary:
                continue
            axis.barh(place, 2 * summary['limit'], left=-summary['limit'], height=0.7, color='0.9')
            dots = [psnr - values[default][seed] for seed, psnr in values[row].items() if seed in values[default]]
            axis.plot(dots, [place] * len(dots), 'o', ms=4, mfc='none', color='tab:blue')
            axis.plot([summary['difference']], [place], '|', ms=14, mew=2, color='tab:red')
        axis.set_xlabel(f'{name} x{SCALE}: dB to {default}')
        axis.set_yticks(range(len(rows)), rows)
    axes[0][0].invert_yaxis()
    write_bytes(file, plot.to_png(figure))


if __name__ == '__main__':
    sys.exit(main())
