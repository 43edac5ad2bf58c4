"""Kernels of the attention within groups of rows: superpixels (ISPA) and overlapping windows alike.

Rows are gathered inside the kernels. Keys are streamed past a block of queries with a running maximum and sum, so that
no T x T matrix is stored; forward keeps the log-sum-exp (G, heads, T), from which backward computes the weights again.
Backward writes what each place of a group gives to q, k and v, O(G T (D + C)), and `add_rows` brings it together.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from spinsr.ops.attention import split_heads
from spinsr.ops.constant import static
from spinsr.ops.kernels.launch import NUM_WARPS, at_a_time, block_of, compute_type, kernel_type, on_device_of, rows_of
from spinsr.ops.kernels.rows import RowMap, add_rows, mean_rows, window_map

BLOCK_T = at_a_time(32)  # queries, and keys


@triton.jit
def attend_rows_fwd_kernel(
    p_q,
    p_k,
    p_v,
    p_rows,
    p_out,
    p_lse,
    T,
    s_q_head,
    s_q_row,
    s_k_head,
    s_k_row,
    s_v_head,
    s_v_row,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    SCALE: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """out = softmax(q k^T / sqrt(D)) v for a block of queries of one group and head."""
    b_blocks = (T + BLOCK_T - 1) // BLOCK_T
    b_group = (tl.program_id(0) // b_blocks).to(tl.int64)
    b_head = tl.program_id(1).to(tl.int64)
    o_q = tl.program_id(0) % b_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    o_d = tl.arange(0, BLOCK_D)
    o_e = tl.arange(0, BLOCK_E)
    m_q = o_q < T
    m_d = (o_d < D)[None, :]
    m_e = (o_e < E)[None, :]
    b_q_rows = tl.load(p_rows + b_group * T + o_q, mask=m_q, other=0)
    o_q_rows = b_head * s_q_head + b_q_rows[:, None] * s_q_row + o_d[None, :]
    b_q = tl.load(p_q + o_q_rows, mask=m_q[:, None] & m_d, other=0).to(TYPE) * SCALE

    b_top = tl.full((BLOCK_T,), float('-inf'), dtype=TYPE)
    b_sum = tl.full((BLOCK_T,), 0, dtype=TYPE)
    b_out = tl.full((BLOCK_T, BLOCK_E), 0, dtype=TYPE)
    for start in range(0, T, BLOCK_T):
        o_k = start + tl.arange(0, BLOCK_T)
        m_k = o_k < T
        b_k_rows = tl.load(p_rows + b_group * T + o_k, mask=m_k, other=0)
        o_k_rows = b_head * s_k_head + b_k_rows[:, None] * s_k_row + o_d[None, :]
        b_k = tl.load(p_k + o_k_rows, mask=m_k[:, None] & m_d, other=0).to(TYPE)
        o_v_rows = b_head * s_v_head + b_k_rows[:, None] * s_v_row + o_e[None, :]
        b_v = tl.load(p_v + o_v_rows, mask=m_k[:, None] & m_e, other=0).to(TYPE)
        b_logits = tl.dot(b_q, tl.trans(b_k), input_precision='ieee', out_dtype=TYPE)
        b_logits = tl.where(m_k[None, :], b_logits, float('-inf'))
        b_new_top = tl.maximum(b_top, tl.max(b_logits, 1))
        b_decay = tl.exp(b_top - b_new_top)
        b_weights = tl.exp(b_logits - b_new_top[:, None])
        b_sum = b_sum * b_decay + tl.sum(b_weights, 1)
        b_out = b_out * b_decay[:, None] + tl.dot(b_weights, b_v, input_precision='ieee', out_dtype=TYPE)
        b_top = b_new_top
    o_place = b_group * T + o_q
    o_out = (o_place[:, None] * HEADS + b_head) * E + o_e[None, :]
    tl.store(p_out + o_out, b_out / b_sum[:, None], mask=m_q[:, None] & m_e)
    tl.store(p_lse + (b_group * HEADS + b_head) * T + o_q, b_top + tl.log(b_sum), mask=m_q)


@triton.jit
def attend_rows_q_bwd_kernel(
    p_q,
    p_k,
    p_v,
    p_rows,
    p_out,
    p_lse,
    p_grad,
    p_delta,
    p_grad_q,
    T,
    s_q_head,
    s_q_row,
    s_k_head,
    s_k_row,
    s_v_head,
    s_v_row,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    SCALE: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """With P the weights: grad q = P (grad v^T - delta) k / sqrt(D), delta = sum over channels of grad out."""
    b_blocks = (T + BLOCK_T - 1) // BLOCK_T
    b_group = (tl.program_id(0) // b_blocks).to(tl.int64)
    b_head = tl.program_id(1).to(tl.int64)
    o_q = tl.program_id(0) % b_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    o_d = tl.arange(0, BLOCK_D)
    o_e = tl.arange(0, BLOCK_E)
    m_q = o_q < T
    m_d = (o_d < D)[None, :]
    m_e = (o_e < E)[None, :]
    o_place = b_group * T + o_q
    o_out = (o_place[:, None] * HEADS + b_head) * E + o_e[None, :]
    o_lse = (b_group * HEADS + b_head) * T + o_q
    b_q_rows = tl.load(p_rows + o_place, mask=m_q, other=0)
    o_q_rows = b_head * s_q_head + b_q_rows[:, None] * s_q_row + o_d[None, :]
    b_q = tl.load(p_q + o_q_rows, mask=m_q[:, None] & m_d, other=0).to(TYPE) * SCALE
    b_grad = tl.load(p_grad + o_out, mask=m_q[:, None] & m_e, other=0).to(TYPE)
    b_delta = tl.sum(b_grad * tl.load(p_out + o_out, mask=m_q[:, None] & m_e, other=0).to(TYPE), 1)
    tl.store(p_delta + o_lse, b_delta, mask=m_q)
    b_lse = tl.load(p_lse + o_lse, mask=m_q, other=0)

    b_grad_q = tl.full((BLOCK_T, BLOCK_D), 0, dtype=TYPE)
    for start in range(0, T, BLOCK_T):
        o_k = start + tl.arange(0, BLOCK_T)
        m_k = o_k < T
        b_k_rows = tl.load(p_rows + b_group * T + o_k, mask=m_k, other=0)
        o_k_rows = b_head * s_k_head + b_k_rows[:, None] * s_k_row + o_d[None, :]
        b_k = tl.load(p_k + o_k_rows, mask=m_k[:, None] & m_d, other=0).to(TYPE)
        o_v_rows = b_head * s_v_head + b_k_rows[:, None] * s_v_row + o_e[None, :]
        b_v = tl.load(p_v + o_v_rows, mask=m_k[:, None] & m_e, other=0).to(TYPE)
        b_logits = tl.dot(b_q, tl.trans(b_k), input_precision='ieee', out_dtype=TYPE)
        b_logits = tl.where(m_k[None, :], b_logits, float('-inf'))
        b_weights = tl.exp(b_logits - b_lse[:, None])
        b_grad_weights = tl.dot(b_grad, tl.trans(b_v), input_precision='ieee', out_dtype=TYPE)
        b_grad_logits = b_weights * (b_grad_weights - b_delta[:, None])
        b_grad_q += tl.dot(b_grad_logits, b_k, input_precision='ieee', out_dtype=TYPE)
    o_grad_q = (o_place[:, None] * HEADS + b_head) * D + o_d[None, :]
    tl.store(p_grad_q + o_grad_q, b_grad_q * SCALE, mask=m_q[:, None] & m_d)


@triton.jit
def attend_rows_kv_bwd_kernel(
    p_q,
    p_k,
    p_v,
    p_rows,
    p_lse,
    p_grad,
    p_delta,
    p_grad_k,
    p_grad_v,
    T,
    s_q_head,
    s_q_row,
    s_k_head,
    s_k_row,
    s_v_head,
    s_v_row,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    SCALE: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """grad v = P^T grad, grad k = (P (grad v^T - delta))^T q / sqrt(D), for a block of keys."""
    b_blocks = (T + BLOCK_T - 1) // BLOCK_T
    b_group = (tl.program_id(0) // b_blocks).to(tl.int64)
    b_head = tl.program_id(1).to(tl.int64)
    o_k = tl.program_id(0) % b_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    o_d = tl.arange(0, BLOCK_D)
    o_e = tl.arange(0, BLOCK_E)
    m_k = o_k < T
    m_d = (o_d < D)[None, :]
    m_e = (o_e < E)[None, :]
    b_k_rows = tl.load(p_rows + b_group * T + o_k, mask=m_k, other=0)
    o_k_rows = b_head * s_k_head + b_k_rows[:, None] * s_k_row + o_d[None, :]
    b_k = tl.load(p_k + o_k_rows, mask=m_k[:, None] & m_d, other=0).to(TYPE)
    o_v_rows = b_head * s_v_head + b_k_rows[:, None] * s_v_row + o_e[None, :]
    b_v = tl.load(p_v + o_v_rows, mask=m_k[:, None] & m_e, other=0).to(TYPE)

    b_grad_k = tl.full((BLOCK_T, BLOCK_D), 0, dtype=TYPE)
    b_grad_v = tl.full((BLOCK_T, BLOCK_E), 0, dtype=TYPE)
    for start in range(0, T, BLOCK_T):
        o_q = start + tl.arange(0, BLOCK_T)
        m_q = o_q < T
        b_q_rows = tl.load(p_rows + b_group * T + o_q, mask=m_q, other=0)
        o_q_rows = b_head * s_q_head + b_q_rows[:, None] * s_q_row + o_d[None, :]
        b_q = tl.load(p_q + o_q_rows, mask=m_q[:, None] & m_d, other=0).to(TYPE) * SCALE
        o_grad = ((b_group * T + o_q)[:, None] * HEADS + b_head) * E + o_e[None, :]
        b_grad = tl.load(p_grad + o_grad, mask=m_q[:, None] & m_e, other=0).to(TYPE)
        o_lse = (b_group * HEADS + b_head) * T + o_q
        # A query that is not there gives nothing, whatever its weights: its gradient and delta are 0.
        b_lse = tl.load(p_lse + o_lse, mask=m_q, other=0)
        b_delta = tl.load(p_delta + o_lse, mask=m_q, other=0)
        b_logits = tl.dot(b_k, tl.trans(b_q), input_precision='ieee', out_dtype=TYPE)  # keys x queries
        b_weights = tl.exp(b_logits - b_lse[None, :])
        b_grad_v += tl.dot(b_weights, b_grad, input_precision='ieee', out_dtype=TYPE)
        b_grad_weights = tl.dot(b_v, tl.trans(b_grad), input_precision='ieee', out_dtype=TYPE)
        b_grad_logits = b_weights * (b_grad_weights - b_delta[None, :])
        b_grad_k += tl.dot(b_grad_logits, b_q, input_precision='ieee', out_dtype=TYPE)
    o_place = (b_group * T + o_k)[:, None] * HEADS + b_head
    tl.store(p_grad_k + o_place * D + o_d[None, :], b_grad_k, mask=m_k[:, None] & m_d)
    tl.store(p_grad_v + o_place * E + o_e[None, :], b_grad_v, mask=m_k[:, None] & m_e)


def _strides(*inputs: Tensor) -> list[int]:
    return [x.stride(i) for x in inputs for i in (0, 1)]


def _options(q: Tensor, v: Tensor, t: int, dtype: torch.dtype) -> dict:
    heads, _, d = q.shape
    return {
        'HEADS': heads,
        'D': d,
        'E': v.shape[2],
        'SCALE': 1 / math.sqrt(d),
        'TYPE': kernel_type(dtype),
        'BLOCK_T': min(BLOCK_T, block_of(t)),
        'BLOCK_D': block_of(d),
        'BLOCK_E': block_of(v.shape[2]),
        'num_warps': NUM_WARPS,
    }


@torch.library.custom_op('spinsr::attend_rows', mutates_args=())
def attend_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, places: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Attention within groups of rows; differentiable in `q`, `k` and `v`.

    Args:
        q, k: (heads, R, D), any float type, any strides.
        v: (heads, R, E), likewise.
        rows, places, starts: See `spinsr.ops.kernels.rows.RowMap`; each row at most once in a group.

    Returns:
        (G * T, heads * E) in the type of `v`, and the log-sum-exp of the logits (G, heads, T), float32 or float64,
        which has no gradient.
    """
    (groups, t), heads = rows.shape, q.shape[0]
    dtype = compute_type(q, k, v)
    q, k, v = rows_of(q), rows_of(k), rows_of(v)
    out = v.new_empty(groups * t, heads * v.shape[2])
    lse = v.new_empty(groups, heads, t, dtype=dtype)
    options = _options(q, v, t, dtype)
    with on_device_of(v):
        attend_rows_fwd_kernel[(groups * triton.cdiv(t, options['BLOCK_T']), heads)](
            q, k, v, rows, out, lse, t, *_strides(q, k, v), **options
        )
    return out, lse


