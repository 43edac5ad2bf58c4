"""The end of a super-resolution network: (convolution, pixel shuffle, LeakyReLU) a stage, then the last convolution.

On the CPU a strip of rows at a time, so that the widest tensors, f^2 C channels at the full resolution, never exist
whole. Neighbouring strips share the rows that a 3 x 3 convolution looks at, so the result is that of the whole image.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.parts import in_parts, without_autocast

PIXELS_AT_ONCE = 2**16  # of the output


def upsampling_tail(
    x: Tensor, stages: Sequence[tuple[Tensor, Tensor]], last: tuple[Tensor, Tensor], slope: float = 1.0
) -> Tensor:
    """last(shuffle and LeakyReLU of each convolution in turn), all convolutions 3 x 3 with a padding of 1.

    Beside input and output the memory is that of one strip, O(C W scale^2), and with gradients that of the features
    after each stage, O(B C H W scale^2).

    Args:
        x: Features (B, C, H, W), channels-last.
        stages: Weight (f^2 C, C, 3, 3) and bias (f^2 C,) of each stage, output channels in the order of torch's pixel
            shuffle by f.
        last: Weight (D, C, 3, 3) and bias (D,).
        slope: Of a LeakyReLU after each shuffle; 1 means none.

    Returns:
        (B, D, H * scale, W * scale), scale the product of the factors f.

    Raises:
        ValueError: There is no stage, a stage's weight has another shape, or slope is below 0.

    Example:
        >>> x = torch.rand(1, 8, 5, 7)
        >>> stage, last = (torch.rand(32, 8, 3, 3), torch.rand(32)), (torch.rand(3, 8, 3, 3), torch.rand(3))
        >>> upsampling_tail(x, [stage, stage], last).shape
        torch.Size([1, 3, 20, 28])
    """
    if not stages or slope < 0:
        raise ValueError(f'there must be a stage, and slope must be at least 0, got {len(stages)} stages and {slope=}')
    for weight, _ in stages:
        if weight.shape[1] != x.shape[1] or round((len(weight) // x.shape[1]) ** 0.5) ** 2 * x.shape[1] != len(weight):
            raise ValueError(
                f'a stage must have the weight (f^2 C, C, 3, 3) with C = {x.shape[1]}, got {tuple(weight.shape)}'
            )
    weights = [part for weight, bias in stages for part in _in_token_order(weight, bias)]
    if in_parts(x, *last, *weights):
        keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *last, *weights))
        return _Tail.apply(keep, x, slope, *last, *weights)
    for i in range(0, len(weights), 2):
        c = x.shape[1]
        x = F.conv2d(x, *weights[i : i + 2], padding=1)
        x = _shuffle(x, round((x.shape[1] // c) ** 0.5))
        x = x if slope == 1 else F.leaky_relu(x, slope)
    return F.conv2d(x, *last, padding=1)


def _in_token_order(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Output channels (C, f, f) -> (f, f, C): the shuffle then copies whole feature vectors."""
    c = weight.shape[1]
    return weight.unflatten(0, (c, -1)).transpose(0, 1).flatten(0, 1), bias.unflatten(0, (c, -1)).t().flatten()


