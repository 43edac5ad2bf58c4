"""RLFN: Residual Local Feature Network for Efficient Super-Resolution (Kong et al., CVPRW 2022).

Upstream: https://github.com/bytedance/RLFN (Apache-2.0; nothing is copied). Written from a description of the published
network: the same function in float64, with images of any size from 1 x 1. Weights are converted by `spinsr.convert`.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import esa, shapes
from spinsr.convert.recipe import Recipe, Start, adam, halved_every
from spinsr.convert.registry import ArchFormat, Onnx, PublishedResult, Sizes, Source, bare, register_format, renamed
from spinsr.modules.esa import MIN_SIDE, EnhancedSpatialAttention
from spinsr.modules.padding import pad_to


class ResidualLocalFeatureBlock(nn.Module):
    """RLFB: three convolutions with LeakyReLU(0.05), the input added, a 1 x 1 convolution and ESA.

    Args:
        num_feat: Channels C.
        num_mid: Channels between the convolutions.
        num_esa: Channels of the coarse view of the attention.
    """

    def __init__(self, num_feat: int, num_mid: int, num_esa: int):
        super().__init__()
        self.c1_r = nn.Conv2d(num_feat, num_mid, 3, 1, 1)
        self.c2_r = nn.Conv2d(num_mid, num_mid, 3, 1, 1)
        self.c3_r = nn.Conv2d(num_mid, num_feat, 3, 1, 1)
        self.c5 = nn.Conv2d(num_feat, num_feat, 1)
        self.esa = EnhancedSpatialAttention(num_feat, num_esa)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y = x
        for conv in (self.c1_r, self.c2_r, self.c3_r):
            y = F.leaky_relu(conv(y), 0.05)
        return self.esa(self.c5(x + y))


@ARCH_REGISTRY.register()
class RLFN(nn.Module):
    """Residual local feature network.

    The published variants: RLFN (the defaults), RLFN-S (`num_feat=48`), and the winner of NTIRE 2022
    (`num_feat=46, num_mid=48, num_block=4`).

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C.
        num_mid: Channels between the convolutions of a block; None means `num_feat`.
        num_block: Residual local feature blocks.
        num_esa: Channels of the coarse view of the attention.
        upscale: 1 or more.
        img_range: Scale in which the network works: it sees `x * img_range`.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 52,
        num_mid: int | None = None,
        num_block: int = 6,
        num_esa: int = 16,
        upscale: int = 4,
        img_range: float = 255.0,
    ):
        super().__init__()
        self.upscale, self.img_range = upscale, img_range
        num_mid = num_feat if num_mid is None else num_mid
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = nn.Sequential(  # numbered from 1, as in the authors' files
            OrderedDict(
                (f'block_{number}', ResidualLocalFeatureBlock(num_feat, num_mid, num_esa))
                for number in range(1, num_block + 1)
            )
        )
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        x = pad_to(x, MIN_SIDE, MIN_SIDE).contiguous(memory_format=torch.channels_last)
        shallow = self.conv_first(x * self.img_range)
        deep = shallow + self.conv_after_body(self.body(shallow))
        image = F.pixel_shuffle(self.conv_last(deep), self.upscale)  # (B, num_out_ch, upscale*H, upscale*W)
        return (image / self.img_range)[..., :height, :width]


_translate = renamed(
    in_channels='num_in_ch',
    out_channels='num_out_ch',
    feature_channels='num_feat',
    mid_channels='num_mid',
    num_blocks='num_block',
)


def _official_arguments(variant: str, official: Mapping[str, Any]) -> dict[str, Any]:
    """The winner of NTIRE 2022 is a class of its own there, with four blocks."""
    return {**_translate(variant, official), **({'num_block': 4} if variant == 'ntire' else {})}


_PUBLISHED = 'CVPRW 2022, arXiv:2205.07514, Table 1'

register_format(
    ArchFormat(
        arch=RLFN,
        names=(
            ('conv_1.{end}', 'conv_first.{end}'),
            ('conv_2.{end}', 'conv_after_body.{end}'),
            ('upsampler.0.{end}', 'conv_last.{end}'),
            ('block_{number}.{conv:c1_r|c2_r|c3_r|c5}.{end}', 'body.block_{number}.{conv}.{end}'),
            *esa.rows('block_{number}.esa', 'body.block_{number}.esa'),
        ),
        arguments=lambda weights: {
            **shapes.images(weights),
            'num_mid': len(weights['body.block_1.c1_r.weight']),
            'num_block': shapes.count(weights, 'body.block_{}.') - 1,  # numbered from 1
            'num_esa': len(weights['body.block_1.esa.conv_in.weight']),
            'upscale': shapes.shuffle(weights),
        },
        configurations={
            'RLFN-S': {'num_feat': 48},
            'RLFN-NTIRE': {'num_feat': 46, 'num_mid': 48, 'num_block': 4},
        },
        official_arguments=_official_arguments,
        untold={'img_range': 255.0},
        layout=bare,
        sizes=Sizes(minimum=MIN_SIDE, pads=True),
        onnx=Onnx(sides=(MIN_SIDE, None)),
        published=(
            PublishedResult(2, 527_000, '38.07 33.72 32.22 32.33 -', _PUBLISHED),
            PublishedResult(4, 543_000, '32.24 28.62 27.60 26.17 -', _PUBLISHED),
        ),
        recipe=Recipe(
            about="The authors' training code is not public. What the paper says: HR patches of 256x256, batch 64, "
            '1,000,000 iterations in each of three stages. The first stage starts from scratch at x2, and from the '
            'trained x2 network at x4. The second trains again with the same settings, from the weights of the first. '
            'The third adds the contrastive loss. x3, which is not published, is trained as x4, with HR patches of '
            '255x255.',
            hr_patch=256,
            batch=64,
            optim_g=adam(5e-4),
            scheduler=halved_every(200_000, 1_000_000),
            total_iter=1_000_000,
            start=Start(
                scale=2,
                stage='contrastive',
                comment='All stages of x2 come first. conv_last has another shape and is initialised randomly. To '
                'train from scratch: ~ and strict_load_g: true.',
            ),
            stages={
                'restart': {'start': Start(comment='The first stage comes first.')},
                'contrastive': {
                    'start': Start(stage='restart', comment='The second stage comes first.'),
                    'losses': {
                        'contrastive_opt': {'type': 'ContrastiveLoss', 'loss_weight': 0.004, 'num_feat': 64, 'seed': 0}
                    },
                },
            },
            by_configuration={
                'RLFN-NTIRE': {
                    'about': "The authors' training code is not public. The winner of NTIRE 2022 was trained in more "
                    'stages, pruned, and ended with L2. Here it is trained as RLFN, from scratch: our choice.',
                    'scales': (4,),
                    'start': None,
                    'comments': {'num_mid': ''},
                }
            },
            comments={
                'num_mid': 'the same as num_feat',
                'contrastive_opt:loss_weight': 'our choice',
                'contrastive_opt:seed': 'of the random features',
            },
        ),
        source=Source(
            'Residual Local Feature Network for Efficient Super-Resolution (Kong et al., CVPRW 2022)',
            2022,
            'https://github.com/bytedance/RLFN',
            'Apache-2.0',
            'Apache-2.0',
            weights='repository (x2, x4)',
        ),
    )
)