@attend_rows.register_fake
def _(q, k, v, rows, places, starts):
    (groups, t), heads = rows.shape, q.shape[0]
    out = v.new_empty(groups * t, heads * v.shape[2])
    return out, v.new_empty(groups, heads, t, dtype=compute_type(q, k, v))


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
    """Gradients of `q`, `k` and `v` from that of the output, (G * T, heads * E); each (R, heads * width)."""
    (groups, t), heads = rows.shape, q.shape[0]
    dtypes = q.dtype, k.dtype, v.dtype
    grad, q, k, v = grad.contiguous(), rows_of(q), rows_of(k), rows_of(v)
    delta = torch.empty_like(lse)
    given = [lse.new_empty(groups * t, heads * x.shape[2]) for x in (q, k, v)]
    options = _options(q, v, t, lse.dtype)
    grid = (groups * triton.cdiv(t, options['BLOCK_T']), heads)
    with on_device_of(v):
        # The first kernel leaves delta, the sums of grad * out, to the second.
        attend_rows_q_bwd_kernel[grid](q, k, v, rows, out, lse, grad, delta, given[0], t, *_strides(q, k, v), **options)
        attend_rows_kv_bwd_kernel[grid](q, k, v, rows, lse, grad, delta, *given[1:], t, *_strides(q, k, v), **options)
    return tuple(add_rows(x, None, places, starts, False, dtype) for x, dtype in zip(given, dtypes, strict=True))


