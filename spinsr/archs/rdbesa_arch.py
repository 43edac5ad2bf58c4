"""RDBESA: residual distillation blocks, fused, under enhanced spatial attention; the survey's own proposal.

The text names it "Possible Architecture" and gives the figure, no code and no weights: channels C, number of blocks,
reduction of the channel attention and width of the spatial attention are not in it. Ours are C = 64, 4 blocks,
reduction 16 and max(C / 4, 16), which make 527,068 parameters at x2, near RLFN's 526,856. The spatial attention is
RLFN's (https://github.com/bytedance/RLFN, Apache-2.0; nothing is copied), the channel attention RCAN's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import shapes
from spinsr.convert.recipe import Recipe, adam, multistep
from spinsr.convert.registry import ArchFormat, Onnx, Source, register_format
from spinsr.modules.channel_attention import ChannelAttention
from spinsr.modules.esa import MIN_SIDE, EnhancedSpatialAttention


class ResidualDistillationBlock(nn.Module):
    """Three convolutions in series, all three results distilled into C channels, channel attention, and the input.

    Args:
        num_feat: Channels C.
        squeeze_factor: Channel reduction of the attention, in 1..num_feat.
    """

    def __init__(self, num_feat: int, squeeze_factor: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(num_feat, num_feat, 3, 1, 1) for _ in range(3))
        self.distill = nn.Conv2d(3 * num_feat, num_feat, 1)
        self.attention = ChannelAttention(num_feat, squeeze_factor)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        parts, y = [], x
        for conv in self.convs:
            y = F.relu(conv(y))
            parts.append(y)
        return x + self.attention(self.distill(torch.cat(parts, dim=1)))


@ARCH_REGISTRY.register()
class RDBESA(nn.Module):
    """Residual distillation blocks with channel attention, fusion, ESA, a long skip and a pixel shuffle.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C.
        num_block: Residual distillation blocks.
        squeeze_factor: Channel reduction of the channel attention, in 1..num_feat.
        upscale: 1 or more.

    Raises:
        ValueError: The arguments do not fit together.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 4,
        squeeze_factor: int = 16,
        upscale: int = 4,
    ):
        super().__init__()
        if min(num_in_ch, num_out_ch, num_feat, num_block, upscale) < 1:
            raise ValueError(
                'channels, num_block and upscale must be at least 1, '
                f'got {num_in_ch=}, {num_out_ch=}, {num_feat=}, {num_block=}, {upscale=}'
            )
        if not 1 <= squeeze_factor <= num_feat:
            raise ValueError(f'squeeze_factor must be in 1..num_feat, got {num_feat=}, {squeeze_factor=}')
        self.upscale = upscale
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.blocks = nn.ModuleList(ResidualDistillationBlock(num_feat, squeeze_factor) for _ in range(num_block))
        self.fuse = nn.Conv2d(num_block * num_feat, num_feat, 1)
        self.attention = EnhancedSpatialAttention(num_feat, max(num_feat // 4, 16))
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        shallow = F.relu(self.conv_first(x.contiguous(memory_format=torch.channels_last)))
        parts, y = [], shallow
        for block in self.blocks:
            y = block(y)
            parts.append(y)
        deep = shallow + self.attention(self.fuse(torch.cat(parts, dim=1)))
        return F.pixel_shuffle(self.conv_last(deep), self.upscale)  # (B, num_out_ch, upscale*H, upscale*W)


register_format(
    ArchFormat(
        arch=RDBESA,
        names=(
            '{conv:conv_first|fuse|conv_last}.{end}',
            'blocks.{block}.{conv:convs.0|convs.1|convs.2|distill|attention.attention.1|attention.attention.3}.{end}',
            'attention.{conv:conv_in|conv_skip|conv_stride|conv_coarse|conv_out}.{end}',
        ),
        arguments=lambda weights: {
            **shapes.images(weights),
            'num_block': shapes.count(weights, 'blocks.{}.'),
            'squeeze_factor': len(weights['fuse.weight']) // len(weights['blocks.0.attention.attention.1.weight']),
            'upscale': shapes.shuffle(weights),
        },
        onnx=Onnx(sides=(MIN_SIDE, None)),
        recipe=Recipe(
            about="The survey's command says: scale 2, 100 epochs, batch 16, patch 128, DIV2K. Everything else is our "
            'choice: an epoch has 1,000 iterations, as for SPIN and RCAN, the patch of 128 is HR at x2, so LR patches '
            'of 64x64 at every scale, L1, Adam, and 2e-4 halved at 50, 80, 90 and 95 %.',
            patch=64,
            batch=16,
            optim_g=adam(2e-4),
            scheduler=multistep(50_000, 80_000, 90_000, 95_000),
            total_iter=100_000,
            comments={
                'num_feat': "the survey states neither channels nor blocks: with these the network has RLFN's size",
                'ema_decay': '',
            },
        ),
        source=Source('"Possible Architecture" of a survey (docs/paper.md)', weights='none'),
    )
)
