"""Queries, keys and values of normalised pixels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.parts import in_parts, norm_backward, parts, without_autocast


def norm_project(
    x: Tensor, norm: tuple[Tensor, Tensor], weight: Tensor, widths: Sequence[int], eps: float
) -> tuple[Tensor, ...]:
    """LayerNorm(x) W^T in slices, by one matmul; on the CPU without keeping the normalised pixels.

    Args:
        x: (B, N, C).
        norm: Weight and bias of the LayerNorm, (C,) each.
        weight: W, (sum of `widths`, C).
        widths: Channels D of each slice.
        eps: Of the LayerNorm.

    Returns:
        (B, N, D) for each of `widths`.

    Raises:
        ValueError: `x` has not three dimensions.

    Example:
        >>> norm = torch.ones(8), torch.zeros(8)
        >>> q, k, v = norm_project(torch.rand(1, 60, 8), norm, torch.rand(20, 8), (6, 6, 8), eps=1e-6)
        >>> v.shape
        torch.Size([1, 60, 8])
    """
    if x.ndim != 3:
        raise ValueError(f'x must have the shape (B, N, C), got {tuple(x.shape)}')
    if in_parts(x, *norm, weight):
        return _NormProject.apply(x, *norm, weight, tuple(widths), eps)
    return F.linear(F.layer_norm(x, x.shape[-1:], *norm, eps), weight).split(list(widths), -1)


class _NormProject(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, weight, widths, eps):  # noqa: PLR0913
        ctx.save_for_backward(x, norm_weight, norm_bias, weight)
        ctx.eps = eps
        out = x.new_empty(*x.shape[:2], len(weight))
        x, flat = _one_image(x), _one_image(out)
        for place in parts(x):
            y = F.layer_norm(x[place], x.shape[-1:], norm_weight, norm_bias, eps)
            torch.mm(y, weight.t(), out=flat[place])
        return out.split(widths, -1)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, *grads: Tensor):
        x, *norm, weight = ctx.saved_tensors
        shape = x.shape
        x, grad = _one_image(x), _one_image(side_by_side(grads))
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        *d_norm, d_weight = (torch.zeros_like(t) for t in (*norm, weight))
        for place in parts(x):
            y = F.layer_norm(x[place], x.shape[-1:], *norm, ctx.eps)
            d_weight.addmm_(grad[place].t(), y)
            d_x[place] = norm_backward(grad[place] @ weight, x[place], norm, ctx.eps, d_norm)
        return d_x.view(shape), *d_norm, d_weight, None, None


def _one_image(x: Tensor) -> Tensor:
    """(B, N, C) -> (1, B N, C): pixels do not care whose they are, and small images make one part together."""
    return x.reshape(1, -1, x.shape[2])


def side_by_side(slices: Sequence[Tensor]) -> Tensor:
    """torch.cat(slices, -1); a view where they are neighbouring slices of one tensor, as from `pieces`."""
    first, width = slices[0], sum(part.shape[-1] for part in slices)
    place = first.storage_offset()
    for part in slices:
        same = part.dtype == first.dtype and part.stride() == first.stride()
        same = same and part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and part.storage_offset() == place and part.stride(-1) == 1 and part.stride(-2) >= width):
            return torch.cat(list(slices), -1)
        place += part.shape[-1]
    return first.as_strided((*first.shape[:-1], width), first.stride(), first.storage_offset())
