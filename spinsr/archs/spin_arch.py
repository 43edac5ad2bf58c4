"""SPIN: Lightweight Image Super-Resolution with Superpixel Token Interaction (Zhang et al., ICCV 2023).

Upstream: https://github.com/ArcticHare105/SPIN (MIT). A new implementation of the same function, equal in float64, with
sparse superpixel associations instead of dense pixel x superpixel matrices. It accepts images of any size from 1 x 1,
works on [0, 1] where upstream divides by 255 inside, and leaves its input unchanged, which upstream overwrites. Where
paper and upstream code disagree, it follows the code (docs/paper.md). `spinsr.convert` converts upstream weights;
`SPINVariant` in spin_variants_arch.py has the paper's ablations.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import shapes
from spinsr.convert.mean_shift import take
from spinsr.convert.recipe import AUTHORS_FLIPS, ON_255, Recipe, adam, multistep
from spinsr.convert.registry import ArchFormat, Onnx, PublishedResult, Source, register_format, renamed
from spinsr.modules.layout import to_image, to_tokens
from spinsr.modules.spin import (
    FeedForward,
    IntraSuperpixelAttention,
    LocalAttention,
    SuperpixelAggregation,
    SuperpixelCrossAttention,
)
from spinsr.modules.upsample import TokenUpsample
from spinsr.ops.common.precision import has_autocast, no_autocast
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
        x = self.cross_feed_forward(x, residual=True)
        x = self.intra_attention(x, association, residual=True)
        x = self.intra_feed_forward(x, residual=True)
        x = self.local_attention(x, residual=True)
        return self.local_feed_forward(x, residual=True)


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
        features = to_tokens(self._first_features(x))
        for block, conv in zip(self.blocks, self.convs, strict=True):
            features = features + to_tokens(conv(to_image(block(features))))
        out = self.upsample(to_image(features), self.conv_last)
        # Only now, so that it takes no memory beside the blocks.
        return F.interpolate(x, scale_factor=self.upscale, mode='bilinear', align_corners=False) + out

    def _first_features(self, x: Tensor) -> Tensor:
        """The features that all blocks add to. Under autocast they have its type in training only, for speed."""
        if self.training or not has_autocast(x.device.type):
            return self.conv_first(x)
        with no_autocast(x.device.type):
            return self.conv_first(x.to(self.conv_first.weight.dtype))


# The authors' names of q, k and v, which are one matrix here.
_QKV = {'cross': 'inter_layer.0.{}', 'intra': 'intra_layer.0.{}', 'local': 'local_layer.0.attn.to_{}'}
# The test sets of the authors, by their names for them.
_TEST_SETS = ('set5', 'set14', 'b100', 'u100', 'manga109')
_FEED_FORWARD = {
    'norm.norm': 'norm',
    'ca.1': 'channel_attention.0',
    'ca.3': 'channel_attention.2',
    'pa.0': 'pixel_attention.0',
    'pa.2': 'pixel_attention.2',
    'fc1': 'fc1',
    'fc2': 'fc2',
}


def _from_official(ours: dict[str, Tensor], official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """1x1 convolutions become linear layers, and q, k and v one matrix."""
    joined = {}
    for block, kind in itertools.product(range(shapes.count(official, 'blocks.{}.')), _QKV):
        letters = [take(official, f'blocks.{block}.{_QKV[kind].format(letter)}.weight') for letter in 'qkv']
        joined[f'blocks.{block}.{kind}_attention.to_qkv.weight'] = torch.cat([_as_matrix(value) for value in letters])
    return {name: _as_matrix(value) for name, value in ours.items()} | joined


def _as_matrix(value: Tensor) -> Tensor:
    return value.flatten(1) if value.shape[2:] == (1, 1) else value


def _to_official(official: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse; the projection to superpixels and those of the local attention are linear layers there, too."""
    converted = {}
    for name, value in official.items():
        is_convolution = value.dim() == 2 and not name.endswith('.sp.weight')
        converted[name] = value[..., None, None] if is_convolution else value
    for block, kind in itertools.product(range(shapes.count(ours, 'blocks.{}.')), _QKV):
        name = f'blocks.{block}.{kind}_attention.to_qkv.weight'
        value = take(ours, name)
        qk_dim = (value.shape[0] - value.shape[1]) // 2  # v has as many rows as there are channels
        for letter, part in zip('qkv', value.split([qk_dim, qk_dim, value.shape[1]]), strict=True):
            converted[f'blocks.{block}.{_QKV[kind].format(letter)}.weight'] = (
                part if kind == 'local' else part[..., None, None]
            )
    if 'upconv2.weight' not in converted:
        converted = {name.replace('upconv1', 'upconv'): value for name, value in converted.items()}
    return converted


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    qkv = weights['blocks.0.local_attention.to_qkv.weight']
    return {
        **shapes.images(weights),
        'num_block': shapes.count(weights, 'blocks.{}.'),
        'qk_dim': (len(qkv) - qkv.shape[1]) // 2,
        'mlp_dim': len(weights['blocks.0.local_feed_forward.fc1.weight']),
        'upscale': shapes.stages(weights),
    }


