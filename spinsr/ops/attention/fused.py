"""Attention without a matrix of all weights: by torch's fused kernels on a GPU, by hand in chunks on the CPU."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.attention import by_hand, reference, sdpa
from spinsr.ops.attention.heads import merge_heads, split_heads
from spinsr.ops.attention.reference import take
from spinsr.ops.common.chunking import chunks, on_cpu
from spinsr.ops.common.precision import attention_type, full_type
from spinsr.ops.common.products import cpu_products

GATHERED = 2**13  # rows that are gathered at once


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """See `spinsr.ops.attention.attention`."""
    # A traced graph cannot hold Python.
    is_by_hand = on_cpu(q) and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    attend = by_hand.attention if is_by_hand else sdpa.attention
    return attend(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)


def add_attended_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int, start: bool) -> Tensor:
    """See `spinsr.ops.attention.reference.add_attended_rows`; on the CPU the sums are float32 at least."""
    if on_cpu(q):
        return _AddAttendedRows.apply(q, k, v, rows, num_heads, start)
    return reference.add_attended_rows(q, k, v, rows, num_heads, start, attention)


class _AddAttendedRows(torch.autograd.Function):
    """Keeps q, k and v and not what is gathered from them, which is as large again, and more where groups overlap."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int, start: bool) -> Tensor:
        ctx.save_for_backward(q, k, v, rows)
        ctx.num_heads, ctx.start = num_heads, start
        full = full_type(v.dtype)
        out = v.to(full, memory_format=torch.contiguous_format, copy=True) if start else torch.zeros_like(v, dtype=full)
        with cpu_products():
            factor = (q.shape[1] // num_heads) ** -0.5
            attention = by_hand.Attention(attention_type(v), factor, by_hand.is_bounded(q, k, factor))
            ctx.attention = attention.for_gradients()
            for group in _gathered(rows):
                found = merge_heads(attention.forward(*(split_heads(take(x, group), num_heads) for x in (q, k, v))))
                out.index_add_(0, group.flatten(), found.flatten(0, 1).to(full))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, rows = ctx.saved_tensors
        widths = [x.shape[1] for x in (q, k, v)]
        # One buffer for the three gradients: one index_add instead of three.
        grads, grad = v.new_zeros(len(v), sum(widths), dtype=full_type(v.dtype)), grad.to(v.dtype)
        with cpu_products():
            for group in _gathered(rows):
                inside = (split_heads(take(x, group), ctx.num_heads) for x in (q, k, v, grad))
                found = [merge_heads(x) for x in ctx.attention.backward(*inside)]
                grads.index_add_(0, group.flatten(), torch.cat(found, 2).flatten(0, 1))
        d_q, d_k, d_v = grads.to(v.dtype).split(widths, 1)
        return d_q, d_k, d_v.add_(grad) if ctx.start else d_v, None, None, None


def _gathered(rows: Tensor) -> Iterator[Tensor]:
    return (rows[some] for some in chunks(len(rows), GATHERED // max(1, rows.shape[1])))
