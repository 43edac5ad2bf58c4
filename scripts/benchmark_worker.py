"""The process behind benchmark.py that holds one network with one ops backend, or measures the matmul rate.

It reads its settings and then commands on stdin, and answers each on stdout with one line of JSON; it ends when stdin
does. benchmark.py starts one for each backend, since a peak of memory is that of a process, and lets one run at a time.
"""

import contextlib
import gc
import importlib
import json
import logging
import os
import platform
import sys
import textwrap
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spinsr.evaluation.complexity import Uncounted, peak_rss, timed
from spinsr.ops import resolve_backend
from spinsr.training.grad_checkpointing import recompute_blocks
from spinsr.utils.text import nearest

PHOTOGRAPH = 'ihc.png'  # a micrograph with fine texture everywhere: in smooth areas near-ties are frequent
# Matrices that fill the device: a product of 1024 does not fill a GPU.
MATMUL_SIDE = {'cpu': 1024, 'cuda': 8192}


class Refused(Exception):
    """An argument of the user that cannot be used, said in one line."""


def main() -> None:
    # What a plugin prints must not get among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # A network without weights is what a benchmark runs by default; that need not be said.
    logging.getLogger('spinsr').setLevel(logging.ERROR)
    worker = None
    for line in iter(sys.stdin.readline, ''):
        command = json.loads(line)
        try:
            if worker is None:
                worker = globals()[command.pop('worker')](command)
                answer = worker.facts()
            else:
                answer = getattr(worker, command.pop('do'))(**command)
        # Whatever the network raises becomes a line of the report, and the other backends go on.
        except Exception as error:
            answer = {'error': cause(error), 'refused': isinstance(error, Refused)}
        answers.write(json.dumps(answer) + '\n')
        answers.flush()


def said(error: Exception) -> str:
    """The error in one line."""
    return textwrap.shorten(str(error), 300) or type(error).__name__


def cause(error: Exception) -> str:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return f'out of memory: {said(error)}'
    return said(error) if isinstance(error, Refused) else f'{type(error).__name__}: {said(error)}'


class Gauge:
    """Checks the arguments once for all workers, then measures how fast this machine multiplies matrices."""

    def __init__(self, settings: dict[str, Any]):
        from spinsr import ops
        from spinsr.archs import ARCH_REGISTRY

        for name in settings['backends']:
            if name not in ops.BACKENDS:
                raise Refused(f'--backends: {name!r} is none of {", ".join(ops.BACKENDS)}')
        try:
            device = prepare_torch(settings)
        except (RuntimeError, AssertionError) as error:
            raise Refused(f'--device {settings["device"]}: {said(error)}') from error
        for module in settings['imports']:
            try:
                import_plugin(module)
            except ImportError as error:
                raise Refused(f'--import {module}: {said(error)}') from error
        arch, known = settings['arch'], sorted(ARCH_REGISTRY.keys())
        if arch not in known:
            raise Refused(f'--arch: {arch!r} is not registered; {nearest(arch, known)}')
        try:
            net = load(settings)
            if settings['recompute']:
                recompute_blocks(net)
            photograph()
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise Refused(said(error)) from error
        side = MATMUL_SIDE.get(device.type, 1024)
        self.a, self.b = (torch.rand(side, side, device=device, dtype=dtype(settings)) for _ in range(2))

    def facts(self) -> dict[str, Any]:
        """What the report says of the machine."""
        device = self.a.device
        return {
            'machine': torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_model(),
            'threads': torch.get_num_threads(),
            'torch': torch.__version__,
            'python': platform.python_version(),
        }

    def measure(self) -> dict[str, Any]:
        """Seconds of some products after one that is not counted; multiply-adds of a product."""
        seconds = []
        for _ in range(6):
            with timed(self.a.device) as clock:
                self.a @ self.b
            seconds.append(clock[0])
        return {'seconds': seconds[1:], 'macs': self.a.shape[0] ** 3}


