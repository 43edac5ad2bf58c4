"""What depends on sizes alone, or on nothing, made once, as constants to whatever traces the network."""

import functools
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import _disable_current_modes


def constant(build: Callable) -> Callable:
    """Caches what `build` makes for the last few sizes.

    A table may meet autograd, torch.compile and torch.export, and the same one serves all: it is never an inference
    tensor, never made of fake tensors, and its making is not part of a graph. torch has no public way out of a tracer's
    modes; where `_disable_current_modes` is gone, one may be there.
    """

    @functools.lru_cache(maxsize=16)
    def cached(*args):
        # Without no_grad: torch.export would note it, and make a graph of its own of what follows.
        with _disable_current_modes(), torch.inference_mode(False):
            return build(*args)

    @functools.wraps(build)
    def table(*args):
        return cached(*args)

    # What torch.compiler.assume_constant_result does, without importing the compiler for those who do not compile.
    table._dynamo_marked_constant = True
    table.cache_clear = cached.cache_clear
    return table


def static(number: int) -> int:
    """`number` itself; a symbolic size of torch.compile becomes a number, as the tables ask for.

    A range needs a number and so makes one of it, where int() leaves it symbolic.
    """
    return len(range(number)) if torch.compiler.is_compiling() else number
