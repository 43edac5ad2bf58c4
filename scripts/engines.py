"""Times networks by PyTorch, also in bf16 and compiled, and by ONNX Runtime; compares outputs and memory.

    python scripts/engines.py --networks SPIN SwinIR-light train_RCAN_x4_light.yml --lr-size 180x320 --json engines.json
    python scripts/engines.py --networks SPIN --engines torch compile

A network is a name that `spinsr zoo` lists, or an option file whose `network_g` it is. Each engine has a process of its
own, that of ONNX Runtime without PyTorch, and they take turns; the peak of memory is that of the process. The input is
a natural image, as in scripts/benchmark.py, in float32. Sides are rounded up to multiples of the network's window.
Exit status: 0 all done, 1 a network failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import functools
import gc
import json
import math
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from processes import Worker, WorkerError, add_arguments, check_arguments

from spinsr.utils import memory
from spinsr.utils.atomic_write import write_bytes
from spinsr.utils.text import markdown_table

NETWORKS = ('SPIN', 'train_RCAN_x4_light.yml', 'SwinIR-light', 'EDSR-baseline', 'RLFN', 'SAFMN', 'SMFANet')
DATASETS = ('Set5', 'Urban100')
ENGINES = {'torch': 'torch', 'bf16': 'bf16', 'compile': 'compiled', 'onnx': 'ONNX Runtime'}  # and their titles


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison and returns the exit status."""
    args = parse(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in args.networks:
                rows.append(compare(name, args, Path(folder)))
                print(f'{name}: {rows[-1].get("failed") or "done"}', file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print('engines.py: interrupted', file=sys.stderr)
            return 130
    versions = next((row['versions'] for row in rows if 'versions' in row), {})
    clock = 'processor time' if args.processor_time else 'time'
    print(f'x{args.scale}, {clock} of {args.repeats} runs each in turns, {args.threads} CPU thread(s)', end=', ')
    print(', '.join(f'{package} {version}' for package, version in versions.items()), end='\n\n')
    print(to_markdown(rows, args.engines, pays=not args.processor_time), end='')
    if args.json:
        command = shlex.join(['python', 'scripts/engines.py', *(sys.argv[1:] if argv is None else argv)])
        content = {'command': command, 'versions': versions, 'threads': args.threads, 'rows': rows}
        write_bytes(args.json, (json.dumps(content, indent=1) + '\n').encode())
    return int(any('failed' in row for row in rows))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0], epilog='See docs/performance.md.')
    add = parser.add_argument
    add('--networks', nargs='+', default=list(NETWORKS), metavar='NAME', help=f'default: {" ".join(NETWORKS)}')
    add(
        '--engines',
        nargs='+',
        choices=ENGINES,
        default=['torch', 'onnx'],
        help='torch, bf16 (torch by autocast), compile, onnx (from `spinsr export`); default: torch onnx',
    )
    add_arguments(parser, lr_size=(180, 320), repeats=5)
    add('--any-size', action='store_true', help='export for images of any size where the network allows it')
    args = parser.parse_args(argv)
    if len(set(args.engines)) < len(args.engines):
        parser.error(f'--engines must be different, got {" ".join(args.engines)}')
    check_arguments(parser, args)
    return args


