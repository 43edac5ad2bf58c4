"""Queries, keys and values of normalised pixels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.common import chunking
from spinsr.ops.common.backend import check_features, dense_or_torch
from spinsr.ops.common.precision import full_type
from spinsr.ops.common.products import cpu_products, linear, weight_gradients
from spinsr.ops.common.slices import side_by_side
from spinsr.ops.layers.normalization import (
    after_normalize,
    normalize,
    normalize_backward,
    normalize_with_statistics,
)


def norm_project(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    weight: Tensor,
    widths: Sequence[int],
    eps: float,
    *,
    with_norm: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """LayerNorm(x) W^T in slices, by one matmul; on the CPU without keeping the normalised pixels.

    Args:
        x: (B, N, C).
        norm: Weight and bias of the LayerNorm, (C,) each.
        weight: W, (sum of `widths`, C).
        widths: Channels D of each slice.
        eps: Of the LayerNorm.
        with_norm: Whether to return LayerNorm(x) too.
        backend: See `spinsr.ops.common.backend`.

    Returns:
        (B, N, D) for each of `widths`, then LayerNorm(x), (B, N, C), if asked for.

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
        return _reference(x, norm, weight, widths, eps, with_norm)
    widths = list(widths)
    dtype = chunking.chunk_type(x, *norm, weight)
    weight, bias = (t.to(dtype or weight.dtype) for t in after_normalize(weight, norm))
    if dtype is not None:
        return _Project.apply(x, weight, bias, widths, eps, *(norm if with_norm else ()))
    y = normalize(x, eps)
    slices = F.linear(y.to(weight.dtype), weight, bias).split(widths, -1)
    return (*slices, torch.addcmul(norm[1], y, norm[0]).to(x.dtype)) if with_norm else slices


class _Project(torch.autograd.Function):
    """y W^T + b in slices of `widths`, which are views of one tensor, in chunks, with y = normalize(x); keeps x and W.

    With a `norm`, the scale s and the shift of a LayerNorm, s y + shift is the last result.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, widths: list[int], eps: float, *norm: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight, *norm[:1])
        ctx.eps = eps
        out = x.new_empty(*x.shape[:2], len(weight), dtype=weight.dtype)
        normed = [x.new_empty(x.shape)] if norm else []
        with cpu_products():
            for at in chunking.places(x, weight.dtype):
                y = normalize(x[at], eps)
                out[at] = linear(y.to(weight.dtype), weight, bias)
                if norm:
                    normed[0][at] = torch.addcmul(norm[1], y, norm[0])
        return *out.split(widths, -1), *normed

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        x, weight, *norm = ctx.saved_tensors
        grads, d_normed = (grads[:-1], grads[-1]) if norm else (grads, None)
        full, of_weight, of_norm = full_type(x.dtype), any(ctx.needs_input_grad[1:3]), any(ctx.needs_input_grad[5:])
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        d_weight, d_bias = torch.zeros_like(weight, dtype=full), weight.new_zeros(len(weight), dtype=full)
        d_norm = [torch.zeros_like(norm[0], dtype=full) for _ in range(2)] if norm else []
        with cpu_products():
            for at in chunking.places(x, weight.dtype):
                part, grad = x[at].to(full), side_by_side([grad[at] for grad in grads])
                y, *statistics = normalize_with_statistics(part, ctx.eps)
                grad = grad.to(weight.dtype).flatten(0, 1)
                d_y = (grad @ weight).view_as(part).to(full)
                if d_normed is not None:
                    upstream = d_normed[at].to(full)
                    d_y = torch.addcmul(d_y, upstream, norm[0])
                    if of_norm:
                        d_norm[0] += (upstream * y).sum((0, 1))
                        d_norm[1] += upstream.sum((0, 1))
                d_x[at] = normalize_backward(d_y, part, *statistics)
                if of_weight:
                    d_w, d_b = weight_gradients(y.to(weight.dtype).flatten(0, 1), grad)
                    d_weight += d_w
                    d_bias += d_b
        d_norm = (d.to(norm[0].dtype) for d in d_norm)
        return d_x, d_weight.to(weight.dtype), d_bias.to(weight.dtype), None, None, *d_norm


def _reference(x, norm, weight, widths, eps, with_norm):
    """One 1 x 1 convolution a slice, as in the authors' code."""
    normed = F.layer_norm(x, x.shape[-1:], *norm, eps=eps)
    y = normed.transpose(1, 2).unsqueeze(2).contiguous()  # (B, C, 1, N)
    convolved = (F.conv2d(y, part[..., None, None]) for part in weight.split(list(widths)))
    slices = tuple(part.squeeze(2).transpose(1, 2) for part in convolved)
    return (*slices, normed) if with_norm else slices
