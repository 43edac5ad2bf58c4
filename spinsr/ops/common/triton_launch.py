"""What the Triton kernels share: whether they can run, the type they compute in, and how they are launched.

A module of kernels imports triton and registers the custom ops `spinsr::*`; it is imported when an op first runs on the
backend 'triton'. With TRITON_INTERPRET=1 in the environment before triton is imported the kernels run interpreted, on
any device. All arithmetic is in float32, or in float64 when a tensor is; nothing uses TF32 or atomics,
so that results repeat bit for bit on one device.
"""

import contextlib
import math

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

# Products in full float32 run outside the tensor cores with their operands in registers. Blocks are chosen so that the
# kernels, compiled for sm_80 and sm_90 with SPIN's widths, spill none; with half the warps most of them do.
NUM_WARPS = 8

INTERPRETED = not isinstance(tl.sum, triton.JITFunction)


@triton.jit
def _probe_kernel():
    pass


@triton.jit
def load_rows(p_x, b_rows, m_rows, s_row, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """C entries of each of some rows, s_row apart: (rows, BLOCK_C), 0 elsewhere."""
    o_c = tl.arange(0, BLOCK_C)
    return tl.load(p_x + b_rows[:, None] * s_row + o_c[None, :], mask=m_rows[:, None] & (o_c < C)[None, :], other=0)


@triton.jit
def store_rows(p_x, b_rows, m_rows, s_row, b_x, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The transpose of `load_rows`."""
    o_c = tl.arange(0, BLOCK_C)
    tl.store(p_x + b_rows[:, None] * s_row + o_c[None, :], b_x, mask=m_rows[:, None] & (o_c < C)[None, :])


def obstacle() -> str | None:
    """Why the kernels cannot run with what is installed, if so."""
    release = _release(triton.__version__)
    if release < (3, 5):
        return f'it needs triton 3.5 (matrix products in float64), got {triton.__version__}'
    if isinstance(_probe_kernel, triton.JITFunction) == INTERPRETED:
        return 'TRITON_INTERPRET was changed after triton was imported'
    if INTERPRETED and release < (3, 7) and _release(np.__version__) >= (2, 4):
        return f'the interpreter of triton {triton.__version__} needs numpy below 2.4, got {np.__version__}'
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split('.')[:2])


def block_of(width: int) -> int:
    """Size of a block that holds `width` entries: a power of two, and what a matrix product takes at least."""
    return max(16, triton.next_power_of_2(width))


def at_a_time(size: int) -> int:
    """Entries that a program handles at a time where `size` suit a GPU: the interpreter's time goes by operations."""
    return 8 * size if INTERPRETED else size


def launch(kernel: triton.JITFunction, grid: tuple[int, ...], *arguments: Tensor | int, **constants) -> None:
    """Runs a kernel on the device of its first argument, which need not be the current one."""
    device = arguments[0].device
    if math.prod(grid):
        with torch.cuda.device(device) if device.type == 'cuda' else contextlib.nullcontext():
            kernel[grid](*arguments, num_warps=NUM_WARPS, **constants)
