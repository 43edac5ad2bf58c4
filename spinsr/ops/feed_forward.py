"""The feed-forward network behind SPIN's channel and pixel attention, without its concatenation."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.parts import in_parts, parts


def gated_feed_forward(
    x: Tensor,
    gate: tuple[Tensor, Tensor, Tensor, Tensor],
    by_channel: Tensor,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
) -> Tensor:
    """W_2 GELU(W_1 cat[c * x, p * x] + b_1) + b_2 with a gate c of each channel and a gate p of each pixel.

        p = sigmoid(w_e GELU(W_s x + b_s) + b_e)
        W_1 cat[c * x, p * x] = (W_c diag(c)) x + p * (W_p x)

    so that one matmul with (W_c diag(c), W_p, W_s) reads x once. On the CPU a few thousand pixels at a time; the
    gradient needs x alone and computes the rest once more.

    Args:
        x: Normalised pixels (B, N, C).
        gate: W_s (S, C), b_s (S,), w_e (1, S), b_e (1,) of the pixels' gate.
        by_channel: c, (B, C).
        first: W_1 (M, 2 C), b_1 (M,).
        second: W_2 (C, M), b_2 (C,).

    Returns:
        (B, N, C).

    Example:
        >>> gate = torch.rand(2, 8), torch.rand(2), torch.rand(1, 2), torch.rand(1)
        >>> first, second = (torch.rand(12, 16), torch.rand(12)), (torch.rand(8, 12), torch.rand(8))
        >>> gated_feed_forward(torch.rand(1, 60, 8), gate, torch.rand(1, 8), first, second).shape
        torch.Size([1, 60, 8])
    """
    w_squeeze, b_squeeze, w_expand, b_expand = gate
    w_channel, w_pixel = first[0].chunk(2, 1)
    # A few rows of zeros make the matmul as wide as whole vector registers.
    spare = -(2 * len(w_pixel) + len(w_squeeze)) % 16
    w_rest = F.pad(torch.cat([w_pixel, w_squeeze]), (0, 0, 0, spare)).expand(len(x), -1, -1)
    weight = torch.cat([w_channel * by_channel.unsqueeze(1), w_rest], 1)  # (B, 2 M + squeezed, C)
    others = first[1], F.pad(b_squeeze, (0, spare)), F.pad(w_expand, (0, spare)), b_expand, *second
    if in_parts(x, *others):
        return _GatedFeedForward.apply(x, weight, *others)
    return _gated_feed_forward(x, weight, *others)


def _gated_feed_forward(x, weight, b_first, b_squeeze, w_expand, b_expand, w_second, b_second):  # noqa: PLR0913
    m = len(b_first)
    channel, pixel, squeezed = (x @ weight.transpose(1, 2)).tensor_split([m, 2 * m], 2)
    gate = F.linear(F.gelu(squeezed + b_squeeze), w_expand, b_expand).sigmoid()  # (B, N, 1)
    return F.linear(F.gelu(torch.addcmul(channel + b_first, gate, pixel)), w_second, b_second)


class _GatedFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, b_first, b_squeeze, w_expand, b_expand, w_second, b_second):  # noqa: PLR0913
        ctx.save_for_backward(x, weight, b_first, b_squeeze, w_expand, b_expand, w_second, b_second)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        part = _Part(x, weight, b_first, b_squeeze, w_expand, b_expand)
        for i, pixels in parts(x):
            hidden = part.hidden(x[i, pixels], weight[i])
            torch.addmm(b_second, F.gelu(hidden), w_second.t(), out=out[i, pixels])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, b_first, b_squeeze, w_expand, b_expand, w_second, b_second = ctx.saved_tensors
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        sums = [torch.zeros_like(t) for t in ctx.saved_tensors[1:]]
        d_weight, d_first, d_squeeze, d_expand, d_expand_bias, d_second, d_second_bias = sums
        part = _Part(x, weight, b_first, b_squeeze, w_expand, b_expand)
        m = len(b_first)
        for i, pixels in parts(x):
            part_x, part_grad = x[i, pixels], grad[i, pixels]
            hidden = part.hidden(part_x, weight[i])
            d_second.addmm_(part_grad.t(), F.gelu(hidden))
            d_second_bias += part_grad.sum(0)
            d_hidden = torch.ops.aten.gelu_backward(part_grad @ w_second, hidden)  # (n, M)
            d_first += d_hidden.sum(0)
            # The products of the first matmul are not needed any more: their place takes their gradients.
            d_products, gate = part.products, part.gate
            d_gate = (d_hidden * d_products[:, m : 2 * m]).sum(1, keepdim=True)
            d_gate = d_gate * gate * (1 - gate)
            d_expand.addmm_(d_gate.t(), part.squeezed)
            d_expand_bias += d_gate.sum(0)
            d_squeezed = torch.ops.aten.gelu_backward(d_gate @ w_expand, part.before)
            d_squeeze += d_squeezed.sum(0)
            d_products[:, :m] = d_hidden
            torch.mul(d_hidden, gate, out=d_products[:, m : 2 * m])
            d_products[:, 2 * m :] = d_squeezed
            d_weight[i].addmm_(d_products.t(), part_x)
            torch.mm(d_products, weight[i], out=d_x[i, pixels])
        return d_x, *sums


class _Part:
    """What is computed for a part of the pixels on the way to the hidden layer."""

    def __init__(self, x, weight, b_first, b_squeeze, w_expand, b_expand):  # noqa: PLR0913
        self.first, self.squeeze, self.expand = b_first, b_squeeze, (b_expand, w_expand.t())
        self.room = x.new_empty(max(pixels.stop - pixels.start for _, pixels in parts(x)), weight.shape[1])

    def hidden(self, x: Tensor, weight: Tensor) -> Tensor:
        """(n, C) -> (n, M), before the GELU."""
        m = len(self.first)
        self.products = torch.mm(x, weight.t(), out=self.room[: len(x)])
        self.before = self.products[:, 2 * m :] + self.squeeze
        self.squeezed = F.gelu(self.before)
        self.gate = torch.addmm(self.expand[0], self.squeezed, self.expand[1]).sigmoid_()  # (n, 1)
        return torch.add(self.products[:, :m], self.first).addcmul_(self.gate, self.products[:, m : 2 * m])
