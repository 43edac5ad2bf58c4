"""IMDN: Lightweight Image Super-Resolution with Information Multi-Distillation Network (Hui et al., ACM MM 2019).

Upstream: https://github.com/Zheng222/IMDN (no licence; nothing is copied). Written from a description of the published
network: the same function in float64. Beside IMDN there are the authors' IMDN_AS, which works at a quarter of the size
of its input, and their fast IMDN_RTC. Weights of IMDN are converted by `spinsr.convert`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import shapes
from spinsr.convert.recipe import Recipe, adam, halved_every
from spinsr.convert.registry import ArchFormat, Onnx, PublishedResult, Sizes, Source, register_format, renamed
from spinsr.modules.cca import ContrastAwareChannelAttention
from spinsr.modules.distillation import CollectedBlocks


class InformationMultiDistillationBlock(nn.Module):
    """IMDB: four convolutions in a row, each of which keeps a quarter of its result and hands on the rest.

    The quarters, after contrast-aware channel attention and a 1 x 1 convolution, are added to the input.

    Args:
        num_feat: Channels C, a multiple of 4.
        attention: Whether there is channel attention.
    """

    def __init__(self, num_feat: int, attention: bool = True):
        super().__init__()
        quarter, rest = num_feat // 4, num_feat - num_feat // 4
        self.split = (quarter, rest)
        self.c1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.c2 = nn.Conv2d(rest, num_feat, 3, 1, 1)
        self.c3 = nn.Conv2d(rest, num_feat, 3, 1, 1)
        self.c4 = nn.Conv2d(rest, quarter, 3, 1, 1)
        self.c5 = nn.Conv2d(num_feat, num_feat, 1)
        self.cca = ContrastAwareChannelAttention(num_feat, num_feat // 16) if attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        kept, rest = [], x
        for conv in (self.c1, self.c2, self.c3):
            quarter, rest = F.leaky_relu(conv(rest), 0.05).split(self.split, 1)
            kept.append(quarter)
        return x + self.c5(self.cca(torch.cat([*kept, self.c4(rest)], 1)))


def _check_width(num_feat: int, least: int) -> None:
    if num_feat < least or num_feat % 4:
        raise ValueError(f'num_feat must be a multiple of 4 and at least {least}, got {num_feat=}')


class _Trunk(nn.Module):
    """What IMDN and IMDN_AS share: everything but the convolutions in front."""

    def __init__(self, num_in_ch: int, num_out_ch: int, num_feat: int, num_block: int, stride: int, shuffle: int):
        super().__init__()
        _check_width(num_feat, 16)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, stride, 1)
        self.body = CollectedBlocks(InformationMultiDistillationBlock(num_feat) for _ in range(num_block))
        self.fuse = nn.Conv2d(num_block * num_feat, num_feat, 1)
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * shuffle**2, 3, 1, 1)
        self.shuffle = shuffle

    def _super_resolve(self, shallow: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_out_ch, shuffle*H, shuffle*W)."""
        deep = shallow + self.conv_after_body(F.leaky_relu(self.fuse(self.body(shallow)), 0.05))
        return F.pixel_shuffle(self.conv_last(deep), self.shuffle)


@ARCH_REGISTRY.register()
class IMDN(_Trunk):
    """Information multi-distillation network.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C, a multiple of 4, at least 16.
        num_block: Information multi-distillation blocks.
        upscale: 1 or more.

    Raises:
        ValueError: `num_feat` does not satisfy its rule.
    """

    def __init__(
        self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, num_block: int = 6, upscale: int = 4
    ):
        super().__init__(num_in_ch, num_out_ch, num_feat, num_block, 1, upscale)
        self.upscale = upscale

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        return self._super_resolve(self.conv_first(x.contiguous(memory_format=torch.channels_last)))


@ARCH_REGISTRY.register()
class IMDN_AS(_Trunk):
    """IMDN at a quarter of the size of its input, for images that have the size of the result already (RealSR).

    Two convolutions with a stride of 2 come first. Sides are rounded up to multiples of 4 by zero padding, and the
    result is cropped.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C, a multiple of 4, at least 16.
        num_block: Information multi-distillation blocks.
        upscale: 1 or more; 1 is the authors' network, whose pixel shuffle has the factor 4.

    Raises:
        ValueError: `num_feat` does not satisfy its rule.
    """

    def __init__(
        self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, num_block: int = 6, upscale: int = 1
    ):
        super().__init__(num_in_ch, num_out_ch, num_feat, num_block, 2, 4 * upscale)
        self.upscale = upscale
        self.conv_second = nn.Conv2d(num_feat, num_feat, 3, 2)  # of features that are padded before

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        half = self.conv_first(x.contiguous(memory_format=torch.channels_last))  # (B, C, H / 2, W / 2), rounded up
        # With the padding inside the convolution, its weight gradient in bfloat16 on the CPU is made of memory that was
        # never written where `half` is one pixel (torch 2.14).
        padded = F.pad(F.leaky_relu(half, 0.05), (1, 1, 1, 1))
        shallow = self.conv_second(padded)  # (B, C, H / 4, W / 4), rounded up
        return self._super_resolve(shallow)[..., :height, :width]


