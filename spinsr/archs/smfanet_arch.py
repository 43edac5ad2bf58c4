"""SMFANet: A Lightweight Self-Modulation Feature Aggregation Network (Zheng et al., ECCV 2024).

Upstream: https://github.com/Zheng-MJ/SMFANet (Apache-2.0; nothing is copied). Written from a description of the
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
from spinsr.convert.recipe import Recipe, adam, cosine, fft, l1
from spinsr.convert.registry import ArchFormat, PublishedResult, Sizes, Source, register_format, renamed, under
from spinsr.modules.cosine import unit_vectors
from spinsr.modules.padding import pad_to
from spinsr.ops.common.precision import full_type

# Pixels of a side of a cell, and so the least that an image needs.
_CELL = 8


class SelfModulationFeatureAggregation(nn.Module):
    """SMFA: a global branch, features modulated by their maxima and their variance, and a branch of local detail.

        local, x = split(f)
        cells    = nearest(GELU(mix(alpha * depthwise(maximum over cells of 8 x 8) + beta * variance(x))))
        out      = project(x * cells + detail(local))

    The cells fill the image: where 8 does not divide a side, they are larger and overlap (adaptive pooling). The
    variance is that of a channel over the whole image, unbiased.

    Args:
        num_feat: Channels C.
    """

    def __init__(self, num_feat: int):
        super().__init__()
        self.split = nn.Conv2d(num_feat, 2 * num_feat, 1)
        self.depthwise = nn.Conv2d(num_feat, num_feat, 3, 1, 1, groups=num_feat)
        self.alpha = nn.Parameter(torch.ones(1, num_feat, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, num_feat, 1, 1))
        self.mix = nn.Conv2d(num_feat, num_feat, 1)
        self.detail = nn.Sequential(
            nn.Conv2d(num_feat, 2 * num_feat, 3, 1, 1, groups=num_feat),
            nn.Conv2d(2 * num_feat, 2 * num_feat, 1),
            nn.GELU(),
            nn.Conv2d(2 * num_feat, num_feat, 1),
        )
        self.project = nn.Conv2d(num_feat, num_feat, 1)

    def forward(self, f: Tensor) -> Tensor:
        """(B, C, H, W), H, W >= 8 -> (B, C, H, W)."""
        height, width = f.shape[2:]
        local, x = self.split(f).chunk(2, 1)
        maxima = self.depthwise(F.adaptive_max_pool2d(x, (height // _CELL, width // _CELL)))
        variance = x.to(full_type(x.dtype)).var((2, 3), keepdim=True).to(x.dtype)  # (B, C, 1, 1)
        cells = F.gelu(self.mix(self.alpha * maxima + self.beta * variance))
        cells = F.interpolate(cells, (height, width), mode='nearest')
        return self.project(x * cells + self.detail(local))


class PartialConvolutionFeedForward(nn.Module):
    """PCFN: a 1 x 1 convolution, a 3 x 3 one of a quarter of its channels, and a 1 x 1 convolution, GELU between them.

    Args:
        num_feat: Channels C.
        hidden: Channels inside, at least 4.
    """

    def __init__(self, num_feat: int, hidden: int):
        super().__init__()
        self.split = (hidden // 4, hidden - hidden // 4)
        self.expand = nn.Conv2d(num_feat, hidden, 1)
        self.partial = nn.Conv2d(self.split[0], self.split[0], 3, 1, 1)
        self.project = nn.Conv2d(hidden, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        quarter, rest = F.gelu(self.expand(x)).split(self.split, 1)
        return self.project(torch.cat([F.gelu(self.partial(quarter)), rest], 1))


class FeatureModulationBlock(nn.Module):
    """FMB: SMFA, then PCFN, each on features divided by their norm at each pixel, and added to its input.

    Args:
        num_feat: Channels C.
        hidden: Channels inside the PCFN.
    """

    def __init__(self, num_feat: int, hidden: int):
        super().__init__()
        self.smfa = SelfModulationFeatureAggregation(num_feat)
        self.pcfn = PartialConvolutionFeedForward(num_feat, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.smfa(unit_vectors(x, 1))
        return x + self.pcfn(unit_vectors(x, 1))


@ARCH_REGISTRY.register()
class SMFANet(nn.Module):
    """Self-modulation feature aggregation network. SMFANet+ has `num_feat=48, num_block=12`.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C.
        num_block: Feature modulation blocks.
        ffn_scale: Channels inside a PCFN, in units of C; four or more channels.
        upscale: 1 or more.

    Raises:
        ValueError: There are fewer than four channels inside a PCFN.
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
        hidden = int(num_feat * ffn_scale)
        if hidden < 4:
            raise ValueError(f'num_feat * ffn_scale must be at least 4, got {num_feat=}, {ffn_scale=}')
        self.upscale = upscale
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.blocks = nn.Sequential(*(FeatureModulationBlock(num_feat, hidden) for _ in range(num_block)))
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        x = pad_to(x, _CELL, _CELL).contiguous(memory_format=torch.channels_last)
        shallow = self.conv_first(x)
        image = F.pixel_shuffle(self.conv_last(shallow + self.blocks(shallow)), self.upscale)
        return image[..., :height, :width]


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    sizes = shapes.images(weights)
    return {
        **sizes,
        'num_block': shapes.count(weights, 'blocks.{}.'),
        'ffn_scale': shapes.ratio(len(weights['blocks.0.pcfn.expand.weight']), sizes['num_feat']),
        'upscale': shapes.shuffle(weights),
    }


