"""LayerNorm whose weight and bias are folded into the product after it."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.common.chunking import places
from spinsr.ops.common.precision import full_type, no_autocast


def normalize(x: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis without weight and bias, computed and returned in float32 at least.

    torch's own for bfloat16 on the CPU takes twice the time of the conversion and that for float32. Weight and bias
    belong into the product after it: their gradients take four times as long as that of `x`.
    """
    x = x.to(full_type(x.dtype))
    # On the CPU torch's takes longer without a weight and a bias than with them.
    return F.layer_norm(x, x.shape[-1:], x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1]), eps)


def after_normalize(weight: Tensor, norm: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """W and b so that W normalize(x) + b is `weight` LayerNorm(x): (..., M, C) and (C,) twice -> (..., M, C), (..., M).

    Both in float32 at least.
    """
    with no_autocast(weight.device.type):
        full = full_type(functools.reduce(torch.promote_types, (t.dtype for t in (weight, *norm))))
        weight, scale, shift = (t.to(full) for t in (weight, *norm))
        return weight * scale, weight @ shift


def normalize_once(x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, `normalize(x)` in `dtype`, and its mean over the pixels, on the CPU in chunks; differentiable once.

    x is returned so that the gradient of a residual connection is added in the same pass. Instead of x, what is
    returned in `dtype` is kept, which the product after it needs too.

    Args:
        x: (B, N, C).
        eps: Of the LayerNorm.
        dtype: float32, float64 or bfloat16.

    Returns:
        (B, N, C) twice, and (B, C) in float32 at least.
    """
    return _Normalize.apply(x, eps, dtype)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        full = full_type(x.dtype)
        normalized = x.new_empty(x.shape, dtype=dtype)
        inverse = x.new_empty(*x.shape[:2], 1, dtype=full)
        total = x.new_zeros(len(x), x.shape[2], dtype=full)
        affine = x.new_ones(x.shape[2], dtype=full), x.new_zeros(x.shape[2], dtype=full)
        with no_autocast('cpu'):
            for some, place in places(x):
                part = x[some, place].to(full)
                found, _, inverse[some, place] = torch.native_layer_norm(part, x.shape[2:], *affine, eps)
                normalized[some, place] = found
                total[some] += found.sum(1)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(normalized, inverse)
        ctx.dtype = x.dtype
        return x, normalized, total / x.shape[1]

    @staticmethod
    @once_differentiable
    def backward(ctx, d_x: Tensor | None, d_normalized: Tensor | None, d_mean: Tensor | None):
        normalized, inverse = ctx.saved_tensors
        full = inverse.dtype
        out = torch.empty_like(normalized, dtype=ctx.dtype)
        mean, one = inverse.new_zeros(1), inverse.new_ones(1)
        for some, place in places(normalized):
            part = normalized[some, place].to(full)
            grad = torch.zeros_like(part) if d_normalized is None else d_normalized[some, place].to(full)
            if d_mean is not None:
                grad = grad + (d_mean[some] / normalized.shape[1]).unsqueeze(1)
            statistics = (t.expand(*part.shape[:2], 1).contiguous() for t in (mean, one))
            found = torch.ops.aten.native_layer_norm_backward(
                grad, part, part.shape[2:], *statistics, None, None, [True, False, False]
            )[0]
            # Of a standard deviation of 1; added to the gradient of the residual connection.
            found.mul_(inverse[some, place])
            out[some, place] = found if d_x is None else found.add_(d_x[some, place])
        return out, None, None
