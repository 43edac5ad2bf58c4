"""DLGSANet: Lightweight Dynamic Local and Global Self-Attention Networks (Li et al., ICCV 2023).

Upstream: https://github.com/NeonLeexiang/DLGSANet (Apache-2.0; nothing is copied). Written from a description of the
published network: the same function in float64, without CUDA kernels, and with batches of any size in eval mode.
Weights are converted by `spinsr.convert`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import shapes
from spinsr.convert.recipe import Recipe, adam, multistep
from spinsr.convert.registry import ArchFormat, PublishedResult, Source, register_format, renamed, under
from spinsr.modules.channel_norm import ChannelNorm
from spinsr.modules.cosine import TransposedAttention
from spinsr.modules.gated_feed_forward import GatedFeedForward
from spinsr.modules.mean_shift import register_constant_mean
from spinsr.utils.validation import check_divisible

# Largest side of the global attention in eval mode, by scale.
_TLC_KERNEL = {2: 96, 3: 72, 4: 48}


class DynamicConvolution(nn.Module):
    """A convolution whose kernels are computed for each pixel, and shared by the channels of a group.

    Args:
        num_feat: Channels C.
        group_width: Channels of a group; divides C.
        kernel_size: Side of the kernels, odd.
    """

    def __init__(self, num_feat: int, group_width: int, kernel_size: int):
        super().__init__()
        self.num_groups, self.kernel_size = num_feat // group_width, kernel_size
        narrow = num_feat // 4
        self.squeeze = nn.Conv2d(num_feat, narrow, 1)
        self.depthwise = nn.Conv2d(narrow, narrow, kernel_size, 1, kernel_size // 2, groups=narrow)
        self.expand = nn.Conv2d(narrow, kernel_size**2 * self.num_groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        height, width = x.shape[2:]
        kernels = self.expand(self.depthwise(self.squeeze(x))).unflatten(1, (self.num_groups, 1, -1))
        around = F.pad(x, (self.kernel_size // 2,) * 4).unflatten(1, (self.num_groups, -1))  # (B, G, C / G, ., .)
        taps = [(i, j) for i in range(self.kernel_size) for j in range(self.kernel_size)]
        out = torch.zeros_like(x).unflatten(1, (self.num_groups, -1))
        for kernel, (i, j) in zip(kernels.unbind(3), taps, strict=True):  # (B, G, 1, H, W)
            out = torch.addcmul(out, kernel, around[..., i : i + height, j : j + width])
        return out.flatten(1, 2)


class LocalLayer(nn.Module):
    """MHDLSA: a dynamic convolution between 1 x 1 convolutions, and a feed-forward network, each added to its input.

    Args:
        num_feat: Channels C.
        group_width, kernel_size: Of the dynamic convolution.
        hidden: Channels of a half of the feed-forward network.
    """

    def __init__(self, num_feat: int, group_width: int, kernel_size: int, hidden: int):
        super().__init__()
        self.norm1 = ChannelNorm(num_feat, 1e-5)
        self.conv0 = nn.Conv2d(num_feat, num_feat, 1, bias=False)
        self.dynamic = DynamicConvolution(num_feat, group_width, kernel_size)
        self.conv1 = nn.Conv2d(num_feat, num_feat, 1, bias=False)
        self.norm2 = ChannelNorm(num_feat, 1e-5)
        self.local_ffn = GatedFeedForward(num_feat, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.conv1(self.dynamic(self.conv0(self.norm1(x))))
        return x + self.local_ffn(self.norm2(x))


class SparseGlobalAttention(TransposedAttention):
    """SparseGSA: attention between channels, with ReLU instead of a softmax.

    Args:
        num_feat: Channels C.
        num_heads: Heads; they divide C.
        tlc_kernel: Largest side of the image over which it looks in eval mode; larger ones are cut into overlapping
            tiles, whose results are averaged. 0: no limit.
    """

    def __init__(self, num_feat: int, num_heads: int, tlc_kernel: int):
        super().__init__(num_feat, num_heads, F.relu)
        self.tlc_kernel = tlc_kernel

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        qkv = self.qkv_dwconv(self.qkv(x))
        if self.training or not self.tlc_kernel or max(x.shape[2:]) <= self.tlc_kernel:
            return self.project_out(self._attend(qkv))
        mixed, count = torch.zeros_like(qkv[:, : x.shape[1]]), torch.zeros_like(qkv[0, 0])
        rows, columns = (min(side, self.tlc_kernel) for side in x.shape[2:])
        for top in tile_starts(x.shape[2], rows):
            for left in tile_starts(x.shape[3], columns):
                tile = (..., slice(top, top + rows), slice(left, left + columns))
                mixed[tile] += self._attend(qkv[tile])
                count[tile] += 1
        return self.project_out(mixed / count)


def tile_starts(side: int, tile: int) -> list[int]:
    """First pixels of the tiles along a side, as few as cover it, evenly spaced.

    Example:
        >>> tile_starts(21, 12), tile_starts(12, 12)
        ([0, 9], [0])
    """
    number = (side - 1) // tile + 1
    step = tile if number == 1 else math.ceil((side - tile) / (number - 1))
    return [*range(0, side - tile, step), side - tile]


class GlobalLayer(nn.Module):
    """Sparse global attention and a feed-forward network, each added to its input.

    Args:
        num_feat: Channels C.
        num_heads, tlc_kernel: Of the attention.
        hidden: Channels of a half of the feed-forward network.
    """

    def __init__(self, num_feat: int, num_heads: int, tlc_kernel: int, hidden: int):
        super().__init__()
        self.norm3 = ChannelNorm(num_feat, 1e-5)
        self.attn = SparseGlobalAttention(num_feat, num_heads, tlc_kernel)
        self.norm4 = ChannelNorm(num_feat, 1e-5)
        self.global_ffn = GatedFeedForward(num_feat, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.attn(self.norm3(x))
        return x + self.global_ffn(self.norm4(x))


class ResidualGroup(nn.Sequential):
    """x + layers(x): local and global layers in turn, then a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + super().forward(x)


