"""LAPAR: Linearly-Assembled Pixel-Adaptive Regression Network (Li et al., NeurIPS 2020).

Upstream: https://github.com/dvlab-research/Simple-SR (MIT; nothing is copied). Written from a description of the
published network: the same function in float64, with the dictionary of 72 kernels computed instead of read from a file,
and with images of any size from 1 x 1. Weights are converted by `spinsr.convert`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import local_fusion, shapes
from spinsr.convert.recipe import AUTHORS_FLIPS, DF2K, Recipe, adam, cosine
from spinsr.convert.registry import ArchFormat, Onnx, PublishedResult, Sizes, Source, bare, register_format, renamed
from spinsr.modules.local_fusion import LocalFusionBlock
from spinsr.modules.mean_shift import DIV2K_MEAN, register_mean
from spinsr.modules.padding import pad_to
from spinsr.modules.weight_norm import WeightNormConv2d
from spinsr.utils.validation import check_equal, check_length

_KERNEL = 5
_ANGLES = (0, 150, 120, 90, 60, 30)


def gaussian_kernel(along: float, across: float, degrees: float = 0) -> np.ndarray:
    """An anisotropic Gaussian on 5 x 5 pixels, of sum 1.

    Args:
        along: Standard deviation in the direction of the angle, in pixels.
        across: Standard deviation perpendicular to it.
        degrees: From the axis to the right towards that to the bottom.

    Returns:
        (5, 5), float64.
    """
    angle, (y, x) = math.radians(degrees), np.mgrid[:_KERNEL, :_KERNEL] - _KERNEL // 2
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = np.exp(-((u / along) ** 2 + (v / across) ** 2) / 2)
    return kernel / kernel.sum()


def difference(wide: np.ndarray, narrow: np.ndarray) -> np.ndarray:
    """wide - narrow, with the positive part scaled to a sum of 1.4 and the negative part to one of -0.4."""
    positive, negative = np.maximum(wide - narrow, 0), np.minimum(wide - narrow, 0)
    return 1.4 * positive / positive.sum() - 0.4 * negative / negative.sum()


def dictionary() -> np.ndarray:
    """The published dictionary: 51 Gaussians, and 21 of their differences, which sharpen; each has a sum of 1.

    Returns:
        (72, 5, 5), float64.
    """
    narrowest, narrow, wide = (gaussian_kernel(s, s) for s in (0.4, 1.2, 2.0))
    turned = {
        (s, q): [gaussian_kernel(s, s * q, degrees) for degrees in _ANGLES] for s in (2.0, 1.2) for q in (0.8, 0.6, 0.4)
    }
    thin = [gaussian_kernel(2.0, 0.4, -degrees) for degrees in range(0, 180, 15)]
    kernels = [wide, *turned[2.0, 0.8], *turned[2.0, 0.6], *turned[2.0, 0.4], *thin]
    kernels += [narrow, *turned[1.2, 0.8], *turned[1.2, 0.6], *turned[1.2, 0.4], narrowest]
    kernels += [difference(wide, narrow), difference(wide, narrowest), difference(narrow, narrowest)]
    for q in (0.8, 0.6, 0.4):
        kernels += map(difference, turned[2.0, q], turned[1.2, q])
    return np.stack(kernels)


@ARCH_REGISTRY.register()
class LAPAR(nn.Module):
    """Linearly-assembled pixel-adaptive regression: a kernel for each pixel filters the bicubic image.

    It is a weighted sum of the dictionary's kernels; a network computes the weights at the size of the result. The
    defaults are LAPAR-A; LAPAR-B has `num_feat=24, num_block=3`, LAPAR-C `num_feat=16, num_block=2`.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C.
        num_block: Local fusion blocks.
        num_kernel: Kernels of the dictionary. The buffer `kernels`, (num_kernel, 1, 5, 5), holds the published
            dictionary for 72 and zeros, to be loaded, for another number.
        upscale: 1 or more.
        rgb_mean: Mean of each channel in [0, 1], subtracted from the input of the network that computes the weights.

    Raises:
        ValueError: The arguments do not fit together.
    """

    mean: Tensor
    kernels: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 32,
        num_block: int = 4,
        num_kernel: int = 72,
        upscale: int = 4,
        rgb_mean: Sequence[float] = DIV2K_MEAN,
    ):
        super().__init__()
        check_equal(num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        check_length(rgb_mean=rgb_mean, num_in_ch=num_in_ch)
        self.upscale = upscale
        # The enlarged image is extended by a reflection of two pixels.
        self.min_side = -(-3 // upscale)
        register_mean(self, 1.0, rgb_mean)
        self.conv_first = WeightNormConv2d(num_in_ch, num_feat, 3)
        self.blocks = nn.Sequential(*(LocalFusionBlock(num_feat, num_feat) for _ in range(num_block)))
        self.upsample = WeightNormConv2d(num_feat, num_feat * upscale**2, 3)
        self.tail_k3 = WeightNormConv2d(num_feat, num_feat, 3)
        self.tail_k5 = WeightNormConv2d(num_feat, num_feat, 5)
        self.scale_k3 = nn.Parameter(torch.full((1,), 0.5))
        self.scale_k5 = nn.Parameter(torch.full((1,), 0.5))
        self.fuse = WeightNormConv2d(num_feat, num_feat, 3)
        self.conv_last = WeightNormConv2d(num_feat, num_kernel, 3)
        kernels = dictionary() if num_kernel == 72 else np.zeros((num_kernel, _KERNEL, _KERNEL))
        self.register_buffer('kernels', torch.tensor(kernels[:, None], dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        x = pad_to(x, self.min_side, self.min_side)
        enlarged = F.interpolate(x, scale_factor=self.upscale, mode='bicubic', align_corners=False)
        # The sum over the dictionary comes first: 25 maps instead of as many images as there are kernels.
        dictionary = self.kernels.flatten(1).t()[..., None, None]  # (25, N, 1, 1)
        filters = F.conv2d(self._weights(x), dictionary)  # (B, 25, upscale*H, upscale*W)
        return _filtered(enlarged, filters)[..., :height, :width]

    def _weights(self, x: Tensor) -> Tensor:
        """(B, num_in_ch, H, W) -> (B, num_kernel, upscale*H, upscale*W)."""
        features = F.relu(self.conv_first((x - self.mean).contiguous(memory_format=torch.channels_last)))
        features = F.pixel_shuffle(F.relu(self.upsample(self.blocks(features))), self.upscale)
        features = self.scale_k3 * self.tail_k3(features) + self.scale_k5 * self.tail_k5(features)
        return self.conv_last(F.relu(self.fuse(features)))


def _filtered(image: Tensor, filters: Tensor) -> Tensor:
    """Correlates every pixel of (B, C, H, W) with its own 5 x 5 filter, (B, 25, H, W); the border is reflected."""
    height, width = image.shape[2:]
    border = _KERNEL // 2
    image = F.pad(image, (border, border, border, border), mode='reflect')
    result = image.new_zeros(())
    for tap, factor in enumerate(filters.unbind(1)):
        row, column = divmod(tap, _KERNEL)
        result = result + factor[:, None] * image[:, :, row : row + height, column : column + width]
    return result


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    first = 'conv_first.weight_v'
    return {
        **shapes.images(weights, first),
        **shapes.mean_of_grey(weights, first),
        'num_block': shapes.count(weights, 'blocks.{}.'),
        'num_kernel': len(weights['kernels']),
        'upscale': math.isqrt(len(weights['upsample.weight_v']) // len(weights[first])),
    }


_PUBLISHED = 'NeurIPS 2020, as cited by SAFMN, ICCV 2023'

register_format(
    ArchFormat(
        arch=LAPAR,
        names=(
            ('w_conv.rgb_mean', 'mean'),
            (f'w_conv.head.0.{local_fusion.TENSOR}', f'conv_first.{local_fusion.TENSOR}'),
            *local_fusion.rows('w_conv.body.{block}', 'blocks.{block}'),
            (f'w_conv.up.0.{local_fusion.TENSOR}', f'upsample.{local_fusion.TENSOR}'),
            (f'w_conv.tail.{{conv:tail_k3|tail_k5|fuse}}.{local_fusion.TENSOR}', f'{{conv}}.{local_fusion.TENSOR}'),
            ('w_conv.tail.{scale:scale_k3|scale_k5}.scale', '{scale}'),
            (f'w_conv.tail.w_conv.{local_fusion.TENSOR}', f'conv_last.{local_fusion.TENSOR}'),
            ('decom_conv.weight', 'kernels'),
        ),
        arguments=_arguments,
        configurations={
            'LAPAR-A': {},
            'LAPAR-B': {'num_feat': 24, 'num_block': 3},
            'LAPAR-C': {'num_feat': 16, 'num_block': 2},
        },
        official_arguments=renamed(
            IN_CHANNEL='num_in_ch',
            N_CHANNEL='num_feat',
            RES_BLOCK='num_block',
            N_WEIGHT='num_kernel',
            SCALE='upscale',
            KERNEL_SIZE=None,  # always 5
            KERNEL_PATH=None,
        ),
        layout=bare,
        sizes=Sizes(minimum=2, pads=True),
        onnx=Onnx(sides=(3, None)),
        published=(
            PublishedResult(2, 548_000, '38.01 33.62 32.19 32.10 38.67', _PUBLISHED, 'LAPAR-A'),
            PublishedResult(3, 594_000, '34.36 30.34 29.11 28.15 33.51', _PUBLISHED, 'LAPAR-A'),
            PublishedResult(4, 659_000, '32.15 28.61 27.61 26.14 30.42', _PUBLISHED, 'LAPAR-A'),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' code: DIV2K and Flickr2K, LR patches of 64x64, batch 32, "
            '600,000 iterations in three cosine decays. They warm up for 2,000 iterations from a tenth of the rate, '
            'at each restart; here the rate rises from 0, at the start alone.',
            patch=64,
            batch=32,
            data=DF2K,
            optim_g=adam(4e-4),
            scheduler=cosine(200_000, 200_000, 200_000, eta_min=1e-7),
            total_iter=600_000,
            warmup_iter=2_000,
            by_configuration={'LAPAR-A': {'scales': ()}},  # the same as LAPAR
            comments={
                'use_hflip': AUTHORS_FLIPS,
                'batch_size_per_gpu': 'on each GPU; the authors do not say how many',
                'warmup_iter': '',
            },
        ),
        source=Source(
            'LAPAR: Linearly-Assembled Pixel-Adaptive Regression Network for Single Image Super-Resolution and Beyond '
            '(Li et al., NeurIPS 2020)',
            2020,
            'https://github.com/dvlab-research/Simple-SR',
            'MIT',
            weights='cloud drive',
        ),
    )
)
