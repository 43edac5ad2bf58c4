"""Times a network with several ops backends in one run, and compares their results, memory and multiply-adds.

    python scripts/benchmark.py --arch SPIN --scale 4 --lr-size 180x320 --backends reference,auto --mode infer

Each backend has a process of its own, because peak memory is a number of a process; the processes run one at a time
and in turns, so that a slow minute of the machine affects all of them. docs/performance.md explains every number.
Exit status: 0 all done, 1 a backend failed or the backends disagree, 2 wrong usage, 130 interrupted.
"""

import argparse
import contextlib
import functools
import gc
import importlib
import json
import logging
import math
import os
import platform
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# With these settings OpenMP's threads could spin for ever in the processes that wait; by default they stop soon.
os.environ.pop('OMP_WAIT_POLICY', None)
os.environ.pop('GOMP_SPINCOUNT', None)
os.environ.pop('KMP_BLOCKTIME', None)

import numpy as np
import processes
import torch
import torch.nn.functional as F
from processes import WorkerError, one_line
from torch import Tensor

import spinsr
from spinsr import ops
from spinsr.cli.arguments import positive, size
from spinsr.data import image_file, sample
from spinsr.evaluation.complexity import OpCounter, timed
from spinsr.training.grad_checkpointing import recompute_blocks
from spinsr.training.option_files import parse_value
from spinsr.utils import memory
from spinsr.utils.atomic_write import write_bytes
from spinsr.utils.text import markdown_table

SETTLE = 0.3  # seconds between runs, longer than the threads of any OpenMP spin by default
LIMITS = {'float32': (1e-5, 1e-2), 'float64': (1e-9, 1e-9)}  # of the outputs, of the gradients
HALF_LIMITS = (1e-2, 0.5)  # of means, with bf16
OPTIONS = ('bf16', 'compile')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0], epilog='See docs/performance.md.')
    add = parser.add_argument
    add('--arch', default='SPIN', help="SPIN, SAN, RCAN, or another name in BasicSR's registry (default: SPIN)")
    add('--scale', type=positive, default=4, help='upscaling factor (default: 4)')
    add('--lr-size', type=size, default=(180, 320), metavar='HxW', help='LR pixels (default: 180x320)')
    add(
        '--backends',
        default='reference,auto',
        help='comma-separated, each alone or with +bf16 or +compile or both: reference,auto,auto+bf16+compile '
        '(default: reference,auto)',
    )
    add('--mode', choices=('infer', 'train'), default='infer', help='a step of train is forward, L1 loss, backward')
    add('--recompute', action='store_true', help='in train: recompute blocks in backward, except those of reference')
    add('--batch', type=positive, metavar='N', help='images (default: 1 for infer, 8 for train)')
    add('--repeats', type=positive, default=5, metavar='N', help='timed runs of each backend (default: 5)')
    add('--dtype', choices=tuple(LIMITS), default='float32')
    add('--threads', type=positive, metavar='N', help="CPU threads (default: torch's)")
    add('--device', default='cpu', help='cpu or cuda (default: cpu)')
    add('--weights', metavar='FILE', help='.pth, .pt or .safetensors (default: random weights, seed 0)')
    add('--arch-args', nargs='+', default=[], metavar='KEY=VALUE', help='as under network_g')
    add('--import', dest='imports', action='append', default=[], metavar='MODULE', help='a module that registers archs')
    add('--json', type=Path, metavar='FILE', help='write all numbers here')
    args = parser.parse_args(argv)
    args.batch = args.batch or {'infer': 1, 'train': 8}[args.mode]
    args.backends = args.backends.split(',')
    entries = {(name, frozenset(options)) for name, options in map(split, args.backends)}
    is_known = all(name in ops.BACKENDS and options <= set(OPTIONS) for name, options in entries)
    if len(entries) < len(args.backends) or not is_known or any(x.count('+bf16') > 1 for x in args.backends):
        parser.error(
            f'--backends must be different names of {", ".join(ops.BACKENDS)}, each alone or followed by '
            f'{" or ".join("+" + x for x in OPTIONS)}, got {",".join(args.backends)}'
        )
    if args.dtype != 'float32' and any('bf16' in options for _, options in entries):
        parser.error(f'+bf16 requires --dtype float32, got {args.dtype}')
    if args.recompute and args.mode != 'train':
        parser.error('--recompute requires --mode train')
    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        parser.error(f'--json must be a file in an existing folder, got {args.json}')
    try:
        torch.zeros(1, device=prepare(args))
        load(args)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, AssertionError) as error:
        parser.error(one_line(error))
    return args


