"""BSRN: Blueprint Separable Residual Network for Efficient Image Super-Resolution (Li et al., CVPRW 2022).

Upstream: https://github.com/xiaom233/BSRN (MIT; nothing is copied). Written from a description of the published
networks, BSRN and BSRN-S of the NTIRE 2022 challenge: the same function in float64, with images of any size from 1 x 1.
Weights are converted by `spinsr.convert`.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import esa, shapes
from spinsr.convert.recipe import DF2K, Recipe, adam, cosine
from spinsr.convert.registry import ArchFormat, Onnx, PublishedResult, Sizes, Source, register_format, renamed, under
from spinsr.modules.cca import ContrastAwareChannelAttention
from spinsr.modules.distillation import CollectedBlocks, FeatureDistillation
from spinsr.modules.esa import MIN_SIDE, EnhancedSpatialAttention
from spinsr.modules.padding import pad_to
from spinsr.utils.validation import check, whole


class BlueprintSeparableConv(nn.Sequential):
    """A 1 x 1 convolution, `pw`, then a depthwise 3 x 3 one, `dw`.

    Args:
        num_in, num_out: Channels before and after.
        stride, padding: Of the depthwise convolution.
        bias: Whether the 1 x 1 convolution has a bias; the depthwise one has.
    """

    def __init__(self, num_in: int, num_out: int, stride: int = 1, padding: int = 1, bias: bool = False):
        super().__init__()
        self.pw = nn.Conv2d(num_in, num_out, 1, bias=bias)
        self.dw = nn.Conv2d(num_out, num_out, 3, stride, padding, groups=num_out)


class EfficientSeparableDistillationBlock(FeatureDistillation):
    """ESDB: feature distillation with separable convolutions, enhanced spatial attention, a gate of channels, skip.

    Args:
        num_feat: Channels C.
        challenge: The block of BSRN-S: 1 x 1 convolutions with biases and a dense strided convolution in the attention;
            a learned factor for each channel and a 1 x 1 convolution instead of contrast-aware channel attention.
    """

    def __init__(self, num_feat: int, challenge: bool = False):
        conv, mid = partial(BlueprintSeparableConv, bias=challenge), num_feat // 4
        super().__init__(num_feat, conv, F.gelu)
        coarse = nn.Sequential(conv(mid, mid), nn.GELU(), conv(mid, mid), nn.GELU(), conv(mid, mid))
        # The default is dense.
        stride = None if challenge else BlueprintSeparableConv(mid, mid, 2, 0)
        self.esa = EnhancedSpatialAttention(num_feat, mid, stride, coarse)
        if challenge:
            self.gate = ChannelFactors(num_feat)
            self.conv_out = nn.Conv2d(num_feat, num_feat, 1)
        else:
            self.gate = ContrastAwareChannelAttention(num_feat, num_feat // 16)
            self.conv_out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.conv_out(self.gate(self.esa(super().forward(x))))


class ChannelFactors(nn.Module):
    """A learned factor for each channel; it starts near 1.

    Args:
        num_feat: Channels C.
    """

    def __init__(self, num_feat: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, num_feat, 1, 1).normal_(1, 0.2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.weight


class _Network(nn.Module):
    """BSRN and BSRN-S, which differ in their blocks and in the bias of the separable convolutions."""

    def __init__(self, num_in_ch: int, num_out_ch: int, num_feat: int, num_block: int, upscale: int, challenge: bool):
        super().__init__()
        self.upscale = upscale
        self.conv_first = BlueprintSeparableConv(4 * num_in_ch, num_feat, bias=challenge)
        self.body = CollectedBlocks(EfficientSeparableDistillationBlock(num_feat, challenge) for _ in range(num_block))
        self.fuse = nn.Conv2d(num_block * num_feat, num_feat, 1)
        self.conv_after_body = BlueprintSeparableConv(num_feat, num_feat, bias=challenge)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        x = pad_to(x, MIN_SIDE, MIN_SIDE).contiguous(memory_format=torch.channels_last)
        shallow = self.conv_first(x.repeat(1, 4, 1, 1))  # the image four times
        deep = shallow + self.conv_after_body(F.gelu(self.fuse(self.body(shallow))))
        return F.pixel_shuffle(self.conv_last(deep), self.upscale)[..., :height, :width]


@ARCH_REGISTRY.register()
class BSRN(_Network):
    """Blueprint separable residual network.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C, at least 16.
        num_block: Efficient separable distillation blocks.
        upscale: 1 or more.

    Raises:
        ValueError: `num_feat` is below 16.
    """

    def __init__(
        self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, num_block: int = 8, upscale: int = 4
    ):
        check(whole(16), num_feat=num_feat)
        super().__init__(num_in_ch, num_out_ch, num_feat, num_block, upscale, challenge=False)


@ARCH_REGISTRY.register()
class BSRN_S(_Network):
    """BSRN-S, the authors' entry to the NTIRE 2022 challenge: biases everywhere, and a lighter gate of channels.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C, at least 4.
        num_block: Efficient separable distillation blocks.
        upscale: 1 or more.

    Raises:
        ValueError: `num_feat` is below 4.
    """

    def __init__(
        self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 48, num_block: int = 5, upscale: int = 4
    ):
        check(whole(4), num_feat=num_feat)
        super().__init__(num_in_ch, num_out_ch, num_feat, num_block, upscale, challenge=True)


_BLOCK, _OURS = 'B{number}', 'body.block_{number}'
_NAMES = (
    ('fea_conv.{part:pw|dw}.{end}', 'conv_first.{part}.{end}'),
    (f'{_BLOCK}.{{conv:c1_d|c2_d|c3_d|c5}}.{{end}}', f'{_OURS}.{{conv}}.{{end}}'),
    (f'{_BLOCK}.{{conv:c1_r|c2_r|c3_r|c4}}.{{part:pw|dw}}.{{end}}', f'{_OURS}.{{conv}}.{{part}}.{{end}}'),
    *esa.rows(f'{_BLOCK}.esa', f'{_OURS}.esa', ('conv1', 'conv_f', 'conv4')),
    *esa.rows(f'{_BLOCK}.esa', f'{_OURS}.esa', esa.COARSE, coarse=True, tensor='{part:pw|dw}.{end}'),
    ('c1.{end}', 'fuse.{end}'),
    ('c2.{part:pw|dw}.{end}', 'conv_after_body.{part}.{end}'),
    ('upsampler.upsampleOneStep.0.{end}', 'conv_last.{end}'),
)


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    num_feat, repeated = weights['conv_first.pw.weight'].shape[:2]
    channels = repeated // 4
    return {
        'num_in_ch': channels,
        'num_out_ch': channels,
        'num_feat': num_feat,
        'num_block': shapes.count(weights, 'body.block_{}.') - 1,  # numbered from 1
        'upscale': math.isqrt(len(weights['conv_last.weight']) // channels),
    }


_SWITCHES = {'conv': 'BSConvU', 'upsampler': 'pixelshuffledirect'}


def _official_arguments(variant: str, official: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in _SWITCHES.items():
        if official.get(name, value) != value:
            raise ValueError(f'{name} must be {value}, the published choice, got {name}={official[name]!r}')
    return renamed(**dict.fromkeys(_SWITCHES))(variant, official)


def _as_convolutions(ours: dict[str, Tensor], _: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' linear layers are 1 x 1 convolutions here."""
    return {name: value[..., None, None] if value.ndim == 2 else value for name, value in ours.items()}


