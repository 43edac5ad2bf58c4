"""RFDN: Residual Feature Distillation Network for Lightweight Image Super-Resolution (Liu et al., ECCVW 2020).

Upstream: https://github.com/njulj/RFDN (MIT; nothing is copied), which has the network that won the AIM 2020 challenge;
the networks of the paper differ from it in their attention. Written from a description of both: the same function as
the published one in float64, with images of any size from 1 x 1. Weights are converted by `spinsr.convert`.
"""

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import esa, shapes
from spinsr.convert.recipe import DF2K, DIV2K, Recipe, Start, adam, halved_every, mse, multistep
from spinsr.convert.registry import ArchFormat, Onnx, PublishedResult, Sizes, Source, bare, register_format, renamed
from spinsr.modules.cca import ContrastAwareChannelAttention
from spinsr.modules.distillation import CollectedBlocks, FeatureDistillation
from spinsr.modules.esa import MIN_SIDE, EnhancedSpatialAttention
from spinsr.modules.padding import pad_to
from spinsr.utils.validation import check, one_of, whole

_leaky_relu = partial(F.leaky_relu, negative_slope=0.05)


class ResidualFeatureDistillationBlock(FeatureDistillation):
    """RFDB: feature distillation with 3 x 3 convolutions, then spatial or channel attention; no skip around it.

    Args:
        num_feat: Channels C.
        attention: 'esa', enhanced spatial attention, or 'cca', contrast-aware channel attention.
    """

    def __init__(self, num_feat: int, attention: str):
        conv = partial(nn.Conv2d, kernel_size=3, padding=1)
        super().__init__(num_feat, conv, _leaky_relu)
        mid = num_feat // 4
        if attention == 'esa':
            conv_coarse = nn.Sequential(conv(mid, mid), nn.ReLU(), conv(mid, mid), nn.ReLU(), conv(mid, mid))
            self.esa = EnhancedSpatialAttention(num_feat, mid, conv_coarse=conv_coarse)
        else:
            self.cca = ContrastAwareChannelAttention(num_feat, mid)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.get_submodule(self.attention)(super().forward(x))


