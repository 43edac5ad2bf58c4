"""Work on the CPU in chunks of rows.

The intermediate results of a chunk stay in the processor's cache, and none exists for the whole image. With gradients
only the inputs are kept; the backward pass computes each chunk once more.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.common.precision import full_type, no_autocast

ROWS = 8192  # pixels of a chunk, of one image; images that share a chunk have half as many together
CHUNK_TYPES = {torch.float32, torch.float64, torch.bfloat16}


def on_cpu(x: Tensor) -> bool:
    """Whether an op on `x` runs as Python on the CPU and not inside a compiled graph."""
    return x.device.type == 'cpu' and not torch.compiler.is_compiling()


def chunk_type(*tensors: Tensor) -> torch.dtype | None:
    """The type of the products if chunks pay, which is on the CPU in float32, float64 or bfloat16; None if they do not.

    It is the type that all `tensors` have, or that of autocast.
    """
    types = {t.dtype for t in tensors}
    if not on_cpu(tensors[0]) or (len(types) > 1 and torch.float64 in types):
        return None
    if torch.is_autocast_enabled('cpu') and torch.float64 not in types:
        types = {torch.get_autocast_dtype('cpu')}
    return types.pop() if len(types) == 1 and types <= CHUNK_TYPES else None


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` of `rows`; one that is empty if there are none."""
    size = max(1, size)
    for start in range(0, max(1, rows), size):
        yield slice(start, min(start + size, rows))


def keep_freed_memory() -> None:
    """Lets glibc keep 62 MB that a process has freed for the next chunk, where it would return nearly all of it.

    Pages that are taken again are cleared by the system, which takes longer than what a chunk computes in them. glibc
    keeps twice the largest block of at most 32 MB that was ever freed; this one is never written to, so it takes no
    memory. Without effect on other C libraries, and where MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_ is set.
    """
    with contextlib.suppress(MemoryError):
        bytes(31 * 2**20)


keep_freed_memory()

Result = TypeVar('Result', Tensor, tuple[Tensor, ...])


def recompute_in_chunks(
    fn: Callable[..., Result],
    x: Tensor,
    weights: Sequence[Tensor],
    *,
    by_image: Sequence[Tensor] = (),
    is_sum: bool = False,
) -> Result:
    """fn(x, *by_image, *weights) for an `fn` that treats every row by itself, or sums over rows; differentiable once.

    Args:
        fn: Maps chunks (b, n, C) of `x`, the entries of `by_image` and the whole `weights` to (b, n, D), or to a tuple
            of such tensors.
        x: (B, N, C).
        weights: Tensors that every row needs.
        by_image: Tensors (B, ...) of which the rows of an image need one entry.
        is_sum: Whether `fn` returns one sum over its rows of each image, (b, ...) without n.

    Returns:
        (B, N, D), or the tuple of them, or the sums over all rows of each image.
    """
    return _Chunks.apply(fn, len(by_image), is_sum, x, *by_image, *weights)


def _places(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Images and rows of each chunk of (B, N, C): several small images, or some rows of one."""
    images, rows = x.shape[:2]
    for some in chunks(images, ROWS // 2 // max(1, rows)):
        for place in chunks(rows, ROWS):
            yield some, place


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fn, by_image, is_sum, x, *weights):
        ctx.save_for_backward(x, *weights)
        ctx.arguments = fn, by_image, is_sum
        out: list[Tensor] = []
        with no_autocast('cpu'):
            for some, place in _places(x):
                result = fn(x[some, place], *(t[some] for t in weights[:by_image]), *weights[by_image:])
                parts = (result,) if isinstance(result, Tensor) else result
                if not out:
                    shapes = [one.shape[1 if is_sum else 2 :] for one in parts]
                    sizes = x.shape[: 1 if is_sum else 2]
                    make = x.new_zeros if is_sum else x.new_empty
                    out = [make(*sizes, *shape, dtype=one.dtype) for one, shape in zip(parts, shapes, strict=True)]
                for whole, one in zip(out, parts, strict=True):
                    if is_sum:
                        whole[some] += one
                    else:
                        whole[some, place] = one
        return out[0] if isinstance(result, Tensor) else tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        (fn, by_image, is_sum), needed = ctx.arguments, ctx.needs_input_grad[3:]
        x, *weights = ctx.saved_tensors
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format) if needed[0] else None
        sums = [
            torch.zeros_like(t, dtype=full_type(t.dtype), memory_format=torch.contiguous_format) if need else None
            for t, need in zip(weights, needed[1:], strict=True)
        ]
        with no_autocast('cpu'):
            for some, place in _places(x):
                inputs = x[some, place], *(t[some] for t in weights[:by_image]), *weights[by_image:]
                leaves = [t.detach().requires_grad_(need) for t, need in zip(inputs, needed, strict=True)]
                with torch.enable_grad():
                    out = fn(*leaves)
                upstream = [grad[some] if is_sum else grad[some, place] for grad in grads]
                found = iter(torch.autograd.grad(out, [leaf for leaf in leaves if leaf.requires_grad], upstream))
                if d_x is not None:
                    d_x[some, place] = next(found)
                for i, total in enumerate(sums):
                    if total is not None:
                        total[some if i < by_image else ...] += next(found)
        return None, None, None, d_x, *(t if t is None else t.to(w.dtype) for t, w in zip(sums, weights, strict=True))
