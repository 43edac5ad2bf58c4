"""Checks and times, on a machine with a GPU and without network, what only a GPU can show; stops in time.

    python scripts/gpu_check.py --minutes 5 -o gpu_check

In order of importance: each Triton kernel against float64 on the CPU, the whole network, timings of inference and of
the training step with the backends reference, torch and triton, autocast, and NCCL. Each part runs in a process of its
own, since an illegal memory access ends the process, and is stopped when its share of the time is over. Everything that
was seen until then is in FILE.json and FILE.md, which are written again after every part.
Exit status: 0 all checks hold, 1 one fails, was not done, or cannot run, 2 wrong usage.
"""

import argparse
import contextlib
import datetime
import functools
import json
import logging
import math
import multiprocessing
import os
import platform
import queue
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.utils.atomic_write import write_bytes
from spinsr.utils.text import markdown_table

Row = dict[str, Any]
BACKENDS = ('reference', 'torch', 'triton')
# Error in units of the largest expected value where that is above 1; of a whole image in float32 the mean.
LIMITS = {'float64': 1e-9, 'float32': 1e-5}
# In half types: how many times the error of plain torch in the same type.
HALF = 2.0


class Shape(NamedTuple):
    """A class of shapes: sides that are cells, or not, and images that are a cell, a row or a pixel."""

    batch: int
    height: int
    width: int
    cell: int

    def __str__(self) -> str:
        return f'{self.batch}x{self.height}x{self.width}, cell {self.cell}'


SMALL_SHAPES = (Shape(1, 1, 1, 4), Shape(1, 1, 9, 4), Shape(1, 3, 14, 4), Shape(2, 4, 4, 4), Shape(1, 3, 5, 1))
SHAPES = (
    Shape(1, 48, 64, 12),
    Shape(2, 45, 67, 16),
    Shape(1, 180, 320, 24),
    *SMALL_SHAPES,
    Shape(2, 7, 1, 3),
    Shape(1, 31, 49, 24),
    Shape(4, 64, 64, 20),
)
WIDTHS = ((24, 40), (1, 1), (40, 18))  # of q and k, and of v and x; SPIN's first
OPS = ('associate', 'pool', 'intra_superpixel_attention', 'window_attention')


# ---- The kernels, each against float64 on the CPU --------------------------------------------------------------------