def compare(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The row of a network; 'failed' says what went wrong, if something did."""
    row: dict[str, Any] = {'network': name}
    workers: dict[str, Worker] = {}
    try:
        exporter = Worker(functools.partial(Exporter, name, args, folder))
        try:
            row |= exporter.ask('describe')
            for engine in args.engines:
                try:
                    row |= exporter.ask('export') if engine == 'onnx' else {}
                    workers[engine] = Worker(functools.partial(RUNNERS[engine], name, args, folder))
                except WorkerError as error:
                    row['failed'] = str(error)
        finally:
            exporter.close()  # its memory
        row |= measure(workers, args.repeats)
    except WorkerError as error:
        row['failed'] = str(error)
    finally:
        for worker in workers.values():
            worker.close()
    return row


def measure(workers: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    """Runs all workers in turns."""
    base = {engine: worker.ask('peak') for engine, worker in workers.items()}
    first = {engine: worker.ask('first') for engine, worker in workers.items()}
    seconds: dict[str, list[float]] = {engine: [] for engine in workers}
    for turn in range(repeats):
        # To and fro, so that a machine that slows down does not slow the same one every time.
        for engine in list(workers)[:: -1 if turn % 2 else 1]:
            seconds[engine].append(workers[engine].ask('run'))
    peak = {engine: worker.ask('peak') for engine, worker in workers.items()}
    outputs = {engine: worker.ask('result') for engine, worker in workers.items()}
    apart = {engine: np.abs(output - next(iter(outputs.values()))) for engine, output in outputs.items()}
    return {
        'first_seconds': first,
        'seconds': seconds,
        'peak_memory': peak,
        'base_memory': base,
        'largest_difference': {engine: float(values.max()) for engine, values in apart.items()},
        'mean_difference': {engine: float(values.mean()) for engine, values in apart.items()},
    }


class Exporter:
    """Builds a network, describes it, and writes its input and its ONNX file."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path):
        self.net, self.folder, self.args = build(name, args.scale), folder, args
        self.name, self.size = name, size_for(self.net, args.lr_size)

    def describe(self) -> dict[str, Any]:
        """What is known without running it, and writes the input."""
        import torch
        from benchmark import natural_batch

        from spinsr.evaluation import complexity, zoo

        np.save(self.folder / 'input.npy', natural_batch(1, *self.size).numpy())
        published = {}
        if not self.name.endswith('.yml'):
            rows = [row for variant in zoo.variants([self.name]) for row in variant.published(self.args.scale)]
            published = dict(next((row.psnr for row in rows if row.psnr), {}))
        versions = {'torch': torch.__version__, 'Python': platform.python_version()}
        return {
            'size': list(self.size),
            **complexity.count(self.net, *self.size),
            'published': published,
            'versions': versions,
        }

    def export(self) -> dict[str, Any]:
        """Writes the ONNX file, which is compared with PyTorch."""
        import onnxruntime
        import torch

        from spinsr.export.onnx import sides_of, to_onnx

        any_size = self.args.any_size and sides_of(self.net) is not None
        start = time.process_time()
        to_onnx(self.net, self.folder / 'net.onnx', size=None if any_size else self.size, overwrite=True)
        return {
            'any_size': any_size,
            'export_seconds': time.process_time() - start,
            'versions': {
                'torch': torch.__version__,
                'onnxruntime': onnxruntime.__version__,
                'Python': platform.python_version(),
            },
        }


class Runner:
    """Runs one network on one image again and again."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path):
        self.input = np.load(folder / 'input.npy')
        self.clock: Callable[[], float] = time.process_time if args.processor_time else time.perf_counter
        self.output: Any = None

    def first(self) -> float:
        """Seconds of the first run, whatever the clock: compilers run in other processes."""
        start = time.perf_counter()
        self.output = self.once()
        return time.perf_counter() - start

    def run(self) -> float:
        """Seconds of one run."""
        self.output = None
        gc.collect()
        start = self.clock()
        self.output = self.once()
        return self.clock() - start

    def peak(self) -> int | None:
        """Peak memory of the process in bytes."""
        return memory.peak_resident()

    def result(self) -> np.ndarray:
        """The output of the last run."""
        return np.asarray(self.output)

    def once(self) -> Any:
        raise NotImplementedError


class Torch(Runner):
    """By PyTorch, with the ops backend that `auto` chooses."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path):
        import torch

        super().__init__(name, args, folder)
        torch.set_num_threads(args.threads)
        self.net = build(name, args.scale)

    def once(self) -> Any:
        import torch

        with torch.inference_mode():
            return self.net(torch.from_numpy(self.input))


class Bf16(Torch):
    """As `spinsr upscale --precision bf16`."""

    def once(self) -> Any:
        import torch

        with torch.autocast('cpu', torch.bfloat16):
            return super().once().float()


class Compiled(Torch):
    """As `spinsr upscale --compile`, without a cache of compiled code."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path):
        os.environ['TORCHINDUCTOR_CACHE_DIR'] = tempfile.mkdtemp(dir=folder)
        super().__init__(name, args, folder)
        import torch

        self.net = torch.compile(self.net, dynamic=True)

    def first(self) -> float:
        image, self.input = self.input, np.zeros((1, 3, 8, 8), np.float32)
        seconds = super().first()
        self.input = image
        return seconds + super().first()


class OnnxRuntime(Runner):
    """By ONNX Runtime, in a process without PyTorch."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path):
        import onnxruntime

        super().__init__(name, args, folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = args.threads, 1
        path = folder / 'net.onnx'
        self.session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])

    def once(self) -> Any:
        return self.session.run(None, {'image': self.input})[0]