@ARCH_REGISTRY.register()
class RFDN(nn.Module):
    """Residual feature distillation network.

    The defaults are the winner of AIM 2020, E-RFDN. RFDN of the paper has `num_feat=48, num_block=6, attention='cca'`,
    RFDN-L `num_feat=52` with the same.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C, at least 4.
        num_block: Residual feature distillation blocks.
        attention: 'esa', enhanced spatial attention, or 'cca', contrast-aware channel attention.
        upscale: 1 or more.
        img_range: Scale in which the network works: it sees `x * img_range`.

    Raises:
        ValueError: `num_feat` or `attention` does not satisfy its rule.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 50,
        num_block: int = 4,
        attention: str = 'esa',
        upscale: int = 4,
        img_range: float = 255.0,
    ):
        super().__init__()
        check(whole(4), num_feat=num_feat)
        check(one_of('esa', 'cca'), attention=attention)
        self.upscale, self.img_range = upscale, img_range
        self.min_side = MIN_SIDE if attention == 'esa' else 1
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = CollectedBlocks(ResidualFeatureDistillationBlock(num_feat, attention) for _ in range(num_block))
        self.fuse = nn.Conv2d(num_block * num_feat, num_feat, 1)
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        x = pad_to(x, self.min_side, self.min_side).contiguous(memory_format=torch.channels_last)
        shallow = self.conv_first(x * self.img_range)
        deep = shallow + self.conv_after_body(_leaky_relu(self.fuse(self.body(shallow))))
        image = F.pixel_shuffle(self.conv_last(deep), self.upscale)  # (B, num_out_ch, upscale*H, upscale*W)
        return (image / self.img_range)[..., :height, :width]


def _no_channel_attention(official: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if any('.cca.' in name for name in ours):
        raise ValueError("RFDN with attention='cca' has no official form: the authors published the network with ESA")
    return official


_PAPER = {'num_block': 6, 'attention': 'cca'}
_PUBLISHED = 'ECCVW 2020, Table 3, as cited with CATANet, CVPR 2025'
_OMNISR = 'ECCVW 2020, as cited by Omni-SR, CVPR 2023'

register_format(
    ArchFormat(
        arch=RFDN,
        names=(
            ('fea_conv.{end}', 'conv_first.{end}'),
            (
                'B{number}.{conv:c1_d|c1_r|c2_d|c2_r|c3_d|c3_r|c4|c5}.{end}',
                'body.block_{number}.{conv}.{end}',
            ),
            *esa.rows('B{number}.esa', 'body.block_{number}.esa', coarse=True),
            (None, 'body.block_{number}.cca.{conv:conv_in|conv_out}.{end}'),
            ('c.0.{end}', 'fuse.{end}'),
            ('LR_conv.{end}', 'conv_after_body.{end}'),
            ('upsampler.0.{end}', 'conv_last.{end}'),
        ),
        arguments=lambda weights: {
            **shapes.images(weights),
            'num_block': shapes.count(weights, 'body.block_{}.') - 1,  # numbered from 1
            'attention': 'cca' if 'body.block_1.cca.conv_in.weight' in weights else 'esa',
            'upscale': shapes.shuffle(weights),
        },
        configurations={
            'E-RFDN': {},
            'RFDN-paper': {'num_feat': 48, **_PAPER},
            'RFDN-L': {'num_feat': 52, **_PAPER},
        },
        official_arguments=renamed(in_nc='num_in_ch', out_nc='num_out_ch', nf='num_feat', num_modules='num_block'),
        untold={'img_range': 255.0},
        to_official=_no_channel_attention,
        layout=bare,
        sizes=Sizes(minimum=MIN_SIDE, pads=True),
        onnx=Onnx(sides=(MIN_SIDE, None)),
        published=(
            PublishedResult(2, 534_000, '38.05 33.68 32.16 32.12 38.88', _PUBLISHED, configuration='RFDN-paper'),
            PublishedResult(3, 541_000, '34.41 30.34 29.09 28.21 33.67', _PUBLISHED, configuration='RFDN-paper'),
            PublishedResult(4, 550_000, '32.24 28.61 27.57 26.11 30.58', _PUBLISHED, configuration='RFDN-paper'),
            PublishedResult(2, 626_000, '38.08 33.67 32.18 32.24 38.95', _OMNISR, 'RFDN-L'),
            PublishedResult(3, 633_000, '34.47 30.35 29.11 28.32 33.78', _OMNISR, 'RFDN-L'),
            PublishedResult(4, 643_000, '32.28 28.61 27.58 26.20 30.61', _OMNISR, 'RFDN-L'),
        ),
        recipe=Recipe(
            about="The authors' training code is not public. HR patches of 256x256, batch 64, 5e-4, DIV2K and "
            'Flickr2K, and L2 after L1 are how the winner of the AIM 2020 challenge is said to have been trained; we '
            'could not check it. The rest is our choice: 1,000,000 iterations, halved every 200,000 as for RLFN, then '
            '100,000 iterations of L2 at 1e-5. At x3 the patches are 255x255.',
            hr_patch=256,
            batch=64,
            data=DF2K,
            optim_g=adam(5e-4),
            scheduler=halved_every(200_000, 1_000_000),
            total_iter=1_000_000,
            stages={
                'l2': {
                    'start': Start(comment='The stage with L1 comes first.'),
                    'optim_g': adam(1e-5),
                    'scheduler': multistep(),
                    'total_iter': 100_000,
                    'losses': {'pixel_opt': mse()},
                }
            },
            by_configuration={
                'E-RFDN': {'scales': ()},  # the same as RFDN here
                'RFDN-paper': {'data': DIV2K},
                'RFDN-L': {'data': DIV2K},
            },
        ),
        source=Source(
            'Residual Feature Distillation Network for Lightweight Image Super-Resolution (Liu et al., ECCVW 2020)',
            2020,
            'https://github.com/njulj/RFDN',
            'MIT',
            'MIT',
            weights='repository (E-RFDN x4)',
        ),
    )
)
