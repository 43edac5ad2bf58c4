"""Pixel-shuffle tails."""

import torch.nn.functional as F
from torch import Tensor, nn

from spinsr import ops
from spinsr.ops.backend import resolve_backend


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
        return upsample_and_convolve(x, self, conv_last, slope=0.1)


def upsample_and_convolve(x: Tensor, upsample: nn.Module, conv_last: nn.Conv2d, slope: float = 1.0) -> Tensor:
    """The end of a network: the convolutions of `upsample`, each with its pixel shuffle, and `conv_last`.

    Args:
        x: Features (B, C, H, W), channels-last.
        upsample: Its convolutions are the stages.
        conv_last: 3 x 3.
        slope: Of a LeakyReLU after each shuffle; 1 means none.

    Returns:
        (B, D, scale * H, scale * W).
    """
    stages = [layer for layer in upsample.children() if isinstance(layer, nn.Conv2d)]
    if resolve_backend() == 'reference':
        for conv in stages:
            x = F.pixel_shuffle(conv(x), round((conv.out_channels // conv.in_channels) ** 0.5))
            x = x if slope == 1 else F.leaky_relu_(x, slope)
        return conv_last(x)
    weights = [(conv.weight, conv.bias) for conv in stages]
    return ops.upsampling_tail(x, weights, (conv_last.weight, conv_last.bias), slope)


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
