"""The feed-forward network of SPIN: gated by channel and by pixel, without its concatenation."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.common import chunking
from spinsr.ops.common.backend import check_features, dense_or_torch
from spinsr.ops.common.precision import full_type, no_autocast
from spinsr.ops.common.products import linear, linear_by_image, linear_by_image_gradients, linear_gradients
from spinsr.ops.layers.normalization import after_normalize, normalize, normalize_once


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
    dtype = chunking.chunk_type(x, *norm, *channel_gate, *pixel_gate, *first, *second)
    if dtype is None:
        y = normalize(x, eps)
        weight, bias = (t.to(first[0].dtype) for t in _joined(y.mean(1), norm, channel_gate, pixel_gate, first))
        products = torch.baddbmm(bias.unsqueeze(1), y.to(weight.dtype), weight.mT)
        out = F.linear(F.gelu(_gated(products, *pixel_gate[2:], len(first[1]))[0]), *second)
        return x + out if residual else out
    x, y, mean = normalize_once(x, eps, dtype)
    weight, bias = (t.to(dtype) for t in _joined(mean, norm, channel_gate, pixel_gate, first))
    rest = (t.to(dtype) for t in (*pixel_gate[2:], *second))
    return _Feed.apply(x if residual else None, y, weight, bias, *rest)


class _Feed(torch.autograd.Function):
    """x + W_2 GELU(h) + b_2 of the gated h, in chunks; keeps its inputs, and computes the rest once more."""

    @staticmethod
    def forward(ctx, x: Tensor | None, y: Tensor, weight, bias, w_expand, b_expand, w_second, b_second) -> Tensor:
        ctx.save_for_backward(y, weight, bias, w_expand, b_expand, w_second)
        ctx.has_residual = x is not None
        dtype = y.dtype if x is None else torch.promote_types(x.dtype, y.dtype)
        out = y.new_empty(*y.shape[:2], len(w_second), dtype=dtype)
        with no_autocast('cpu'):
            for some, place in chunking.places(y):
                products = linear_by_image(y[some, place], weight[some], bias[some])
                hidden = _gated(products, w_expand, b_expand, w_second.shape[1])[0]
                found = linear(F.gelu(hidden), w_second, b_second)
                if x is None:
                    out[some, place] = found
                else:
                    torch.add(x[some, place], found, out=out[some, place])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        y, weight, bias, w_expand, b_expand, w_second = ctx.saved_tensors
        m, dtype, full = w_second.shape[1], y.dtype, full_type(y.dtype)
        d_y = torch.empty_like(y)
        d_weight, d_bias, d_w_expand, d_b_expand, d_w_second, d_b_second = sums = [
            torch.zeros_like(t, dtype=full) for t in (weight, bias, w_expand, b_expand, w_second, w_second[:, 0])
        ]
        gelu_gradient = torch.ops.aten.gelu_backward
        for some, place in chunking.places(y):
            part = y[some, place]
            products = linear_by_image(part, weight[some], bias[some])
            hidden, gate, before, squeezed = _gated(products, w_expand, b_expand, m)
            upstream = grad[some, place].to(dtype).flatten(0, 1)
            d_activated, d_w, d_b = linear_gradients(F.gelu(hidden).flatten(0, 1), w_second, upstream)
            d_w_second += d_w
            d_b_second += d_b
            d_hidden = gelu_gradient(d_activated.view_as(hidden), hidden)
            d_logit = torch.linalg.vecdot(d_hidden, products[..., m : 2 * m]).unsqueeze(-1)
            d_logit = torch.ops.aten.sigmoid_backward(d_logit, gate)  # (b, n, 1)
            d_w_expand += d_logit.flatten(0, 1).mT @ squeezed.flatten(0, 1)
            d_b_expand += d_logit.sum((0, 1))
            d_products = torch.zeros_like(products)
            d_products[..., :m] = d_hidden
            torch.mul(d_hidden, gate, out=d_products[..., m : 2 * m])
            d_products[..., 2 * m : 2 * m + before.shape[-1]] = gelu_gradient(d_logit * w_expand, before)
            d_y[some, place], d_w, d_b = linear_by_image_gradients(part, weight[some], d_products)
            d_weight[some] += d_w
            d_bias[some] += d_b
        sums = (t.to(dtype) for t in sums)
        return grad if ctx.has_residual else None, d_y, *sums


def _gated(products: Tensor, w_expand: Tensor, b_expand: Tensor, hidden: int) -> tuple[Tensor, ...]:
    """h, the gate by pixel, and its squeezed channels before and after GELU: (B, N, 2 M + S') -> (B, N, M), ..."""
    squeezed = w_expand.shape[1]
    by_channel, by_pixel, before, _ = products.tensor_split([hidden, 2 * hidden, 2 * hidden + squeezed], 2)
    before = before.contiguous()  # GELU takes ten times as long where rows are not contiguous
    after = F.gelu(before)
    gate = F.linear(after, w_expand, b_expand).sigmoid()  # (B, N, 1)
    return torch.addcmul(by_channel, gate, by_pixel), gate, before, after


def _joined(mean: Tensor, norm, channel_gate, pixel_gate, first) -> tuple[Tensor, Tensor]:
    """(W_c diag(c), W_p, V_s) of each image and (b_1, 0, v_s), for normalised pixels: (B, 2 M + S', C), (B, 2 M + S').

    `mean` (B, C) is that of the normalised pixels. Zeros make the matrix as wide as whole vector registers.
    """
    with no_autocast(mean.device.type):
        mean = mean.to(torch.promote_types(mean.dtype, first[0].dtype))
        channel_gate, pixel_gate, first = (
            [t.to(mean.dtype) for t in tensors] for tensors in (channel_gate, pixel_gate[:2], first)
        )
        scale, shift = (t.to(mean.dtype) for t in norm)
        w_squeeze, b_squeeze, w_expand, b_expand = channel_gate
        squeezed = F.gelu(F.linear(mean * scale + shift, w_squeeze, b_squeeze))
        gate = F.linear(squeezed, w_expand, b_expand).sigmoid()  # (B, C)
        w_channel, w_pixel = first[0].chunk(2, 1)
        padding = -(len(w_channel) + len(pixel_gate[0])) % 16
        rest = F.pad(torch.cat([w_pixel, pixel_gate[0]]), (0, 0, 0, padding)).expand(mean.shape[0], -1, -1)
        weight, bias = after_normalize(torch.cat([w_channel * gate.unsqueeze(1), rest], 1), (scale, shift))
        return weight, bias + torch.cat([first[1], torch.zeros_like(first[1]), F.pad(pixel_gate[1], (0, padding))])


def _reference(x, norm, channel_gate, pixel_gate, first, second, eps):
    """With the concatenation, by 1 x 1 convolutions, as in the authors' code."""

    def gate(y, w_squeeze, b_squeeze, w_expand, b_expand):
        return _pointwise(F.gelu(_pointwise(y, w_squeeze, b_squeeze)), w_expand, b_expand).sigmoid()

    y = F.layer_norm(x, x.shape[-1:], *norm, eps=eps).transpose(1, 2).unsqueeze(2).contiguous()  # (B, C, 1, N)
    both = torch.cat([y * gate(y.mean(3, keepdim=True), *channel_gate), y * gate(y, *pixel_gate)], 1)  # (B, 2 C, 1, N)
    return _pointwise(F.gelu(_pointwise(both, *first)), *second).squeeze(2).transpose(1, 2)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight[..., None, None], bias)
