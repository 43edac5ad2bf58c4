"""LayerNorm whose weight and bias are folded into the product after it."""

import functools

import torch
from torch import Tensor

from spinsr.ops.common.precision import full_type, no_autocast


def normalize(x: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis without weight and bias, computed and returned in float32 at least.

    torch's own for bfloat16 on the CPU takes twice the time of the conversion and that for float32. Weight and bias
    belong into the product after it: their gradients take four times as long as that of `x`.
    """
    return normalize_with_statistics(x.to(full_type(x.dtype)), eps)[0]


def normalize_with_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`normalize` of float32 or float64, with mean and 1 / standard deviation of each pixel."""
    # On the CPU torch's takes longer without a weight and a bias than with them.
    return torch.native_layer_norm(x, x.shape[-1:], x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1]), eps)


def after_normalize(weight: Tensor, norm: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """W and b so that W normalize(x) + b is `weight` LayerNorm(x): (..., M, C) and (C,) twice -> (..., M, C), (..., M).

    Both in float32 at least.
    """
    with no_autocast(weight.device.type):
        full = full_type(functools.reduce(torch.promote_types, (t.dtype for t in (weight, *norm))))
        weight, scale, shift = (t.to(full) for t in (weight, *norm))
        return weight * scale, weight @ shift


def normalize_backward(grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """The gradient of x for that of `normalize(x)`, with mean and 1 / standard deviation of each pixel."""
    only_x = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], mean, inverse, None, None, only_x)[0]