def prepare(args: argparse.Namespace) -> torch.device:
    """Sets the threads, imports the modules of --import, and returns the device."""
    logging.getLogger('spinsr').setLevel(logging.ERROR)  # random weights are the default here
    if args.threads:
        torch.set_num_threads(args.threads)
    importlib.import_module('spinsr.archs')  # before anything of BasicSR
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for module in args.imports:
        importlib.import_module(module)
    return torch.device(args.device)


def load(args: argparse.Namespace) -> torch.nn.Module:
    pairs = (text.partition('=')[::2] for text in args.arch_args)
    torch.manual_seed(0)
    return spinsr.load(args.arch, args.scale, args.weights, **{key: parse_value(value) for key, value in pairs})


def split(backend: str) -> tuple[str, tuple[str, ...]]:
    """The name and the options of an entry of --backends."""
    name, *options = backend.split('+')
    return name, tuple(options)


class Runner:
    """A network with its input, in the process of one backend; runs inferences or training steps."""

    def __init__(self, args: argparse.Namespace, options: Sequence[str] = ()):
        self.device, dtype = prepare(args), getattr(torch, args.dtype)
        self.net = load(args).to(self.device, dtype)
        self.input = natural_batch(args.batch, *args.lr_size).to(self.device, dtype)
        self.target = self.output = None
        if args.mode == 'train':
            self.net.train()
            if args.recompute and ops.resolve_backend() != 'reference':
                recompute_blocks(self.net)
            b, c, h, w = self.input.shape
            generator = torch.Generator().manual_seed(1)
            self.target = torch.rand(b, c, args.scale * h, args.scale * w, generator=generator).to(self.input)
        self.autocast = functools.partial(torch.autocast, self.device.type, torch.bfloat16, enabled='bf16' in options)
        self.run_net = torch.compile(self.net) if 'compile' in options else self.net

    def peak(self) -> tuple[int | None, int | None]:
        """Peak memory in bytes: of the process, and of the allocator on CUDA."""
        on_cuda = self.device.type == 'cuda'
        return memory.peak_resident(), torch.cuda.max_memory_allocated(self.device) if on_cuda else None

    def run(self) -> float:
        """Seconds of one run."""
        self.output = None
        self.net.zero_grad(set_to_none=True)
        gc.collect()
        with timed(self.device) as clock:
            self._step()
        return clock[0]

    def _step(self) -> None:
        with torch.inference_mode(self.target is None), self.autocast():
            self.output = self.run_net(self.input)
        if self.target is not None:
            F.l1_loss(self.output.to(self.target), self.target).backward()

    def results(self) -> dict[str, np.ndarray]:
        """The output and the gradients of the last run."""
        gradients = {f'gradient {name}': p.grad for name, p in self.net.named_parameters() if p.grad is not None}
        return {
            name: x.detach().cpu().to(self.input.dtype).numpy()
            for name, x in {'output': self.output, **gradients}.items()
        }

    def count(self) -> tuple[int, str]:
        """Multiply-adds of one more run, and why the number is too low ('' if it is not)."""
        try:
            with OpCounter() as counter:
                self._step()
        except Exception as error:  # the measurements are complete
            return 0, one_line(error)
        return counter.multiply_adds, counter.problem


def natural_batch(batch: int, height: int, width: int) -> Tensor:
    """(B, 3, H, W), RGB in [0, 1]: a micrograph continued by reflection, another part of it for each image.

    Its fine texture leaves few near-ties in the top-N selection, where two correct backends may differ in float32.
    """
    photo = image_file.read(sample.photograph_folder() / 'ihc.png')
    photo = np.pad(photo, ((0, height + 97 * batch), (0, width + 61 * batch), (0, 0)), 'symmetric')
    image = torch.from_numpy(photo).permute(2, 0, 1) / 255
    crops = [image[:, 97 * i : 97 * i + height, 61 * i : 61 * i + width] for i in range(batch)]
    return torch.stack([x.flip([axis for axis, bit in ((1, 2), (2, 1)) if i & bit]) for i, x in enumerate(crops)])


class Worker(processes.Worker):
    """The process of a backend, with a `Runner`."""

    def __init__(self, args: argparse.Namespace, backend: str):
        super().__init__(functools.partial(start, args, backend))


def start(args: argparse.Namespace, backend: str) -> Runner:
    """A `Runner` in a process whose backend is `backend`."""
    os.environ['SPINSR_OPS_BACKEND'], options = split(backend)
    return Runner(args, options)


