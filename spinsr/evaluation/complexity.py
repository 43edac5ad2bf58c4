"""How large and how fast a network is: parameters, multiply-adds, activations, latency and peak memory.

`count` needs neither time nor memory: the network runs on tensors without values. `count_network` returns kept counts
where there are some. `measure` runs it in a process of its own, since a peak of memory is that of a process.
"""

import contextlib
import copy
import dataclasses
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spinsr.evaluation import counts
from spinsr.inference.load import Network
from spinsr.utils import memory

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.convolution, _aten._convolution, _aten.convolution_backward)
# Fused attention on the CPU, which torch would count as nothing.
_SAME_FORMULA = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}
# Of ops that spinsr calls and torch has no formula for; by name, since a torch may lack them.
_FORMULAS = {
    'mkldnn._linear_pointwise': lambda x, weight, *rest, **named: 2 * x.numel() * len(weight),
}
ENOUGH = 60.0  # seconds that timed runs may take together before the next one begins


def count(net: nn.Module, height: int, width: int) -> dict[str, int]:
    """Counts the parameters of a network, and the multiply-adds and activations of one image.

    The ops of spinsr are counted in their dense formulation, as the papers write them (backend 'reference'), so that
    the number says something about the network and not about the machine. Multiply-adds are those of convolutions and
    matrix products, attention included; half of what torch's FlopCounterMode counts. Activations are the elements of
    the outputs of all convolutions, as in the NTIRE challenges on efficient super-resolution.

    Args:
        net: On the CPU, for (1, 3, H, W), RGB.
        height: H of the input, in LR pixels.
        width: W of the input, in LR pixels.

    Returns:
        'parameters', 'multiply_adds', of these 'convolution_multiply_adds', and 'activations'.

    Raises:
        ValueError: A size is below 1, the network does not run at this size, or it has an op that cannot be counted.

    Example:
        >>> count(nn.Conv2d(3, 8, 3, padding=1), 10, 20)['multiply_adds']
        43200
    """
    if min(height, width) < 1:
        raise ValueError(f'height and width must be at least 1, got {height=}, {width=}')
    try:
        counter = count_on_meta(net, height, width)
    except Exception:  # tensors of the network that stay on the CPU, or anything else that only fake tensors allow
        try:
            counter = count_on_fake_tensors(net, height, width)
        except Exception as error:  # a network from another package may raise anything
            raise ValueError(f'a {height}x{width} input cannot be counted: {_first_line(error)}') from error
    if counter.unknown:
        raise ValueError(counter.problem)
    return {
        'parameters': sum(p.numel() for p in net.parameters()),
        'multiply_adds': counter.multiply_adds,
        'convolution_multiply_adds': counter.convolution_multiply_adds,
        'activations': counter.activations,
    }


def count_network(network: Network, height: int, width: int) -> dict[str, int]:
    """As `count`, for a network that need not be built: at once where its counts are kept (`counts.find`).

    Args:
        network: From `spinsr.inference.load.resolve`; its weights do not matter.
        height: H of the input, in LR pixels.
        width: W of the input, in LR pixels.

    Raises:
        ValueError, TypeError: As `Network.build` and `count`.
    """
    kept = counts.find(network, height, width)
    return recount(network, height, width) if kept is None else kept


def recount(network: Network, height: int, width: int) -> dict[str, int]:
    """As `count_network`, without the kept counts."""
    network = dataclasses.replace(network, state_dict=None)
    try:
        return count(network.build('meta'), height, width)
    except ValueError:  # it makes tensors of its own when it runs, on the CPU
        with torch.random.fork_rng(devices=[]):
            return count(network.build(), height, width)


def count_on_meta(net: nn.Module, height: int, width: int) -> 'OpCounter':
    """Counts a copy of the network on the meta device."""
    counter = _ValuelessCounter()
    valueless = copy.deepcopy(net).to('meta')
    image = torch.empty(1, 3, height, width, dtype=_dtype(net), device='meta')
    with _dense_ops(), torch.no_grad(), counter:
        valueless(image)
    return counter