def kernels(device: torch.device, small: bool) -> Iterator[Row]:
    """Output and gradients of every op that has kernels, in every class of shapes and type."""
    types = (torch.float32, torch.float64) if small else (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    for dtype in types:
        for shape in SMALL_SHAPES[:3] if small else SHAPES:
            for widths in WIDTHS[1:2] if small else WIDTHS:
                if widths != WIDTHS[0] and dtype != torch.float32 and not small:
                    continue
                for op in OPS:
                    yield _kernel(op, shape, widths, dtype, device)


def _kernel(op: str, shape: Shape, widths: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Row:
    name = str(dtype).removeprefix('torch.')
    row = {'check': op, 'shape': f'{shape}, {widths[0]} and {widths[1]} channels', 'dtype': name}
    apply, inputs = _call(op, shape, widths)
    if op == 'associate' and dtype.itemsize < 4:  # it is computed in float32, from what was rounded
        inputs = [x.to(dtype).double() for x in inputs]
    exact = _forward_backward(apply('reference', torch.device('cpu')), inputs)

    def errors(backend: str) -> list[float]:
        found = _forward_backward(apply(backend, device), [x.to(device, dtype) for x in inputs])
        return [_error(one, other) for one, other in zip(found, exact, strict=True)]

    error = max(errors('triton'))
    if dtype.itemsize >= 4 or op == 'associate':
        limit = LIMITS.get(name, LIMITS['float32'])
    else:
        limit = HALF * max(errors('torch')) + 1e-6
    return row | {'error': error, 'limit': limit, 'holds': error <= limit}


def _call(op: str, shape: Shape, widths: tuple[int, int]) -> tuple[Callable, list[Tensor]]:
    """(backend, device) -> the op as a function of the inputs; and the inputs in float64 on the CPU."""
    from spinsr import ops

    generator = torch.Generator().manual_seed(0)

    def random(channels: int) -> Tensor:
        return torch.randn(*shape[:3], channels, dtype=torch.float64, generator=generator)

    q, k, v = random(widths[0]), random(widths[0]), random(widths[1])
    features = random(5)
    if op == 'associate':
        return lambda backend, device: lambda x: ops.associate(x, shape.cell, backend=backend).dense(), [features]
    if op == 'pool':

        def pool(backend: str, device: torch.device) -> Callable:
            kind = 'reference' if backend == 'reference' else 'torch'
            association = ops.associate(features.to(device), shape.cell, backend=kind)
            return lambda x: ops.pool(x, association, backend=backend)

        return pool, [v]
    if op == 'window_attention':
        window = functools.partial(ops.window_attention, window=shape.cell, overlap=1)
        return lambda backend, device: functools.partial(window, backend=backend), [q, k, v]
    indices = ops.top_n(ops.associate(features, shape.cell, backend='torch'))
    attention = ops.intra_superpixel_attention
    return (
        lambda backend, device: functools.partial(attention, indices=indices.to(device), backend=backend),
        [x.flatten(1, 2) for x in (q, k, v)],
    )


def _forward_backward(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Output and gradients; of a constant its value alone. The upstream gradient is the same in all types."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    if not output.requires_grad:
        return [output]
    upstream = torch.randint(-8, 9, output.shape, generator=torch.Generator().manual_seed(1)) / 4
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream.to(output))]


def _error(found: Tensor, exact: Tensor) -> float:
    scale = max(1.0, exact.abs().max().item()) if exact.numel() else 1.0
    error = (found.double().cpu() - exact).abs().max().item() / scale if exact.numel() else 0.0
    return error if math.isfinite(error) else sys.float_info.max  # JSON has no infinity


# ---- The whole network -----------------------------------------------------------------------------------------------


def network(device: torch.device, small: bool) -> Iterator[Row]:
    """Image and gradients of SPIN x4 by the kernels, against the dense formulation in float64 on the CPU."""
    lr = _photograph(1, *((9, 11) if small else (48, 64)))
    size = _size(lr)
    exact = _image_and_gradients(_net(small).double(), lr.double(), 'reference')
    for dtype, measure, word in ((torch.float64, torch.amax, 'largest'), (torch.float32, torch.mean, 'mean')):
        for backend in ('triton', 'torch'):
            found = _image_and_gradients(_net(small).to(device, dtype), lr.to(device, dtype), backend)
            name = str(dtype).removeprefix('torch.')
            # As scripts/benchmark.py: near-ties may swap single pixels in float32.
            pairs = [(one.double().cpu(), other) for one, other in zip(found, exact, strict=True)]
            error = measure((pairs[0][0] - pairs[0][1]).abs()).item()
            limit = LIMITS[name]
            yield _network_row(backend, name, f'{word} error of the image', size, error, limit)
            sizes = [measure(other.abs()).item() for _, other in pairs[1:]]
            least = max(statistics.mean(sizes) / 100, 1e-300)
            error = max(
                measure((one - other).abs()).item() / max(own, least)
                for (one, other), own in zip(pairs[1:], sizes, strict=True)
            )
            limit = 1e-2 if dtype == torch.float32 else 1e-8
            yield _network_row(backend, name, f'{word} error of a gradient, relative', size, error, limit)


def _network_row(backend: str, dtype: str, what: str, size: str, error: float, limit: float) -> Row:
    return {
        'check': f'SPIN x4, {backend}: {what}',
        'shape': size,
        'dtype': dtype,
        'error': error,
        'limit': limit,
        'holds': error <= limit,
    }


def autocast(device: torch.device, small: bool) -> Iterator[Row]:
    """The image under autocast by the kernels: as near to float32 as that of plain torch."""
    lr = _photograph(1, *((9, 11) if small else (96, 128))).to(device)
    net = _net(small).to(device)
    exact = _image(net, lr, 'torch')
    for dtype in (torch.bfloat16,) if small else (torch.bfloat16, torch.float16):
        errors = {}
        for backend in ('torch', 'triton'):
            with torch.autocast(device.type, dtype):
                errors[backend] = (_image(net, lr, backend).float() - exact).abs().mean().item()
        limit = HALF * errors['torch'] + 1e-6
        error = errors['triton']
        name = str(dtype).removeprefix('torch.')
        yield _network_row('triton', name, 'mean distance to float32 under autocast', _size(lr), error, limit)


def _size(lr: Tensor) -> str:
    return f'{len(lr)} x LR {lr.shape[2]}x{lr.shape[3]}'


def _net(small: bool) -> nn.Module:
    """SPIN x4 with trained weights, whose selections have few near-ties; for interpreted kernels a tiny one."""
    import spinsr

    logging.getLogger('spinsr').setLevel(logging.ERROR)  # that it has no weights is as wanted
    torch.manual_seed(0)
    if not small:
        return spinsr.load('SPIN', 4)
    sizes = {'num_feat': 8, 'num_block': 1, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': [4]}
    return spinsr.load('SPIN', 4, None, **sizes)


def _photograph(batch: int, height: int, width: int) -> Tensor:
    """(B, 3, H, W): parts of an image with fine texture, which has few near-ties."""
    from spinsr.data import image_file, sample

    image = torch.from_numpy(image_file.read(sample.photograph_folder() / 'ihc.png')).permute(2, 0, 1) / 255
    side = image.shape[1] - height, image.shape[2] - width
    return torch.stack(
        [
            image[:, y : y + height, x : x + width]
            for y, x in ((31 * i % (side[0] + 1), 47 * i % (side[1] + 1)) for i in range(batch))
        ]
    ).contiguous()


@contextlib.contextmanager
def _using(backend: str) -> Iterator[None]:
    os.environ['SPINSR_OPS_BACKEND'] = backend
    try:
        yield
    finally:
        del os.environ['SPINSR_OPS_BACKEND']


def _image(net: nn.Module, lr: Tensor, backend: str) -> Tensor:
    with _using(backend), torch.inference_mode():
        return net(lr)


def _image_and_gradients(net: nn.Module, lr: Tensor, backend: str) -> list[Tensor]:
    with _using(backend):
        image = net(lr)
        F.l1_loss(image, torch.full_like(image, 0.4)).backward()
    return [image.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]


# ---- Timings ---------------------------------------------------------------------------------------------------------


def inference(device: torch.device, small: bool) -> Iterator[Row]:
    """SPIN x4 to 1280x720."""
    net, lr = _net(small).to(device), _photograph(1, *((9, 11) if small else (180, 320))).to(device)

    def run() -> None:
        with torch.inference_mode():
            net(lr)

    yield from _timings('inference', run, device, small, _size(lr))


def step(device: torch.device, small: bool) -> Iterator[Row]:
    """Forward, L1 loss and backward of SPIN x4, without an optimizer."""
    net = _net(small).to(device).train()
    lr = _photograph(*((1, 9, 11) if small else (32, 64, 64))).to(device)
    target = F.interpolate(lr, scale_factor=4)

    def run() -> None:
        net.zero_grad(set_to_none=True)
        F.l1_loss(net(lr).float(), target).backward()

    yield from _timings('training step', run, device, small, _size(lr))


def _timings(what: str, run: Callable[[], None], device: torch.device, small: bool, size: str) -> Iterator[Row]:
    from spinsr.evaluation.complexity import timed

    for dtype in (torch.float32,) if small else (torch.float32, torch.bfloat16):
        for backend in BACKENDS[::-1]:  # the dense one needs the most memory
            row = {'timing': what, 'backend': backend, 'dtype': str(dtype).removeprefix('torch.'), 'shape': size}
            if device.type == 'cuda':
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            seconds = []
            try:
                with _using(backend), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    for _ in range(1 if small else 3):  # compilation, index maps
                        run()
                    for _ in range(1 if small else 15):
                        with timed(device) as clock:
                            run()
                        seconds += clock
            except torch.OutOfMemoryError:
                yield row | {'problem': 'out of memory'}
                continue
            peak = torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else None
            yield row | {'seconds': statistics.median(seconds), 'peak_bytes': peak}


# ---- Several processes -----------------------------------------------------------------------------------------------


def processes(device: torch.device, small: bool) -> Iterator[Row]:
    """An all-reduce over all GPUs (NCCL; gloo and two processes without a GPU): the sum and its speed."""
    count = torch.cuda.device_count() if device.type == 'cuda' else 2
    name = 'nccl' if device.type == 'cuda' else 'gloo'
    context = multiprocessing.get_context('spawn')
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder, 'meeting').as_uri()
        workers = [
            context.Process(target=_all_reduce, args=(rank, count, name, meeting, answers)) for rank in range(count)
        ]
        for worker in workers:
            worker.start()
        try:
            found = [answers.get(timeout=120) for _ in workers]
        finally:
            for worker in workers:
                worker.join(10)
                worker.kill()
    error = max(one['error'] for one in found)
    seconds = max(one['seconds'] for one in found)
    shape = f'{count} processes, {found[0]["bytes"] / 1e6:.0f} MB in {1e3 * seconds:.3g} ms'
    yield {
        'check': f'all-reduce, {name}',
        'shape': shape,
        'dtype': 'float32',
        'error': error,
        'limit': 0.0,
        'holds': error == 0,
    }


def _all_reduce(rank: int, count: int, name: str, meeting: str, answers: Any) -> None:
    import torch.distributed as dist

    on_gpu = name == 'nccl'
    if on_gpu:
        torch.cuda.set_device(rank)
    # If the part is stopped, this process is not: without the others it must end by itself.
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group(name, init_method=meeting, rank=rank, world_size=count, timeout=limit)
    x = torch.full((2**24 if on_gpu else 2**12,), float(rank + 1), device='cuda' if on_gpu else 'cpu')
    dist.all_reduce(x)
    error = (x - count * (count + 1) / 2).abs().max().item()
    start = time.perf_counter()
    for _ in range(5):
        dist.all_reduce(x)
    if on_gpu:
        torch.cuda.synchronize()
    answers.put({'error': error, 'seconds': (time.perf_counter() - start) / 5, 'bytes': 4 * x.numel()})
    dist.destroy_process_group()


# ---- The parts in their processes ------------------------------------------------------------------------------------

# In order of importance, with the largest share of the time that is left.
PARTS: tuple[tuple[Callable[[torch.device, bool], Iterator[Row]], float], ...] = (
    (kernels, 0.4),
    (network, 0.4),
    (inference, 0.5),
    (step, 0.6),
    (autocast, 0.7),
    (processes, 1.0),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts, writes the files, and returns the exit status."""
    args = _parse(argv)
    if args.device == 'cpu':
        os.environ['TRITON_INTERPRET'] = '1'  # read by the processes of the parts
    device = torch.device(args.device)
    end = time.monotonic() + 60 * args.minutes
    report = {'machine': _machine(device), 'parts': {}}
    for part, share in PARTS:
        name = part.__name__
        left = end - time.monotonic()
        print(f'{name} ...', file=sys.stderr)
        report['parts'][name] = _run_part(name, str(device), device.type == 'cpu', share * left)
        report['speed'] = _speed(report['parts'])
        write_bytes(args.output.with_suffix('.json'), (json.dumps(report, indent=1) + '\n').encode())
        write_bytes(args.output.with_suffix('.md'), _markdown(report).encode())
    print(_markdown(report), end='')
    return 0 if all(_is_whole(part) for part in report['parts'].values()) else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--minutes', type=float, default=5, metavar='M', help='stop after so many (default: 5)')
    parser.add_argument('--device', default='cuda', help='cuda, or cpu for small sizes and interpreted kernels')
    parser.add_argument('-o', '--output', type=Path, default=Path('gpu_check'), metavar='FILE', help='without suffix')
    args = parser.parse_args(argv)
    if not args.minutes > 0:
        parser.error(f'--minutes must be above 0, got {args.minutes}')
    if not args.output.absolute().parent.is_dir():
        parser.error(f'-o must be in an existing folder, got {args.output}')
    kind = args.device.partition(':')[0]
    if kind not in ('cpu', 'cuda'):
        parser.error(f'--device must be cuda or cpu, got {args.device}')
    if kind == 'cuda' and not torch.cuda.is_available():
        parser.error('torch finds no CUDA device; --device cpu runs small sizes with interpreted kernels')
    return args


def _machine(device: torch.device) -> dict[str, Any]:
    with contextlib.suppress(ImportError):
        import triton

        return _versions(device) | {'triton': triton.__version__}
    return _versions(device) | {'triton': None}


def _versions(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == 'cuda'
    return {
        'device': torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        'capability': list(torch.cuda.get_device_capability(device)) if on_gpu else None,
        'devices': torch.cuda.device_count() if on_gpu else 0,
        'torch': torch.__version__,
        'cuda': torch.version.cuda,
        'python': platform.python_version(),
    }


def _run_part(name: str, device: str, small: bool, seconds: float) -> dict[str, Any]:
    """Runs one part in a process until it ends or the time is over: its rows, and what went wrong ('' if nothing)."""
    context = multiprocessing.get_context('spawn')
    rows, result = context.Queue(), {'rows': [], 'problem': ''}
    process = context.Process(target=_work, args=(name, device, small, rows))
    start = time.monotonic()
    process.start()
    try:
        while True:
            left = seconds - (time.monotonic() - start)
            if left <= 0:
                result['problem'] = f'stopped after {seconds:.0f} s; not done'
                break
            try:
                kind, content = rows.get(timeout=min(left, 1.0))
            except queue.Empty:
                if process.is_alive() or not rows.empty():
                    continue
                code = process.exitcode
                assert code is not None
                result['problem'] = f'killed by signal {-code}' if code < 0 else f'ended with status {code}'
                break
            if kind == 'end':
                result['problem'] = content
                break
            result['rows'].append(content)
    finally:
        process.kill()
        process.join()
    return result | {'seconds': time.monotonic() - start}


def _work(name: str, device: str, small: bool, rows: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    problem = ''
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        part = next(part for part, _ in PARTS if part.__name__ == name)
        for row in part(torch.device(device), small):
            rows.put(('row', row))
    except Exception as error:  # whatever a kernel raises is a line of the report
        problem = f'{type(error).__name__}: {next(iter(str(error).strip().splitlines()), "")}'
    rows.put(('end', problem))


def _speed(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times as fast as the dense formulation each backend is, and triton as torch."""
    speed: dict[str, dict[str, float]] = {}
    timings = [row for part in parts.values() for row in part['rows'] if 'seconds' in row]
    for what, dtype in {(row['timing'], row['dtype']): None for row in timings}:
        seconds = {row['backend']: row['seconds'] for row in timings if (row['timing'], row['dtype']) == (what, dtype)}
        speed[f'{what}, {dtype}'] = {
            f'{one} over {other}': seconds[other] / seconds[one]
            for one, other in (('torch', 'reference'), ('triton', 'reference'), ('triton', 'torch'))
            if one in seconds and other in seconds
        }
    return speed


def _is_whole(part: Mapping[str, Any]) -> bool:
    return not part['problem'] and all(row.get('holds', True) for row in part['rows'])


def _markdown(report: Mapping[str, Any]) -> str:
    machine = ', '.join(f'{key} {value}' for key, value in report['machine'].items())
    text = [f'# GPU check\n\n{machine}\n']
    for name, part in report['parts'].items():
        text.append(f'\n## {name}, {part["seconds"]:.0f} s\n')
        if part['problem']:
            text.append(f'\n**{part["problem"]}**\n')
        checks = [row for row in part['rows'] if 'check' in row]
        if checks:
            lines = [('what', 'shape', 'type', 'error', 'limit', 'holds')]
            # The worst of each op and type, and all that fail.
            groups: dict[tuple[str, str], list[Row]] = {}
            for row in checks:
                groups.setdefault((row['check'], row['dtype']), []).append(row)
            for group in groups.values():
                worst = max(group, key=lambda row: row['error'] / max(row['limit'], 1e-300))
                for row in [worst, *(row for row in group if not row['holds'] and row is not worst)]:
                    lines.append(
                        (
                            row['check'],
                            row['shape'],
                            row['dtype'],
                            f'{row["error"]:.1e}',
                            f'{row["limit"]:.1e}',
                            'yes' if row['holds'] else '**no**',
                        )
                    )
            held = sum(row['holds'] for row in checks)
            text.append(f'\n{held} of {len(checks)} checks hold; the worst of each:\n\n{markdown_table(lines)}')
        timings = [row for row in part['rows'] if 'timing' in row]
        if timings:
            lines = [('what', 'size', 'type', 'backend', 'median', 'peak memory')]
            for row in timings:
                peak = row.get('peak_bytes')
                lines.append(
                    (
                        row['timing'],
                        row['shape'],
                        row['dtype'],
                        row['backend'],
                        row.get('problem') or f'{1e3 * row["seconds"]:.4g} ms',
                        f'{peak / 1e6:,.0f} MB' if peak is not None else '',
                    )
                )
            text.append(f'\n{markdown_table(lines)}')
    if report['speed']:
        lines = [('what', 'ratio', 'times as fast')]
        for what, ratios in report['speed'].items():
            lines += [(what, ratio, f'{value:.2f}') for ratio, value in ratios.items()]
        text.append(f'\n## Ratios\n\n{markdown_table(lines)}')
    return ''.join(text)


if __name__ == '__main__':
    sys.exit(main())
