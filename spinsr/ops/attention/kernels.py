"""Kernels of the attention within groups of rows: superpixels (ISPA) and overlapping windows alike.

Rows are gathered inside the kernels. Keys are streamed past a block of queries with a running maximum and sum, so that
no T x T matrix is stored; forward keeps the log-sum-exp (G * T, heads), from which backward computes the weights again.
Backward writes what each place of a group adds to the gradients of q, k and v, O(G T (D + C)).

What goes to the places of groups comes together again in rows: the places are sorted by row beforehand, and each row
adds its own in their order, without atomics and so the same every time.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from spinsr.ops.attention.windows import batch_rows, windows_of
from spinsr.ops.common.cache import cached_table
from spinsr.ops.common.precision import full_type
from spinsr.ops.common.triton_launch import at_a_time, block_of, launch, load_rows, store_rows

BLOCK_T = at_a_time(32)  # queries, and keys


def row_map(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the rows of groups, (G, T) int64 in [0, R), went.

    Returns:
        `rows`; `places` (G * T,), its entries (flattened) sorted by row, then by place; `starts` (R + 1,), where the
        places of each row start among these.
    """
    rows = rows.contiguous()
    in_order, places = rows.flatten().sort(stable=True)
    return rows, places, torch.searchsorted(in_order, torch.arange(num_rows + 1, device=rows.device))