RUNNERS = {'torch': Torch, 'bf16': Bf16, 'compile': Compiled, 'onnx': OnnxRuntime}


def build(name: str, scale: int) -> Any:
    """A network with weights of seed 0, or the shipped ones where spinsr has some.

    Raises:
        ValueError, TypeError, OSError: As `spinsr.load`; or an option file is for another scale.
    """
    import torch

    import spinsr
    from spinsr.cli.network import errors_only
    from spinsr.convert.registry import scale_keyword
    from spinsr.inference.load import resolve
    from spinsr.training import option_files
    from spinsr.weights.models import MODELS

    torch.manual_seed(0)
    if not name.endswith('.yml'):
        shipped = any((model.arch, model.scale) == (name, scale) for model in MODELS)
        with errors_only():
            return spinsr.load(name, scale, 'default' if shipped else None)
    arguments = dict(option_files.read(option_files.find(name))['network_g'])
    arch = arguments.pop('type')
    keyword = scale_keyword(resolve(arch, scale, None).cls)
    if (found := arguments.pop(keyword)) != scale:
        raise ValueError(f'{name} is for scale {found}, got scale {scale}')
    with errors_only():
        return spinsr.load(arch, scale, None, **arguments)


def size_for(net: Any, size: tuple[int, int]) -> tuple[int, int]:
    """The size, or the next multiples of what the network, or its ONNX file, takes."""
    from spinsr.convert.registry import find_format

    format = find_format(type(net))
    if format is None or format.onnx.sides is not None:
        return size
    multiple = max(8, format.sizes.multiple)
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def to_markdown(rows: Sequence[Mapping[str, Any]], engines: Sequence[str], pays: bool = True) -> str:
    """The table of the rows, and below it why a network has no numbers.

    Args:
        rows: Of `compare`.
        engines: The columns; ratios are to the first.
        pays: Say from which image compiling pays. Not for processor time, which leaves out the compilers' processes.
    """
    base, *others = engines
    pays = pays and 'compile' in others
    head = ['network', 'input', 'multiply-adds', f'published PSNR, {", ".join(DATASETS)}']
    head += [ENGINES[engine] for engine in engines]
    head += [f'{ENGINES[base]} / {ENGINES[engine]}' for engine in others]
    head += ['compiled pays from image'] if pays else []
    lines = [[*head, 'peak memory', *(['largest difference'] if others else [])]]
    for row in rows:
        if 'seconds' not in row:
            lines.append([row['network'], *[''] * (len(lines[0]) - 1)])
            continue
        seconds, peak = row['seconds'], row['peak_memory']
        psnr = ', '.join(f'{row["published"][name]:.2f}' if name in row['published'] else '-' for name in DATASETS)
        line = [row['network'], '{}x{}'.format(*row['size']), f'{row["multiply_adds"] / 1e9:.1f} G', psnr]
        line += [f'{statistics.median(seconds[name]):.3g} s' if name in seconds else '' for name in engines]
        line += [ratio(seconds, base, name) for name in others]
        line += [pays_from(row, base)] if pays else []
        line += [' and '.join(f'{(peak[name] or 0) / 1e6:,.0f} MB' for name in engines if name in peak)]
        far = row['largest_difference']
        line += [' and '.join(f'{far[name]:.1e}' for name in others if name in far)] if others else []
        lines.append(line)
    notes = [f'{row["network"]}: {row["failed"]}\n' for row in rows if 'failed' in row]
    return markdown_table(lines) + ''.join(notes)


def ratio(seconds: Mapping[str, Sequence[float]], base: str, other: str) -> str:
    """The median of the ratios of each turn, with the lowest and the highest; '' where one was not timed."""
    if base not in seconds or other not in seconds:
        return ''
    ratios = [one / two for one, two in zip(seconds[base], seconds[other], strict=True)]
    return f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'


def pays_from(row: Mapping[str, Any], base: str) -> str:
    """The number of images of one size from which compiling them all takes less time than not; 'never'."""
    if base not in row['seconds'] or 'compile' not in row['seconds']:
        return ''
    saved = statistics.median(row['seconds'][base]) - statistics.median(row['seconds']['compile'])
    more = row['first_seconds']['compile'] - row['first_seconds'][base]
    if more <= 0:
        return '1'
    return 'never' if saved <= 0 else f'{math.floor(more / saved) + 2:,}'


if __name__ == '__main__':
    sys.exit(main())
