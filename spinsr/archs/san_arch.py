"""SAN: Second-order Attention Network for Single Image Super-Resolution (Dai et al., CVPR 2019).

Upstream: https://github.com/daitao/SAN (no licence; nothing is copied). Written anew from the paper and the authors'
published behaviour: the same function in float64, with the covariance in O(C^2 N) in place of an N x N matrix, images
of any size from 1 x 1, and without the parameters that upstream never uses. Weights are converted by `spinsr.convert`.
"""

from collections.abc import Sequence

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from spinsr.modules.mean_shift import register_mean
from spinsr.modules.san import RegionNonLocal, SecondOrderChannelAttention
from spinsr.modules.upsample import Upsample, upsample_and_convolve


class ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(x))).

    Args:
        num_feat: Channels C.
    """

    def __init__(self, num_feat: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.conv2(self.relu(self.conv1(x)))


class LocalSourceResidualAttentionGroup(nn.Module):
    """LSRAG: residual blocks, second-order channel attention, a convolution, and the local-source skip.

    Args:
        num_feat: Channels C.
        num_block: Number of residual blocks.
        squeeze_factor: Channel reduction of the attention.
    """

    def __init__(self, num_feat: int, num_block: int, squeeze_factor: int):
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(num_feat) for _ in range(num_block)))
        self.attention = SecondOrderChannelAttention(num_feat, squeeze_factor)
        self.conv = nn.Conv2d(num_feat, num_feat, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.conv(self.attention(self.blocks(x)))


@ARCH_REGISTRY.register()
class SAN(nn.Module):
    """Second-order attention network.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C, at least 8.
        num_group: Number of LSRAGs.
        num_block: Residual blocks in each LSRAG.
        squeeze_factor: Channel reduction of the second-order attention, in 1..num_feat.
        upscale: 3 or a power of two.
        img_range: Scale in which the network works; the input is `x * img_range - mean`.
        rgb_mean: Mean of each channel in [0, 1]; `mean` is `img_range * rgb_mean`.

    Raises:
        ValueError: The arguments do not fit together.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_group: int = 20,
        num_block: int = 10,
        squeeze_factor: int = 16,
        upscale: int = 4,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
    ):
        super().__init__()
        if not len(rgb_mean) == num_in_ch == num_out_ch:
            raise ValueError(
                f'rgb_mean must have num_in_ch = num_out_ch numbers, got {rgb_mean=}, {num_in_ch=}, {num_out_ch=}'
            )
        if num_feat < 8 or not 1 <= squeeze_factor <= num_feat:
            raise ValueError(
                f'num_feat must be at least 8, and squeeze_factor in 1..num_feat, got {num_feat=}, {squeeze_factor=}'
            )
        self.img_range = img_range
        register_mean(self, img_range, rgb_mean)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.non_local = RegionNonLocal(num_feat, num_feat // 8)  # one, before and after the groups
        self.groups = nn.ModuleList(
            LocalSourceResidualAttentionGroup(num_feat, num_block, squeeze_factor) for _ in range(num_group)
        )
        self.gamma = nn.Parameter(torch.zeros(1))  # weight of the share-source skip
        self.upsample = Upsample(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        shallow = self.conv_first((x * self.img_range - self.mean).contiguous(memory_format=torch.channels_last))
        shared = deep = self.non_local(shallow)
        for group in self.groups:
            deep = group(deep) + self.gamma * shared
        deep = self.non_local(deep) + shallow
        return (upsample_and_convolve(deep, self.upsample, self.conv_last) + self.mean) / self.img_range
