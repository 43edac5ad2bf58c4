"""Omni-SR: Omni Aggregation Networks for Lightweight Image Super-Resolution (Wang et al., CVPR 2023).

Upstream: https://github.com/Francis0625/Omni-SR (README: Apache-2.0, no licence file; nothing is copied). Written from
a description of the published network: the same function in float64, with images of any size from 1 x 1. Weights are
converted by `spinsr.convert`.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import esa, shapes
from spinsr.convert.recipe import Recipe, adamw, multistep
from spinsr.convert.registry import ArchFormat, PublishedResult, Sizes, Source, bare, register_format, renamed
from spinsr.modules.attention import attend, merge_heads, split_heads
from spinsr.modules.channel_norm import ChannelNorm
from spinsr.modules.cosine import TransposedAttention
from spinsr.modules.esa import EnhancedSpatialAttention
from spinsr.modules.gated_feed_forward import GatedFeedForward
from spinsr.modules.padding import pad_to_multiple
from spinsr.modules.position_bias import RelativePositionBias
from spinsr.modules.windows import from_windows, to_windows
from spinsr.utils.validation import check_divisible

_HEADS = 4


class LocalBlock(nn.Module):
    """1 x 1 and depthwise 3 x 3 convolutions with GELU, squeeze and excitation, a 1 x 1 convolution, and the input.

    Args:
        num_feat: Channels C.
    """

    def __init__(self, num_feat: int):
        super().__init__()
        self.conv_in = nn.Conv2d(num_feat, num_feat, 1)
        self.conv_depthwise = nn.Conv2d(num_feat, num_feat, 3, 1, 1, groups=num_feat)
        self.squeeze = nn.Linear(num_feat, num_feat // 4, bias=False)
        self.excite = nn.Linear(num_feat // 4, num_feat, bias=False)
        self.conv_out = nn.Conv2d(num_feat, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y = F.gelu(self.conv_depthwise(F.gelu(self.conv_in(x))))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean((2, 3))))))  # (B, C)
        return x + self.conv_out(y * gate[..., None, None])


class PixelAttention(nn.Module):
    """Attention between the pixels of a window, 4 heads.

    Args:
        num_feat: Channels C, divisible by 4.
        window_size: Side of the windows.
        dilated: The pixels of a window are spread over the image, as a lattice.
        position_bias: Adds a learned number for each offset to the logits.
    """

    def __init__(self, num_feat: int, window_size: int, dilated: bool, position_bias: bool):
        super().__init__()
        self.window_size, self.dilated, self.scale = window_size, dilated, (num_feat // _HEADS) ** -0.5
        self.qkv = nn.Linear(num_feat, 3 * num_feat, bias=False)
        self.proj = nn.Linear(num_feat, num_feat, bias=False)
        self.bias = RelativePositionBias(window_size, _HEADS, std=1) if position_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), sides divisible by the window's."""
        size = self.window_size
        tokens = to_windows(x, size, size, self.dilated).flatten(2).transpose(1, 2)  # (windows, size^2, C)
        bias = None if self.bias is None else self.bias()[None]
        q, k, v = split_heads(self.qkv(tokens), 3, _HEADS)
        tokens = self.proj(merge_heads(attend(q, k, v, self.scale, bias)))
        height, width = x.shape[2:]
        return from_windows(tokens.transpose(1, 2).unflatten(2, (size, size)), height, width, self.dilated)