def _layout(official: dict[str, Tensor]) -> dict[str, Any]:
    """What the authors' test.py asks for: the names that DataParallel makes, and where to put the scores."""
    best = {f'best_{metric}': {'value': 0.0, 'epoch': 0} for metric in ('psnr', 'ssim')}
    scores = {name: {'psnrs': [], 'ssims': []} | {key: dict(best[key]) for key in best} for name in _TEST_SETS}
    return {
        'epoch': 0,
        'model_state_dict': {f'module.{name}': value for name, value in official.items()},
        'stat_dict': {'epochs': 0, 'losses': [], 'ema_loss': 0.0} | scores,
    }


_PUBLISHED = 'ICCV 2023, Table 1; x4 on Manga109: Table 2'

FORMAT = register_format(
    ArchFormat(
        arch=SPIN,
        names=(
            ('first_conv.{end}', 'conv_first.{end}'),
            ('last_conv.{end}', 'conv_last.{end}'),
            ('mid_convs.{block}.{end}', 'convs.{block}.{end}'),
            ('upconv1.{end}', 'upsample.0.{end}'),
            ('upconv2.{end}', 'upsample.1.{end}'),
            ('upconv.{end}', 'upsample.0.{end}'),  # where there is only one
            ('blocks.{block}.inter_layer.0.sp.weight', 'blocks.{block}.cross_attention.to_token.weight'),
            ('blocks.{block}.inter_layer.0.norm.norm.{end}', 'blocks.{block}.cross_attention.norm.{end}'),
            ('blocks.{block}.intra_layer.0.norm.norm.{end}', 'blocks.{block}.intra_attention.norm.{end}'),
            ('blocks.{block}.local_layer.0.norm.{end}', 'blocks.{block}.local_attention.norm.{end}'),
            ('blocks.{block}.{kind:inter|intra}_layer.0.{letter:q|k|v}.weight', None),
            ('blocks.{block}.local_layer.0.attn.to_{letter:q|k|v}.weight', None),
            (None, 'blocks.{block}.{kind:cross|intra|local}_attention.to_qkv.weight'),
            *(
                (
                    f'blocks.{{block}}.{kind}_layer.1.{theirs}.{{end}}',
                    f'blocks.{{block}}.{our_kind}_feed_forward.{ours}.{{end}}',
                )
                for kind, our_kind in (('inter', 'cross'), ('intra', 'intra'), ('local', 'local'))
                for theirs, ours in _FEED_FORWARD.items()
            ),
        ),
        arguments=_arguments,
        official_arguments=renamed(dim='num_feat', block_num='num_block', heads='num_heads'),
        untold={'num_heads': 1, 'stoken_size': None, 'num_iter': 3},
        from_official=_from_official,
        to_official=_to_official,
        layout=_layout,
        tiling='discouraged',
        # Below a cell a superpixel selects fewer pixels, and a window is as long as the side.
        onnx=Onnx(sides=lambda net: (max(block.aggregation.stoken_size for block in net.blocks), None)),
        published=(
            PublishedResult(2, 497_000, '38.20 33.90 32.31 32.79 -', _PUBLISHED),
            PublishedResult(3, 569_000, '34.65 30.57 29.23 28.71 -', _PUBLISHED),
            PublishedResult(4, 555_000, '32.48 28.80 27.70 26.55 30.98', _PUBLISHED),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' code: 1,000 epochs of 1,000 iterations, LR patches of 64x64, "
            'batch 64. Paper and code disagree on the learning rate: the paper says 5e-4 without a schedule, the code '
            'has 2e-4 and halves it five times. We follow the code, which has both.',
            patch=64,
            batch=16,
            network={'stoken_size': 2 * CELLS},
            optim_g=adam(2e-4),
            scheduler=multistep(250_000, 400_000, 450_000, 475_000, 500_000),
            total_iter=1_000_000,
            comments={
                'use_hflip': AUTHORS_FLIPS,
                'batch_size_per_gpu': 'The authors: 16 on each of 4 GPUs. On one GPU use 64 for the same recipe. If 64 '
                'does not fit, a smaller batch is another recipe: it sees fewer patches unless total_iter and the '
                'milestones grow by the same factor.',
                'stoken_size': 'side of the superpixel cells of each block, in LR pixels',
                'num_iter': 'association rounds',
                'pretrain_network_g': 'every scale from scratch, as the authors do',
                'lr': 'the paper: 0.0005',
                'milestones': 'epochs 250, 400, 450, 475, 500',
                'pixel_opt:loss_weight': ON_255,
            },
        ),
        protocol='spin_published',
        source=Source(
            'Lightweight Image Super-Resolution with Superpixel Token Interaction (Zhang et al., ICCV 2023)',
            2023,
            'https://github.com/ArcticHare105/SPIN',
            'MIT',
            'research and education',
            weights='none of the authors; spinsr has its own',
        ),
    )
)