_SMFA = {
    'linear_0': 'split',
    'linear_1': 'mix',
    'linear_2': 'project',
    'dw_conv': 'depthwise',
    'lde.conv_0.0': 'detail.0',
    'lde.conv_0.1': 'detail.1',
    'lde.conv_1': 'detail.3',
}
_PCFN = {'conv_0': 'expand', 'conv_1': 'partial', 'conv_2': 'project'}
_PUBLISHED = 'ECCV 2024, github.com/Zheng-MJ/SMFANet; trained on DIV2K'
_DF2K = 'ECCV 2024, github.com/Zheng-MJ/SMFANet; trained on DF2K'

register_format(
    ArchFormat(
        arch=SMFANet,
        names=(
            ('to_feat.{end}', 'conv_first.{end}'),
            ('feats.{block}.smfa.alpha', 'blocks.{block}.smfa.alpha'),
            ('feats.{block}.smfa.belt', 'blocks.{block}.smfa.beta'),
            *(
                (f'feats.{{block}}.{part}.{theirs}.{{end}}', f'blocks.{{block}}.{part}.{ours}.{{end}}')
                for part, names in (('smfa', _SMFA), ('pcfn', _PCFN))
                for theirs, ours in names.items()
            ),
            ('to_img.0.{end}', 'conv_last.{end}'),
        ),
        arguments=_arguments,
        configurations={'SMFANet+': {'num_feat': 48, 'num_block': 12}},
        official_arguments=renamed(dim='num_feat', n_blocks='num_block', upscaling_factor='upscale'),
        layout=under('params'),
        sizes=Sizes(minimum=_CELL, pads=True),
        tiling='discouraged',
        published=(
            PublishedResult(2, 186_000, '38.04 33.65 32.19 32.22 38.98', _PUBLISHED),
            PublishedResult(3, 191_000, '34.46 30.39 29.13 28.25 33.84', _PUBLISHED),
            PublishedResult(4, 197_000, '32.25 28.67 27.61 26.19 30.72', _PUBLISHED),
            PublishedResult(2, 480_000, '38.18 33.82 32.28 32.64 39.25', _PUBLISHED, 'SMFANet+'),
            PublishedResult(3, 487_000, '34.63 30.52 29.23 28.59 34.17', _PUBLISHED, 'SMFANet+'),
            PublishedResult(4, 496_000, '32.43 28.77 27.70 26.45 31.06', _PUBLISHED, 'SMFANet+'),
            PublishedResult(2, 186_000, '38.08 33.65 32.22 32.20 39.11', _DF2K, 'SMFANet (DF2K)'),
            PublishedResult(3, 191_000, '34.42 30.41 29.16 28.22 33.96', _DF2K, 'SMFANet (DF2K)'),
            PublishedResult(4, 197_000, '32.25 28.71 27.64 26.18 30.82', _DF2K, 'SMFANet (DF2K)'),
            PublishedResult(2, 480_000, '38.19 33.92 32.32 32.70 39.46', _DF2K, 'SMFANet+ (DF2K)', 'SMFANet+'),
            PublishedResult(3, 487_000, '34.66 30.57 29.25 28.67 34.45', _DF2K, 'SMFANet+ (DF2K)', 'SMFANet+'),
            PublishedResult(4, 496_000, '32.51 28.87 27.74 26.56 31.29', _DF2K, 'SMFANet+ (DF2K)', 'SMFANet+'),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' option files, which are for DIV2K: LR patches of 64x64, batch "
            '64, 1,000,000 iterations, L1 and 0.05 times the FFT loss. They also publish networks that were trained on '
            'DIV2K and Flickr2K, but no option files of these.',
            patch=64,
            batch=64,
            ema_decay=0.999,
            optim_g=adam(1e-3, (0.9, 0.99)),
            scheduler=cosine(1_000_000, eta_min=1e-6),
            total_iter=1_000_000,
            losses={'pixel_opt': l1(), 'fft_opt': fft(0.05)},
        ),
        source=Source(
            'SMFANet: A Lightweight Self-Modulation Feature Aggregation Network (Zheng et al., ECCV 2024)',
            2024,
            'https://github.com/Zheng-MJ/SMFANet',
            'Apache-2.0',
            'Apache-2.0',
            weights='repository',
        ),
    )
)