class ChannelSelfAttention(TransposedAttention):
    """Attention between the channels of a window, 4 heads.

    Args:
        num_feat: Channels C, divisible by 4.
        window_size: Side of the windows.
        dilated: Instead of windows of this side, lattices of pixels this far apart.
    """

    def __init__(self, num_feat: int, window_size: int, dilated: bool):
        super().__init__(num_feat, _HEADS)
        self.window_size, self.dilated = window_size, dilated

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), sides divisible by the window's."""
        height, width = x.shape[2:]
        size = self.window_size
        rows, columns = (height // size, width // size) if self.dilated else (size, size)
        windows = to_windows(self.qkv_dwconv(self.qkv(x)), rows, columns, self.dilated)  # (windows, 3C, rows, columns)
        return self.project_out(from_windows(self._attend(windows), height, width, self.dilated))


class PreNorm(nn.Module):
    """x + fn(norm(x)).

    Args:
        num_feat: Channels C.
        eps: Added to the variance.
        fn: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, num_feat: int, eps: float, fn: nn.Module):
        super().__init__()
        self.norm = ChannelNorm(num_feat, eps)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.fn(self.norm(x))


class OmniSelfAttentionBlock(nn.Sequential):
    """OSA block: local, then attention of pixels and of channels in windows, then the same over the whole image.

    Args:
        num_feat: Channels C.
        window_size, position_bias: Of the attentions.
    """

    def __init__(self, num_feat: int, window_size: int, position_bias: bool):
        layers: list[tuple[str, nn.Module]] = [('local', LocalBlock(num_feat))]
        for where, dilated in (('window', False), ('grid', True)):
            pixels = PixelAttention(num_feat, window_size, dilated, position_bias)
            channels = ChannelSelfAttention(num_feat, window_size, dilated)
            layers += [
                (f'{where}_pixels', PreNorm(num_feat, 1e-5, pixels)),
                (f'{where}_ffn1', PreNorm(num_feat, 1e-6, GatedFeedForward(num_feat, num_feat))),
                (f'{where}_channels', PreNorm(num_feat, 1e-6, channels)),
                (f'{where}_ffn2', PreNorm(num_feat, 1e-6, GatedFeedForward(num_feat, num_feat))),
            ]
        super().__init__(OrderedDict(layers))


class OmniSelfAttentionGroup(nn.Module):
    """OSAG: blocks, a 1 x 1 convolution, the input, and enhanced spatial attention.

    Args:
        num_feat: Channels C.
        num_block: Blocks.
        window_size, position_bias: Of the attentions.
    """

    def __init__(self, num_feat: int, num_block: int, window_size: int, position_bias: bool):
        super().__init__()
        self.blocks = nn.Sequential(
            *(OmniSelfAttentionBlock(num_feat, window_size, position_bias) for _ in range(num_block))
        )
        self.conv = nn.Conv2d(num_feat, num_feat, 1)
        self.esa = EnhancedSpatialAttention(num_feat, max(num_feat // 4, 16))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.esa(self.conv(self.blocks(x)) + x)


@ARCH_REGISTRY.register()
class OmniSR(nn.Module):
    """Omni aggregation network. Its lattices span the image, so that tiles and the whole image differ a little.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C, divisible by 4.
        num_group: Omni self-attention groups.
        num_block: Blocks in each group.
        window_size: Side of the windows; images are extended to multiples of it with grey, 0.5.
        position_bias: Whether the attention of pixels has learned biases.
        upscale: 1 or more.

    Raises:
        ValueError: `num_feat` is not divisible by 4.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_group: int = 5,
        num_block: int = 1,
        window_size: int = 8,
        position_bias: bool = True,
        upscale: int = 4,
    ):
        super().__init__()
        check_divisible(num_feat=num_feat, heads=_HEADS)
        self.upscale, self.window_size = upscale, window_size
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = nn.Sequential(
            *(OmniSelfAttentionGroup(num_feat, num_block, window_size, position_bias) for _ in range(num_group))
        )
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = x.shape[2:]
        shallow = self.conv_first(pad_to_multiple(2 * x - 1, self.window_size, zeros=True))
        deep = shallow + self.conv_after_body(self.body(shallow))
        image = F.pixel_shuffle(self.conv_last(deep), self.upscale) / 2 + 0.5
        return image[..., : height * self.upscale, : width * self.upscale]


_LOCAL = {
    'fn.0': 'conv_in',
    'fn.2': 'conv_depthwise',
    'fn.4.gate.1': 'squeeze',
    'fn.4.gate.3': 'excite',
    'fn.5': 'conv_out',
}
# The authors count rearrangements between the layers too.
_PIXELS = {2: 'window_pixels', 8: 'grid_pixels'}
_CHANNELS = {5: 'window_channels', 11: 'grid_channels'}
_FFN = {4: 'window_ffn1', 6: 'window_ffn2', 10: 'grid_ffn1', 12: 'grid_ffn2'}

_GROUP, _BLOCK = 'residual_layer.{group}.', 'residual_layer.{group}.residual_layer.{block}.layer.'
_OURS = 'body.{group}.blocks.{block}.'

_translate = renamed(
    upsampling='upscale',
    bias=None,
    ffn_bias=None,  # accepted, and ignored by the authors' code
    block_script_name=None,
    block_class_name=None,
    pe='position_bias',
    res_num='num_group',
    block_num='num_block',
)