def differences(
    base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], dtype: str, *, is_half: bool = False
) -> list[dict[str, Any]]:
    """The rules for two backends: in float32 by the mean, since near-ties may swap single pixels; else by the largest.

    A gradient is relative to its own size, or to a hundredth of the mean size of all if that is larger: what cancels to
    nearly nothing is rounding error.

    Returns:
        {'rule', 'value', 'limit', 'holds'} of the output, and of the gradient that differs most.
    """
    measure, word = (np.mean, 'mean') if dtype == 'float32' else (np.max, 'largest')

    def distance(name: str) -> float:
        if name not in base or name not in other or base[name].shape != other[name].shape:
            return math.inf
        value = float(measure(np.abs(base[name].astype(np.float64) - other[name])))
        return value if math.isfinite(value) else math.inf

    values = {'output': distance('output')}
    sizes = {name: float(measure(np.abs(base[name]))) if name in base else 0.0 for name in {*base, *other} - {'output'}}
    if sizes:
        least = 1e-2 * float(measure(list(sizes.values()))) or 1.0
        relative = {name: distance(name) / max(own, least) for name, own in sizes.items()}
        worst = max(relative, key=lambda name: relative[name])
        values[f'{worst}, relative'] = relative[worst]
    rules = zip(values.items(), HALF_LIMITS if is_half else LIMITS[dtype], strict=False)
    return [
        {'rule': f'{word} |difference| of {name}', 'value': value, 'limit': limit, 'holds': value <= limit}
        for (name, value), limit in rules
    ]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all backends and returns everything that is printed and written."""
    workers = {name: Worker(args, name) for name in args.backends}
    results: dict[str, dict[str, Any]] = {name: {'seconds': []} for name in workers}
    failed: dict[str, str] = {}

    def each(command: str, done: Callable[[dict[str, Any], Any], None], names: Sequence[str] | None = None) -> None:
        """Lets the backends work one after another, and leaves out those that fail from then on."""
        for name in names or list(workers):
            try:
                done(results[name], workers[name].ask(command))
            except WorkerError as error:
                failed[name] = str(error)
                workers.pop(name).process.kill()
            time.sleep(SETTLE)

    each('peak', lambda result, peak: result.update(baseline_rss_bytes=peak[0]))
    each('run', lambda result, seconds: None)  # the warm-up
    rates = [matmul_rate(args)]
    for i in range(args.repeats):
        # To and fro, so that a machine that slows down does not slow the same backend every time.
        each('run', lambda result, seconds: result['seconds'].append(seconds), list(workers)[:: 1 if i % 2 else -1])
        rates.append(matmul_rate(args))
        time.sleep(SETTLE)
    each('peak', lambda result, peak: result.update(peak_rss_bytes=peak[0], peak_device_bytes=peak[1]))
    each('results', lambda result, values: result.update(arrays=values))
    each(
        'count', lambda result, count: result.update(macs=None if count[1] else count[0], macs_unknown_because=count[1])
    )  # takes memory
    arrays = {name: results[name].pop('arrays') for name in workers}
    base = 'reference' if 'reference' in args.backends else args.backends[0]
    others = [name for name in arrays if base in arrays and name != base]
    agreement = {
        name: differences(arrays[base], arrays[name], args.dtype, is_half='bf16' in base + name) for name in others
    }
    rate = statistics.median(rates)
    known = [results[name]['macs'] for name in workers if not results[name]['macs_unknown_because']]
    floor = min(known) / rate if known else None
    for name in workers:
        low, median, high = np.percentile(results[name]['seconds'], (25, 50, 75)).tolist()
        times = median / floor if floor else None
        results[name] |= {'seconds_median': median, 'seconds_iqr': high - low, 'times_floor': times}
    pair = ('reference', 'auto') if {'reference', 'auto'} <= set(args.backends) else tuple(args.backends)
    broken = [f'{name} differs in the {x["rule"]}' for name in others for x in agreement[name] if not x['holds']]
    reason = next(iter([*(f'{name} failed' for name in pair if name in failed), *broken]), None)
    if len(pair) != 2:
        reason = 'a ratio needs reference and auto, or exactly two backends'
    on_cuda = args.device.startswith('cuda')
    return {
        **vars(args),
        'results': {name: results[name] if name in workers else None for name in args.backends},
        'base': base,
        'ratio': None if reason else results[pair[0]]['seconds_median'] / results[pair[1]]['seconds_median'],
        'compared': pair,
        'ratios': {
            name: results[base]['seconds_median'] / results[name]['seconds_median']
            for name in others
            if all(x['holds'] for x in agreement[name])
        },
        'no_ratio_because': reason,
        'failed': failed,
        'agreement': agreement,
        'macs_per_second': rate,
        'floor_seconds': floor,
        'machine': torch.cuda.get_device_name() if on_cuda else cpu_model(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'python': platform.python_version(),
    }


def cpu_model() -> str:
    with contextlib.suppress(OSError, StopIteration), open('/proc/cpuinfo', encoding='utf-8') as file:
        return next(line for line in file if line.startswith('model name')).partition(':')[2].strip()
    return platform.processor() or platform.machine()


def matmul_rate(args: argparse.Namespace) -> float:
    """Multiply-adds a second of a large matrix product, the median of five after one that is not timed."""
    device = torch.device(args.device)
    side = 8192 if device.type == 'cuda' else 1024  # a product of 1024 does not fill a GPU
    a, b = (torch.rand(side, side, device=device, dtype=getattr(torch, args.dtype)) for _ in range(2))
    seconds = []
    for _ in range(6):
        with timed(device) as clock:
            torch.matmul(a, b)
        seconds.append(clock[0])
    return side**3 / statistics.median(seconds[1:])


def print_report(report: Mapping[str, Any]) -> None:
    """Prints the settings, a Markdown table, and a line for each thing to know."""
    height, width = report['lr_size']
    mode = f'{report["mode"]} with recompute' if report['recompute'] else report['mode']
    print(f'{report["arch"]} x{report["scale"]}, LR {height}x{width}, {mode}, batch {report["batch"]}', end=', ')
    print(f'{report["dtype"]}, {report["repeats"]} runs each in turns')
    print(f'{report["machine"]}, {report["threads"]} threads, {report["device"]}, torch {report["torch"]}\n')
    head = ('backend', 'median', 'IQR', 'peak memory', 'before the run', 'multiply-adds', 'times the floor')
    rows: list[tuple[str, ...]] = [head]
    notes = [f'backend {name} failed: {reason}' for name, reason in report['failed'].items()]
    for name, result in report['results'].items():
        if result is None:
            rows.append((name, 'failed', *[''] * 5))
            continue
        unknown, times = result['macs_unknown_because'], result['times_floor']
        memories = (f'{(result[key] or 0) / 1e6:,.0f} MB' for key in ('peak_rss_bytes', 'baseline_rss_bytes'))
        macs = 'unknown' if unknown else f'{result["macs"] / 1e9:.2f} G'
        seconds = f'{result["seconds_median"]:.4g} s', f'{result["seconds_iqr"]:.2g} s'
        rows.append((name, *seconds, *memories, macs, f'{times:.2f}' if times else 'unknown'))
        notes += [f'multiply-adds of {name}: {unknown}'] if unknown else []
        device = result['peak_device_bytes']
        notes += [f'device memory of {name}: {device / 1e6:,.0f} MB'] if device is not None else []
    for name, checks in report['agreement'].items():
        notes += [f'agreement of {name}: {x["rule"]} {x["value"]:.2e} (limit {x["limit"]:.0e})' for x in checks]
    rate = f'{report["macs_per_second"] / 1e9:.1f} G a second (matmul, measured between the runs)'
    notes += [f'floor: {report["floor_seconds"]:.4g} s at {rate}'] if report['floor_seconds'] else []
    ratio, pair = report['ratio'], ' / '.join(report['compared'])
    notes.append(f'ratio: {ratio:.3f} ({pair})' if ratio else f'no ratio: {report["no_ratio_because"]}')
    if len(report['results']) > 2:
        notes += [f'{name}: {ratio:.3f} times as fast as {report["base"]}' for name, ratio in report['ratios'].items()]
    print(markdown_table(rows), *notes, sep='\n')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    args = parse(argv)
    try:
        report = measure(args)
    except KeyboardInterrupt:
        print('benchmark: interrupted', file=sys.stderr)
        return 130
    print_report(report)
    if args.json:
        report['command'] = shlex.join(['python', 'scripts/benchmark.py', *(sys.argv[1:] if argv is None else argv)])
        write_bytes(args.json, (json.dumps(report, indent=2, default=str) + '\n').encode())
    disagree = any(not check['holds'] for checks in report['agreement'].values() for check in checks)
    return int(bool(report['failed']) or disagree)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the workers too
    sys.exit(main())
