"""Work on the CPU in chunks of rows.

The intermediate results of a chunk stay in the processor's cache, and none exists for the whole image. With gradients
only the inputs are kept; the backward pass computes each chunk once more.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.common.precision import no_autocast

ROWS = 8192  # pixels of a chunk, over all images


def on_cpu(x: Tensor) -> bool:
    """Whether an op on `x` runs as Python on the CPU and not inside a compiled graph."""
    return x.device.type == 'cpu' and not torch.compiler.is_compiling()


def in_full_precision_on_cpu(*tensors: Tensor) -> bool:
    """Whether chunks pay: on the CPU, all `tensors` in one type of at least float32, without autocast."""
    x = tensors[0]
    exact = all(t.dtype == x.dtype for t in tensors) and x.dtype in (torch.float32, torch.float64)
    return exact and on_cpu(x) and not torch.is_autocast_enabled('cpu')


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` of `rows`; one that is empty if there are none."""
    size = max(1, size)
    for start in range(0, max(1, rows), size):
        yield slice(start, min(start + size, rows))


Result = TypeVar('Result', Tensor, tuple[Tensor, ...])


def recompute_in_chunks(
    fn: Callable[..., Result], x: Tensor, weights: Sequence[Tensor], rows: int, *, is_sum: bool = False
) -> Result:
    """fn(x, *weights) for an `fn` that treats every row by itself, or sums over the rows; differentiable once.

    Args:
        fn: Maps chunks (B, n, C) of `x` and the whole `weights` to (B, n, D), or to a tuple of such tensors.
        x: (B, N, C).
        weights: Tensors that every row needs.
        rows: Rows of a chunk, n.
        is_sum: Whether `fn` returns one sum over its rows, of a shape without n.

    Returns:
        (B, N, D), or the tuple of them, or the sum over all rows.
    """
    return _Chunks.apply(fn, rows, is_sum, x, *weights)


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fn, rows, is_sum, x, *weights):
        ctx.save_for_backward(x, *weights)
        ctx.arguments = fn, rows, is_sum
        out: list[Tensor] = []
        with no_autocast('cpu'):
            for place in chunks(x.shape[1], rows):
                result = fn(x[:, place], *weights)
                parts = (result,) if isinstance(result, Tensor) else result
                if is_sum:
                    out = [out[0].add_(result)] if out else [result]
                    continue
                out = out or [one.new_empty(len(one), x.shape[1], *one.shape[2:]) for one in parts]
                for whole, one in zip(out, parts, strict=True):
                    whole[:, place] = one
        return out[0] if isinstance(result, Tensor) else tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        (fn, rows, is_sum), needed = ctx.arguments, ctx.needs_input_grad[3:]
        x, *weights = ctx.saved_tensors
        sums = [
            (torch.zeros_like if i else torch.empty_like)(t, memory_format=torch.contiguous_format)
            if needed[i]
            else None
            for i, t in enumerate((x, *weights))
        ]
        with no_autocast('cpu'):
            for place in chunks(x.shape[1], rows):
                leaves = [t.detach().requires_grad_(i) for t, i in zip((x[:, place], *weights), needed, strict=True)]
                with torch.enable_grad():
                    out = fn(*leaves)
                upstream = grads if is_sum else [grad[:, place] for grad in grads]
                found = iter(torch.autograd.grad(out, [leaf for leaf in leaves if leaf.requires_grad], upstream))
                for i, total in enumerate(sums):
                    if total is not None and i:
                        total += next(found)
                    elif total is not None:
                        total[:, place] = next(found)
        return None, None, None, *sums
