"""CARN: Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network (Ahn et al., ECCV 2018).

Upstream: https://github.com/nmhkahn/CARN-pytorch (MIT; nothing is copied). Written from a description of the published
network: the same function in float64. Their two classes, CARN and CARN-M, for one scale or for three, are one class
here. Weights are converted by `spinsr.convert`.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import mean_shift, shapes
from spinsr.convert.recipe import DIV2K_AT_SEVERAL_SCALES, Recipe, adam, multistep
from spinsr.convert.registry import ArchFormat, Onnx, PublishedResult, Source, bare, register_format, renamed
from spinsr.modules.mean_shift import DIV2K_MEAN, register_mean
from spinsr.modules.upsample import upscale_factors
from spinsr.utils.validation import check_divisible, check_equal, check_length

# Units of a block, and blocks of the network.
STEPS = 3
# The scales of a network for several.
SCALES = (2, 3, 4)


def _numbered(*modules: nn.Module) -> nn.Sequential:
    """Modules with names that count from 1, as in the authors' files."""
    return nn.Sequential(OrderedDict((str(number), module) for number, module in enumerate(modules, 1)))


def _fusions(num_feat: int) -> nn.Sequential:
    return _numbered(*(nn.Conv2d((step + 1) * num_feat, num_feat, 1) for step in range(1, STEPS + 1)))


def cascade(x: Tensor, units: nn.Sequential, fusions: nn.Sequential) -> Tensor:
    """Units in a row; the input of each is a 1 x 1 convolution with ReLU of the input and all outputs before it.

    Args:
        x: (B, C, H, W).
        units: One for each fusion, or a single one that all steps share.
        fusions: 1 x 1 convolutions, the k-th from (k + 1) C to C channels.

    Returns:
        (B, C, H, W).
    """
    out = seen = x
    for step, fusion in enumerate(fusions):
        seen = torch.cat([seen, units[step % len(units)](out)], 1)  # (B, (step + 2) C, H, W)
        out = F.relu(fusion(seen))
    return out