@attend_rows_backward.register_fake
def _(grad, q, k, v, out, lse, rows, places, starts):
    return tuple(x.new_empty(starts.shape[0] - 1, x.shape[0] * x.shape[2]) for x in (q, k, v))


def _save(ctx, inputs, output) -> None:
    q, k, v, *maps = inputs
    ctx.save_for_backward(q, k, v, *output, *maps)


def _backward(ctx, grad: Tensor, _grad_lse: Tensor):
    heads = ctx.saved_tensors[0].shape[0]
    grads = attend_rows_backward(grad, *ctx.saved_tensors)
    return *(x.unflatten(1, (heads, -1)).transpose(0, 1) for x in grads), None, None, None


attend_rows.register_autograd(_backward, setup_context=_save)


def _attend(q: Tensor, k: Tensor, v: Tensor, row_map: RowMap, num_heads: int) -> Tensor:
    """Attention of rows (R, heads * width) within the groups of `row_map`: (G * T, C)."""
    heads = (split_heads(x.unsqueeze(0), num_heads).squeeze(0) for x in (q, k, v))  # (heads, R, width)
    return attend_rows(*heads, row_map.rows, row_map.places, row_map.starts)[0]


def intra_superpixel_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int, own_values: str
) -> Tensor:
    """ISPA on rows (B N, heads * D) and (B N, C) with groups (B K, T) of them: (B N, C)."""
    row_map = RowMap.build(rows, len(v))
    out = _attend(q, k, v, row_map, num_heads)
    if own_values == 'all':
        return mean_rows(out, v, row_map.rows, row_map.places, row_map.starts)
    mean = mean_rows(out, None, row_map.rows, row_map.places, row_map.starts)  # 0 where nothing came
    return torch.where(row_map.starts.diff().unsqueeze(1) > 0, mean, v)


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int, overlap: int, num_heads: int) -> Tensor:
    """Attention of features (B, H, W, heads * D) and (B, H, W, C) in windows, averaged: (B, H, W, C)."""
    row_map = window_map(*map(static, v.shape[:3]), window, overlap, v.device)
    out = _attend(*(x.flatten(0, 2) for x in (q, k, v)), row_map, num_heads)
    return mean_rows(out, None, row_map.rows, row_map.places, row_map.starts).view(v.shape)
