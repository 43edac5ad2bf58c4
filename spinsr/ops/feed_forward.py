"""The feed-forward network of SPIN: gated by channel and by pixel, without its concatenation."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.parts import in_parts, norm_backward, parts, without_autocast


def gated_feed_forward(
    x: Tensor,
    norm: tuple[Tensor, Tensor],
    channel_gate: tuple[Tensor, Tensor, Tensor, Tensor],
    pixel_gate: tuple[Tensor, Tensor, Tensor, Tensor],
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    eps: float,
) -> Tensor:
    """W_2 GELU(W_1 cat[c * y, p * y] + b_1) + b_2 with y = LayerNorm(x), a gate c by channel and a gate p by pixel.

        c = sigmoid(W_e GELU(W_s m + b_s) + b_e), m the mean of y over the pixels     (C,)
        p = sigmoid(w_e GELU(V_s y + v_s) + v_e)                                      (N, 1)
        W_1 cat[c * y, p * y] = (W_c diag(c)) y + p * (W_p y)

    so that one matmul with (W_c diag(c), W_p, V_s) reads y once. On the CPU this runs a few thousand pixels at a time,
    and for the gradient only x and the means m are kept: the rest is computed once more.

    Args:
        x: Pixels (B, N, C).
        norm: Weight and bias of the LayerNorm, (C,) each.
        channel_gate: W_s (S, C), b_s (S,), W_e (C, S), b_e (C,).
        pixel_gate: V_s (S, C), v_s (S,), w_e (1, S), v_e (1,).
        first: W_1 (M, 2 C), b_1 (M,).
        second: W_2 (C, M), b_2 (C,).
        eps: Of the LayerNorm.

    Returns:
        (B, N, C).

    Raises:
        ValueError: `x` has not three dimensions.

    Example:
        >>> norm, first = (torch.ones(8), torch.zeros(8)), (torch.rand(12, 16), torch.rand(12))
        >>> by_channel = torch.rand(2, 8), torch.rand(2), torch.rand(8, 2), torch.rand(8)
        >>> by_pixel = torch.rand(2, 8), torch.rand(2), torch.rand(1, 2), torch.rand(1)
        >>> second = torch.rand(8, 12), torch.rand(8)
        >>> gated_feed_forward(torch.rand(1, 60, 8), norm, by_channel, by_pixel, first, second, eps=1e-6).shape
        torch.Size([1, 60, 8])
    """
    if x.ndim != 3:
        raise ValueError(f'x must have the shape (B, N, C), got {tuple(x.shape)}')
    tensors = (*norm, *channel_gate, *pixel_gate, *first, *second)
    if in_parts(x, *tensors):
        return _GatedFeedForward.apply(eps, x, *tensors)
    y = F.layer_norm(x, x.shape[-1:], *norm, eps)
    weight = _weight(y.mean(1), *channel_gate, first[0], pixel_gate[0])
    m, squeezed = len(first[1]), len(pixel_gate[1])
    channel, pixel, squeezed, _ = (y @ weight.transpose(1, 2)).tensor_split([m, 2 * m, 2 * m + squeezed], 2)
    gate = F.linear(F.gelu(squeezed + pixel_gate[1]), *pixel_gate[2:]).sigmoid()  # (B, N, 1)
    return F.linear(F.gelu(torch.addcmul(channel + first[1], gate, pixel)), *second)


def _weight(mean, w_squeeze, b_squeeze, w_expand, b_expand, w_first, w_pixel_squeeze):  # noqa: PLR0913
    """(W_c diag(c), W_p, V_s) of each image, (B, 2 M + S', C); zeros make it as wide as whole vector registers."""
    gate = F.linear(F.gelu(F.linear(mean, w_squeeze, b_squeeze)), w_expand, b_expand).sigmoid()  # (B, C)
    w_channel, w_pixel = w_first.chunk(2, 1)
    rest = torch.cat([w_pixel, w_pixel_squeeze])
    rest = F.pad(rest, (0, 0, 0, -(len(w_channel) + len(rest)) % 16)).expand(len(mean), -1, -1)
    return torch.cat([w_channel * gate.unsqueeze(1), rest], 1)


class _GatedFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, eps: float, x: Tensor, *tensors: Tensor) -> Tensor:
        norm, channel_gate, pixel_gate, first, second = _named(tensors)
        mean = x.new_zeros(len(x), x.shape[2])
        for i, pixels in parts(x):
            mean[i] += F.layer_norm(x[i, pixels], x.shape[-1:], *norm, eps).sum(0)
        mean /= x.shape[1]
        weight = _weight(mean, *channel_gate, first[0], pixel_gate[0])
        part = _Part(x, weight, first[1], pixel_gate)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for i, pixels in parts(x):
            y = F.layer_norm(x[i, pixels], x.shape[-1:], *norm, eps)
            torch.addmm(second[1], F.gelu(part.hidden(y, weight[i])), second[0].t(), out=out[i, pixels])
        ctx.eps = eps
        ctx.save_for_backward(x, mean, *tensors)
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, grad: Tensor):
        x, mean, *tensors = ctx.saved_tensors
        norm, channel_gate, pixel_gate, first, second = _named(tensors)
        sums = [torch.zeros_like(t) for t in tensors]
        d_norm, d_channel_gate, d_pixel_gate, d_first, d_second = _named(sums)
        m, squeezed = len(first[1]), len(pixel_gate[1])
        with torch.enable_grad():
            small = [t.detach().requires_grad_() for t in (mean, *channel_gate, first[0], pixel_gate[0])]
            weight = _weight(*small)
        d_weight = torch.zeros_like(weight)
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        part = _Part(x, weight.detach(), first[1], pixel_gate)
        for i, pixels in parts(x):
            y = F.layer_norm(x[i, pixels], x.shape[-1:], *norm, ctx.eps)
            part_grad = grad[i, pixels]
            hidden = part.hidden(y, part.weight[i])
            d_second[0].addmm_(part_grad.t(), F.gelu(hidden))
            d_second[1].add_(part_grad.sum(0))
            d_hidden = torch.ops.aten.gelu_backward(part_grad @ second[0], hidden)  # (n, M)
            d_first[1].add_(d_hidden.sum(0))
            # The products are not needed any more: their place takes their gradients.
            products, gate = part.products, part.gate
            d_gate = (d_hidden * products[:, m : 2 * m]).sum(1, keepdim=True) * gate * (1 - gate)  # (n, 1)
            d_pixel_gate[2].addmm_(d_gate.t(), part.squeezed)
            d_pixel_gate[3].add_(d_gate.sum(0))
            d_squeezed = torch.ops.aten.gelu_backward(d_gate @ pixel_gate[2], part.before)
            d_pixel_gate[1].add_(d_squeezed.sum(0))
            products[:, :m] = d_hidden
            torch.mul(d_hidden, gate, out=products[:, m : 2 * m])
            products[:, 2 * m : 2 * m + squeezed] = d_squeezed
            d_weight[i].addmm_(products.t(), y)
            torch.mm(products, part.weight[i], out=d_x[i, pixels])
        d_mean, *d_small = torch.autograd.grad(weight, small, d_weight)
        for total, one in zip((*d_channel_gate, d_first[0], d_pixel_gate[0]), d_small, strict=True):
            total.copy_(one)
        d_mean /= x.shape[1]
        for place in parts(x):
            d_y = d_x[place] + d_mean[place[0]]
            d_x[place] = norm_backward(d_y, x[place], norm, ctx.eps, d_norm)
        return None, d_x, *sums