def _shuffle(x: Tensor, f: int) -> Tensor:
    """(B, f f C, H, W) -> (B, C, H f, W f), both channels-last, channels in token order."""
    b, _, h, w = x.shape
    x = x.permute(0, 2, 3, 1).reshape(b, h, w, f, f, -1).transpose(2, 3)  # (B, H, f, W, f, C)
    return x.reshape(b, h * f, w * f, -1).permute(0, 3, 1, 2)


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, keep: bool, x: Tensor, slope: float, last_weight: Tensor, last_bias: Tensor, *weights: Tensor
    ) -> Tensor:
        b, c, h, w = x.shape
        stages = list(zip(weights[::2], weights[1::2], strict=True))
        factors = [round((len(weight) // c) ** 0.5) for weight, _ in stages]
        scale = torch.Size(factors).numel()
        out = last_bias.view(-1, 1, 1).expand(b, -1, h * scale, w * scale).contiguous()
        features, side = [], 1
        for factor in factors if keep else ():
            side *= factor
            features.append(x.new_empty(b, h * side, w * side, c).permute(0, 3, 1, 2))
        few = _by_offset(last_weight)
        step = max(1, PIXELS_AT_ONCE // (w * scale**2))
        for i, top in itertools.product(range(b), range(0, h, step)):
            rows = top, min(top + step, h)
            _strip(x[i : i + 1], stages, factors, few, slope, rows, out[i], [f[i] for f in features])
        ctx.slope, ctx.factors = slope, factors
        ctx.save_for_backward(x, last_weight, *weights, *features)
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, grad: Tensor):
        x, last_weight, *others = ctx.saved_tensors
        count = len(ctx.factors)
        weights, features = others[: 2 * count], others[2 * count :]
        sums = [torch.zeros_like(t) for t in (last_weight, *weights)]
        few, d_few = _by_offset(last_weight), torch.zeros_like(_by_offset(last_weight))
        d_x = torch.empty_like(x)
        for i in range(len(x)):
            d = _few_backward(grad[i], features[-1][i], few, d_few)
            for stage in reversed(range(count)):
                if ctx.slope != 1:
                    torch.ops.aten.leaky_relu_backward.grad_input(d, features[stage][i], ctx.slope, True, grad_input=d)
                d = _unshuffle(d, ctx.factors[stage]).unsqueeze(0)
                below = features[stage - 1][i : i + 1] if stage else x[i : i + 1]
                weight = weights[2 * stage]
                d, d_weight, d_bias = torch.ops.aten.convolution_backward(
                    d, below, weight, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True]
                )
                sums[1 + 2 * stage] += d_weight
                sums[2 + 2 * stage] += d_bias
                d = d[0]
            d_x[i] = d
        sums[0].copy_(d_few.view(3, 3, *last_weight.shape[:2]).permute(2, 3, 0, 1))
        return None, d_x, None, sums[0], grad.sum((0, 2, 3)), *sums[1:]


def _strip(x, stages, factors, few, slope, rows, out, keep):  # noqa: PLR0913
    """Rows [top, bottom) of the input (1, C, H, W) to their rows of `out`, (D, H scale, W scale)."""
    # From the end to the start: which rows of each level the rows of the output need.
    height, (top, bottom) = x.shape[2], rows
    scale = out.shape[1] // height
    levels = [(max(0, top * scale - 1), min(height * scale, bottom * scale + 1))]
    for factor in reversed(factors):
        scale //= factor
        first, last = levels[0][0] // factor, -(-levels[0][1] // factor)
        levels.insert(0, (max(0, first - 1), min(height * scale, last + 1)))
    row = levels[0][0]
    x = x[:, :, slice(*levels[0])]
    for i, ((weight, bias), factor) in enumerate(zip(stages, factors, strict=True)):
        x = _shuffle(F.conv2d(x, weight, bias, padding=1), factor)
        x = x if slope == 1 else F.leaky_relu_(x, slope)
        first, last = levels[i + 1]
        # The outermost rows were computed as if the image ended there, and are cut off.
        x = x[:, :, first - row * factor : last - row * factor]
        row = first
        if keep:
            keep[i][:, first:last] = x[0]
    scale = out.shape[1] // height
    _few(x[0], few, out[:, top * scale : bottom * scale], top * scale - row)


def _by_offset(weight: Tensor) -> Tensor:
    """(D, C, 3, 3) -> (9 D, C): what each pixel gives to the 9 pixels around it."""
    return weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1])


def _few(x: Tensor, few: Tensor, out: Tensor, offset: int) -> None:
    """A 3 x 3 convolution to few channels: one matmul and 9 shifted sums, where convolution kernels fill up to 16.

    Args:
        x: (C, R, W), channels-last.
        few: (9 D, C), from `_by_offset`.
        out: (D, rows, W), to which rows [offset, offset + rows) of the result are added.
        offset: In rows of `x`.
    """
    parts = (few @ x.permute(1, 2, 0).flatten(0, 1).t()).view(9, -1, *x.shape[1:])  # (9, D, R, W)
    for part, (here, there) in zip(parts, _shifts(*out.shape[1:], x.shape[1], offset), strict=True):
        out[here] += part[there]


def _few_backward(grad: Tensor, x: Tensor, few: Tensor, d_few: Tensor) -> Tensor:
    """The gradient of `_few` for a whole image: (D, H, W), (C, H, W) -> (C, H, W); adds to `d_few`."""
    parts = grad.new_zeros(9, *grad.shape)
    for part, (here, there) in zip(parts, _shifts(*grad.shape[1:], grad.shape[1], 0), strict=True):
        part[there] = grad[here]
    parts = parts.flatten(2).flatten(0, 1)  # (9 D, H W)
    d_few.addmm_(parts, x.permute(1, 2, 0).flatten(0, 1))
    return (parts.t() @ few).view(*x.shape[1:], -1).permute(2, 0, 1)


def _shifts(rows: int, width: int, height: int, offset: int):
    """For each of the 9 weights: which pixels of (rows, width) it reaches, and which of (height, width) it reads."""
    for dy in (-1, 0, 1):
        top, bottom = max(0, -offset - dy), min(rows, height - offset - dy)
        for dx in (-1, 0, 1):
            left, right = max(0, -dx), width - max(0, dx)
            here = (slice(None), slice(top, bottom), slice(left, right))
            there = (slice(None), slice(top + offset + dy, bottom + offset + dy), slice(left + dx, right + dx))
            yield here, there


def _unshuffle(x: Tensor, f: int) -> Tensor:
    """(C, H f, W f) -> (f f C, H, W), channels in token order; both channels-last."""
    c, h, w = x.shape
    x = x.permute(1, 2, 0).reshape(h // f, f, w // f, f, c).transpose(1, 2)  # (H, W, f, f, C)
    return x.reshape(h // f, w // f, -1).permute(2, 0, 1)
