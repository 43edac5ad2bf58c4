"""Attention in plain torch: on the CPU in chunks whose weights stay in the cache, elsewhere torch's fused attention.

On the CPU no matrix of all weights exists, forward or backward: the backward pass computes the weights of a chunk once
more.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.attention.heads import check_heads, merge_heads, split_heads
from spinsr.ops.attention.reference import attend_heads, attention_reference
from spinsr.ops.common.chunking import chunks, on_cpu, recompute_in_chunks, sum_in_chunks
from spinsr.ops.common.precision import full_type, no_autocast

WEIGHTS = 2**20  # attention weights of a chunk, a thread: 4 MB in float32


def _chunk_of(weights: int) -> int:
    """How many rows of `weights` weights make a chunk."""
    return max(1, torch.get_num_threads() * WEIGHTS // max(1, weights))


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """See `spinsr.ops.attention.attention`."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if on_cpu(q) and not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
        full = full_type(v.dtype)
        b_q, b_k, b_v = (x.flatten(0, 1).to(full) for x in (q, k, v))  # (B heads, N, D)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention_reference(q, k, v, scale)

        rows = _chunk_of(len(b_k) * b_k.shape[1])
        return recompute_in_chunks(attend, b_q, (b_k, b_v), rows).unflatten(0, q.shape[:2]).to(v.dtype)
    # The fused kernels take one width for q, k and v; zeros appended to the narrower change nothing.
    width = max(q.shape[-1], v.shape[-1])
    wide_q, wide_k, wide_v = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
    return F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=scale)[..., : v.shape[-1]]


def cross_attention(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor, num_heads: int) -> Tensor:
    """Tokens gather from all pixels, then pixels from all tokens; differentiable. Shapes as in the public op."""
    q, k, v, tokens = (split_heads(x, num_heads) for x in (q, k, v, tokens))
    if not on_cpu(q):
        return merge_heads(attention(q, tokens, attention(tokens, k, v)))
    with no_autocast('cpu'):
        full, dtype, shape = full_type(v.dtype), v.dtype, v.shape[:2]
        q, k, v, tokens = (x.flatten(0, 1).to(full) for x in (q, k, v, tokens))  # (B heads, N, D)
        tokens = tokens / math.sqrt(tokens.shape[2])
        rows = _chunk_of(len(tokens) * tokens.shape[1])
        gathered = _gather(tokens, k, v, rows)
        out = recompute_in_chunks(_spread, q, (tokens, gathered), rows)
    return merge_heads(out.unflatten(0, shape)).to(dtype)


def _spread(q: Tensor, tokens: Tensor, gathered: Tensor) -> Tensor:
    """Pixels from all tokens, whose keys are scaled already."""
    return (q @ tokens.transpose(1, 2)).softmax(2) @ gathered


def _gather(tokens: Tensor, k: Tensor, v: Tensor, rows: int) -> Tensor:
    """Tokens from all pixels, softmax(tokens k^T) v: (G, K, D), (G, N, D), (G, N, E) -> (G, K, E).

    The pixels are streamed past the tokens with a running maximum.
    """
    top = tokens.new_full((*tokens.shape[:2], 1), -math.inf)
    total = tokens.new_zeros(*tokens.shape[:2], v.shape[2] + 1)  # sums of weight times value, and of weights
    with torch.no_grad():
        for place in chunks(k.shape[1], rows):
            logits = tokens @ k[:, place].transpose(1, 2)  # (G, K, n)
            new_top = torch.maximum(top, logits.amax(2, keepdim=True))
            total *= (top - new_top).exp_()
            total += logits.sub_(new_top).exp_() @ _with_ones(v[:, place])
            top = new_top
        mass = total[..., -1:]
        log_sum, total = top + mass.log(), total / mass
    if torch.is_grad_enabled() and any(x.requires_grad for x in (tokens, k, v)):
        # Normalised twice: the second sum of weights is 1, and brings the gradient of the softmax.
        total = sum_in_chunks(_weighted_sums, (k, v), (tokens, log_sum), rows, value=total)
        return total[..., :-1] / total[..., -1:]
    return total[..., :-1]


def _weighted_sums(k: Tensor, v: Tensor, tokens: Tensor, log_sum: Tensor) -> Tensor:
    return (tokens @ k.transpose(1, 2) - log_sum).exp() @ _with_ones(v)


def _with_ones(v: Tensor) -> Tensor:
    return F.pad(v, (0, 1), value=1.0)


def add_attended_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int, start: bool) -> Tensor:
    """Attention within groups of rows, added up by row; differentiable in q, k and v.

    Args:
        q, k: (R, num_heads * D).
        v: (R, C).
        rows: (G, T) int64 in [0, R), the rows of each group; a row may be in several groups or in none.
        num_heads: Number of heads.
        start: Whether the sum starts at `v` and not at 0.

    Returns:
        (R, C) in the type of `v`: for each row the sum of what it got in its groups.
    """
    check_heads(num_heads, q, k, v)
    if on_cpu(q):
        return _AddAttendedRows.apply(q, k, v, rows, num_heads, start)
    q_in, k_in, v_in = (split_heads(_take(x, rows, x.dtype), num_heads) for x in (q, k, v))
    out = merge_heads(attention(q_in, k_in, v_in))  # (G, T, C)
    return (v if start else torch.zeros_like(v)).index_add(0, rows.flatten(), out.flatten(0, 1).to(v.dtype))


class _AddAttendedRows(torch.autograd.Function):
    """Keeps q, k and v and not what is gathered from them, which is as large again, and more where groups overlap."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int, start: bool) -> Tensor:
        ctx.save_for_backward(q, k, v, rows)
        ctx.num_heads, ctx.start = num_heads, start
        full = full_type(v.dtype)
        out = v.to(full, memory_format=torch.contiguous_format, copy=True) if start else torch.zeros_like(v, dtype=full)
        with no_autocast('cpu'):
            for place in chunks(len(rows), _chunk_of(num_heads * rows.shape[1] ** 2)):
                q_in, k_in, v_in = (_take(x, rows[place], full) for x in (q, k, v))
                attended = attend_heads(q_in, k_in, v_in, num_heads)
                out.index_add_(0, rows[place].flatten(), attended.flatten(0, 1))
        return out.to(v.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, rows = ctx.saved_tensors
        full, widths = full_type(v.dtype), [x.shape[1] for x in (q, k, v)]
        # One buffer for the three gradients: one index_add in place of three.
        grads = v.new_zeros(len(v), sum(widths), dtype=full)
        with no_autocast('cpu'):
            for place in chunks(len(rows), _chunk_of(ctx.num_heads * rows.shape[1] ** 2)):
                inside = [_take(x, rows[place], full).requires_grad_() for x in (q, k, v)]
                with torch.enable_grad():
                    out = attend_heads(*inside, num_heads=ctx.num_heads)
                found = torch.autograd.grad(out, inside, _take(grad, rows[place], full))
                grads.index_add_(0, rows[place].flatten(), torch.cat(found, 2).flatten(0, 1))
        d_q, d_k, d_v = grads.to(v.dtype).split(widths, 1)
        return d_q, d_k, d_v + grad if ctx.start else d_v, None, None, None


def _take(x: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """(R, C) and rows (G, T) -> (G, T, C)."""
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape).to(dtype)
