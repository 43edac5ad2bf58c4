"""SPIN: Lightweight Image Super-Resolution with Superpixel Token Interaction (Zhang et al., ICCV 2023).

Upstream: https://github.com/ArcticHare105/SPIN (MIT). A new implementation of the same function, equal in float64, with
sparse superpixel associations instead of dense pixel x superpixel matrices. It accepts images of any size from 1 x 1,
works on [0, 1] where upstream divides by 255 inside, and leaves its input unchanged, which upstream overwrites. Where
paper and upstream code disagree, it follows the code (docs/paper.md). `spinsr.convert` converts upstream weights;
`SPINVariant` in spin_variants_arch.py has the paper's ablations.
"""

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from spinsr.modules.feed_forward import FeedForward
from spinsr.modules.intra_superpixel_attention import IntraSuperpixelAttention
from spinsr.modules.layout import to_image, to_tokens
from spinsr.modules.local_attention import LocalAttention
from spinsr.modules.superpixel_aggregation import SuperpixelAggregation
from spinsr.modules.superpixel_cross_attention import SuperpixelCrossAttention
from spinsr.modules.upsample import TokenUpsample
from spinsr.utils.validation import check, check_divisible, check_equal, check_length, each, whole

CELLS = (12, 16, 20, 24)


class SuperpixelInteractionBlock(nn.Module):
    """Superpixel aggregation, then attention across, inside and beside superpixels, each with a feed-forward network.

    Args:
        num_feat: Channels C.
        num_heads: Heads of each attention.
        qk_dim: Channels of queries and keys, over all heads.
        mlp_dim: Hidden channels of the feed-forward networks.
        stoken_size: Side of a superpixel cell, and of a local window, in LR pixels.
        num_iter: Association rounds.
    """

    def __init__(self, num_feat: int, num_heads: int, qk_dim: int, mlp_dim: int, stoken_size: int, num_iter: int):
        super().__init__()
        self.aggregation = SuperpixelAggregation(stoken_size, num_iter)
        self.cross_attention = SuperpixelCrossAttention(num_feat, num_heads, qk_dim)
        self.cross_feed_forward = FeedForward(num_feat, mlp_dim)
        self.intra_attention = IntraSuperpixelAttention(num_feat, num_heads, qk_dim)
        self.intra_feed_forward = FeedForward(num_feat, mlp_dim)
        self.local_attention = LocalAttention(num_feat, num_heads, qk_dim, stoken_size)
        self.local_feed_forward = FeedForward(num_feat, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        association = self.aggregation(x)
        x = x + self.cross_attention(x, association)
        x = x + self.cross_feed_forward(x)
        x = x + self.intra_attention(x, association)
        x = x + self.intra_feed_forward(x)
        x = x + self.local_attention(x)
        return x + self.local_feed_forward(x)


@ARCH_REGISTRY.register()
class SPIN(nn.Module):
    """Superpixel token interaction network.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C, at least 8, divisible by `num_heads`.
        num_block: Superpixel interaction blocks.
        num_heads: Heads of each attention.
        qk_dim: Channels of queries and keys, over all heads; divisible by `num_heads`.
        mlp_dim: Hidden channels of the feed-forward networks.
        stoken_size: Side of the superpixel cells of each block, in LR pixels; `num_block` numbers. None: 12, 16, 20 and
            24 in turn.
        upscale: 2, 3 or 4.
        num_iter: Association rounds.

    Raises:
        ValueError: An argument breaks its rule.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 40,
        num_block: int = 8,
        num_heads: int = 1,
        qk_dim: int = 24,
        mlp_dim: int = 72,
        stoken_size: Sequence[int] | None = None,
        upscale: int = 4,
        num_iter: int = 3,
    ):
        super().__init__()
        check(whole(1), num_block=num_block, num_heads=num_heads, num_iter=num_iter)
        check(whole(8), num_feat=num_feat)
        check_divisible(num_feat=num_feat, qk_dim=qk_dim, num_heads=num_heads)
        check_equal(num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        if stoken_size is None:
            stoken_size = tuple(itertools.islice(itertools.cycle(CELLS), num_block))
        check(each(whole(1)), stoken_size=stoken_size)
        check_length(stoken_size=stoken_size, num_block=num_block)
        self.upscale = upscale
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.blocks = nn.ModuleList(
            SuperpixelInteractionBlock(num_feat, num_heads, qk_dim, mlp_dim, size, num_iter) for size in stoken_size
        )
        self.convs = nn.ModuleList(nn.Conv2d(num_feat, num_feat, 3, 1, 1) for _ in stoken_size)
        self.upsample = TokenUpsample(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        base = F.interpolate(x, scale_factor=self.upscale, mode='bilinear', align_corners=False)
        x = to_tokens(self.conv_first(x))
        for block, conv in zip(self.blocks, self.convs, strict=True):
            x = x + to_tokens(conv(to_image(block(x))))
        return base + self.upsample(to_image(x), self.conv_last)
