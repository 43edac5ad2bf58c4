"""The feed-forward network of SPIN: gated by channel and by pixel, without its concatenation."""

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
        W_1 cat[c * y, p * y] = (W_c diag(c)) y + p * (W_p y)

    so that one product with (W_c diag(c), W_p, V_s) is enough; weight and bias of the LayerNorm are multiplied into it.
    On the CPU a few thousand pixels are computed at a time; for the gradient only x and what is as small as the weights
    are kept, and the rest is computed once more.

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
    weight, bias = (t.to(first[0].dtype) for t in _joined(y.mean(1), *folded))
    products = torch.baddbmm(bias.unsqueeze(1), y.to(weight.dtype), weight.mT)
    out = F.linear(F.gelu(_gated(products, *pixel_gate[2:], len(first[1])).hidden), *second)
    return x + out if residual else out


class _FeedForward(torch.autograd.Function):
    """In chunks, with products of `dtype`; keeps x, the mean of its normalised pixels, and the weights.

    Its weights are those that `_joined` takes, then w_e, v_e, W_2 and b_2.
    """

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype, eps: float, residual: bool, *weights: Tensor) -> Tensor:
        mean = x.new_zeros(len(x), x.shape[2], dtype=full_type(x.dtype))
        w_expand, b_expand, w_second, b_second = (t.to(dtype) for t in weights[-4:])
        out = x.new_empty(*x.shape[:2], len(b_second), dtype=torch.promote_types(x.dtype, dtype) if residual else dtype)
        with cpu_products():
            for some, place in chunking.places(x, dtype):
                mean[some] += normalize(x[some, place], eps).sum(1) / x.shape[1]
            weight, bias = (t.to(dtype) for t in _joined(mean, *weights[:-4]))
            for some, place in chunking.places(x, dtype):
                products = linear_by_image(normalize(x[some, place], eps).to(dtype), weight[some], bias[some])
                hidden = _gated(products, w_expand, b_expand, w_second.shape[1]).hidden
                found = linear(F.gelu(hidden), w_second, b_second)
                out[some, place] = found + x[some, place] if residual else found
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
        w_expand, b_expand, w_second, _ = (t.to(dtype) for t in tensors[-4:])
        sums = [torch.zeros_like(t, dtype=full) for t in (*joined, *tensors[-4:])]
        d_weight, d_bias, d_w_expand, d_b_expand, d_w_second, d_b_second = sums
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        statistics = [x.new_empty(*x.shape[:2], 1, dtype=full) for _ in range(2)]
        with cpu_products():
            weight, bias = (t.detach().to(dtype) for t in joined)
            for some, place in chunking.places(x, dtype):
                y, *of_pixels = normalize_with_statistics(x[some, place].to(full), eps)
                y = y.to(dtype)
                gated = _gated(linear_by_image(y, weight[some], bias[some]), w_expand, b_expand, w_second.shape[1])
                upstream = grad[some, place].to(dtype).flatten(0, 1)
                if of_second:
                    d_w, d_b = weight_gradients(F.gelu(gated.hidden).flatten(0, 1), upstream)
                    d_w_second += d_w
                    d_b_second += d_b
                d_products, d_w, d_b = _gated_backward(gated, (upstream @ w_second).view_as(gated.hidden), w_expand)
                d_w_expand += d_w
                d_b_expand += d_b
                d_y, d_w, d_b = linear_by_image_gradients(y, weight[some], d_products)
                d_weight[some] += d_w
                d_bias[some] += d_b
                for whole, part in zip((d_x, *statistics), (d_y, *of_pixels), strict=True):
                    whole[some, place] = part
        found = torch.autograd.grad(joined, leaves, (d_weight, d_bias))
        d_mean = found[0].unsqueeze(1) / x.shape[1]
        for some, place in chunking.places(x, dtype):
            of_pixels = (t[some, place] for t in statistics)
            d_part = normalize_backward(d_x[some, place].to(full) + d_mean[some], x[some, place].to(full), *of_pixels)
            d_x[some, place] = d_part.add_(grad[some, place]) if residual else d_part
        d_rest = (d.to(t.dtype) for d, t in zip(sums[2:], tensors[-4:], strict=True))
        return d_x, None, None, None, *found[1:], *d_rest


