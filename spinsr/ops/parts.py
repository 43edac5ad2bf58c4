"""Work on the CPU a few thousand pixels at a time.

What is made on the way then stays in the processor's cache and never exists for the whole image. With gradients only
the inputs are kept, and the backward pass computes each part once more.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

PIXELS_AT_ONCE = 8192


def in_parts(*tensors: Tensor) -> bool:
    """Whether work on `tensors` is cut into parts.

    Where a cache is worth it (the CPU, full precision) and no compiler sees to that.
    """
    x = tensors[0]
    exact = all(t.dtype == x.dtype for t in tensors) and x.dtype in (torch.float32, torch.float64)
    return exact and on_cpu(x) and not torch.is_autocast_enabled(x.device.type)


def on_cpu(x: Tensor) -> bool:
    """Whether an op on `x` runs as Python on the CPU and not inside a compiled graph."""
    return x.device.type == 'cpu' and not torch.compiler.is_compiling()


def parts(x: Tensor) -> Iterator[tuple[int, slice]]:
    """The parts of (B, N, ...): an image and some of its pixels each."""
    b, n = x.shape[:2]
    for i in range(b):
        for start in range(0, n, PIXELS_AT_ONCE):
            yield i, slice(start, min(start + PIXELS_AT_ONCE, n))


def norm_backward(
    grad: Tensor, x: Tensor, norm: tuple[Tensor, Tensor], eps: float, sums: tuple[Tensor, Tensor]
) -> Tensor:
    """The gradient of LayerNorm(x) for x, (n, C); those of its weight and bias are added to `sums`."""
    x = x.contiguous()
    _, mean, scale = torch.native_layer_norm(x, x.shape[-1:], *norm, eps)
    d_x, *others = torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, scale, *norm, [True, True, True]
    )
    for total, one in zip(sums, others, strict=True):
        total += one
    return d_x


def no_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """A region without autocast, so that logits and sums are never rounded to half types.

    Nothing where autocast is off: in exported graphs a region is a graph of its own, which ONNX does not know.
    """
    on = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else contextlib.nullcontext()


def without_autocast(function: Callable) -> Callable:
    """Runs `function` in `no_autocast` on the CPU."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        with no_autocast('cpu'):
            return function(*args, **kwargs)

    return run
