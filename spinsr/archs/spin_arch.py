"""SPIN: Lightweight Image Super-Resolution with Superpixel Token Interaction (Zhang et al., ICCV 2023).

Upstream: https://github.com/ArcticHare105/SPIN (MIT). Written from scratch: the same function in float64, with sparse
superpixel associations instead of dense pixel x superpixel matrices, images of any size from 1 x 1, and an input that
stays as it was. Works on [0, 1] where the authors' code divides by 255 inside. Weights are converted by
`spinsr.convert`; where paper and code disagree this follows the code (docs/paper.md). The variants of the paper's
ablations are arguments (docs/experiments.md).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from spinsr.convert import shapes
from spinsr.convert.mean_shift import take
from spinsr.convert.registry import ArchFormat, PublishedResult, Source, register_format
from spinsr.modules.feed_forward import FeedForward
from spinsr.modules.intra_superpixel_attention import IntraSuperpixelAttention
from spinsr.modules.layout import to_image, to_tokens
from spinsr.modules.local_attention import LocalAttention
from spinsr.modules.superpixel_aggregation import SuperpixelAggregation
from spinsr.modules.superpixel_cross_attention import SuperpixelCrossAttention
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
    # Of the variants those without an attention differ in their tensors.
    kinds = [kind for kind in ('cross', 'intra') if any(f'.{kind}_attention.' in name for name in weights)]
    return {
        **shapes.images(weights),
        'num_block': shapes.count(weights, 'blocks.{}.'),
        'qk_dim': (len(qkv) - qkv.shape[1]) // 2,
        'mlp_dim': len(weights['blocks.0.local_feed_forward.fc1.weight']),
        'upscale': shapes.stages(weights),
        **({'interaction': f'only_{kinds[0]}'} if len(kinds) == 1 else {}),
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

register_format(
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
        untold={'num_heads': 1, 'stoken_size': None, 'num_iter': 3},
        from_official=_from_official,
        to_official=_to_official,
        layout=_layout,
        tiling='discouraged',
        published=(
            PublishedResult(2, 497_000, '38.20 33.90 32.31 32.79 -', _PUBLISHED),
            PublishedResult(3, 569_000, '34.65 30.57 29.23 28.71 -', _PUBLISHED),
            PublishedResult(4, 555_000, '32.48 28.80 27.70 26.55 30.98', _PUBLISHED),
        ),
        source=Source(
            'Lightweight Image Super-Resolution with Superpixel Token Interaction (Zhang et al., ICCV 2023)',
            2023,
            'https://github.com/ArcticHare105/SPIN',
            'MIT',
            'MIT',
        ),
    )
)
