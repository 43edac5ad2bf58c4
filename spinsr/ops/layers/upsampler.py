"""The end of a super-resolution network: (convolution, pixel shuffle, LeakyReLU) a stage, then the last convolution."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spinsr.ops.common.backend import check_features, dense_or_torch
from spinsr.ops.common.chunking import chunk_type, chunks
from spinsr.ops.common.products import cpu_products, has_slow_mkl
from spinsr.ops.common.symbolic import is_symbolic

PIXELS = 2**16  # of the output, in a strip
ROWS = 4096  # pixels, in one product for the gradient of a weight

Stage = tuple[Tensor, Tensor]


def upsampling_tail(
    x: Tensor, stages: Sequence[Stage], last: Stage, slope: float = 1.0, *, backend: str | None = None
) -> Tensor:
    """last(shuffle and LeakyReLU of each convolution in turn), all convolutions 3 x 3 with a padding of 1.

    On the CPU without gradients a strip of rows at a time: beside input and output the memory is that of one strip,
    O(C W scale^2). With gradients one image at a time, and the features after each stage are kept, O(B C H W scale^2).

    Args:
        x: Features (B, C, H, W), channels-last.
        stages: Weight (f^2 C, C, 3, 3) and bias (f^2 C,) of each stage, output channels in the order of torch's pixel
            shuffle by f.
        last: Weight (D, C, 3, 3) and bias (D,).
        slope: Of a LeakyReLU after each shuffle; 1 means none.
        backend: See `spinsr.ops.common.backend`.

    Returns:
        (B, D, H * scale, W * scale), scale the product of the factors f.

    Raises:
        ValueError: `stages` is empty, a stage's weight or `x` has another shape, or slope is below 0.
        TypeError: `x` is not of a floating-point type.

    Example:
        >>> x = torch.rand(1, 8, 5, 7)
        >>> stage, last = (torch.rand(32, 8, 3, 3), torch.rand(32)), (torch.rand(3, 8, 3, 3), torch.rand(3))
        >>> upsampling_tail(x, [stage, stage], last).shape
        torch.Size([1, 3, 20, 28])
    """
    check_features(x, '(B, C, H, W)')
    if not stages or slope < 0:
        raise ValueError(f'needs at least one stage and a slope of at least 0, got {len(stages)} stages and {slope=}')
    for weight, _ in stages:
        if weight.shape[1] != x.shape[1] or _factor(weight) ** 2 * x.shape[1] != len(weight):
            raise ValueError(
                f'a stage must have the weight (f^2 C, C, 3, 3) with C = {x.shape[1]}, got {tuple(weight.shape)}'
            )
    if dense_or_torch('upsampling_tail', backend, x.device) == 'reference' or is_symbolic(*x.shape[2:]):
        return _reference(x, stages, last, slope)
    stages = [_in_token_order(*stage) for stage in stages]
    tensors = (x, *last, *(part for stage in stages for part in stage))
    dtype = chunk_type(*tensors)
    if dtype is None:
        return _rows(x, stages, last, slope, slice(0, x.shape[2]))
    x, last, stages = x.to(dtype), _to(dtype, last), [_to(dtype, stage) for stage in stages]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        is_slow = dtype != torch.bfloat16 and not has_slow_mkl()
        rows, convolution = slice(0, x.shape[2]), _Convolution.apply if is_slow else _convolution
        return torch.cat([_rows(one, stages, last, slope, rows, convolution) for one in x.split(1)])
    scale = _scale(stages)
    out = x.new_empty(len(x), len(last[0]), x.shape[2] * scale, x.shape[3] * scale)
    for strip in chunks(x.shape[2], PIXELS // max(1, x.shape[3] * scale**2)):
        for i in range(len(x)):
            rows = slice(strip.start * scale, strip.stop * scale)
            out[i : i + 1, :, rows] = _rows(x[i : i + 1], stages, last, slope, strip)
    return out


def _to(dtype: torch.dtype, stage: Stage) -> Stage:
    return stage[0].to(dtype), stage[1].to(dtype)


def _reference(x, stages, last, slope):
    for weight, bias in stages:
        x = F.leaky_relu(F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), _factor(weight)), slope)
    return F.conv2d(x, *last, padding=1)


def _factor(weight: Tensor) -> int:
    return math.isqrt(len(weight) // max(1, weight.shape[1]))


def _scale(stages: list[Stage]) -> int:
    return math.prod([_factor(weight) for weight, _ in stages])  # a list: the compiler takes no generator here


def _in_token_order(weight: Tensor, bias: Tensor) -> Stage:
    """Output channels (C, f, f) -> (f, f, C): the shuffle then copies whole feature vectors."""
    c = weight.shape[1]
    return weight.unflatten(0, (c, -1)).transpose(0, 1).flatten(0, 1), bias.unflatten(0, (c, -1)).t().flatten()


def _convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


class _Convolution(torch.autograd.Function):
    """`_convolution`, whose weight gradient is a product of matrices.

    With AVX2 oneDNN's takes up to six times as long as the convolution (40 to 160 channels, 128x128 pixels). On AMD's
    processors with AVX-512 it takes as long as the convolution, and this two and a half times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _convolution(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        d_x = _input_gradient(x, weight, grad) if needs_x else None
        d_weight = _weight_gradient(x, grad) if needs_weight else None
        return d_x, d_weight, grad.sum((0, 2, 3)) if needs_bias else None


def _input_gradient(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    # torch.nn.grad.conv2d_input does the same, but loses the channels-last layout.
    geometry = [1, 1], [1, 1], [1, 1], False, [0, 0], 1
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, [True, False, False])[0]


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """(B, C, H, W) and (B, D, H, W) -> (D, C, 3, 3)."""
    (c, h, w), d = x.shape[1:], grad.shape[1]
    total = x.new_zeros(d, 9 * c)
    with cpu_products():
        for image, upstream in zip(F.pad(x, (1, 1, 1, 1)), grad, strict=True):
            neighbours = image.unfold(1, 3, 1).unfold(2, 3, 1).permute(1, 2, 3, 4, 0)  # (H, W, 3, 3, C)
            for rows in chunks(h, ROWS // max(1, w)):
                pixels = upstream[:, rows].permute(1, 2, 0).reshape(-1, d)
                total = total + pixels.t() @ neighbours[rows].reshape(-1, 9 * c)
    return total.view(d, 3, 3, c).permute(0, 3, 1, 2)


def _rows(
    x: Tensor,
    stages: list[Stage],
    last: Stage,
    slope: float,
    rows: slice,
    convolution: Callable[..., Tensor] = _convolution,
) -> Tensor:
    """The rows of the output that belong to `rows` of the input.

    Where x is cut, a convolution pads as if the image ended there: it takes one row more than is kept of its output.
    """
    x, start, stop = _cut(x, rows.start, rows.stop, len(stages) + 1)
    for i, (weight, bias) in enumerate(stages):
        f, (b, _, h, w) = _factor(weight), x.shape
        x = convolution(x, weight, bias)
        x = x.permute(0, 2, 3, 1).unflatten(3, (f, f, -1)).transpose(2, 3).contiguous()  # (B, H, f, W, f, C)
        if slope != 1:
            x = F.leaky_relu_(x, slope)  # in place: one tensor is kept for the gradient, not two
        x = x.view(b, h * f, w * f, x.shape[-1]).permute(0, 3, 1, 2)
        x, start, stop = _cut(x, start * f, stop * f, len(stages) - i)
    return F.conv2d(x, *last, padding=1)[:, :, start:stop]


def _cut(x: Tensor, start: int, stop: int, margin: int) -> tuple[Tensor, int, int]:
    """Rows [start, stop) of x with a margin on either side, and where these rows are then."""
    first = max(0, start - margin)
    return x[:, :, first : min(x.shape[2], stop + margin)], start - first, stop - first
