"""ShuffleMixer: An Efficient ConvNet for Image Super-Resolution (Sun et al., NeurIPS 2022).

Upstream: https://github.com/sunny2109/ShuffleMixer (MIT; nothing is copied). Written from a description of the
published network: the same function in float64. Weights are converted by `spinsr.convert`.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import shapes
from spinsr.convert.recipe import DF2K, Recipe, adam, fft, l1, multistep
from spinsr.convert.registry import ArchFormat, Onnx, PublishedResult, Source, register_format, renamed, under
from spinsr.modules.channel_norm import ChannelNorm
from spinsr.modules.upsample import upscale_factors
from spinsr.utils.validation import check_divisible, check_equal

_GROUPS = 8


def mix_halves(x: Tensor, mlp: nn.Module) -> Tensor:
    """Projects the first half of the channels and shuffles both halves in eight groups.

    Args:
        x: (B, C, H, W), C divisible by 8.
        mlp: From C / 2 to C / 2 channels.

    Returns:
        (B, C, H, W): channel 8 d + g is channel C / 8 * g + d of both halves.
    """
    first, second = x.chunk(2, 1)
    groups = torch.cat([mlp(first), second], 1).unflatten(1, (_GROUPS, -1))  # (B, 8, C / 8, H, W)
    return groups.transpose(1, 2).flatten(1, 2)


class ShuffleMixerLayer(nn.Module):
    """Half of the channels projected and shuffled, a large depthwise convolution, half of the channels once more.

    The depthwise convolution has no skip around it.

    Args:
        num_feat: Channels C, divisible by 8.
        kernel_size: Of the depthwise convolution, odd.
        hidden: Channels inside the projections.
    """

    def __init__(self, num_feat: int, kernel_size: int, hidden: int):
        super().__init__()
        half = num_feat // 2
        self.norm1 = ChannelNorm(num_feat, 1e-5, bias=False)
        self.mlp1 = nn.Sequential(nn.Conv2d(half, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, half, 1))
        self.spatial = nn.Conv2d(num_feat, num_feat, kernel_size, 1, kernel_size // 2, groups=num_feat)
        self.norm2 = ChannelNorm(num_feat, 1e-5, bias=False)
        self.mlp2 = nn.Sequential(nn.Conv2d(half, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.spatial(x + mix_halves(self.norm1(x), self.mlp1))
        return x + mix_halves(self.norm2(x), self.mlp2)


class FeatureMixingBlock(nn.Module):
    """FMB: two shuffle mixer layers, added to their input, then two convolutions, added to theirs.

    Args:
        num_feat, kernel_size, hidden: Of the layers.
    """

    def __init__(self, num_feat: int, kernel_size: int, hidden: int):
        super().__init__()
        self.mixers = nn.Sequential(*(ShuffleMixerLayer(num_feat, kernel_size, hidden) for _ in range(2)))
        self.conv = nn.Sequential(
            nn.Conv2d(num_feat, num_feat + 16, 3, 1, 1), nn.SiLU(), nn.Conv2d(num_feat + 16, num_feat, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.mixers(x)
        return x + self.conv(x)


@ARCH_REGISTRY.register()
class ShuffleMixer(nn.Module):
    """ShuffleMixer. The tiny one has `num_feat=32, kernel_size=3`.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C, divisible by 8.
        num_block: Feature mixing blocks.
        kernel_size: Of the depthwise convolutions, odd.
        mlp_ratio: Channels inside a projection, in units of C / 2.
        upscale: 3 or a power of two.

    Raises:
        ValueError: The arguments do not satisfy these rules.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 5,
        kernel_size: int = 7,
        mlp_ratio: float = 2,
        upscale: int = 4,
    ):
        super().__init__()
        check_equal(num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        check_divisible(num_feat=num_feat, groups=_GROUPS)
        if kernel_size % 2 != 1:
            raise ValueError(f'kernel_size must be odd, got {kernel_size=}')
        self.upscale = upscale
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1, bias=False)
        hidden = int(num_feat // 2 * mlp_ratio)
        self.blocks = nn.Sequential(*(FeatureMixingBlock(num_feat, kernel_size, hidden) for _ in range(num_block)))
        layers: list[nn.Module] = []
        for factor in upscale_factors(upscale):
            layers += [nn.Conv2d(num_feat, num_feat * factor**2, 1), nn.PixelShuffle(factor), nn.SiLU()]
        self.upsample = nn.Sequential(*layers)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        features = self.blocks(self.conv_first(x.contiguous(memory_format=torch.channels_last)))
        enlarged = F.interpolate(x, scale_factor=self.upscale, mode='bilinear', align_corners=False)
        return self.conv_last(self.upsample(features)) + enlarged


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    sizes = shapes.images(weights)
    return {
        **sizes,
        'num_block': shapes.count(weights, 'blocks.{}.'),
        'kernel_size': weights['blocks.0.mixers.0.spatial.weight'].shape[-1],
        'mlp_ratio': shapes.ratio(len(weights['blocks.0.mixers.0.mlp1.0.weight']), sizes['num_feat'] // 2),
        'upscale': shapes.stages(weights),
    }


_LAYER, _OURS = 'blocks.{block}.net.{layer:0|1}', 'blocks.{block}.mixers.{layer:0|1}'
_PUBLISHED = 'NeurIPS 2022, as cited by SAFMN, ICCV 2023'

register_format(
    ArchFormat(
        arch=ShuffleMixer,
        names=(
            ('to_feat.weight', 'conv_first.weight'),
            (f'{_LAYER}.{{norm:norm1|norm2}}.body.weight', f'{_OURS}.{{norm}}.weight'),
            (f'{_LAYER}.{{mlp:mlp1|mlp2}}.fc.{{conv:0|2}}.{{end}}', f'{_OURS}.{{mlp}}.{{conv}}.{{end}}'),
            (f'{_LAYER}.spatial.{{end}}', f'{_OURS}.spatial.{{end}}'),
            'blocks.{block}.conv.{conv:0|2}.{end}',
            ('upsapling.{stage}.{end}', 'upsample.{stage}.{end}'),
            ('tail.{end}', 'conv_last.{end}'),
        ),
        arguments=_arguments,
        configurations={'ShuffleMixer-tiny': {'num_feat': 32, 'kernel_size': 3}},
        official_arguments=renamed(n_feats='num_feat', n_blocks='num_block', upscaling_factor='upscale'),
        layout=under('params'),
        onnx=Onnx(sides=(2, None)),
        published=(
            PublishedResult(2, 394_000, '38.01 33.63 32.17 31.89 38.83', _PUBLISHED),
            PublishedResult(3, 415_000, '34.40 30.37 29.12 28.08 33.69', _PUBLISHED),
            PublishedResult(4, 411_000, '32.21 28.66 27.61 26.08 30.65', _PUBLISHED),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' option files: DIV2K and Flickr2K, LR patches of 64x64, batch 64, "
            '300,000 iterations at a constant learning rate, L1 and 0.1 times the FFT loss. Most of their files write '
            'freq_opt for fft_opt, which their code does not read, so these train with L1 alone. We follow the paper, '
            'which has the loss.',
            patch=64,
            batch=64,
            data=DF2K,
            ema_decay=0.999,
            optim_g=adam(5e-4, (0.9, 0.99)),
            scheduler=multistep(),
            total_iter=300_000,
            losses={'pixel_opt': l1(), 'fft_opt': fft(0.1)},
            comments={'milestones': 'none: the learning rate is constant'},
        ),
        source=Source(
            'ShuffleMixer: An Efficient ConvNet for Image Super-Resolution (Sun et al., NeurIPS 2022)',
            2022,
            'https://github.com/sunny2109/ShuffleMixer',
            'MIT',
            weights='cloud drive',
        ),
    )
)
