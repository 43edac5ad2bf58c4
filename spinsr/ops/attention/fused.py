"""Attention without a matrix of all weights: by torch's fused kernels, or by hand in chunks that stay in the cache."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.attention import reference
from spinsr.ops.attention.reference import attend_heads, take
from spinsr.ops.common.chunking import chunks, on_cpu, recompute_in_chunks
from spinsr.ops.common.precision import attention_type, full_type, no_autocast

# Attention weights of a chunk of groups, for each thread: of the fused kernel, of products and softmax by hand, and of
# the gradient by hand. The latter two stay in the cache. Twice as many in bfloat16 take as much.
FUSED, BY_HAND, BACKWARD = 2**20, 2**18, 2**19
GATHERED = 2**16  # rows that are gathered at once
# Of q, and of k, at least, in one product by hand; products with fewer are slow.
ROWS, KEYS = 32, 128
# In groups of at most so many rows, products and softmax by hand take less time; docs/performance.md has the table.
SMALL_GROUP = 144


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """See `spinsr.ops.attention.attention`."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if on_cpu(q) and attention_type(v) == torch.bfloat16:
        with no_autocast('cpu'):
            return _by_hand_in_bf16((q * factor).to(v.dtype), k.to(v.dtype), v)
    channels, dtype = v.shape[-1], v.dtype
    # The fused kernels take one width for q, k and v; zeros appended to the narrower change nothing.
    width = max(q.shape[-1], channels)
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
    if not on_cpu(q):
        return F.scaled_dot_product_attention(q, k, v, scale=factor)[..., :channels]
    with no_autocast('cpu'):
        q, k, v = (x.to(full_type(dtype)) for x in (q, k, v))
        # The scale before the product, as in the reference: large logits are then rounded in the same way.
        return F.scaled_dot_product_attention(q * factor, k, v, scale=1.0)[..., :channels].to(dtype)


def _by_hand_in_bf16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Products and softmax of some groups, and of some of their rows, at a time; recomputed for the gradient."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k).softmax(-1) @ v

    leading, weights = q.shape[:-2], torch.get_num_threads() * _by_hand(q.dtype)
    q, k, v = (x.flatten(0, -3) for x in (q, k, v))
    groups = min(len(q), max(1, weights // max(1, q.shape[1] * k.shape[1])))
    rows = weights // max(1, groups * k.shape[1])
    k = k.transpose(1, 2).contiguous()  # or each product would copy it
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if rows < ROWS and weights >= KEYS * len(q) * q.shape[1] and not needs_gradient:
        return _over_chunks_of_keys(q, k, v, weights).unflatten(0, leading)
    rows = max(ROWS, rows)
    parts = [recompute_in_chunks(attend, q[some], (k[some], v[some]), rows) for some in chunks(len(q), groups)]
    return torch.cat(parts).unflatten(0, leading)


def _over_chunks_of_keys(q: Tensor, k: Tensor, v: Tensor, weights: int) -> Tensor:
    """softmax(q k) v where even a few rows of q have too many weights: (G, L, D), (G, D, S), (G, S, E)."""
    # Not -inf, whose difference from the -inf of a masked key is a NaN.
    top = q.new_full((*q.shape[:2], 1), -3e38, dtype=torch.float32)
    total, mass = q.new_zeros(*q.shape[:2], v.shape[2], dtype=torch.float32), torch.zeros_like(top)
    for place in chunks(k.shape[2], weights // max(1, q.shape[0] * q.shape[1])):
        logits = q @ k[..., place]
        highest = torch.maximum(top, logits.amax(-1, keepdim=True))
        shares = (logits - highest.to(logits.dtype)).exp_()
        before = (top - highest).exp_()
        mass = mass * before + shares.sum(-1, keepdim=True, dtype=torch.float32)
        total = total * before + (shares @ v[:, place]).float()
        top = highest
    return (total / mass).to(v.dtype)


def _by_hand(dtype: torch.dtype) -> int:
    return 2 * BY_HAND if dtype == torch.bfloat16 else BY_HAND


def add_attended_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int, start: bool) -> Tensor:
    """See `spinsr.ops.attention.reference.add_attended_rows`."""
    if on_cpu(q):
        return _AddAttendedRows.apply(q, k, v, rows, num_heads, start)
    return reference.add_attended_rows(q, k, v, rows, num_heads, start, attention)


class _AddAttendedRows(torch.autograd.Function):
    """Keeps q, k and v and not what is gathered from them, which is as large again, and more where groups overlap."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int, start: bool) -> Tensor:
        ctx.save_for_backward(q, k, v, rows)
        ctx.num_heads, ctx.start = num_heads, start
        full, dtype = full_type(v.dtype), attention_type(v)
        out = v.to(full, memory_format=torch.contiguous_format, copy=True) if start else torch.zeros_like(v, dtype=full)
        by_hand = rows.shape[1] <= SMALL_GROUP or dtype == torch.bfloat16
        attend, weights = (reference.attention, _by_hand(dtype)) if by_hand else (attention, FUSED)
        with no_autocast('cpu'):
            for place in chunks(len(rows), GATHERED // max(1, rows.shape[1])):
                q_in, k_in, v_in = (take(x, rows[place]).to(dtype) for x in (q, k, v))
                parts = [
                    attend_heads(q_in[some], k_in[some], v_in[some], num_heads, attend)
                    for some in _chunks_of(rows[place], num_heads, weights)
                ]
                out.index_add_(0, rows[place].flatten(), torch.cat(parts).flatten(0, 1).to(full))
        return out.to(v.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, rows = ctx.saved_tensors
        full, dtype, widths = full_type(v.dtype), attention_type(v), [x.shape[1] for x in (q, k, v)]
        # One buffer for the three gradients: one index_add instead of three.
        grads = v.new_zeros(len(v), sum(widths), dtype=full)
        with no_autocast('cpu'):
            for group in (rows[some] for some in _chunks_of(rows, ctx.num_heads, BACKWARD)):
                inside = [take(x, group).to(dtype).requires_grad_() for x in (q, k, v)]
                # Dense: as fast for a chunk, and exact for large logits, whose fused gradient is not.
                with torch.enable_grad():
                    out = attend_heads(inside[0], inside[1], inside[2], ctx.num_heads)
                found = torch.autograd.grad(out, inside, take(grad, group).to(dtype))
                grads.index_add_(0, group.flatten(), torch.cat(found, 2).flatten(0, 1).to(full))
        d_q, d_k, d_v = grads.to(v.dtype).split(widths, 1)
        return d_q, d_k, d_v + grad if ctx.start else d_v, None, None, None


def _chunks_of(rows: Tensor, num_heads: int, weights: int) -> Iterator[slice]:
    return chunks(len(rows), torch.get_num_threads() * weights // max(1, num_heads * rows.shape[1] ** 2))