def count_on_fake_tensors(net: nn.Module, height: int, width: int) -> 'OpCounter':
    """As `count_on_meta`, several times slower, but also with tensors that are neither parameters nor buffers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    counter = _ValuelessCounter()
    with _dense_ops(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), counter:
        net(torch.empty(1, 3, height, width, dtype=_dtype(net)))
    return counter


def _dtype(net: nn.Module) -> torch.dtype:
    return next(net.parameters()).dtype


def measure(
    arch: str,
    scale: int,
    height: int,
    width: int,
    *,
    runs: int = 3,
    device: str = 'cpu',
    arch_args: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures a network with random weights in a process of its own, with the ops backend that is in force.

    Args:
        arch, scale, arch_args: As for `spinsr.load`.
        height: Of the input, in LR pixels.
        width: Of the input, in LR pixels.
        runs: How many are timed, after one that is not; fewer where they take more than `ENOUGH` seconds together.
        device: Where it runs.
        imports: Modules to import first.

    Returns:
        'latency', the median in seconds, and 'seconds', all of them; 'peak_memory' in bytes: of the process on the CPU,
        with torch itself (None where the system does not say), allocated tensors on CUDA; 'base_memory', the same
        before the first run.

    Raises:
        ValueError: The process failed; the message says why.
    """
    order = {
        'arch': arch,
        'scale': scale,
        'size': [height, width],
        'runs': runs,
        'device': device,
        'arch_args': dict(arch_args or {}),
        'imports': list(imports),
    }
    done = subprocess.run(
        [sys.executable, '-m', 'spinsr.evaluation.complexity'], input=json.dumps(order), capture_output=True, text=True
    )
    answer = done.stdout.strip().splitlines()[-1:]
    if done.returncode or not answer:
        lines = done.stderr.strip().splitlines()
        reason = 'killed: out of memory?' if done.returncode == -9 else lines[-1] if lines else 'no answer'
        raise ValueError(f'{arch} x{scale} cannot be measured: {reason}')
    return json.loads(answer[0])


class OpCounter(TorchDispatchMode):
    """Counts what runs inside it: multiply-adds by torch's formulas, and the output elements of convolutions.

    One mode for all, since every mode costs time at each of the thousands of small ops of a network.

    Attributes:
        multiply_adds, convolution_multiply_adds: Half of the flops of torch's formulas.
        activations: Elements of the outputs of all convolutions.
        unknown: Names of the ops of other libraries that torch has no formula for; they count as nothing.
    """

    def __init__(self):
        super().__init__()
        from torch.utils.flop_counter import flop_registry  # 80 MB, which no measurement of memory should include

        self.formulas = flop_registry
        self.multiply_adds = self.convolution_multiply_adds = self.activations = 0
        self.unknown: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler, which takes seconds, to keep it out of here; it is not called here anyway.
        return False

    @property
    def problem(self) -> str:
        """Why the counts are too low, '' where they are not."""
        return f'torch has no formula for {", ".join(sorted(self.unknown))}' if self.unknown else ''

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, func._overloadpacket
        formula = self.formulas.get(_SAME_FORMULA.get(packet, packet)) or _FORMULAS.get(str(packet))
        # In inference mode composite ops, such as matmul, arrive whole.
        if formula is None and torch.is_inference_mode_enabled():
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            multiply_adds = formula(*args, **kwargs, out_val=out) // 2
            self.multiply_adds += multiply_adds
            if packet in _CONVOLUTIONS:
                self.convolution_multiply_adds += multiply_adds
        elif func.namespace not in ('aten', 'prim', 'prims'):
            self.unknown.add(str(packet))
        if packet in _CONVOLUTIONS and isinstance(out, torch.Tensor):  # the backward pass returns a tuple
            self.activations += out.numel()
        return out


