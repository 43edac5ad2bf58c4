"""Rows that come together again: the transpose of a gather, as a sum over the places that hold a row.

The places are sorted by row beforehand. A program then adds the places of its rows in their order: no atomics, and the
same sum every time.
"""

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from spinsr.ops.constant import constant
from spinsr.ops.kernels.launch import at_a_time, block_of, compute_type, kernel_type, on_device_of, rows_of
from spinsr.ops.windows import batch_rows, windows_of

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


@constant
def window_map(batch: int, height: int, width: int, window: int, overlap: int, device: torch.device) -> RowMap:
    """The (cached) map of the windows of images that follow one another."""
    windows = windows_of(height, width, window, overlap, device)
    return RowMap.build(batch_rows(windows, batch), batch * height * width)


@triton.jit
def add_rows_fwd_kernel(
    p_x,
    p_own,
    p_places,
    p_starts,
    p_out,
    R,
    C,
    s_x,
    s_own,
    HAS_OWN: tl.constexpr,
    IS_MEAN: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum or mean of the places of each row, in their order."""
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_r = o_r < R
    m_c = o_c < C
    b_start = tl.load(p_starts + o_r, mask=m_r, other=0)
    b_count = tl.load(p_starts + o_r + 1, mask=m_r, other=0) - b_start
    b_out = tl.full((BLOCK_R, BLOCK_C), 0, dtype=TYPE)
    if HAS_OWN:
        o_own = o_r[:, None] * s_own + o_c[None, :]
        b_out += tl.load(p_own + o_own, mask=m_r[:, None] & m_c[None, :], other=0).to(TYPE)
    for i in range(0, tl.max(b_count, 0)):
        m_i = i < b_count
        b_place = tl.load(p_places + b_start + i, mask=m_i, other=0)
        o_x = b_place[:, None] * s_x + o_c[None, :]
        b_out += tl.load(p_x + o_x, mask=m_i[:, None] & m_c[None, :], other=0).to(TYPE)
    if IS_MEAN:
        if HAS_OWN:
            b_count += 1
        b_out = b_out / tl.maximum(b_count, 1).to(TYPE)[:, None]
    tl.store(p_out + o_r[:, None] * C + o_c[None, :], b_out, mask=m_r[:, None] & m_c[None, :])


def add_rows(x: Tensor, own: Tensor | None, places: Tensor, starts: Tensor, mean: bool, dtype: torch.dtype) -> Tensor:
    """Sums, or means, of `own` (R, C) and the rows of `x` (G * T, C) at the places of each row: (R, C) in `dtype`."""
    x = rows_of(x)
    own = own if own is None else rows_of(own)
    num_rows, c = len(starts) - 1, x.shape[1]
    out = x.new_empty(num_rows, c, dtype=dtype)
    block_c = min(BLOCK_C, block_of(c))
    with on_device_of(x):
        add_rows_fwd_kernel[(triton.cdiv(num_rows, BLOCK_R), triton.cdiv(c, block_c))](
            x,
            x if own is None else own,
            places,
            starts,
            out,
            num_rows,
            c,
            x.stride(0),
            0 if own is None else own.stride(0),
            HAS_OWN=own is not None,
            IS_MEAN=mean,
            TYPE=kernel_type(compute_type(x, out)),
            BLOCK_R=BLOCK_R,
            BLOCK_C=block_c,
        )
    return out


@torch.library.custom_op('spinsr::mean_rows', mutates_args=())
def mean_rows(x: Tensor, own: Tensor | None, rows: Tensor, places: Tensor, starts: Tensor) -> Tensor:
    """Mean of what came to each row, and of the row itself where `own` is given.

    Args:
        x: What went to the rows of groups, (G * T, C), any float type.
        own: (R, C) in the type of `x`, or None; then a row that nothing came to is 0.
        rows, places, starts: See `RowMap`.

    Returns:
        (R, C).
    """
    return add_rows(x, own, places, starts, True, x.dtype)


@mean_rows.register_fake
def _(x, own, rows, places, starts):
    return x.new_empty(starts.shape[0] - 1, x.shape[1])


def _save(ctx, inputs, output) -> None:
    _, own, rows, _, starts = inputs
    ctx.save_for_backward(rows, starts)
    ctx.has_own = own is not None


def _backward(ctx, grad: Tensor):
    rows, starts = ctx.saved_tensors
    grad = grad / (starts.diff() + ctx.has_own).to(grad.dtype).unsqueeze(1)
    return grad.index_select(0, rows.flatten()), grad if ctx.has_own else None, None, None, None


mean_rows.register_autograd(_backward, setup_context=_save)