@ARCH_REGISTRY.register()
class IMDN_RTC(nn.Module):
    """The authors' fast network: blocks without attention in a row, whose intermediate results are not collected.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C, a multiple of 4.
        num_block: Information multi-distillation blocks.
        upscale: 1 or more.

    Raises:
        ValueError: `num_feat` is not a multiple of 4.
    """

    def __init__(
        self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 12, num_block: int = 5, upscale: int = 2
    ):
        super().__init__()
        _check_width(num_feat, 4)
        self.upscale = upscale
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.blocks = nn.Sequential(
            *(InformationMultiDistillationBlock(num_feat, attention=False) for _ in range(num_block))
        )
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        shallow = self.conv_first(x.contiguous(memory_format=torch.channels_last))
        deep = shallow + self.conv_after_body(self.blocks(shallow))
        return F.pixel_shuffle(self.conv_last(deep), self.upscale)


_SOURCE = Source(
    'Lightweight Image Super-Resolution with Information Multi-Distillation Network (Hui et al., ACM MM 2019)',
    2019,
    'https://github.com/Zheng222/IMDN',
    weights='repository',
)
_PUBLISHED = 'ACM MM 2019, github.com/Zheng222/IMDN'
_BLOCK = 'body.block_{number}.{conv:c1|c2|c3|c4|c5|cca.conv_in|cca.conv_out}.{end}'
_AROUND = '{conv:conv_first|fuse|conv_after_body|conv_last}.{end}'


def _wrapped(state_dict: dict[str, Tensor]) -> dict[str, Any]:
    return {f'module.{name}': value for name, value in state_dict.items()}


register_format(
    ArchFormat(
        arch=IMDN,
        names=(
            ('fea_conv.{end}', 'conv_first.{end}'),
            ('IMDB{number}.{conv:c1|c2|c3|c4|c5}.{end}', 'body.block_{number}.{conv}.{end}'),
            ('IMDB{number}.cca.conv_du.0.{end}', 'body.block_{number}.cca.conv_in.{end}'),
            ('IMDB{number}.cca.conv_du.2.{end}', 'body.block_{number}.cca.conv_out.{end}'),
            ('c.0.{end}', 'fuse.{end}'),
            ('LR_conv.{end}', 'conv_after_body.{end}'),
            ('upsampler.0.{end}', 'conv_last.{end}'),
        ),
        arguments=lambda weights: {
            **shapes.images(weights),
            'num_block': shapes.count(weights, 'body.block_{}.') - 1,  # numbered from 1
            'upscale': shapes.shuffle(weights),
        },
        official_arguments=renamed(in_nc='num_in_ch', out_nc='num_out_ch', nf='num_feat', num_modules='num_block'),
        layout=_wrapped,
        onnx=Onnx(sides=(2, None)),
        published=(
            PublishedResult(2, 694_000, '38.00 33.63 32.19 32.17 38.88', _PUBLISHED),
            PublishedResult(3, 703_000, '34.36 30.32 29.09 28.17 33.61', _PUBLISHED),
            PublishedResult(4, 715_000, '32.21 28.58 27.56 26.04 30.45', _PUBLISHED),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' code: HR patches of 192x192 at every scale, batch 16, 1,000 "
            'epochs of 1,000 iterations, and every scale from scratch.',
            hr_patch=192,
            batch=16,
            optim_g=adam(2e-4),
            scheduler=halved_every(200_000, 1_000_000),
            total_iter=1_000_000,
            comments={'milestones': 'every 200 epochs'},
        ),
        source=_SOURCE,
    )
)

register_format(
    ArchFormat(
        arch=IMDN_AS,
        names=(_BLOCK, _AROUND, 'conv_second.{end}'),
        arguments=lambda weights: {
            **shapes.images(weights),
            'num_block': shapes.count(weights, 'body.block_{}.') - 1,
            'upscale': shapes.shuffle(weights) // 4,
        },
        sizes=Sizes(multiple=4, pads=True),
        source=_SOURCE,
    )
)

register_format(
    ArchFormat(
        arch=IMDN_RTC,
        names=('blocks.{number}.{conv:c1|c2|c3|c4|c5}.{end}', '{conv:conv_first|conv_after_body|conv_last}.{end}'),
        arguments=lambda weights: {
            **shapes.images(weights),
            'num_block': shapes.count(weights, 'blocks.{}.'),
            'upscale': shapes.shuffle(weights),
        },
        onnx=Onnx(sides=(2, None)),
        source=_SOURCE,
    )
)