class Runner:
    """A network, its input and what is timed: an inference, or forward, L1 loss and backward without an optimizer."""

    def __init__(self, settings: dict[str, Any]):
        self.device = prepare_torch(settings)
        for module in settings['imports']:
            import_plugin(module)
        torch.manual_seed(0)
        self.net = load(settings).to(self.device, dtype(settings))
        self.input = natural_batch(settings['batch'], *settings['lr_size']).to(self.device, dtype(settings))
        self.target = None
        if settings['mode'] == 'train':
            self.net.train()
            if settings['recompute'] and resolve_backend() != 'reference':
                recompute_blocks(self.net)
            b, c, h, w = self.input.shape
            scale = settings['scale']
            generator = torch.Generator().manual_seed(1)
            self.target = torch.rand(b, c, scale * h, scale * w, generator=generator).to(self.input)
        self.output = None
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        self.baseline = peak_rss()

    def facts(self) -> dict[str, Any]:
        """Peak memory before the first run: torch, the network and the input."""
        return {'baseline_rss_bytes': self.baseline}

    def run(self) -> dict[str, Any]:
        """Runs once; the time, and the peak of memory until now."""
        self.output = None
        self.net.zero_grad(set_to_none=True)
        gc.collect()
        with timed(self.device) as clock:
            self._step()
        on_cuda = self.device.type == 'cuda'
        return {
            'seconds': clock[0],
            'peak_rss_bytes': peak_rss(),
            'peak_device_bytes': torch.cuda.max_memory_allocated(self.device) if on_cuda else None,
        }

    def _step(self) -> None:
        if self.target is None:
            with torch.inference_mode():
                self.output = self.net(self.input)
            return
        output = self.net(self.input)
        F.l1_loss(output, self.target).backward()
        self.output = output.detach()

    def save(self, path: str) -> dict[str, Any]:
        """Writes the output of the last run, and the gradients of all parameters, as an .npz file."""
        tensors = {'output': self.output}
        tensors |= {f'gradient {name}': p.grad for name, p in self.net.named_parameters() if p.grad is not None}
        np.savez(path, **{name: x.cpu().numpy() for name, x in tensors.items()})
        return {}

    def count(self) -> dict[str, Any]:
        """Counts the multiply-adds of one more run: after all that is timed or whose memory counts."""
        self.net.zero_grad(set_to_none=True)
        with FlopCounterMode(display=False) as counter, Uncounted() as uncounted:
            self._step()
        if uncounted.names:
            # A sum that lacks an op would be too low a floor.
            return {'macs': None, 'why': f'torch has no formula for {", ".join(sorted(uncounted.names))}'}
        return {'macs': counter.get_total_flops() // 2, 'why': None}


def prepare_torch(settings: dict[str, Any]) -> torch.device:
    if settings['threads']:
        torch.set_num_threads(settings['threads'])
    device = torch.device(settings['device'])
    torch.zeros(1, device=device)
    return device


def dtype(settings: dict[str, Any]) -> torch.dtype:
    return getattr(torch, settings['dtype'])


def import_plugin(module: str) -> None:
    import spinsr.archs  # noqa: F401  before anything of BasicSR

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    importlib.import_module(module)


def load(settings: dict[str, Any]) -> torch.nn.Module:
    import spinsr
    from spinsr.training.option_files import parse_value

    arguments = {key: parse_value(value) for key, value in settings['arch_args']}
    return spinsr.load(settings['arch'], settings['scale'], settings['weights'], **arguments)


def photograph() -> np.ndarray:
    from spinsr.data import image_file, sample

    return image_file.read(sample.photograph_folder() / PHOTOGRAPH)


def natural_batch(batch: int, height: int, width: int) -> Tensor:
    """A photograph continued by reflection, cut at another place and flipped for each image of the batch.

    Not noise: there the association of a pixel with a superpixel is nearly that of its neighbours, and in float32 the
    last digit decides which of two pixels is among the top N, so that two exact backends could differ.

    Returns:
        (B, 3, H, W), float32, RGB in [0, 1].
    """
    image = torch.from_numpy(photograph()).permute(2, 0, 1) / 255  # (3, H, W) of the photograph
    crops = []
    for i in range(batch):
        rows, columns = reflected(97 * i, height, image.shape[1]), reflected(61 * i, width, image.shape[2])
        crop = image[:, rows][:, :, columns]
        crops.append(crop.flip([axis for axis, bit in ((1, 2), (2, 1)) if i & bit]))
    return torch.stack(crops)


def reflected(start: int, length: int, period: int) -> Tensor:
    """Indices start, start + 1, … that turn round at the ends of 0..period-1."""
    index = torch.arange(start, start + length) % (2 * period)
    return torch.minimum(index, 2 * period - 1 - index)


def cpu_model() -> str:
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as file:
        for line in file:
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


if __name__ == '__main__':
    main()
