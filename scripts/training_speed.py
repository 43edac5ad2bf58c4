"""Iterations a second of a training with each of SpinsrModel's options, as ratios to the training without them.

    python scripts/training_speed.py -opt train_SPIN_x4_sample.yml --variant bf16 channels_last workers=2

All variants are built at once and take turns of some iterations, so that a machine whose speed changes is fair to all.
An iteration is what training does: a batch from the loader, the step, the EMA; where patches grow, with the first ones.
"""

import argparse
import itertools
import json
import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from spinsr import launch
from spinsr.training import option_files
from spinsr.utils.atomic_write import write_bytes
from spinsr.utils.errors import UserError
from spinsr.utils.text import markdown_table

VARIANTS: dict[str, dict[str, Any]] = {
    'bf16': {'train:precision': 'bf16'},
    'fp16': {'train:precision': 'fp16'},
    'compile': {'train:compile': True},
    'channels_last': {'train:channels_last': True},
    'recompute': {'train:recompute': True},
    'grad_clip': {'train:grad_clip': 1.0},
    'Muon': {'train:optim_g': {'type': 'Muon', 'lr': 0.01}},
    'accumulate=2': {'train:accumulate': 2},
    'workers=0': {'datasets:train:num_worker_per_gpu': 0},
    'workers=2': {'datasets:train:num_worker_per_gpu': 2},
    'SRModel': {'model_type': 'SRModel'},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('-opt', default='train_SPIN_x4_sample.yml', help='an option file, or the name of a shipped one')
    parser.add_argument('--variant', nargs='+', choices=VARIANTS, default=list(VARIANTS), metavar='NAME')
    parser.add_argument('--rounds', type=int, default=5, help='turns of each variant (default: %(default)s)')
    parser.add_argument('--iterations', type=int, default=4, help='iterations of a turn (default: %(default)s)')
    parser.add_argument('--json', metavar='FILE', type=Path)
    args = parser.parse_args()
    logging.getLogger('basicsr').setLevel(logging.ERROR)
    try:
        launch.register()
        variants = {name: build(args.opt, VARIANTS[name]) for name in args.variant}
        variants = {'without': build(args.opt, {}), **variants}
        times = measure(variants, args.rounds, args.iterations)
    except UserError as error:
        sys.stderr.write(f'training_speed.py: error: {error}\n')
        return 1
    report(times, args)
    return 0


def build(name: str, changes: dict[str, Any]) -> Callable[[], None]:
    """A function that does one iteration."""
    from basicsr.models import build_model

    from spinsr.training import loader

    opt = option_files.read(option_files.find(name))
    for key, value in changes.items():
        *sections, last = key.split(':')
        section = opt
        for part in sections:
            section = section[part]
        section[last] = value
    opt['datasets'] = {'train': opt['datasets']['train'] | {'phase': 'train', 'scale': opt['scale']}}
    num_gpu = torch.cuda.device_count() if opt['num_gpu'] == 'auto' else opt['num_gpu']
    opt |= {'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1, 'num_gpu': num_gpu}
    train_loader, sampler, *_ = loader.create_train_val_dataloader(opt, logging.getLogger('basicsr'))
    model = build_model(opt)
    batches, numbers = endless(train_loader, sampler), itertools.count(1)

    def iterate() -> None:
        model.feed_data(next(batches))
        model.optimize_parameters(next(numbers))

    return iterate


def endless(train_loader: Any, sampler: Any) -> Iterator[Any]:
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        yield from train_loader


def measure(variants: dict[str, Callable[[], None]], rounds: int, iterations: int) -> dict[str, list[float]]:
    """Seconds an iteration, a number for each turn of each variant; a first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, iterate in variants.items():
            start = time.perf_counter()
            for _ in range(iterations):
                iterate()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append((time.perf_counter() - start) / iterations)
    return times


def report(times: dict[str, list[float]], args: argparse.Namespace) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f'{torch.get_num_threads()} CPU threads'
    print(f'{args.opt}, torch {torch.__version__}, Python {platform.python_version()}, {device}')
    table = [('option', 's an iteration', 'speed to without: median of the turns (lowest to highest)')]
    rows = {}
    for name, seconds in times.items():
        ratios = [base / own for base, own in zip(times['without'], seconds, strict=True)]
        rows[name] = {'seconds': seconds, 'ratio': statistics.median(ratios)}
        spread = f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
        table.append((name, f'{statistics.median(seconds):.3f}', spread))
    print(markdown_table(table), end='')
    if args.json:
        content = {'option_file': args.opt, 'device': device, 'rows': rows}
        write_bytes(args.json, json.dumps(content, indent=1).encode())


if __name__ == '__main__':
    sys.exit(main())