def _official_arguments(variant: str, official: Mapping[str, Any]) -> dict[str, Any]:
    if not official.get('bias', True):
        raise ValueError('bias must be true: OmniSR here always has biases, got bias=False')
    return _translate(variant, official)


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    table = weights.get('body.0.blocks.0.window_pixels.fn.bias.table')
    return {
        **shapes.images(weights),
        'num_group': shapes.count(weights, 'body.{}.'),
        'num_block': shapes.count(weights, 'body.0.blocks.{}.'),
        **({'position_bias': False} if table is None else {'window_size': (math.isqrt(len(table)) + 1) // 2}),
        'upscale': shapes.shuffle(weights),
    }


_PUBLISHED = 'CVPR 2023, github.com/Francis0625/Omni-SR; trained on DIV2K'
_DF2K = 'CVPR 2023, github.com/Francis0625/Omni-SR; trained on DF2K'

register_format(
    ArchFormat(
        arch=OmniSR,
        names=(
            ('input.{end}', 'conv_first.{end}'),
            ('output.{end}', 'conv_after_body.{end}'),
            ('up.0.{end}', 'conv_last.{end}'),
            (_GROUP + 'residual_layer.{num_block}.{end}', 'body.{group}.conv.{end}'),
            *esa.rows(_GROUP + 'esa', 'body.{group}.esa'),
            *((_BLOCK + f'0.{theirs}.{{end}}', _OURS + f'local.{ours}.{{end}}') for theirs, ours in _LOCAL.items()),
            *(
                (_BLOCK + f'{number}.norm.{{end}}', _OURS + f'{layer}.norm.{{end}}')
                for number, layer in (_PIXELS | _CHANNELS | _FFN).items()
            ),
            *(
                (_BLOCK + f'{number}.fn.{theirs}.weight', _OURS + f'{layer}.fn.{ours}')
                for number, layer in _PIXELS.items()
                for theirs, ours in (
                    ('to_qkv', 'qkv.weight'),
                    ('to_out.0', 'proj.weight'),
                    ('rel_pos_bias', 'bias.table'),
                )
            ),
            *(
                (_BLOCK + f'{number}.fn.{part}', _OURS + f'{layer}.fn.{part}')
                for number, layer in _CHANNELS.items()
                for part in ('temperature', '{conv:qkv|qkv_dwconv|project_out}.weight')
            ),
            *(
                (_BLOCK + f'{number}.fn.{part}', _OURS + f'{layer}.fn.{part}')
                for number, layer in _FFN.items()
                for part in ('{conv:project_in|dwconv|project_out}.weight',)
            ),
        ),
        arguments=_arguments,
        official_arguments=_official_arguments,
        layout=bare,
        sizes=Sizes(minimum=9, multiple=8, pads=True),
        tiling='discouraged',
        published=(
            PublishedResult(2, 772_000, '38.22 33.98 32.36 33.05 39.28', _PUBLISHED, 'Omni-SR'),
            PublishedResult(3, 780_000, '34.70 30.57 29.28 28.84 34.22', _PUBLISHED, 'Omni-SR'),
            PublishedResult(4, 792_000, '32.49 28.78 27.71 26.64 31.02', _PUBLISHED, 'Omni-SR'),
            PublishedResult(2, 772_000, '38.29 34.27 32.41 33.30 39.53', _DF2K, 'Omni-SR (DF2K)'),
            PublishedResult(3, 780_000, '34.77 30.70 29.33 29.12 34.64', _DF2K, 'Omni-SR (DF2K)'),
            PublishedResult(4, 792_000, '32.57 28.95 27.81 26.95 31.50', _DF2K, 'Omni-SR (DF2K)'),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' code: AdamW, LR patches of 64x64, batch 64, 1,000 epochs of 800 "
            'iterations on DIV2K, L1 alone. Perceptual loss and a weight of 30 in their x2 file are not read.',
            patch=64,
            batch=64,
            optim_g=adamw(5e-4),
            scheduler=multistep(200_000, 400_000, 600_000),
            total_iter=800_000,
            comments={
                'milestones': 'epochs 250, 500, 750',
                'pixel_opt:loss_weight': "The authors' loss is on -1..1, ours on 0..1. The factor affects AdamW only "
                'through its eps; 2.0 reproduces theirs.',
            },
        ),
        source=Source(
            'Omni Aggregation Networks for Lightweight Image Super-Resolution (Wang et al., CVPR 2023)',
            2023,
            'https://github.com/Francis0625/Omni-SR',
            'Apache-2.0',
            weights='cloud drive',
        ),
    )
)
