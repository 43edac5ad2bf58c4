"""Pixel-shuffle tails."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from spinsr import ops


class Upsample(nn.Sequential):
    """Convolutions with pixel shuffle (NCHW): stages of x2, or one of x3. State-dict names as BasicSR's Upsample.

    Args:
        scale: 3 or a power of two.
        num_feat: Channels.

    Raises:
        ValueError: Any other scale.
    """

    def __init__(self, scale: int, num_feat: int):
        layers: list[nn.Module] = []
        for factor in upscale_factors(scale):
            layers += [nn.Conv2d(num_feat, factor**2 * num_feat, 3, 1, 1), nn.PixelShuffle(factor)]
        super().__init__(*layers)


class TokenUpsample(nn.ModuleList):
    """SPIN's tail on channels-last features: (convolution, pixel shuffle, LeakyReLU(0.1)) a stage, a last convolution.

    Args:
        scale: 2, 3 or 4.
        num_feat: Channels.

    Raises:
        ValueError: Any other scale.
    """

    def __init__(self, scale: int, num_feat: int):
        if scale not in (2, 3, 4):
            raise ValueError(f'upscale must be 2, 3 or 4, got {scale!r}')
        super().__init__(nn.Conv2d(num_feat, factor**2 * num_feat, 3, 1, 1) for factor in upscale_factors(scale))

    def forward(self, x: Tensor, conv_last: nn.Conv2d) -> Tensor:
        """(B, C, H, W) channels-last -> (B, D, scale * H, scale * W), D the channels that `conv_last` makes."""
        if _are_plain(*self, conv_last):
            return _by_op(x, self, conv_last, slope=0.1)
        for conv in self:
            channels, x = x.shape[1], conv(x)
            x = F.leaky_relu_(F.pixel_shuffle(x, round((x.shape[1] // channels) ** 0.5)), 0.1)
        return conv_last(x)


def upsample_and_convolve(x: Tensor, upsample: nn.Sequential, conv_last: nn.Conv2d) -> Tensor:
    """conv_last(upsample(x)), in strips where these are convolutions and pixel shuffles alone.

    Args:
        x: Features (B, C, H, W), channels-last.
        upsample: `Upsample`, or BasicSR's.
        conv_last: 3 x 3.

    Returns:
        (B, D, scale * H, scale * W).
    """
    if _are_plain(*upsample, conv_last):
        return _by_op(x, upsample, conv_last)
    return conv_last(upsample(x))


def _are_plain(*layers: nn.Module) -> bool:
    """Whether only weights matter: 3 x 3 convolutions as above, none wrapped or parametrised, no hooks."""
    return all(
        (type(layer) is nn.PixelShuffle or (type(layer) is nn.Conv2d and _is_three_by_three(layer)))
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
        for layer in layers
    )


def _is_three_by_three(conv: nn.Conv2d) -> bool:
    sizes = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return sizes == ((3, 3), (1, 1), (1, 1), (1, 1), 1, 'zeros') and conv.bias is not None


def _by_op(x: Tensor, layers: Iterable[nn.Module], conv_last: nn.Conv2d, slope: float = 1.0) -> Tensor:
    stages = [_weight_and_bias(layer) for layer in layers if isinstance(layer, nn.Conv2d)]
    return ops.upsampling_tail(x, stages, _weight_and_bias(conv_last), slope)


def _weight_and_bias(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    assert conv.bias is not None
    return conv.weight, conv.bias


def upscale_factors(scale: int) -> list[int]:
    """The factors of the stages of a tail.

    Example:
        >>> upscale_factors(4), upscale_factors(3)
        ([2, 2], [3])
    """
    if scale == 3:
        return [3]
    if not isinstance(scale, int) or scale < 2 or scale & (scale - 1):
        raise ValueError(f'upscale must be 3 or a power of two, got {scale!r}')
    return [2] * (scale.bit_length() - 1)
