"""SPIN: Lightweight Image Super-Resolution with Superpixel Token Interaction (Zhang et al., ICCV 2023).

Upstream: https://github.com/ArcticHare105/SPIN (MIT). Written anew: the same function in float64, with sparse
superpixel associations in place of dense pixel x superpixel matrices, images of any size from 1 x 1, and an input that
stays as it was. Works on [0, 1] where the authors' code divides by 255 inside. Weights are converted by
`spinsr.convert`; where paper and code disagree this follows the code (docs/paper.md). The variants of the paper's
ablations are arguments (docs/experiments.md).
"""

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from spinsr.modules.layout import to_image, to_tokens
from spinsr.modules.spin import (
    FeedForward,
    IntraSuperpixelAttention,
    LocalAttention,
    SuperpixelAggregation,
    SuperpixelCrossAttention,
)
from spinsr.modules.upsample import TokenUpsample
from spinsr.ops import Association
from spinsr.utils.validation import is_whole

CELLS = (12, 16, 20, 24)
# How many cells away the superpixels are that a pixel can belong to.
REACH = {'superpixel': 1, 'mixture': None, 'patch': 0}
INTERACTIONS = ('sequential', 'parallel', 'only_cross', 'only_intra')


class SuperpixelInteractionBlock(nn.Module):
    """Superpixel aggregation, then attention across, inside and beside superpixels, each with a feed-forward network.

    Args:
        num_feat: Channels C.
        num_heads: Heads of each attention.
        qk_dim: Channels of queries and keys.
        mlp_dim: Hidden channels of the feed-forward networks.
        stoken_size: Side of a superpixel cell, and of a local window, in LR pixels.
        num_iter: Association rounds.
        interaction: As of `SPIN`.
        aggregation: As of `SPIN`.
        top_n: As of `SPIN`.
        differentiable, association, position_weight: See `SuperpixelAggregation`.
        own_values: See `IntraSuperpixelAttention`.
    """

    def __init__(
        self,
        num_feat: int,
        num_heads: int,
        qk_dim: int,
        mlp_dim: int,
        stoken_size: int,
        num_iter: int,
        interaction: str = 'sequential',
        aggregation: str = 'superpixel',
        top_n: int | None = None,
        differentiable: bool = False,
        association: str = 'softmax',
        position_weight: float = 0.0,
        own_values: str = 'all',
    ):
        super().__init__()
        self.interaction = interaction
        self.aggregation = SuperpixelAggregation(
            stoken_size, num_iter, REACH[aggregation], differentiable, association, position_weight
        )
        if interaction != 'only_intra':
            self.cross_attention = SuperpixelCrossAttention(num_feat, num_heads, qk_dim)
            self.cross_feed_forward = FeedForward(num_feat, mlp_dim)
        if interaction != 'only_cross':
            self.intra_attention = IntraSuperpixelAttention(num_feat, num_heads, qk_dim, top_n, own_values)
            self.intra_feed_forward = FeedForward(num_feat, mlp_dim)
        self.local_attention = LocalAttention(num_feat, num_heads, qk_dim, stoken_size)
        self.local_feed_forward = FeedForward(num_feat, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        association = self.aggregation(x)
        if self.interaction == 'parallel':
            x = self.across(x, association) + self.inside(x, association) - x
        else:
            x = self.across(x, association) if self.interaction != 'only_intra' else x
            x = self.inside(x, association) if self.interaction != 'only_cross' else x
        x = x + self.local_attention(x)
        x = x + self.local_feed_forward(x)
        return x

    def across(self, x: Tensor, association: Association) -> Tensor:
        """Cross-attention of pixels and superpixels: (B, H, W, C) -> (B, H, W, C)."""
        x = x + self.cross_attention(x, association)
        return x + self.cross_feed_forward(x)

    def inside(self, x: Tensor, association: Association) -> Tensor:
        """Attention inside superpixels: (B, H, W, C) -> (B, H, W, C)."""
        x = x + self.intra_attention(x, association)
        return x + self.intra_feed_forward(x)


@ARCH_REGISTRY.register()
class SPIN(nn.Module):
    """Superpixel token interaction network.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C, divisible by `num_heads`, at least 8.
        num_block: Number of superpixel interaction blocks.
        num_heads: Heads of each attention.
        qk_dim: Channels of queries and keys, divisible by `num_heads`.
        mlp_dim: Hidden channels of the feed-forward networks.
        stoken_size: Side of the superpixel cells of each block, in LR pixels; `num_block` numbers. None means 12, 16,
            20, 24, and again from 12, for as many blocks as there are.
        upscale: 2, 3 or 4.
        num_iter: Association rounds; with patches and 'softmax' nothing depends on it.
        interaction: What a block does with superpixels. 'sequential': cross-attention (SPCA), then attention inside
            superpixels (ISPA). 'parallel': both on the block's input, what they add is summed. 'only_cross' and
            'only_intra': one of them, and the local attention.
        aggregation: What a superpixel is made of. 'superpixel': pixels of the cells around it. 'mixture': pixels of
            the whole image, as in a mixture of Gaussians; takes time for all pixels x superpixels. 'patch': the pixels
            of its own cell, whatever they look like.
        top_n: Pixels of a superpixel in ISPA (the paper's N); None means the area of its cell, and with patches the
            whole cell.
        differentiable: Whether gradients flow through the association of pixels with superpixels, and the centroids;
            the authors' code takes them for constants.
        association: 'softmax' of -d^2 over the neighbouring superpixels, the authors' code, or 'exponential', exp(-d^2)
            as Eq. 3 prints it.
        position_weight: How much a distance of one cell counts beside the features in d, as in SSN; 0: not at all.
        own_values: Whose own value enters the result of the attention inside superpixels: that of 'all' pixels, the
            authors' code, or of those that no superpixel selected, 'ignored', the paper.

    Raises:
        ValueError: The arguments do not fit together.
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
        interaction: str = 'sequential',
        aggregation: str = 'superpixel',
        top_n: int | None = None,
        differentiable: bool = False,
        association: str = 'softmax',
        position_weight: float = 0.0,
        own_values: str = 'all',
    ):
        super().__init__()
        if num_in_ch != num_out_ch:
            raise ValueError(f'num_out_ch must equal num_in_ch (the input is added), got {num_in_ch=}, {num_out_ch=}')
        if num_heads < 1 or num_feat % num_heads or qk_dim % num_heads:
            raise ValueError(
                f'num_feat and qk_dim must be divisible by num_heads, got {num_feat=}, {qk_dim=}, {num_heads=}'
            )
        if num_feat < 8:
            raise ValueError(f'num_feat must be at least 8, got {num_feat=}')
        if not is_whole(num_block):
            raise ValueError(f'num_block must be a whole number, got {num_block=}')
        if stoken_size is None:
            stoken_size = tuple(itertools.islice(itertools.cycle(CELLS), max(num_block, 0)))
        if not isinstance(stoken_size, Sequence) or len(stoken_size) != num_block:
            raise ValueError(
                'stoken_size must have num_block numbers, or be left out for 12, 16, 20, 24 in turn, '
                f'got {stoken_size=}, {num_block=}'
            )
        if not all(is_whole(number) and number >= 1 for number in (*stoken_size, num_iter)):
            raise ValueError(
                f'stoken_size and num_iter must be whole numbers of at least 1, got {stoken_size=}, {num_iter=}'
            )
        if not isinstance(differentiable, bool):
            raise ValueError(f'differentiable must be true or false, got {differentiable!r}')
        if interaction not in INTERACTIONS:
            raise ValueError(f'interaction must be one of {", ".join(INTERACTIONS)}, got {interaction!r}')
        if aggregation not in REACH:
            raise ValueError(f'aggregation must be one of {", ".join(REACH)}, got {aggregation!r}')
        if top_n is not None:
            if not is_whole(top_n) or top_n < 1:
                raise ValueError(f'top_n must be a whole number of at least 1, got {top_n=}')
            if aggregation == 'patch' or interaction == 'only_cross':
                raise ValueError(f'top_n has no use with patches or without ISPA, got {interaction=}, {aggregation=}')
        if own_values != 'all' and interaction == 'only_cross':
            raise ValueError(f'own_values has no use without ISPA, got {interaction=}, {own_values=}')
        if differentiable and interaction == 'only_intra':
            raise ValueError(f'differentiable has no use without SPCA, got {interaction=}, {differentiable=}')
        # Then a pixel belongs to its patch with weight 1, or nobody asks for the weight.
        weightless = aggregation == 'patch' and (association == 'softmax' or interaction == 'only_intra')
        if weightless and (differentiable or association != 'softmax' or position_weight):
            raise ValueError(
                'differentiable, association and position_weight have no use with patches, but for the weights of '
                f"SPCA's tokens with 'exponential', got {interaction=}, {differentiable=}, {association=}, "
                f'{position_weight=}'
            )
        self.upscale = upscale
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        equations = {
            'differentiable': differentiable,
            'association': association,
            'position_weight': position_weight,
            'own_values': own_values,
        }
        self.blocks = nn.ModuleList(
            SuperpixelInteractionBlock(
                num_feat, num_heads, qk_dim, mlp_dim, size, num_iter, interaction, aggregation, top_n, **equations
            )
            for size in stoken_size
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