@cached_table
def window_map(
    batch: int, height: int, width: int, window: int, overlap: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The (cached) map of the windows of images that follow one another."""
    rows, _ = windows_of(height, width, window, overlap, device)
    return row_map(batch_rows(rows, height * width, batch), batch * height * width)


@triton.jit
def attend_rows_fwd_kernel(
    p_q,
    p_k,
    p_v,
    p_rows,
    p_out,
    p_lse,
    T,
    s_q,
    s_k,
    s_v,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """out = softmax(q k^T / sqrt(D)) v for a block of queries of one group and head."""
    TYPE = p_lse.dtype.element_ty
    b_blocks = (T + BLOCK_T - 1) // BLOCK_T
    b_first = (tl.program_id(0) // b_blocks).to(tl.int64) * T  # place of the group
    b_head = tl.program_id(1)
    o_q = tl.program_id(0) % b_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    m_q = o_q < T
    b_q_rows = tl.load(p_rows + b_first + o_q, mask=m_q, other=0)
    b_q = load_rows(p_q + b_head * D, b_q_rows, m_q, s_q, D, BLOCK_D).to(TYPE) * SCALE
    b_top = tl.full((BLOCK_T,), float('-inf'), dtype=TYPE)
    b_sum = tl.full((BLOCK_T,), 0, dtype=TYPE)
    b_out = tl.full((BLOCK_T, BLOCK_E), 0, dtype=TYPE)
    for start in range(0, T, BLOCK_T):
        o_k = start + tl.arange(0, BLOCK_T)
        m_k = o_k < T
        b_rows = tl.load(p_rows + b_first + o_k, mask=m_k, other=0)
        b_k = load_rows(p_k + b_head * D, b_rows, m_k, s_k, D, BLOCK_D).to(TYPE)
        b_v = load_rows(p_v + b_head * E, b_rows, m_k, s_v, E, BLOCK_E).to(TYPE)
        b_logits = tl.dot(b_q, tl.trans(b_k), input_precision='ieee', out_dtype=TYPE)
        b_logits = tl.where(m_k[None, :], b_logits, float('-inf'))
        b_new_top = tl.maximum(b_top, tl.max(b_logits, 1))
        b_decay = tl.exp(b_top - b_new_top)
        b_weights = tl.exp(b_logits - b_new_top[:, None])
        b_sum = b_sum * b_decay + tl.sum(b_weights, 1)
        b_out = b_out * b_decay[:, None] + tl.dot(b_weights, b_v, input_precision='ieee', out_dtype=TYPE)
        b_top = b_new_top
    o_place = (b_first + o_q) * HEADS + b_head
    store_rows(p_out, o_place, m_q, E, b_out / b_sum[:, None], E, BLOCK_E)
    tl.store(p_lse + o_place, b_top + tl.log(b_sum), mask=m_q)


@triton.jit
def attend_rows_bwd_kernel(
    p_q,
    p_k,
    p_v,
    p_rows,
    p_lse,
    p_grad,
    p_delta,
    p_grad_q,
    p_grad_k,
    p_grad_v,
    T,
    s_q,
    s_k,
    s_v,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """P the weights, L = P (grad v^T - delta): grad q = L k / sqrt(D), grad k = L^T q / sqrt(D), grad v = P^T grad.

    For one block of places, first as queries against all keys, then as keys against all queries.
    """
    TYPE = p_lse.dtype.element_ty
    b_blocks = (T + BLOCK_T - 1) // BLOCK_T
    b_first = (tl.program_id(0) // b_blocks).to(tl.int64) * T
    b_head = tl.program_id(1)
    o_t = tl.program_id(0) % b_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = o_t < T
    o_place = (b_first + o_t) * HEADS + b_head
    b_own = tl.load(p_rows + b_first + o_t, mask=m_t, other=0)
    b_q = load_rows(p_q + b_head * D, b_own, m_t, s_q, D, BLOCK_D).to(TYPE) * SCALE
    b_grad = load_rows(p_grad, o_place, m_t, E, E, BLOCK_E).to(TYPE)
    b_lse = tl.load(p_lse + o_place, mask=m_t, other=0)
    b_delta = tl.load(p_delta + o_place, mask=m_t, other=0)
    b_grad_q = tl.full((BLOCK_T, BLOCK_D), 0, dtype=TYPE)
    for start in range(0, T, BLOCK_T):
        o_k = start + tl.arange(0, BLOCK_T)
        m_k = o_k < T
        b_rows = tl.load(p_rows + b_first + o_k, mask=m_k, other=0)
        b_k = load_rows(p_k + b_head * D, b_rows, m_k, s_k, D, BLOCK_D).to(TYPE)
        b_v = load_rows(p_v + b_head * E, b_rows, m_k, s_v, E, BLOCK_E).to(TYPE)
        b_logits = tl.dot(b_q, tl.trans(b_k), input_precision='ieee', out_dtype=TYPE)
        b_weights = tl.exp(tl.where(m_k[None, :], b_logits, float('-inf')) - b_lse[:, None])
        b_grad_weights = tl.dot(b_grad, tl.trans(b_v), input_precision='ieee', out_dtype=TYPE)
        b_grad_logits = b_weights * (b_grad_weights - b_delta[:, None])
        b_grad_q += tl.dot(b_grad_logits, b_k, input_precision='ieee', out_dtype=TYPE)
    store_rows(p_grad_q, o_place, m_t, D, b_grad_q * SCALE, D, BLOCK_D)

    b_k = load_rows(p_k + b_head * D, b_own, m_t, s_k, D, BLOCK_D).to(TYPE)
    b_v = load_rows(p_v + b_head * E, b_own, m_t, s_v, E, BLOCK_E).to(TYPE)
    b_grad_k = tl.full((BLOCK_T, BLOCK_D), 0, dtype=TYPE)
    b_grad_v = tl.full((BLOCK_T, BLOCK_E), 0, dtype=TYPE)
    for start in range(0, T, BLOCK_T):
        # A query that does not exist adds nothing, whatever its weights: its gradient and delta are 0.
        o_q = start + tl.arange(0, BLOCK_T)
        m_q = o_q < T
        o_query = (b_first + o_q) * HEADS + b_head
        b_rows = tl.load(p_rows + b_first + o_q, mask=m_q, other=0)
        b_q = load_rows(p_q + b_head * D, b_rows, m_q, s_q, D, BLOCK_D).to(TYPE) * SCALE
        b_grad = load_rows(p_grad, o_query, m_q, E, E, BLOCK_E).to(TYPE)
        b_lse = tl.load(p_lse + o_query, mask=m_q, other=0)
        b_delta = tl.load(p_delta + o_query, mask=m_q, other=0)
        b_logits = tl.dot(b_k, tl.trans(b_q), input_precision='ieee', out_dtype=TYPE)  # keys x queries
        b_weights = tl.exp(b_logits - b_lse[None, :])
        b_grad_v += tl.dot(b_weights, b_grad, input_precision='ieee', out_dtype=TYPE)
        b_grad_weights = tl.dot(b_v, tl.trans(b_grad), input_precision='ieee', out_dtype=TYPE)
        b_grad_logits = b_weights * (b_grad_weights - b_delta[None, :])
        b_grad_k += tl.dot(b_grad_logits, b_q, input_precision='ieee', out_dtype=TYPE)
    store_rows(p_grad_k, o_place, m_t, D, b_grad_k, D, BLOCK_D)
    store_rows(p_grad_v, o_place, m_t, E, b_grad_v, E, BLOCK_E)


def _launch(kernel, num_heads: int, qkv: Sequence[Tensor], rows: Tensor, *tensors: Tensor) -> None:
    qkv = [x if x.stride(-1) == 1 else x.contiguous() for x in qkv]  # all that the kernels ask of rows
    d, e, t = qkv[0].shape[1] // num_heads, qkv[2].shape[1] // num_heads, rows.shape[1]
    blocks = {'BLOCK_T': min(BLOCK_T, block_of(t)), 'BLOCK_D': block_of(d), 'BLOCK_E': block_of(e)}
    grid, strides = (len(rows) * -(-t // blocks['BLOCK_T']), num_heads), (x.stride(0) for x in qkv)
    launch(kernel, grid, *qkv, rows, *tensors, t, *strides, HEADS=num_heads, D=d, E=e, SCALE=1 / math.sqrt(d), **blocks)


def _sum_of_rows(x: Tensor, places: Tensor, starts: Tensor) -> Tensor:
    """The sum of the places of each row in their order, (G * T, C) -> (R, C)."""
    return F.embedding_bag(places, x, starts, mode='sum', include_last_offset=True)


@torch.library.custom_op('spinsr::attend_rows', mutates_args=())
def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, places: Tensor, starts: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention within groups of rows, added up by row; the sum is differentiable in `q`, `k` and `v`.

    Args:
        q, k: (R, num_heads * D), any float type, any strides.
        v: (R, C), likewise.
        rows, places, starts: See `row_map`; each row at most once in a group.
        num_heads: Number of heads.

    Returns:
        (R, C), for each row the sum of what it got in its groups; and for the backward pass what each place got,
        (G * T, C), and the log-sum-exp of its logits, (G * T, heads). All are float32 or float64.
    """
    out = v.new_empty(rows.numel(), v.shape[1], dtype=full_type(v.dtype))
    lse = out.new_empty(rows.numel(), num_heads)
    _launch(attend_rows_fwd_kernel, num_heads, (q, k, v), rows, out, lse)
    return _sum_of_rows(out, places, starts), out, lse


@attend_rows.register_fake
def _(q, k, v, rows, places, starts, num_heads):
    out = v.new_empty(rows.shape[0] * rows.shape[1], v.shape[1], dtype=full_type(v.dtype))
    return out.new_empty(starts.shape[0] - 1, v.shape[1]), out, out.new_empty(out.shape[0], num_heads)


@torch.library.custom_op('spinsr::attend_rows_backward', mutates_args=())
def attend_rows_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Tensor,
    places: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `q`, `k` and `v` from `grad`, that of the sum, (R, C)."""
    num_heads, grad = lse.shape[1], grad.index_select(0, rows.flatten())  # (G T, C)
    delta = (grad * out).unflatten(1, (num_heads, -1)).sum(2)  # (G T, heads)
    at_places = [lse.new_empty(rows.numel(), x.shape[1]) for x in (q, k, v)]
    _launch(attend_rows_bwd_kernel, num_heads, (q, k, v), rows, lse, grad, delta, *at_places)
    return tuple(_sum_of_rows(x, places, starts).to(one.dtype) for x, one in zip(at_places, (q, k, v), strict=True))


@attend_rows_backward.register_fake
def _(grad, q, k, v, out, lse, rows, places, starts):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save(ctx, inputs, output) -> None:
    *tensors, _ = inputs
    ctx.save_for_backward(*tensors[:3], *output[1:], *tensors[3:])


def _backward(ctx, grad: Tensor, *_):
    return *attend_rows_backward(grad, *ctx.saved_tensors), None, None, None, None


attend_rows.register_autograd(_backward, setup_context=_save)
