"""SAFMN: Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution (Sun et al., ICCV 2023).

Upstream: https://github.com/sunny2109/SAFMN (Apache-2.0; nothing is copied). Written from a description of the
published network: the same function in float64, with images of any size from 1 x 1. Weights are converted by
`spinsr.convert`.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import shapes
from spinsr.convert.recipe import DF2K, Recipe, adam, cosine, fft, l1
from spinsr.convert.registry import ArchFormat, PublishedResult, Sizes, Source, register_format, renamed, under
from spinsr.modules.channel_norm import ChannelNorm
from spinsr.modules.padding import pad_to
from spinsr.utils.validation import check_divisible

_LEVELS = 4
# Pixels of a side that the coarsest level needs.
_MIN_SIDE = 2 ** (_LEVELS - 1)


class SpatiallyAdaptiveFeatureModulation(nn.Module):
    """SAFM: scales the features by a map computed at four resolutions, each from a quarter of the channels.

        out = GELU(aggregate([level_0, ..., level_3])) * x
        level_i = nearest(depthwise_i(maximum over cells of 2^i pixels))

    The cells fill the image: where 2^i does not divide a side, they are larger and overlap (adaptive pooling).

    Args:
        num_feat: Channels C, divisible by 4.
    """

    def __init__(self, num_feat: int):
        super().__init__()
        width = num_feat // _LEVELS
        self.depthwise = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1, groups=width) for _ in range(_LEVELS))
        self.aggregate = nn.Conv2d(num_feat, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), H, W >= 8 -> (B, C, H, W)."""
        height, width = x.shape[2:]
        levels = []
        for level, (part, conv) in enumerate(zip(x.chunk(_LEVELS, 1), self.depthwise, strict=True)):
            if level:
                cells = F.adaptive_max_pool2d(part, (height // 2**level, width // 2**level))
                levels.append(F.interpolate(conv(cells), (height, width), mode='nearest'))
            else:
                levels.append(conv(part))
        return F.gelu(self.aggregate(torch.cat(levels, 1))) * x


class FeatureMixingModule(nn.Module):
    """FMM: spatially-adaptive feature modulation, then a convolutional channel mixer, each normalised and added.

    Args:
        num_feat: Channels C, divisible by 4.
        hidden: Channels inside the channel mixer.
    """

    def __init__(self, num_feat: int, hidden: int):
        super().__init__()
        self.norm1 = ChannelNorm(num_feat, 1e-6)
        self.safm = SpatiallyAdaptiveFeatureModulation(num_feat)
        self.norm2 = ChannelNorm(num_feat, 1e-6)
        self.ccm = nn.Sequential(nn.Conv2d(num_feat, hidden, 3, 1, 1), nn.GELU(), nn.Conv2d(hidden, num_feat, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.safm(self.norm1(x))
        return x + self.ccm(self.norm2(x))


@ARCH_REGISTRY.register()
class SAFMN(nn.Module):
    """Spatially-adaptive feature modulation network. SAFMN-L has `num_feat=128, num_block=16`.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C, divisible by 4.
        num_block: Feature mixing modules.
        ffn_scale: Channels inside a channel mixer, in units of C.
        upscale: 1 or more.

    Raises:
        ValueError: 4 does not divide `num_feat`.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 36,
        num_block: int = 8,
        ffn_scale: float = 2.0,
        upscale: int = 4,
    ):
        super().__init__()
        check_divisible(num_feat=num_feat, levels=_LEVELS)
        self.upscale = upscale
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.blocks = nn.Sequential(
            *(FeatureMixingModule(num_feat, int(num_feat * ffn_scale)) for _ in range(num_block))
        )
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        x = pad_to(x, _MIN_SIDE, _MIN_SIDE).contiguous(memory_format=torch.channels_last)
        shallow = self.conv_first(x)
        image = F.pixel_shuffle(self.conv_last(shallow + self.blocks(shallow)), self.upscale)
        return image[..., :height, :width]


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    sizes = shapes.images(weights)
    return {
        **sizes,
        'num_block': shapes.count(weights, 'blocks.{}.'),
        'ffn_scale': shapes.ratio(len(weights['blocks.0.ccm.0.weight']), sizes['num_feat']),
        'upscale': shapes.shuffle(weights),
    }


_PUBLISHED = 'ICCV 2023, github.com/sunny2109/SAFMN'

register_format(
    ArchFormat(
        arch=SAFMN,
        names=(
            ('to_feat.{end}', 'conv_first.{end}'),
            ('feats.{block}.{norm:norm1|norm2}.{end}', 'blocks.{block}.{norm}.{end}'),
            ('feats.{block}.safm.mfr.{level}.{end}', 'blocks.{block}.safm.depthwise.{level}.{end}'),
            ('feats.{block}.safm.aggr.{end}', 'blocks.{block}.safm.aggregate.{end}'),
            ('feats.{block}.ccm.ccm.{conv:0|2}.{end}', 'blocks.{block}.ccm.{conv}.{end}'),
            ('to_img.0.{end}', 'conv_last.{end}'),
        ),
        arguments=_arguments,
        configurations={'SAFMN-L': {'num_feat': 128, 'num_block': 16}},
        official_arguments=renamed(dim='num_feat', n_blocks='num_block', upscaling_factor='upscale'),
        layout=under('params'),
        sizes=Sizes(minimum=_MIN_SIDE, pads=True),
        published=(
            PublishedResult(2, 228_000, '38.00 33.54 32.16 31.84 38.71', _PUBLISHED),
            PublishedResult(3, 233_000, '34.34 30.33 29.08 27.95 33.52', _PUBLISHED),
            PublishedResult(4, 240_000, '32.18 28.60 27.58 25.97 30.43', _PUBLISHED),
            PublishedResult(2, 5_559_308, '38.28 34.14 32.39 33.06 39.56', _PUBLISHED, 'SAFMN-L'),
            PublishedResult(4, 5_600_816, '32.65 28.96 27.82 26.81 31.59', _PUBLISHED, 'SAFMN-L'),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' option files: DIV2K and Flickr2K, LR patches of 64x64, batch 64, "
            '500,000 iterations, L1 and 0.05 times the FFT loss. SAFMN-L has LR patches of 48x48, batch 48 and 3e-4 to '
            '1e-6; that the rest is as for SAFMN is our choice.',
            patch=64,
            batch=64,
            data=DF2K,
            ema_decay=0.999,
            optim_g=adam(1e-3, (0.9, 0.99)),
            scheduler=cosine(500_000, eta_min=1e-5),
            total_iter=500_000,
            losses={'pixel_opt': l1(), 'fft_opt': fft(0.05)},
            by_configuration={
                'SAFMN-L': {
                    'patch': 48,
                    'batch': 48,
                    'optim_g': adam(3e-4, (0.9, 0.99)),
                    'scheduler': cosine(500_000, eta_min=1e-6),
                }
            },
        ),
        source=Source(
            'Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution (Sun et al., ICCV 2023)',
            2023,
            'https://github.com/sunny2109/SAFMN',
            'Apache-2.0',
            weights='release',
        ),
    )
)
