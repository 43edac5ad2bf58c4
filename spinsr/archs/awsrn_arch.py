"""AWSRN: Lightweight Image Super-Resolution with Adaptive Weighted Learning Network (Wang et al., 2019).

Upstream: https://github.com/ChaofWang/AWSRN (MIT; nothing is copied). Written from a description of the published
network: the same function in float64. Weights are converted by `spinsr.convert`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import local_fusion, shapes
from spinsr.convert.recipe import ON_255, Recipe, adam, cosine
from spinsr.convert.registry import ArchFormat, Onnx, PublishedResult, Source, bare, of_edsr, register_format
from spinsr.modules.local_fusion import LocalFusionBlock
from spinsr.modules.mean_shift import DIV2K_MEAN, register_mean
from spinsr.modules.weight_norm import WeightNormConv2d
from spinsr.utils.validation import check_equal, check_length

# Kernel sizes of the convolutions in the upsampler.
KERNELS = (3, 5, 7, 9)


class AdaptiveWeightedMultiScale(nn.Module):
    """AWMS: pixel shuffle of the weighted sum of convolutions with kernels of 3, 5, 7 and 9.

    Args:
        num_feat: Channels C.
        num_out_ch: Channels of the image.
        scale: Upscaling factor.
    """

    def __init__(self, num_feat: int, num_out_ch: int, scale: int):
        super().__init__()
        self.scale = scale
        self.convs = nn.ModuleDict({f'k{k}': WeightNormConv2d(num_feat, num_out_ch * scale**2, k) for k in KERNELS})
        self.scales = nn.ParameterDict({f'k{k}': torch.full((1,), 1 / len(KERNELS)) for k in KERNELS})

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_out_ch, scale*H, scale*W)."""
        total = x.new_zeros(())
        for name, conv in self.convs.items():
            total = total + self.scales[name] * conv(x)
        return F.pixel_shuffle(total, self.scale)


@ARCH_REGISTRY.register()
class AWSRN(nn.Module):
    """Adaptive weighted super-resolution network. It works on `2 (x - rgb_mean)`.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C.
        num_mid: Channels inside a residual unit.
        num_block: Local fusion blocks.
        num_unit: Residual units in each block.
        upscale: 1 or more.
        rgb_mean: Mean of each channel in [0, 1].

    Raises:
        ValueError: An argument breaks its rule.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 32,
        num_mid: int = 128,
        num_block: int = 4,
        num_unit: int = 4,
        upscale: int = 4,
        rgb_mean: Sequence[float] = DIV2K_MEAN,
    ):
        super().__init__()
        check_equal(num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        check_length(rgb_mean=rgb_mean, num_in_ch=num_in_ch)
        self.upscale = upscale
        register_mean(self, 1.0, rgb_mean)
        self.conv_first = WeightNormConv2d(num_in_ch, num_feat, 3)
        self.body = nn.ModuleList(LocalFusionBlock(num_feat, num_mid, num_unit) for _ in range(num_block))
        self.tail = AdaptiveWeightedMultiScale(num_feat, num_out_ch, upscale)
        self.skip = WeightNormConv2d(num_in_ch, num_out_ch * upscale**2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        x = (2 * (x - self.mean)).contiguous(memory_format=torch.channels_last)
        deep = self.conv_first(x)
        for block in self.body:
            deep = block(deep)
        image = self.tail(deep) + F.pixel_shuffle(self.skip(x), self.upscale)
        return image / 2 + self.mean


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    first = 'conv_first.weight_v'
    return {
        **shapes.images(weights, first),
        **shapes.mean_of_grey(weights, first),
        'num_mid': len(weights['body.0.units.0.expand.weight_v']),
        'num_block': shapes.count(weights, 'body.{}.'),
        'num_unit': shapes.count(weights, 'body.0.units.{}.'),
        'upscale': shapes.shuffle(weights, 'skip.weight_v', first),
    }


def _official_arguments(variant: str, official: Mapping[str, Any]) -> dict[str, Any]:
    """The class with eight units in a block has a file of its own ('awsrnd'); a later one has the argument `n_awru`."""
    sizes = of_edsr(official, block_feats='num_mid', n_resblocks='num_block', n_awru='num_unit')
    return {'num_unit': 8 if variant.split('_')[0] == 'd' else 4, **sizes}


def _mean(weights: Mapping[str, Tensor]) -> Tensor:
    """The constant of the authors' code, which their files do not hold."""
    channels = weights['conv_first.weight_v'].shape[1]
    mean = torch.tensor(DIV2K_MEAN) if channels == 3 else torch.zeros(channels)
    return mean.view(1, -1, 1, 1)


def _to_official(renamed: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if 'mean' in ours and not torch.equal(ours['mean'].float(), _mean(ours)):
        raise ValueError('mean must be that of DIV2K, which is a constant in the code of the authors')
    return renamed


_PUBLISHED = 'arXiv:1904.02358, github.com/ChaofWang/AWSRN'

register_format(
    ArchFormat(
        arch=AWSRN,
        names=(
            (None, 'mean'),
            (f'head.0.{local_fusion.TENSOR}', f'conv_first.{local_fusion.TENSOR}'),
            (f'skip.0.{local_fusion.TENSOR}', f'skip.{local_fusion.TENSOR}'),
            *local_fusion.rows('body.{block}', 'body.{block}'),
            (f'tail.tail_k{{kernel}}.{local_fusion.TENSOR}', f'tail.convs.k{{kernel}}.{local_fusion.TENSOR}'),
            ('tail.scale_k{kernel}.scale', 'tail.scales.k{kernel}'),
        ),
        arguments=_arguments,
        configurations={
            'AWSRN-M': {'num_block': 3},
            'AWSRN-S': {'num_block': 1},
            'AWSRN-SD': {'num_feat': 16, 'num_block': 1, 'num_unit': 8},
        },
        parity=('awsrn', 'awsrnd'),
        official_arguments=_official_arguments,
        from_official=lambda renamed, _: {**renamed, 'mean': _mean(renamed)},
        to_official=_to_official,
        layout=bare,
        onnx=Onnx(sides=(2, None)),  # torch.export makes a constant of a side of 1
        published=(
            PublishedResult(4, 1_587_000, '32.27 28.69 27.64 26.29 30.72', _PUBLISHED),
            PublishedResult(2, 1_063_000, '38.04 33.66 32.21 32.23 38.66', _PUBLISHED, 'AWSRN-M'),
            PublishedResult(3, 1_143_000, '34.42 30.32 29.13 28.26 33.64', _PUBLISHED, 'AWSRN-M'),
            PublishedResult(4, 1_254_000, '32.21 28.65 27.60 26.15 30.56', _PUBLISHED, 'AWSRN-M'),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' code: LR patches of 48x48, batch 16, 1,000 epochs of 1,000 "
            'iterations, and one cosine decay. Where it ends is not said; 0 is our choice.',
            patch=48,
            batch=16,
            optim_g=adam(1e-3),
            scheduler=cosine(1_000_000, eta_min=0),
            total_iter=1_000_000,
            comments={'pixel_opt:loss_weight': ON_255},
        ),
        source=Source(
            'Lightweight Image Super-Resolution with Adaptive Weighted Learning Network (Wang et al.)',
            2019,
            'https://github.com/ChaofWang/AWSRN',
            'MIT',
            weights='cloud drive',
        ),
    )
)
