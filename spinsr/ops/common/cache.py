"""Tables that depend on sizes alone, built once and constant to whatever traces the network."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


def cached_table(build: Callable) -> Callable:
    """Caches what `build` makes for the last few sizes.

    The same table serves autograd, torch.compile and torch.export, so it must never be an inference tensor, hold fake
    tensors or be recorded in a graph. It is built in a thread of its own: all these modes, and the default device, are
    local to the caller's thread.
    """

    @functools.lru_cache(maxsize=16)
    def cached(*args):
        with ThreadPoolExecutor(1) as thread:
            result = thread.submit(build, *args).result()
        for tensor in _tensors(result):
            # With dynamic=True the compiler would make the sizes of a table symbols, and then fail to guard on them.
            # This is what torch._dynamo.mark_static sets; it does nothing while the compiler runs.
            tensor._dynamo_static_indices = set(range(tensor.ndim))  # pyright: ignore[reportAttributeAccessIssue]
        return result

    @functools.wraps(build)
    def table(*args):
        return cached(*args)

    # What torch.compiler.assume_constant_result sets; calling it imports the compiler, which takes seconds.
    table._dynamo_marked_constant = True  # pyright: ignore[reportAttributeAccessIssue]
    table.cache_clear = cached.cache_clear  # pyright: ignore[reportAttributeAccessIssue]
    return table


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
        yield from _tensors(value._base)
    elif dataclasses.is_dataclass(value) or isinstance(value, tuple):
        for part in value if isinstance(value, tuple) else vars(value).values():
            yield from _tensors(part)


def specialize_int(number: int) -> int:
    """Returns `number`; inside torch.compile a symbolic size becomes the number that the tables need.

    A range needs a number and so specializes the size, where int() leaves it symbolic.
    """
    return len(range(number)) if torch.compiler.is_compiling() else number
