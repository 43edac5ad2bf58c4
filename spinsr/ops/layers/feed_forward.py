"""The feed-forward network of SPIN: gated by channel and by pixel."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.common import chunking
from spinsr.ops.common.backend import check_features, dense_or_torch
from spinsr.ops.common.precision import full_type, no_autocast
from spinsr.ops.common.products import (
    cpu_products,
    linear,
    linear_by_image,
    linear_by_image_gradients,
    weight_gradients,
)
from spinsr.ops.layers.normalization import (
    after_normalize,
    normalize,
    normalize_backward,
    normalize_with_statistics,
)


def gated_feed_forward(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    channel_gate: tuple[Tensor, Tensor, Tensor, Tensor],
    pixel_gate: tuple[Tensor, Tensor, Tensor, Tensor],
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    eps: float,
    *,
    residual: bool = False,
    backend: str | None = None,
) -> Tensor:
    """W_2 GELU(W_1 cat[c * y, p * y] + b_1) + b_2 with y = LayerNorm(x), a gate c by channel and a gate p by pixel.

        c = sigmoid(W_e GELU(W_s m + b_s) + b_e), m the mean of y over the pixels     (C,)
        p = sigmoid(w_e GELU(V_s y + v_s) + v_e)                                      (N, 1)
        W_1 cat[c * y, p * y] = W_c diag(c) y + W_p (p * y)

    c, weight and bias of the LayerNorm are multiplied into the weights, once for an image, and the pixels only
    normalised. On the CPU a few thousand pixels are computed at a time; for the gradient only x and what is as small as
    the weights are kept, and the rest is computed once more.

    Args:
        x: Pixels (B, N, C).
        norm: Weight and bias of the LayerNorm, (C,) each.
        channel_gate: W_s (S, C), b_s (S,), W_e (C, S), b_e (C,).
        pixel_gate: V_s (S, C), v_s (S,), w_e (1, S), v_e (1,).
        first: W_1 (M, 2 C), b_1 (M,).
        second: W_2 (C, M), b_2 (C,).
        eps: Of the LayerNorm.
        residual: Whether to add x to the result.
        backend: See `spinsr.ops.common.backend`.

    Returns:
        (B, N, C).

    Raises:
        ValueError: `x` is not of shape (B, N, C), or has no channels.
        TypeError: `x` is not of a floating-point type.

    Example:
        >>> norm, first = (torch.ones(8), torch.zeros(8)), (torch.rand(12, 16), torch.rand(12))
        >>> by_channel = torch.rand(2, 8), torch.rand(2), torch.rand(8, 2), torch.rand(8)
        >>> by_pixel = torch.rand(2, 8), torch.rand(2), torch.rand(1, 2), torch.rand(1)
        >>> second = torch.rand(8, 12), torch.rand(8)
        >>> gated_feed_forward(torch.rand(1, 60, 8), norm, by_channel, by_pixel, first, second, eps=1e-6).shape
        torch.Size([1, 60, 8])
    """
    check_features(x, '(B, N, C)')
    if dense_or_torch('gated_feed_forward', backend, x.device) == 'reference':
        out = _reference(x, norm, channel_gate, pixel_gate, first, second, eps)
        return x + out if residual else out
    folded, rest = (*norm, *channel_gate, *pixel_gate[:2], *first), (*pixel_gate[2:], *second)
    dtype = chunking.chunk_type(x, *folded, *rest)
    if dtype is not None:
        return _FeedForward.apply(x, dtype, eps, residual, *folded, *rest)
    y = normalize(x, eps)
    weight, of_shift, bias, *of_gate = _joined(y.mean(1), *folded)
    of_gate += (t.to(of_gate[0].dtype) for t in pixel_gate[2:])
    gate = _gate(y.to(of_gate[0].dtype), *of_gate).gate
    weight, of_shift, bias, y, gate = (t.to(first[0].dtype) for t in (weight, of_shift, bias, y, gate))
    # Without a column for p: kernels of GPUs want an aligned number of channels.
    hidden = torch.baddbmm(bias.unsqueeze(1), torch.cat([y, gate * y], 2), weight.mT)
    hidden = torch.addcmul(hidden, gate.to(hidden.dtype), of_shift.unsqueeze(1).to(hidden.dtype))
    out = F.linear(F.gelu(hidden), *second)
    return x + out if residual else out


class _FeedForward(torch.autograd.Function):
    """In chunks, with products of `dtype`; keeps x, the mean of its normalised pixels, and the weights.

    Its weights are those that `_joined` takes, then w_e, v_e, W_2 and b_2.
    """

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype, eps: float, residual: bool, *weights: Tensor) -> Tensor:
        full = full_type(x.dtype)
        mean = x.new_zeros(len(x), x.shape[2], dtype=full)
        of_gate, (w_second, b_second) = [t.to(full) for t in weights[-4:-2]], (t.to(dtype) for t in weights[-2:])
        out = x.new_empty(*x.shape[:2], len(b_second), dtype=torch.promote_types(x.dtype, dtype) if residual else dtype)
        # In the memory of the result, which overwrites it, and rounded to its type.
        normalized = out if out.shape == x.shape else x.new_empty(x.shape, dtype=out.dtype)
        with cpu_products():
            for some, place in chunking.places(x, dtype):
                y = normalize(x[some, place], eps)
                mean[some] += y.sum(1) / x.shape[1]
                normalized[some, place] = y
            joined = _joined(mean, *weights[:-4])
            weight, bias = (t.to(dtype) for t in (_with_column(*joined[:2]), joined[2]))
            for some, place in chunking.places(x, dtype):
                y = normalized[some, place].to(full)
                pair = _pair(y, _gate(y, *joined[3:], *of_gate).gate).to(dtype)
                found = linear(F.gelu(linear_by_image(pair, weight[some], bias[some])), w_second, b_second)
                if residual:
                    torch.add(found, x[some, place], out=out[some, place])
                else:
                    out[some, place] = found
        ctx.save_for_backward(x, mean, *weights)
        ctx.arguments = dtype, eps, residual
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, *tensors = ctx.saved_tensors
        (dtype, eps, residual), full = ctx.arguments, full_type(x.dtype)
        of_second = any(ctx.needs_input_grad[-2:])  # the gradients of the others are parts of those of x
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in tensors[:-4]]  # the mean and the weights for `_joined`
            joined = _joined(*leaves)
        of_gate, w_second = [t.detach().to(full) for t in (*joined[3:], *tensors[-4:-2])], tensors[-2].to(dtype)
        weight, bias = _with_column(*joined[:2]).detach().to(dtype), joined[2].detach().to(dtype)
        sums = [torch.zeros_like(t, dtype=full) for t in (weight, *joined[2:], *tensors[-4:])]
        d_weight, d_bias, *d_of_gate, d_w_second, d_b_second = sums
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        statistics = [x.new_empty(*x.shape[:2], 1, dtype=full) for _ in range(2)]
        with cpu_products():
            for some, place in chunking.places(x, dtype):
                y, *of_pixels = normalize_with_statistics(x[some, place].to(full), eps)
                gated = _gate(y, *of_gate)
                pair = _pair(y, gated.gate).to(dtype)
                hidden = linear_by_image(pair, weight[some], bias[some])
                upstream = grad[some, place].to(dtype).flatten(0, 1)
                if of_second:
                    d_w, d_b = weight_gradients(F.gelu(hidden).flatten(0, 1), upstream)
                    d_w_second += d_w
                    d_b_second += d_b
                d_hidden = torch.ops.aten.gelu_backward((upstream @ w_second).view_as(hidden), hidden)
                d_pair, d_w, d_b = linear_by_image_gradients(pair, weight[some], d_hidden)
                d_weight[some] += d_w
                d_bias[some] += d_b
                d_x[some, place], *found = _pair_backward(d_pair.to(full), y, gated, *of_gate)
                for total, part in zip(d_of_gate, found, strict=True):
                    total += part
                for whole, part in zip(statistics, of_pixels, strict=True):
                    whole[some, place] = part
        d_joined = d_weight[..., :-1], d_weight[..., -1].sum(0, keepdim=True), d_bias, *d_of_gate[:2]
        found = torch.autograd.grad(joined, leaves, d_joined)
        d_mean = found[0].unsqueeze(1) / x.shape[1]
        for some, place in chunking.places(x, dtype):
            of_pixels = (t[some, place] for t in statistics)
            d_part = normalize_backward(d_x[some, place].to(full) + d_mean[some], x[some, place].to(full), *of_pixels)
            d_x[some, place] = d_part.add_(grad[some, place]) if residual else d_part
        d_rest = (d.to(t.dtype) for d, t in zip(sums[4:], tensors[-4:], strict=True))
        return d_x, None, None, None, *found[1:], *d_rest


class _Gate(NamedTuple):
    """p of normalised pixels, (B, N, 1), and before and after its GELU, (S, B N)."""

    gate: Tensor
    before: Tensor
    after: Tensor


def _gate(y: Tensor, v_squeeze: Tensor, c_squeeze: Tensor, w_expand: Tensor, b_expand: Tensor) -> _Gate:
    # Pixels are columns: GELU takes ten times as long where rows are as short as S.
    before = torch.addmm(c_squeeze.unsqueeze(1), v_squeeze, y.flatten(0, 1).mT)
    after = F.gelu(before)
    gate = torch.addmm(b_expand.unsqueeze(1), w_expand, after).sigmoid()
    return _Gate(gate.view(*y.shape[:2], 1), before, after)


def _pair(y: Tensor, gate: Tensor) -> Tensor:
    """y, p * y and p side by side, (B, N, 2 C + 1), for `_with_column`."""
    return torch.cat([y, gate * y, gate], 2)


def _with_column(weight: Tensor, of_shift: Tensor) -> Tensor:
    """The first two of `_joined` as one matrix by image, (B, M, 2 C + 1)."""
    return torch.cat([weight, of_shift.expand(len(weight), -1).unsqueeze(2)], 2)


def _pair_backward(d_pair: Tensor, y: Tensor, gated: _Gate, v_squeeze: Tensor, _c, w_expand: Tensor, _b):
    """The gradients of y, (B, N, C), and of the four weights of `_gate` for that of `_pair`."""
    d_y, d_scaled, d_gate = d_pair.split([y.shape[2], y.shape[2], 1], 2)
    d_gate = d_gate + torch.linalg.vecdot(d_scaled, y).unsqueeze(2)
    d_logit = torch.ops.aten.sigmoid_backward(d_gate, gated.gate).view(1, -1)
    d_before = torch.ops.aten.gelu_backward(w_expand.mT * d_logit, gated.before)
    d_y = torch.addcmul(d_y, gated.gate, d_scaled).flatten(0, 1).addmm_(d_before.mT, v_squeeze).view_as(y)
    return d_y, d_before @ y.flatten(0, 1), d_before.sum(1), d_logit @ gated.after.mT, d_logit.sum(1)


def _joined(mean: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What normalised pixels y are multiplied by: W_1 of an image, and V_s, with the LayerNorm's weight and bias.

    Of the mean of y (B, C), both of `norm`, W_s, b_s, W_e and b_e, V_s and v_s, W_1 and b_1.

    Returns:
        For cat[y, p * y] (B, M, 2 C), for p (1, M), the bias (B, M); V_s (S, C) and v_s (S,).
    """
    with no_autocast(mean.device.type):
        dtype = torch.promote_types(mean.dtype, weights[-1].dtype)
        mean, scale, shift, w_squeeze, b_squeeze, w_expand, b_expand, v_squeeze, c_squeeze, w_first, b_first = (
            t.to(dtype) for t in (mean, *weights)
        )
        squeezed = F.gelu(F.linear(mean * scale + shift, w_squeeze, b_squeeze))
        gate = F.linear(squeezed, w_expand, b_expand).sigmoid()  # (B, C)
        w_channel, w_pixel = w_first.chunk(2, 1)
        w_channel, of_channel = after_normalize(w_channel * gate.unsqueeze(1), (scale, shift))
        w_pixel, of_pixel = after_normalize(w_pixel, (scale, shift))
        v_squeeze, of_squeeze = after_normalize(v_squeeze, (scale, shift))
        weight = torch.cat([w_channel, w_pixel.expand(mean.shape[0], -1, -1)], 2)
        return weight, of_pixel.unsqueeze(0), of_channel + b_first, v_squeeze, of_squeeze + c_squeeze


def _reference(x, norm, channel_gate, pixel_gate, first, second, eps):
    """With the concatenation, by 1 x 1 convolutions, as in the authors' code."""

    def gate(y, w_squeeze, b_squeeze, w_expand, b_expand):
        return _pointwise(F.gelu(_pointwise(y, w_squeeze, b_squeeze)), w_expand, b_expand).sigmoid()

    y = F.layer_norm(x, x.shape[-1:], *norm, eps=eps).transpose(1, 2).unsqueeze(2).contiguous()  # (B, C, 1, N)
    both = torch.cat([y * gate(y.mean(3, keepdim=True), *channel_gate), y * gate(y, *pixel_gate)], 1)  # (B, 2 C, 1, N)
    return _pointwise(F.gelu(_pointwise(both, *first)), *second).squeeze(2).transpose(1, 2)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight[..., None, None], bias)