def _as_linear(official: dict[str, Tensor], _: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[..., 0, 0] if value.shape[2:] == (1, 1) else value for name, value in official.items()}


_RECIPE = Recipe(
    about="The recipe is that of the authors' option files: DIV2K and Flickr2K, LR patches of 48x48, batch 64, "
    '1,000,000 iterations, no EMA.',
    patch=48,
    batch=64,
    data=DF2K,
    optim_g=adam(1e-3),
    scheduler=cosine(1_000_000, eta_min=1e-7),
    total_iter=1_000_000,
    comments={'batch_size_per_gpu': 'the authors: 32 on each of two GPUs'},
)
_RECIPE_OF_CHALLENGE = dataclasses.replace(
    _RECIPE,
    about="The recipe is that of the authors' option file for NTIRE 2022: DIV2K and Flickr2K, HR patches of 256x256, "
    'batch 256, 1,500,000 iterations. The cosine decay to 1e-7 is that of BSRN, which is our choice.',
    scales=(4,),
    patch=64,
    batch=256,
    optim_g=adam(2e-3),
    scheduler=cosine(1_500_000, eta_min=1e-7),
    total_iter=1_500_000,
    comments={'batch_size_per_gpu': 'the authors: 64 on each of four GPUs'},
    by_configuration={'BSRN-S': {'scales': ()}},  # the same as BSRN_S
)


def _format(arch: type[_Network], names: tuple, **further: Any) -> ArchFormat:
    return ArchFormat(
        arch=arch,
        names=(*_NAMES, *names),
        arguments=_arguments,
        official_arguments=_official_arguments,
        layout=under('params'),
        sizes=Sizes(minimum=MIN_SIDE, pads=True),
        onnx=Onnx(sides=(MIN_SIDE, None)),
        source=Source(
            'Blueprint Separable Residual Network for Efficient Image Super-Resolution (Li et al., CVPRW 2022)',
            2022,
            'https://github.com/xiaom233/BSRN',
            'MIT',
            'MIT',
            weights='repository',
        ),
        **further,
    )


register_format(
    _format(
        BSRN,
        (
            (f'{_BLOCK}.esa.conv2.{{part:pw|dw}}.{{end}}', f'{_OURS}.esa.conv_stride.{{part}}.{{end}}'),
            (f'{_BLOCK}.cca.conv_du.0.{{end}}', f'{_OURS}.gate.conv_in.{{end}}'),
            (f'{_BLOCK}.cca.conv_du.2.{{end}}', f'{_OURS}.gate.conv_out.{{end}}'),
        ),
        published=(
            PublishedResult(
                4,
                352_000,
                '32.35 28.73 27.65 26.27 30.84',
                'CVPRW 2022, as cited by github.com/stella-von/LKDN; trained on DF2K',
            ),
        ),
        recipe=_RECIPE,
    )
)

register_format(
    _format(
        BSRN_S,
        (
            (f'{_BLOCK}.esa.conv2.{{end}}', f'{_OURS}.esa.conv_stride.{{end}}'),
            (f'{_BLOCK}.cw', f'{_OURS}.gate.weight'),
            (f'{_BLOCK}.conv_out.{{end}}', f'{_OURS}.conv_out.{{end}}'),
        ),
        configurations={'BSRN-S': {}},
        published=(
            PublishedResult(
                4,
                156_000,
                '32.16 - - - -',
                "CVPRW 2022, from the script of the paper's figure in github.com/XPixelGroup/BasicSR",
            ),
        ),
        from_official=_as_convolutions,
        to_official=_as_linear,
        recipe=_RECIPE_OF_CHALLENGE,
    )
)
