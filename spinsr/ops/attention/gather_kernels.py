"""Rows that come together again: the transpose of a gather, as a sum over the places that hold a row.

The places are sorted by row beforehand. A program then adds the places of its rows in their order: no atomics, and the
same sum every time.
"""

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from spinsr.ops.attention.windows import batch_rows, windows_of
from spinsr.ops.common.cache import cached_table
from spinsr.ops.common.triton_launch import (
    at_a_time,
    block_of,
    compute_type,
    kernel_type,
    load_rows,
    on_device_of,
    rows_of,
    store_rows,
)

BLOCK_R = at_a_time(16)  # rows
BLOCK_C = 64  # channels at most


@dataclasses.dataclass(frozen=True, eq=False)
class RowMap:
    """Groups of rows, and where each row went.

    Attributes:
        rows: (G, T) int64 in [0, R).
        places: (G * T,) int64, the entries of `rows` (flattened) sorted by row, then by place.
        starts: (R + 1,) int64, where the places of each row start among these.
    """

    rows: Tensor
    places: Tensor
    starts: Tensor

    @classmethod
    def build(cls, rows: Tensor, num_rows: int) -> 'RowMap':
        """The map of `rows` (G, T) into `num_rows` rows."""
        rows = rows.contiguous()
        in_order, places = rows.flatten().sort(stable=True)
        return cls(rows, places, torch.searchsorted(in_order, torch.arange(num_rows + 1, device=rows.device)))


def counts(row_map: RowMap) -> Tensor:
    """The number of places of each row, (R, 1). A function, since torch.compile takes no method of a constant."""
    return row_map.starts.diff().unsqueeze(1)


@cached_table
def window_map(batch: int, height: int, width: int, window: int, overlap: int, device: torch.device) -> RowMap:
    """The (cached) map of the windows of images that follow one another."""
    windows = windows_of(height, width, window, overlap, device)
    return RowMap.build(batch_rows(windows.rows, height * width, batch), batch * height * width)


@triton.jit
def add_rows_fwd_kernel(
    p_x,
    p_places,
    p_starts,
    p_out,
    R,
    C,
    s_x,
    TYPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum of the places of each row, in their order."""
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_channel = tl.program_id(1) * BLOCK_C
    m_r = o_r < R
    b_start = tl.load(p_starts + o_r, mask=m_r, other=0)
    b_count = tl.load(p_starts + o_r + 1, mask=m_r, other=0) - b_start
    b_out = tl.full((BLOCK_R, BLOCK_C), 0, dtype=TYPE)
    for i in range(0, tl.max(b_count, 0)):  # pyright: ignore[reportArgumentType]  # a scalar of Triton
        m_i = i < b_count
        b_place = tl.load(p_places + b_start + i, mask=m_i, other=0)
        b_out += load_rows(p_x + o_channel, b_place, m_i, s_x, C - o_channel, BLOCK_C).to(TYPE)
    store_rows(p_out + o_channel, o_r, m_r, C, b_out, C - o_channel, BLOCK_C)


def sum_of_rows(x: Tensor, places: Tensor, starts: Tensor) -> Tensor:
    """`add_rows` without its gradient."""
    x = rows_of(x)
    num_rows, c = len(starts) - 1, x.shape[1]
    out = x.new_empty(num_rows, c, dtype=compute_type(x))
    options = {'TYPE': kernel_type(out.dtype), 'BLOCK_R': BLOCK_R, 'BLOCK_C': min(BLOCK_C, block_of(c))}
    if out.numel():
        grid = triton.cdiv(num_rows, BLOCK_R), triton.cdiv(c, options['BLOCK_C'])
        with on_device_of(x):
            add_rows_fwd_kernel[grid](x, places, starts, out, num_rows, c, x.stride(0), **options)
    return out


@torch.library.custom_op('spinsr::add_rows', mutates_args=())
def add_rows(x: Tensor, rows: Tensor, places: Tensor, starts: Tensor) -> Tensor:
    """Sum of what came to each row; differentiable in `x`.

    Args:
        x: What went to the rows of groups, (G * T, C), any float type.
        rows, places, starts: See `RowMap`.

    Returns:
        (R, C), float32 or float64.
    """
    return sum_of_rows(x, places, starts)


@add_rows.register_fake
def _(x, rows, places, starts):
    return x.new_empty(starts.shape[0] - 1, x.shape[1], dtype=compute_type(x))


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.dtype = inputs[0].dtype


def _backward(ctx, grad: Tensor):
    (rows,) = ctx.saved_tensors
    return grad.to(ctx.dtype).index_select(0, rows.flatten()), None, None, None


add_rows.register_autograd(_backward, setup_context=_save)
