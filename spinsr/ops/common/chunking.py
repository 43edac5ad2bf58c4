"""Work on the CPU in chunks of rows.

The intermediate results of a chunk stay in the processor's cache, and none exists for the whole image. With gradients
only the inputs are kept; the backward pass computes each chunk once more.
"""

from collections.abc import Callable, Iterator, Sequence

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


def recompute_in_chunks(fn: Callable, x: Tensor | Sequence[Tensor], weights: Sequence[Tensor], rows: int) -> Tensor:
    """fn(x, *weights) for an `fn` that treats every row by itself; differentiable once.

    Args:
        fn: Maps chunks (B, n, C) of `x` and the whole `weights` to (B, n, D), or to a tuple of such tensors.
        x: (B, N, C), or several with the same B and N.
        weights: Tensors that every row needs.
        rows: Rows of a chunk, n.

    Returns:
        (B, N, D), or the tuple of them.
    """
    x = (x,) if isinstance(x, Tensor) else x
    return _Chunks.apply(fn, len(x), rows, False, *x, *weights)


def sum_in_chunks(fn: Callable, x: Tensor | Sequence[Tensor], weights: Sequence[Tensor], rows: int) -> Tensor:
    """Sum of fn(x, *weights) over the chunks, each of the same shape."""
    x = (x,) if isinstance(x, Tensor) else x
    return _Chunks.apply(fn, len(x), rows, True, *x, *weights)


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fn, num_x, rows, is_sum, *tensors):
        ctx.save_for_backward(*tensors)
        ctx.arguments = fn, num_x, rows, is_sum
        x, weights = tensors[:num_x], tensors[num_x:]
        out: list[Tensor] = []
        with no_autocast('cpu'):
            for place in chunks(x[0].shape[1], rows):
                result = fn(*(t[:, place] for t in x), *weights)
                parts = (result,) if isinstance(result, Tensor) else result
                if is_sum:
                    out = [one if not out else out[0].add_(one) for one in parts]
                    continue
                out = out or [one.new_empty(len(one), x[0].shape[1], *one.shape[2:]) for one in parts]
                for whole, one in zip(out, parts, strict=True):
                    whole[:, place] = one
        return out[0] if isinstance(result, Tensor) else tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        fn, num_x, rows, is_sum = ctx.arguments
        needed = ctx.needs_input_grad[4:]
        tensors = ctx.saved_tensors
        sums = [
            (torch.empty_like(t, memory_format=torch.contiguous_format) if i < num_x else torch.zeros_like(t))
            if needed[i]
            else None
            for i, t in enumerate(tensors)
        ]
        with no_autocast('cpu'):
            for place in chunks(tensors[0].shape[1], rows):
                leaves = [(t[:, place] if i < num_x else t).detach() for i, t in enumerate(tensors)]
                wanted = [leaf.requires_grad_() for leaf, need in zip(leaves, needed, strict=True) if need]
                with torch.enable_grad():
                    out = fn(*leaves)
                    out = (out,) if isinstance(out, Tensor) else out
                upstream = grads if is_sum else [grad[:, place] for grad in grads]
                found = iter(torch.autograd.grad(out, wanted, upstream))
                for i, total in enumerate(sums):
                    if total is not None and i < num_x:
                        total[:, place] = next(found)
                    elif total is not None:
                        total += next(found)
        return None, None, None, None, *sums