@ARCH_REGISTRY.register()
class DLGSANet(nn.Module):
    """Dynamic local and global self-attention network.

    In training the global attention looks at the whole patch, in eval mode at tiles of at most `tlc_kernel`
    pixels a side.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C.
        num_group: Groups.
        num_block: Pairs of a local and a global layer in each group.
        group_width: Channels that share a dynamic kernel; divides C. The authors call it a number of heads.
        kernel_size: Side of the dynamic kernels.
        num_heads: Heads of the global attention; they divide C.
        mlp_ratio: Channels of a half of the feed-forward networks of local layers, in units of C.
        global_mlp_ratio: The same of global layers; None means `mlp_ratio`.
        tlc_kernel: Largest side over which the global attention looks in eval mode; None means the authors'
            96, 72 and 48 at x2, x3 and x4 (else 192 // upscale), 0 the whole image.
        upscale: 1 or more.
        img_range: Scale in which the network works: it sees `(x - mean) * img_range`.

    Raises:
        ValueError: The arguments do not fit together.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 90,
        num_group: int = 6,
        num_block: int = 4,
        group_width: int = 6,
        kernel_size: int = 7,
        num_heads: int = 6,
        mlp_ratio: float = 2,
        global_mlp_ratio: float | None = None,
        tlc_kernel: int | None = None,
        upscale: int = 4,
        img_range: float = 1.0,
    ):
        super().__init__()
        check_divisible(num_feat=num_feat, group_width=group_width)
        check_divisible(num_feat=num_feat, num_heads=num_heads)
        tlc_kernel = _TLC_KERNEL.get(upscale, 192 // upscale) if tlc_kernel is None else tlc_kernel
        self.upscale, self.img_range = upscale, img_range
        register_constant_mean(self, num_in_ch, num_out_ch)
        hidden = int(num_feat * mlp_ratio)
        global_hidden = int(num_feat * (mlp_ratio if global_mlp_ratio is None else global_mlp_ratio))
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1, bias=False)
        self.body = nn.Sequential()
        for _ in range(num_group):
            layers: list[nn.Module] = []
            for _ in range(num_block):
                layers.append(LocalLayer(num_feat, group_width, kernel_size, hidden))
                layers.append(GlobalLayer(num_feat, num_heads, tlc_kernel, global_hidden))
            self.body.append(ResidualGroup(*layers, nn.Conv2d(num_feat, num_feat, 3, 1, 1)))
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        shallow = self.conv_first((x - self.mean) * self.img_range)
        deep = shallow + self.conv_after_body(self.body(shallow))
        image = F.pixel_shuffle(self.conv_last(deep), self.upscale)
        return image / self.img_range + self.mean


_GROUP = 'deep_feature_extraction.{group}.body.'
_LOCAL = (
    ('norm{norm:1|2}.body.{end}', 'norm{norm}.{end}'),
    ('IDynamicDWConv.{conv:conv0|conv1}.weight', '{conv}.weight'),
    ('IDynamicDWConv.conv.conv1.0.{end}', 'dynamic.squeeze.{end}'),
    ('IDynamicDWConv.conv.conv1.1.{end}', 'dynamic.depthwise.{end}'),
    ('IDynamicDWConv.conv.conv2.0.{end}', 'dynamic.expand.{end}'),
    ('IDynamic_ffn.{conv:project_in|dwconv|project_out}.weight', 'local_ffn.{conv}.weight'),
)
_GLOBAL = (
    ('norm{norm:3|4}.body.{end}', 'norm{norm}.{end}'),
    ('restormer_attn.temperature', 'attn.temperature'),
    ('restormer_attn.{conv:qkv|qkv_dwconv|project_out}.weight', 'attn.{conv}.weight'),
    ('restormer_ffn.{conv:project_in|dwconv|project_out}.weight', 'global_ffn.{conv}.weight'),
)

_translate = renamed(
    in_chans='num_in_ch',
    dim='num_feat',
    groups='num_group',
    blocks='num_block',
    buildblock_type=None,
    idynamic_num_heads='group_width',
    window_size='kernel_size',
    restormer_num_heads='num_heads',
    idynamic=None,
    idynamic_ffn_type=None,
    idynamic_ffn_expansion_factor='mlp_ratio',
    restormer_ffn_type=None,
    restormer_ffn_expansion_factor='global_mlp_ratio',
    activation=None,
    body_norm=None,
    tlc_flag=None,
    upsampler=None,
)
_ONLY = {
    'buildblock_type': 'sparseedge',
    'idynamic': True,
    'idynamic_ffn_type': 'GDFN',
    'restormer_ffn_type': 'GDFN',
    'activation': 'relu',
    'body_norm': False,
    'upsampler': 'pixelshuffledirect',
}


def _official_arguments(variant: str, official: Mapping[str, Any]) -> dict[str, Any]:
    """Only the published form; `buildblock_type` and the others have further values, for ablations."""
    for name, value in _ONLY.items():
        if official.get(name, value) != value:
            raise ValueError(f'{name} must be {value!r}, got {official[name]!r}')
    ours = {**_translate(variant, official), 'num_out_ch': official.get('in_chans', 3)}
    return ours | ({} if official.get('tlc_flag', True) else {'tlc_kernel': 0})


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    num_feat = len(weights['conv_first.weight'])
    kernel_size = weights['body.0.0.dynamic.depthwise.weight'].shape[2]
    groups = len(weights['body.0.0.dynamic.expand.weight']) // kernel_size**2
    return {
        **shapes.images(weights),
        'num_group': shapes.count(weights, 'body.{}.'),
        'num_block': shapes.count(weights, 'body.0.{}.') // 2,
        'group_width': num_feat // groups,
        'kernel_size': kernel_size,
        'num_heads': len(weights['body.0.1.attn.temperature']),
        'mlp_ratio': shapes.ratio(weights['body.0.0.local_ffn.project_out.weight'].shape[1], num_feat),
        'global_mlp_ratio': shapes.ratio(weights['body.0.1.global_ffn.project_out.weight'].shape[1], num_feat),
        'upscale': shapes.shuffle(weights),
    }


_PUBLISHED = 'ICCV 2023, github.com/NeonLeexiang/DLGSANet; parameters counted in its code'

register_format(
    ArchFormat(
        arch=DLGSANet,
        names=(
            ('overlap_embed.0.proj.weight', 'conv_first.weight'),
            *(
                (f'{_GROUP}{{layer}}.{theirs}', f'body.{{group}}.{{layer}}.{ours}')
                for theirs, ours in (*_LOCAL, *_GLOBAL)
            ),
            (_GROUP + '{layer}.{end}', 'body.{group}.{layer}.{end}'),
            ('deep_feature_extraction.{num_group}.{end}', 'conv_after_body.{end}'),
            ('upsample.0.{end}', 'conv_last.{end}'),
        ),
        arguments=_arguments,
        configurations={
            'DLGSANet-tiny': {'num_feat': 48, 'num_group': 3, 'num_block': 3},
            'DLGSANet-light': {'num_feat': 48, 'num_group': 4, 'num_block': 3},
        },
        official_arguments=_official_arguments,
        untold={'tlc_kernel': 0, 'img_range': 1.0},
        layout=under('params'),
        tiling='discouraged',
        published=(
            PublishedResult(2, 565_710, '38.16 33.92 32.26 32.82 39.14', _PUBLISHED, 'DLGSANet-tiny'),
            PublishedResult(3, 572_205, '34.63 30.57 29.21 28.69 34.10', _PUBLISHED, 'DLGSANet-tiny'),
            PublishedResult(4, 581_298, '32.46 28.79 27.70 26.55 30.98', _PUBLISHED, 'DLGSANet-tiny'),
            PublishedResult(2, 745_188, '38.20 33.89 32.30 32.94 39.29', _PUBLISHED, 'DLGSANet-light'),
            PublishedResult(3, 751_683, '34.70 30.58 29.24 28.83 34.16', _PUBLISHED, 'DLGSANet-light'),
            PublishedResult(4, 760_776, '32.54 28.84 27.73 26.66 31.13', _PUBLISHED, 'DLGSANet-light'),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' option files: LR patches of 48x48, batch 16, 500,000 iterations "
            'on DIV2K, every scale from scratch.',
            patch=48,
            batch=16,
            ema_decay=0.999,
            optim_g=adam(5e-4, (0.9, 0.99)),
            scheduler=multistep(250_000, 400_000, 450_000, 475_000),
            total_iter=500_000,
            comments={'batch_size_per_gpu': 'the authors: 8 on each of two GPUs'},
        ),
        source=Source(
            'DLGSANet: Lightweight Dynamic Local and Global Self-Attention Networks for Image Super-Resolution '
            '(Li et al., ICCV 2023)',
            2023,
            'https://github.com/NeonLeexiang/DLGSANet',
            'Apache-2.0',
            weights='cloud drive',
        ),
    )
)
