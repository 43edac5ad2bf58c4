"""A hybrid of transformer and CNN with feature distillation at several levels (TCFDB).

The network of a paper of which neither code nor weights nor sizes are public: this is an interpretation. Known are the
parts, which are named as there: a 3 x 3 convolution; transformer-CNN feature distillation blocks (TCFDB), each with a
path of 1 x 1 convolutions that distil beside a path of enhanced Swin transformer layers (ESTL) that refine, whose
results are concatenated, fused by a 1 x 1 convolution and weighted by ESA; in an ESTL, the MLP of Swin is a
convolutional feed-forward network (CFF) with a depthwise convolution between its linear layers; a convolution and a
pixel shuffle; L1 and a contrastive loss. Our choice is everything else:

- C = 60, four blocks of three layers, six heads, windows of 8 x 8, twice the channels inside the CFF, ESA of 16;
- half of the channels are distilled before each layer and after the last, as in RFDN;
- every second layer shifts its windows, counted through the blocks;
- the depthwise convolution is 3 x 3 and followed by GELU;
- a block adds its input, and a 3 x 3 convolution and the shallow features follow on the last block.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import shapes
from spinsr.convert.recipe import Recipe, adam, l1, multistep
from spinsr.convert.registry import ArchFormat, Sizes, Source, register_format
from spinsr.modules.attention import attend, merge_heads, split_heads
from spinsr.modules.channel_norm import ChannelNorm
from spinsr.modules.esa import EnhancedSpatialAttention
from spinsr.modules.padding import pad_to_multiple
from spinsr.modules.position_bias import RelativePositionBias
from spinsr.modules.windows import from_windows, shift_mask, to_windows
from spinsr.utils.validation import check, check_divisible, whole


class WindowAttention(nn.Module):
    """Attention between the pixels of windows, with a learned bias for each offset.

    Args:
        num_feat: Channels C.
        num_heads: Heads; they divide C.
        window_size: Side of the windows.
        shift: Pixels by which the image is rolled before it is cut into windows.
    """

    def __init__(self, num_feat: int, num_heads: int, window_size: int, shift: int):
        super().__init__()
        self.num_heads, self.side, self.shift = num_heads, window_size, shift
        self.qkv = nn.Linear(num_feat, 3 * num_feat)
        self.bias = RelativePositionBias(window_size, num_heads)
        self.proj = nn.Linear(num_feat, num_feat)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W), sides divisible by the window's, and the mask of shifted windows -> (B, C, H, W)."""
        height, width = x.shape[2:]
        x = x.roll((-self.shift, -self.shift), (2, 3)) if self.shift else x
        tokens = to_windows(x, self.side, self.side).flatten(2).transpose(1, 2)  # (B * windows, P, C)
        q, k, v = split_heads(self.qkv(tokens), 3, self.num_heads)  # (B * windows, heads, P, C / heads)
        bias = self.bias()[None]
        if self.shift:
            bias = (bias + mask).repeat(len(tokens) // len(mask), 1, 1, 1)
        tokens = self.proj(merge_heads(attend(q, k, v, q.shape[-1] ** -0.5, bias)))
        x = from_windows(tokens.transpose(1, 2).unflatten(2, (self.side, self.side)), height, width)
        return x.roll((self.shift, self.shift), (2, 3)) if self.shift else x


class ConvolutionalFeedForward(nn.Module):
    """CFF: a depthwise convolution between two linear layers on the channels.

    Args:
        num_feat: Channels C.
        hidden: Channels between the linear layers.
    """

    def __init__(self, num_feat: int, hidden: int):
        super().__init__()
        self.expand = nn.Conv2d(num_feat, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden)
        self.reduce = nn.Conv2d(hidden, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.reduce(F.gelu(self.depthwise(self.expand(x))))


class EnhancedSwinLayer(nn.Module):
    """ESTL: window attention and CFF, both after a layer normalisation and added to their input.

    Args:
        num_feat: Channels C.
        num_heads, window_size, shift: Of the attention.
        mlp_ratio: Channels inside the CFF, in units of C.
    """

    def __init__(self, num_feat: int, num_heads: int, window_size: int, shift: int, mlp_ratio: float):
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(num_feat, 1e-5), ChannelNorm(num_feat, 1e-5)
        self.attn = WindowAttention(num_feat, num_heads, window_size, shift)
        self.cff = ConvolutionalFeedForward(num_feat, int(mlp_ratio * num_feat))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W) and the mask of shifted windows -> (B, C, H, W)."""
        x = x + self.attn(self.norm1(x), mask)
        return x + self.cff(self.norm2(x))


class FeatureDistillationBlock(nn.Module):
    """TCFDB: layers that refine, and 1 x 1 convolutions that distil half of the channels before and after each.

    Args:
        num_feat: Channels C.
        layers: What refines.
        num_esa: Channels of the coarse view of the attention.
    """

    def __init__(self, num_feat: int, layers: list[EnhancedSwinLayer], num_esa: int):
        super().__init__()
        half = num_feat // 2
        self.refine = nn.ModuleList(layers)
        self.distill = nn.ModuleList(nn.Conv2d(num_feat, half, 1) for _ in range(len(layers) + 1))
        self.fuse = nn.Conv2d((len(layers) + 1) * half, num_feat, 1)
        self.esa = EnhancedSpatialAttention(num_feat, num_esa)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, C, H, W) and the mask of shifted windows -> (B, C, H, W)."""
        refined, first = x, self.distill[0]
        distilled = [first(x)]
        for layer, distill in zip(self.refine, self.distill[1:], strict=True):
            refined = layer(refined, mask)
            distilled.append(distill(refined))
        return x + self.esa(self.fuse(torch.cat(distilled, 1)))


@ARCH_REGISTRY.register()
class TCFDB(nn.Module):
    """Hybrid of transformer and CNN with feature distillation; an interpretation, see the module's docstring.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C, even.
        num_block: Feature distillation blocks.
        num_layer: Enhanced Swin transformer layers in each block.
        num_heads: Heads of the attention; they divide C.
        window_size: Side of the windows; every second layer shifts them by half of it.
        mlp_ratio: Channels inside the feed-forward networks, in units of C.
        num_esa: Channels of the coarse view of the spatial attention.
        upscale: 1 or more.

    Raises:
        ValueError: An argument breaks its rule.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 60,
        num_block: int = 4,
        num_layer: int = 3,
        num_heads: int = 6,
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        num_esa: int = 16,
        upscale: int = 4,
    ):
        super().__init__()
        check(whole(1), num_block=num_block, num_layer=num_layer, window_size=window_size, upscale=upscale)
        check_divisible(num_feat=num_feat, num_heads=num_heads)
        if num_feat % 2:
            raise ValueError(f'num_feat must be even, got {num_feat=}')
        # Not `window_size`: whoever pads for networks with an attribute of this name need not do it for this one.
        self.upscale, self.side = upscale, window_size
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        layers = [
            EnhancedSwinLayer(num_feat, num_heads, window_size, number % 2 * (window_size // 2), mlp_ratio)
            for number in range(num_block * num_layer)
        ]
        self.body = nn.ModuleList(
            FeatureDistillationBlock(num_feat, layers[start : start + num_layer], num_esa)
            for start in range(0, len(layers), num_layer)
        )
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        x = pad_to_multiple(x, self.side)
        mask = shift_mask(x.shape[2], x.shape[3], self.side, x)
        shallow = deep = self.conv_first(x)
        for block in self.body:
            deep = block(deep, mask)
        image = F.pixel_shuffle(self.conv_last(shallow + self.conv_after_body(deep)), self.upscale)
        return image[..., :height, :width]


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    told, first = shapes.images(weights), 'body.0.refine.0'
    offsets, heads = weights[f'{first}.attn.bias.table'].shape
    return {
        **told,
        'num_block': shapes.count(weights, 'body.{}.'),
        'num_layer': shapes.count(weights, 'body.0.refine.{}.'),
        'num_heads': heads,
        'window_size': (math.isqrt(offsets) + 1) // 2,
        'mlp_ratio': shapes.ratio(len(weights[f'{first}.cff.expand.weight']), told['num_feat']),
        'num_esa': len(weights['body.0.esa.conv_in.weight']),
        'upscale': shapes.shuffle(weights),
    }


_LAYER = 'body.{block}.refine.{layer}.'

register_format(
    ArchFormat(
        arch=TCFDB,
        names=(
            '{conv:conv_first|conv_after_body|conv_last}.{end}',
            'body.{block}.distill.{number}.{end}',
            'body.{block}.fuse.{end}',
            'body.{block}.esa.{conv:conv_in|conv_skip|conv_stride|conv_coarse|conv_out}.{end}',
            _LAYER + '{part:norm1|norm2|attn.qkv|attn.proj|cff.expand|cff.depthwise|cff.reduce}.{end}',
            _LAYER + 'attn.bias.table',
        ),
        arguments=_arguments,
        sizes=Sizes(multiple=8, pads=True),
        recipe=Recipe(
            about='Known is the loss, L1 and a contrastive one. Everything else is our choice: LR patches of 64x64, '
            'batch 32, 500,000 iterations, 2e-4 halved at 250,000, 400,000, 450,000 and 475,000.',
            patch=64,
            batch=32,
            optim_g=adam(2e-4),
            scheduler=multistep(250_000, 400_000, 450_000, 475_000),
            total_iter=500_000,
            losses={
                'pixel_opt': l1(),
                'contrastive_opt': {'type': 'ContrastiveLoss', 'loss_weight': 0.1, 'num_feat': 64, 'seed': 0},
            },
            comments={
                'num_feat': 'the sizes of the network are not published: with these it has about those of its time',
                'contrastive_opt:loss_weight': 'our choice',
                'contrastive_opt:seed': 'of the random features',
                'ema_decay': '',
            },
        ),
        source=Source(
            'A hybrid network of transformer and CNN with multi-level distillation, as a survey describes it '
            '(docs/paper.md)',
            weights='none',
        ),
    )
)