class ResidualUnit(nn.Module):
    """relu(convolutions(x) + x).

    Args:
        num_feat: Channels C.
        groups: Groups of the 3 x 3 convolutions, which a 1 x 1 convolution follows; None for full convolutions and no
            1 x 1 convolution.
    """

    def __init__(self, num_feat: int, groups: int | None = None):
        super().__init__()
        convs = [nn.Conv2d(num_feat, num_feat, 3, 1, 1, groups=groups or 1) for _ in range(2)]
        last = [] if groups is None else [nn.ReLU(), nn.Conv2d(num_feat, num_feat, 1)]
        self.body = nn.Sequential(convs[0], nn.ReLU(), convs[1], *last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.relu(self.body(x) + x)


class CascadingBlock(nn.Module):
    """A cascade of residual units.

    Args:
        num_feat: Channels C.
        groups: Of the single unit that all steps share; None for three full units.
    """

    def __init__(self, num_feat: int, groups: int | None = None):
        super().__init__()
        self.units = _numbered(*(ResidualUnit(num_feat, groups) for _ in range(STEPS if groups is None else 1)))
        self.fuse = _fusions(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return cascade(x, self.units, self.fuse)


def _tail(num_feat: int, scale: int, groups: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for factor in upscale_factors(scale):
        layers += [nn.Conv2d(num_feat, factor**2 * num_feat, 3, 1, 1, groups=groups), nn.ReLU()]
        layers.append(nn.PixelShuffle(factor))
    return nn.Sequential(*layers)


@ARCH_REGISTRY.register()
class CARN(nn.Module):
    """Cascading residual network, for one scale or for x2, x3 and x4.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C.
        groups: Groups of the 3 x 3 convolutions in the upsampler and, if `mobile`, in the blocks; a divisor of C.
        mobile: CARN-M: one unit of grouped convolutions shared within each block.
        multi_scale: Upsamplers for x2, x3 and x4 after one trunk; `upscale`, also as an attribute, selects one.
        upscale: 3 or a power of two; 2, 3 or 4 if `multi_scale`.
        img_range: Scale in which the network works; the input is `x * img_range - mean`.
        rgb_mean: Mean of each channel in [0, 1]; `mean` is `img_range * rgb_mean`.

    Raises:
        ValueError: An argument breaks its rule.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        groups: int = 1,
        mobile: bool = False,
        multi_scale: bool = False,
        upscale: int = 4,
        img_range: float = 1.0,
        rgb_mean: Sequence[float] = DIV2K_MEAN,
    ):
        super().__init__()
        check_equal(num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        check_length(rgb_mean=rgb_mean, num_in_ch=num_in_ch)
        check_divisible(num_feat=num_feat, groups=groups)
        if multi_scale and upscale not in SCALES:
            raise ValueError(f'upscale must be 2, 3 or 4 for a network of several scales, got {upscale=}')
        self.upscale, self.multi_scale, self.img_range = upscale, multi_scale, img_range
        self.scales = SCALES if multi_scale else (upscale,)
        register_mean(self, img_range, rgb_mean)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = _numbered(*(CascadingBlock(num_feat, groups if mobile else None) for _ in range(STEPS)))
        self.fuse = _fusions(num_feat)
        tails = {f'x{scale}': scale for scale in SCALES} if multi_scale else {'single': upscale}
        self.upsample = nn.ModuleDict({name: _tail(num_feat, scale, groups) for name, scale in tails.items()})
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        shallow = self.conv_first((x * self.img_range - self.mean).contiguous(memory_format=torch.channels_last))
        deep = cascade(shallow, self.body, self.fuse)
        upsample = self.upsample[f'x{self.upscale}' if self.multi_scale else 'single']
        return (self.conv_last(upsample(deep)) + self.mean) / self.img_range


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    told = shapes.images(weights) | shapes.mean_of_grey(weights)
    multi_scale = 'upsample.x2.0.weight' in weights
    stages = [
        value.shape for name, value in weights.items() if name.startswith('upsample.single.') and value.ndim == 4
    ] or [weights['upsample.x4.0.weight'].shape, weights['upsample.x4.3.weight'].shape]
    return {
        **told,
        'groups': told['num_feat'] // stages[0][1],
        'mobile': 'body.1.units.1.body.4.weight' in weights,
        'multi_scale': multi_scale,
        'upscale': math.prod(math.isqrt(len_out // told['num_feat']) for len_out, *_ in stages),
    }


_MULTI_SCALE = {
    'about': "The recipe is that of the authors' README: LR patches of 64x64, batch 64, 600,000 iterations, the norm "
    "of the gradient at most 10 (their code's defaults, 200,000 iterations, are others). Each step takes x2, x3 or x4 "
    'at random. LR is made from the HR sub-images when they are read. The scale of the file is that of validation.',
    'scales': (4,),
    'model_type': 'MultiScaleModel',
    'data': DIV2K_AT_SEVERAL_SCALES,
    'augment': {'scales': SCALES},
    'comments': {
        'model_type': 'SpinsrModel that takes another scale in each step',
        'gt_size': 'at x4; LR patches of 64x64 at every scale',
    },
}

_translate = renamed(scale='upscale', group='groups', width='num_feat')

_PUBLISHED = 'ECCV 2018, Table 2; github.com/nmhkahn/CARN-pytorch'
_MANGA = '; Manga109 as cited by SMSR, CVPR 2021'

register_format(
    ArchFormat(
        arch=CARN,
        names=(
            *mean_shift.rows('.shifter'),
            ('entry.{end}', 'conv_first.{end}'),
            ('exit.{end}', 'conv_last.{end}'),
            ('b{block}.b{unit}.body.{layer:0|2|4}.{end}', 'body.{block}.units.{unit}.body.{layer}.{end}'),
            ('b{block}.c{step}.body.0.{end}', 'body.{block}.fuse.{step}.{end}'),
            ('c{step}.body.0.{end}', 'fuse.{step}.{end}'),
            ('upsample.up.body.{layer}.{end}', 'upsample.single.{layer}.{end}'),
            ('upsample.up{scale:2|3|4}.body.{layer}.{end}', 'upsample.x{scale}.{layer}.{end}'),
        ),
        arguments=_arguments,
        configurations={
            'CARN-multi': {'multi_scale': True},
            'CARN-M': {'mobile': True, 'groups': 4},
            'CARN-M-multi': {'mobile': True, 'groups': 4, 'multi_scale': True},
        },
        official_arguments=lambda variant, official: {
            **_translate(variant, official),
            'mobile': variant.split('_')[0] == 'm',
        },
        untold={'img_range': 1.0},
        from_official=mean_shift.take_frozen('.shifter'),
        to_official=mean_shift.put_frozen('.shifter'),
        layout=bare,
        onnx=Onnx(sides=(2, None)),  # torch.export makes a constant of a side of 1
        published=(
            PublishedResult(
                2, 1_592_000, '37.76 33.52 32.09 31.92 38.36', _PUBLISHED + _MANGA, configuration='CARN-multi'
            ),
            PublishedResult(
                3, 1_592_000, '34.29 30.29 29.06 28.06 33.50', _PUBLISHED + _MANGA, configuration='CARN-multi'
            ),
            PublishedResult(
                4, 1_592_000, '32.13 28.60 27.58 26.07 30.47', _PUBLISHED + _MANGA, configuration='CARN-multi'
            ),
            PublishedResult(2, 412_000, '37.53 33.26 31.92 31.23 -', _PUBLISHED, 'CARN-M', 'CARN-M-multi'),
            PublishedResult(3, 412_000, '33.99 30.08 28.91 27.55 -', _PUBLISHED, 'CARN-M', 'CARN-M-multi'),
            PublishedResult(4, 412_000, '31.92 28.42 27.44 25.62 -', _PUBLISHED, 'CARN-M', 'CARN-M-multi'),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' README: LR patches of 64x64, batch 64, 600,000 iterations, the "
            "norm of the gradient at most 10 (their code's defaults, 200,000 iterations, are others). It is for the "
            'network of three scales, which takes one of them at random in each step. Here a network of one scale is '
            'trained, which is our choice.',
            patch=64,
            batch=64,
            optim_g=adam(1e-4),
            scheduler=multistep(400_000),
            total_iter=600_000,
            grad_clip=10.0,
            by_configuration={'CARN-multi': _MULTI_SCALE, 'CARN-M-multi': _MULTI_SCALE},
        ),
        source=Source(
            'Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network (Ahn et al., ECCV 2018)',
            2018,
            'https://github.com/nmhkahn/CARN-pytorch',
            'MIT',
            'MIT',
            weights='repository',
        ),
    )
)