class _ValuelessCounter(OpCounter):
    """Counts tensors without values, and answers the reference's top-N, which asks for ties, that none exist.

    On the meta device an op is computed once for each signature: the blocks of a network repeat the same few, and torch
    takes longer to derive the shape of a sum than to compute a small one.
    """

    def __init__(self):
        super().__init__()
        # By signature: the layout of the output, and what the op adds to each count.
        self._known: dict[Hashable, tuple[_Layout, tuple[int, int, int]]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is _aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return False
        signature = None if func.is_view or func._schema.is_mutable else _signature(func, args, kwargs)
        if signature in self._known:
            layout, (multiply_adds, convolution_multiply_adds, activations) = self._known[signature]
            self.multiply_adds += multiply_adds
            self.convolution_multiply_adds += convolution_multiply_adds
            self.activations += activations
            return layout.empty()
        before = self.multiply_adds, self.convolution_multiply_adds, self.activations
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if signature is not None and type(out) is torch.Tensor and out.device.type == 'meta':
            added = (
                self.multiply_adds - before[0],
                self.convolution_multiply_adds - before[1],
                self.activations - before[2],
            )
            self._known[signature] = (_Layout.of(out), added)
        return out


class _Layout(NamedTuple):
    """What a tensor of the meta device consists of."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: torch.Tensor) -> '_Layout':
        return cls(x.shape, x.stride(), x.dtype)

    def empty(self) -> torch.Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device='meta')


def _signature(func: Callable, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Hashable:
    """What the layout of the output of an op depends on; None if not all tensors are on the meta device."""
    described: list[Hashable] = [func]
    for argument in (*args, *(kwargs or {}).items()):
        for part in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(part, torch.Tensor):
                if type(part) not in (torch.Tensor, nn.Parameter) or part.device.type != 'meta':
                    return None
                described.append(_Layout.of(part))
            elif isinstance(part, (list, tuple)):
                return None
            else:
                described.append((type(part), part))  # 1 == 1.0 == True
        described.append(None)  # [a, b], c is not [a], [b, c]
    return tuple(described)


@contextlib.contextmanager
def _dense_ops() -> Iterator[None]:
    before = os.environ.get('SPINSR_OPS_BACKEND')
    os.environ['SPINSR_OPS_BACKEND'] = 'reference'
    try:
        yield
    finally:
        del os.environ['SPINSR_OPS_BACKEND']
        if before is not None:
            os.environ['SPINSR_OPS_BACKEND'] = before


@contextlib.contextmanager
def timed(device: torch.device) -> Iterator[list[float]]:
    """Yields a list; on leaving, it holds the seconds of the with block, the device's work included."""
    clock: list[float] = []
    _synchronize(device)
    start = time.perf_counter()
    yield clock
    _synchronize(device)
    clock.append(time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type != 'cpu':
        getattr(torch, device.type).synchronize()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _work(order: Mapping[str, Any]) -> dict[str, Any]:
    """What the process of `measure` does."""
    import importlib

    device = torch.device(order['device'])

    import spinsr
    import spinsr.archs

    logging.getLogger('spinsr').setLevel(logging.ERROR)  # that it has no weights is as wanted
    for module in order['imports']:
        importlib.import_module(module)
    torch.manual_seed(0)
    net = spinsr.load(order['arch'], order['scale'], None, device, **order['arch_args'])
    x = torch.rand(1, 3, *order['size'], device=device)
    on_cuda = device.type == 'cuda'

    def peak() -> int | None:
        return torch.cuda.max_memory_allocated(device) if on_cuda else memory.peak_resident()

    base = peak()
    seconds = []
    with torch.inference_mode():
        net(x)
        while len(seconds) < order['runs'] and sum(seconds) < ENOUGH:
            with timed(device) as clock:
                net(x)
            seconds.append(clock[0])
    return {
        'latency': statistics.median(seconds),
        'seconds': seconds,
        'peak_memory': peak(),
        'base_memory': base,
    }


def _main() -> int:
    # What a plugin prints must not get among the answer.
    answer = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        result = _work(json.load(sys.stdin))
    except Exception as error:
        sys.stderr.write(f'{_first_line(error)}\n')
        return 1
    answer.write(json.dumps(result) + '\n')
    answer.close()
    return 0


if __name__ == '__main__':
    sys.exit(_main())
