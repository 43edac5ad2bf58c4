"""Queries, keys and values of normalised pixels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.common import chunking
from spinsr.ops.common.backend import check_features, dense_or_torch
from spinsr.ops.common.precision import full_type, no_autocast
from spinsr.ops.common.products import linear, linear_gradients
from spinsr.ops.common.slices import side_by_side
from spinsr.ops.layers.normalization import after_normalize, normalize, normalize_once


def norm_project(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    weight: Tensor,
    widths: Sequence[int],
    eps: float,
    *,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """LayerNorm(x) W^T in slices, by one matmul; on the CPU without keeping the normalised pixels.

    Args:
        x: (B, N, C).
        norm: Weight and bias of the LayerNorm, (C,) each.
        weight: W, (sum of `widths`, C).
        widths: Channels D of each slice.
        eps: Of the LayerNorm.
        backend: See `spinsr.ops.common.backend`.

    Returns:
        (B, N, D) for each of `widths`.

    Raises:
        ValueError: `x` is not of shape (B, N, C), or has no channels.
        TypeError: `x` is not of a floating-point type.

    Example:
        >>> import torch
        >>> norm = torch.ones(8), torch.zeros(8)
        >>> q, k, v = norm_project(torch.rand(1, 60, 8), norm, torch.rand(20, 8), (6, 6, 8), eps=1e-6)
        >>> v.shape
        torch.Size([1, 60, 8])
    """
    check_features(x, '(B, N, C)')
    if dense_or_torch('norm_project', backend, x.device) == 'reference':
        return _reference(x, norm, weight, widths, eps)
    widths = list(widths)
    dtype = chunking.chunk_type(x, *norm, weight)
    weight, bias = (t.to(dtype or weight.dtype) for t in after_normalize(weight, norm))
    if dtype is None:
        return F.linear(normalize(x, eps).to(weight.dtype), weight, bias).split(widths, -1)
    return _Project.apply(normalize_once(x, eps, dtype)[1], weight, bias, widths)


class _Project(torch.autograd.Function):
    """x W^T + b in slices of `widths`, which are views of one tensor: (B, N, C), (M, C), (M,) -> (B, N, D) each."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, widths: list[int]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight)
        with no_autocast('cpu'):
            return linear(x, weight, bias).split(widths, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        x, weight = ctx.saved_tensors
        d_x, full = torch.empty_like(x), full_type(x.dtype)
        d_weight, d_bias = torch.zeros_like(weight, dtype=full), weight.new_zeros(len(weight), dtype=full)
        for some, place in chunking.places(x):
            part, grad = x[some, place], side_by_side([grad[some, place] for grad in grads])
            found, d_w, d_b = linear_gradients(part.flatten(0, 1), weight, grad.flatten(0, 1))
            d_x[some, place] = found.view_as(part)
            d_weight += d_w
            d_bias += d_b
        return d_x, d_weight.to(weight.dtype), d_bias.to(weight.dtype), None


def _reference(x, norm, weight, widths, eps):
    """One 1 x 1 convolution a slice, as in the authors' code."""
    y = F.layer_norm(x, x.shape[-1:], *norm, eps=eps).transpose(1, 2).unsqueeze(2).contiguous()  # (B, C, 1, N)
    convolved = (F.conv2d(y, part[..., None, None]) for part in weight.split(list(widths)))
    return tuple(part.squeeze(2).transpose(1, 2) for part in convolved)