class _Gated(NamedTuple):
    """What `_gated` computes: h and, for its gradient, what it consists of; all (B, N, channels)."""

    hidden: Tensor
    gate: Tensor
    by_pixel: Tensor
    before: Tensor
    after: Tensor
    products: Tensor


def _gated(products: Tensor, w_expand: Tensor, b_expand: Tensor, hidden: int) -> _Gated:
    """The product of `_joined` with normalised pixels (B, N, 2 M + S') -> h = c * y W_c + p * (y W_p) of M channels."""
    by_channel, by_pixel, before, _ = products.tensor_split([hidden, 2 * hidden, 2 * hidden + w_expand.shape[1]], 2)
    before = before.contiguous()  # GELU takes ten times as long where rows are not contiguous
    after = F.gelu(before)
    gate = F.linear(after, w_expand, b_expand).sigmoid()  # (B, N, 1)
    return _Gated(torch.addcmul(by_channel, gate, by_pixel), gate, by_pixel, before, after, products)


def _gated_backward(gated: _Gated, d_active: Tensor, w_expand: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `products`, `w_expand` and `b_expand` for that of GELU(h)."""
    gelu_backward, m, squeezed = torch.ops.aten.gelu_backward, gated.hidden.shape[2], w_expand.shape[1]
    d_hidden = gelu_backward(d_active, gated.hidden)
    d_logit = torch.linalg.vecdot(d_hidden, gated.by_pixel).unsqueeze(2)
    d_logit = torch.ops.aten.sigmoid_backward(d_logit, gated.gate)
    d_products = torch.empty_like(gated.products)
    d_products[..., :m] = d_hidden
    torch.mul(d_hidden, gated.gate, out=d_products[..., m : 2 * m])
    d_products[..., 2 * m : 2 * m + squeezed] = gelu_backward(d_logit * w_expand, gated.before)
    d_products[..., 2 * m + squeezed :] = 0
    rows = d_logit.flatten(0, 1)
    return d_products, rows.mT @ gated.after.flatten(0, 1), rows.sum(0)


def _joined(mean: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    """(W_c diag(c), W_p, V_s) of each image and (b_1, 0, v_s), for normalised pixels: (B, 2 M + S', C), (B, 2 M + S').

    Of the mean of the normalised pixels (B, C), both of `norm`, W_s, b_s, W_e and b_e, V_s and v_s, W_1 and b_1. Zeros
    make the matrix as wide as whole vector registers.
    """
    with no_autocast(mean.device.type):
        dtype = torch.promote_types(mean.dtype, weights[-1].dtype)
        mean, scale, shift, w_squeeze, b_squeeze, w_expand, b_expand, v_squeeze, c_squeeze, w_first, b_first = (
            t.to(dtype) for t in (mean, *weights)
        )
        squeezed = F.gelu(F.linear(mean * scale + shift, w_squeeze, b_squeeze))
        gate = F.linear(squeezed, w_expand, b_expand).sigmoid()  # (B, C)
        w_channel, w_pixel = w_first.chunk(2, 1)
        padding = -(len(w_channel) + len(v_squeeze)) % 16
        rest = F.pad(torch.cat([w_pixel, v_squeeze]), (0, 0, 0, padding)).expand(mean.shape[0], -1, -1)
        weight, bias = after_normalize(torch.cat([w_channel * gate.unsqueeze(1), rest], 1), (scale, shift))
        return weight, bias + torch.cat([b_first, torch.zeros_like(b_first), F.pad(c_squeeze, (0, padding))])


def _reference(x, norm, channel_gate, pixel_gate, first, second, eps):
    """With the concatenation, by 1 x 1 convolutions, as in the authors' code."""

    def gate(y, w_squeeze, b_squeeze, w_expand, b_expand):
        return _pointwise(F.gelu(_pointwise(y, w_squeeze, b_squeeze)), w_expand, b_expand).sigmoid()

    y = F.layer_norm(x, x.shape[-1:], *norm, eps=eps).transpose(1, 2).unsqueeze(2).contiguous()  # (B, C, 1, N)
    both = torch.cat([y * gate(y.mean(3, keepdim=True), *channel_gate), y * gate(y, *pixel_gate)], 1)  # (B, 2 C, 1, N)
    return _pointwise(F.gelu(_pointwise(both, *first)), *second).squeeze(2).transpose(1, 2)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight[..., None, None], bias)