def _named(tensors):
    """The 14 tensors as (norm, channel gate, pixel gate, first, second)."""
    return tensors[:2], tensors[2:6], tensors[6:10], tensors[10:12], tensors[12:]


class _Part:
    """What is computed for a part of the pixels on the way to the hidden layer."""

    def __init__(self, x: Tensor, weight: Tensor, b_first: Tensor, pixel_gate: tuple[Tensor, ...]):
        self.weight, self.first, self.pixel_gate = weight, b_first, pixel_gate
        self.room = x.new_empty(max(pixels.stop - pixels.start for _, pixels in parts(x)), weight.shape[1])

    def hidden(self, y: Tensor, weight: Tensor) -> Tensor:
        """(n, C) -> (n, M), before the GELU."""
        m = len(self.first)
        _, squeeze, w_expand, b_expand = self.pixel_gate
        self.products = torch.mm(y, weight.t(), out=self.room[: len(y)])
        self.before = self.products[:, 2 * m : 2 * m + len(squeeze)] + squeeze
        self.squeezed = F.gelu(self.before)
        self.gate = torch.addmm(b_expand, self.squeezed, w_expand.t()).sigmoid_()  # (n, 1)
        return torch.add(self.products[:, :m], self.first).addcmul_(self.gate, self.products[:, m : 2 * m])
