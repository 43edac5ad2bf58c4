"""The end of a super-resolution network: (convolution, pixel shuffle, LeakyReLU) a stage, then the last convolution."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spinsr.ops.common.backend import check_features, dense_or_torch
from spinsr.ops.common.chunking import chunk_type, chunks
from spinsr.ops.common.precision import full_type
from spinsr.ops.common.products import cpu_products, has_slow_mkl
from spinsr.ops.common.symbolic import is_symbolic

PIXELS = 2**16  # of the output, in a strip
NEIGHBOURS = 3 * 2**19  # values of the 3 x 3 neighbours of pixels, in one product for the gradient of a weight

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
        rows = slice(0, x.shape[2])
        return torch.cat([_rows(one, stages, last, slope, rows, _trained_convolution) for one in x.split(1)])
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


def _trained_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`_convolution` with the faster of two gradients of the weight.

    With AVX2 oneDNN's takes up to six times as long as the convolution (40 to 160 channels, 128x128 pixels). On AMD's
    processors with AVX-512 it takes as long as the convolution, and a product of matrices two and a half times as long.
    For few output channels (40 to 3, 256x256 pixels) the product takes a quarter of the time everywhere.
    """
    with_avx2 = x.dtype != torch.bfloat16 and not has_slow_mkl()
    convolution = _Convolution.apply if with_avx2 or _has_few_outputs(weight) else _convolution
    return convolution(x, weight, bias)


def _has_few_outputs(weight: Tensor) -> bool:
    return 4 * len(weight) <= weight.shape[1]


class _Convolution(torch.autograd.Function):
    """`_convolution`, whose weight gradient is a product of matrices."""

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
    """(B, C, H, W) and (B, D, H, W) -> (D, C, 3, 3).

    Of C and D, the neighbours of the fewer are gathered: pixel p of x and pixel p + i of grad are pixel q - i and
    pixel q.
    """
    if grad.shape[1] < x.shape[1]:
        return _products_with_neighbours(grad, x).flip(2, 3).transpose(0, 1)
    return _products_with_neighbours(x, grad)


def _products_with_neighbours(x: Tensor, y: Tensor) -> Tensor:
    """Sums over all pixels of y times each of the 3 x 3 neighbours in x, which is padded with zeros.

    (B, C, H, W) and (B, D, H, W) -> (D, C, 3, 3).
    """
    (c, h, w), d = x.shape[1:], y.shape[1]
    total = x.new_zeros(9 * c, d, dtype=full_type(x.dtype))
    with cpu_products():
        for image, pixels in zip(F.pad(x.contiguous(), (1, 1, 1, 1)), y, strict=True):
            neighbours = image.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 3, 4, 1, 2)  # (C, 3, 3, H, W)
            for rows in chunks(h, NEIGHBOURS // max(1, 9 * c * w)):
                near = neighbours[:, :, :, rows].reshape(9 * c, -1)
                total = total + near @ pixels[:, rows].flatten(1).t()
    return total.to(x.dtype).view(c, 3, 3, d).permute(3, 0, 1, 2)


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
    return convolution(x, *last)[:, :, start:stop]


def _cut(x: Tensor, start: int, stop: int, margin: int) -> tuple[Tensor, int, int]:
    """Rows [start, stop) of x with a margin on either side, and where these rows are then."""
    first = max(0, start - margin)
    return x[:, :, first : min(x.shape[2], stop + margin)], start - first, stop - first
