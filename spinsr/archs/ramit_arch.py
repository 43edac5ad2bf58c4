"""RAMiT: Reciprocal Attention Mixing Transformer for Lightweight Image Restoration (Choi et al., CVPRW 2024).

Upstream: https://github.com/rami0205/RAMiT (no licence; nothing is copied). Written from a description of the published
network: the same function in float64. Weights are converted by `spinsr.convert`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import shapes
from spinsr.convert.recipe import Recipe, Start, adam, multistep
from spinsr.convert.registry import ArchFormat, Sizes, Source, bare, register_format, renamed
from spinsr.modules.attention import attend
from spinsr.modules.channel_norm import ChannelNorm
from spinsr.modules.cosine import attend_channels, unit_vectors
from spinsr.modules.padding import pad_to_multiple
from spinsr.modules.position_bias import RelativePositionBias, relative_position_index
from spinsr.modules.windows import from_windows, to_windows
from spinsr.utils.validation import between, check, check_divisible, check_length

_LARGEST_LOGIT_SCALE = math.log(100)
_MEAN = (0.4485, 0.4375, 0.4045)
_STD = {2: (0.2397, 0.2290, 0.2389), 3: (0.2373, 0.2265, 0.2367), 4: (0.2352, 0.2244, 0.2349)}


class MobiVari(nn.Module):
    """A variant of MobileNet's convolutions; the input is added where it has as many channels as the output.

    Version 1: act(1 x 1 of act(depthwise x) + x). Version 2, with z = act(1 x 1 of x in groups, to more channels):
    1 x 1 of act(depthwise z + z). act is LeakyReLU(0.01).

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        version: 1 or 2.
        ratio: Channels of z, in units of the input's; rounded up to the next larger multiple of the groups.
        groups: Of the first convolution of version 2.
    """

    def __init__(self, in_channels: int, out_channels: int, version: int, ratio: float = 1.2, groups: int = 4):
        super().__init__()
        self.adds_input = in_channels == out_channels
        inside = in_channels if version == 1 else expanded(in_channels, ratio, groups)
        self.exp_conv = None if version == 1 else nn.Conv2d(in_channels, inside, 1, groups=groups)
        self.dw_conv = nn.Conv2d(inside, inside, 3, 1, 1, groups=inside)
        self.pw_conv = nn.Conv2d(inside, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        if self.exp_conv is None:
            y = F.leaky_relu(self.pw_conv(F.leaky_relu(self.dw_conv(x)) + x))
        else:
            z = F.leaky_relu(self.exp_conv(x))
            y = self.pw_conv(F.leaky_relu(self.dw_conv(z) + z))
        return x + y if self.adds_input else y


def expanded(channels: int, ratio: float, groups: int) -> int:
    """The channels inside MobiVari: the next multiple of the groups that is larger.

    Example:
        >>> expanded(64, 1.2, 4), expanded(63, 2.0, 1)
        (80, 127)
    """
    inside = int(channels * ratio)
    return inside + groups - inside % groups


class SpatialAttention(nn.Module):
    """SPSA: attention by cosine similarity between the pixels of a window; windows that wrap round have no mask.

    Args:
        num_heads: Heads.
        head_dim: Channels D of a head.
        window_size: Side of the windows.
        shift: Pixels by which the image is rolled before it is cut into windows.
    """

    def __init__(self, num_heads: int, head_dim: int, window_size: int, shift: int):
        super().__init__()
        self.window_size, self.shift = window_size, shift
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.bias = RelativePositionBias(window_size, num_heads)
        self.proj = nn.Conv2d(num_heads * head_dim, num_heads * head_dim, 1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, D, H, W) each, sides divisible by the window's -> (B, heads * D, H, W)."""
        (heads, dim, height, width), size = q.shape[1:], self.window_size
        qkv = torch.stack([q, k, v], 1).flatten(1, 3).roll((-self.shift, -self.shift), (2, 3))
        windows = to_windows(qkv, size, size).flatten(2).unflatten(1, (3, heads, dim)).transpose(3, 4)
        q, k, v = windows.unbind(1)  # (B * windows, heads, P, D)
        scale = self.logit_scale.clamp(max=_LARGEST_LOGIT_SCALE).exp().to(q.dtype)
        mixed = attend(unit_vectors(q) * scale, unit_vectors(k), v, 1.0, self.bias()[None])
        mixed = mixed.transpose(2, 3).flatten(1, 2).unflatten(2, (size, size))  # (B * windows, heads * D, size, size)
        return self.proj(from_windows(mixed, height, width).roll((self.shift, self.shift), (2, 3)))


class ChannelSelfAttention(nn.Module):
    """CHSA: attention by cosine similarity between the channels of a head, over the whole image.

    Args:
        num_heads: Heads.
        head_dim: Channels D of a head.
    """

    def __init__(self, num_heads: int, head_dim: int):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.proj = nn.Conv2d(num_heads * head_dim, num_heads * head_dim, 1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, D, H, W) each -> (B, heads * D, H, W)."""
        scale = self.logit_scale.clamp(max=_LARGEST_LOGIT_SCALE).exp()
        mixed = attend_channels(q.flatten(3), k.flatten(3), v.flatten(3), scale)
        return self.proj(mixed.flatten(1, 2).unflatten(2, q.shape[3:]))


class ReciprocalBlock(nn.Module):
    """D-RAMiT block: some heads attend to pixels, the others to channels; each weighs the other's values.

    The weights come from the results of the block before it.

    Args:
        num_feat: Channels C.
        num_heads: Heads of both kinds; they divide C.
        num_channel: How many of them, the last ones, attend to channels.
        window_size, shift: Of the spatial attention.
        mlp_ratio: Channels inside the feed-forward network, in units of C.
        qkv_bias: Whether the first convolution has a bias.
        mobivari: Version of the convolutions that mix the heads.
        helper: Whether the kinds weigh each other.
    """

    def __init__(
        self,
        num_feat: int,
        num_heads: int,
        num_channel: int,
        window_size: int,
        shift: int,
        mlp_ratio: float,
        qkv_bias: bool,
        mobivari: int,
        helper: bool,
    ):
        super().__init__()
        self.num_heads, self.num_channel, self.helper = num_heads, num_channel, helper
        head_dim = num_feat // num_heads
        self.qkv = nn.Conv2d(num_feat, 3 * num_feat, 1, bias=qkv_bias)
        self.spatial = SpatialAttention(num_heads - num_channel, head_dim, window_size, shift)
        self.channel = ChannelSelfAttention(num_channel, head_dim)
        self.mix = MobiVari(num_feat, num_feat, mobivari)
        self.norm1 = ChannelNorm(num_feat, 1e-5)
        self.fc1 = nn.Conv2d(num_feat, int(mlp_ratio * num_feat), 1)
        self.fc2 = nn.Conv2d(int(mlp_ratio * num_feat), num_feat, 1)
        self.norm2 = ChannelNorm(num_feat, 1e-5)

    def forward(self, x: Tensor, before: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """One block.

        Args:
            x: (B, C, H, W), sides divisible by the window's.
            before: What the two attentions of the block before computed; None for the first.

        Returns:
            The features, what the heads mixed, both (B, C, H, W), and the results of the two attentions.
        """
        heads = self.qkv(x).unflatten(1, (self.num_heads, 3, -1))  # (B, heads, 3, D, H, W)
        spatial, channel = heads.split([self.num_heads - self.num_channel, self.num_channel], 1)
        (sq, sk, sv), (cq, ck, cv) = spatial.unbind(2), channel.unbind(2)
        if self.helper and before is not None:
            pixels, channels = before
            sv = sv * channels.unflatten(1, (self.num_channel, -1)).mean(1, keepdim=True)  # by (B, 1, D, H, W)
            cv = cv * pixels.mean(1, keepdim=True)[:, None]  # by (B, 1, 1, H, W)
        after = self.spatial(sq, sk, sv), self.channel(cq, ck, cv)
        mixed = self.mix(torch.cat(after, 1))
        x = x + self.norm1(mixed)
        return x + self.norm2(self.fc2(F.gelu(self.fc1(x)))), mixed, after


class Stage(nn.ModuleList):
    """Blocks in a row."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the features, and what the heads of the last block mixed."""
        before = None
        for block in self:
            x, mixed, before = block(x, before)
        return x, mixed


class Downsampling(nn.Module):
    """Each 2 x 2 pixels become one.

    Args:
        num_feat: Channels C.
        mobivari: Version of the convolutions.
    """

    def __init__(self, num_feat: int, mobivari: int):
        super().__init__()
        self.norm = ChannelNorm(4 * num_feat, 1e-5)
        self.reduction = MobiVari(4 * num_feat, num_feat, mobivari)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2, W / 2)."""
        phases = [x[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
        return self.reduction(self.norm(torch.cat(phases, 1)))


class Bottleneck(nn.Module):
    """The features of three sizes, with the shallow ones added, together at the full size.

    Args:
        num_feat: Channels C, divisible by 16.
        mobivari, ratio, groups: Of the convolutions.
    """

    def __init__(self, num_feat: int, mobivari: int, ratio: float, groups: int):
        super().__init__()
        channels = num_feat + num_feat // 4 + num_feat // 16
        self.mobivari = MobiVari(channels, num_feat, mobivari, ratio, groups)
        self.norm = ChannelNorm(num_feat, 1e-5)

    def forward(self, shallow: Tensor, features: Sequence[Tensor]) -> Tensor:
        """(B, C, H, W), and the same at 1, 1 / 2 and 1 / 4 of the size -> (B, C, H, W)."""
        parts = []
        for halvings, one in enumerate(features):
            parts.append(F.pixel_shuffle(one + F.leaky_relu(shallow), 2**halvings))
            shallow = F.max_pool2d(shallow, 2)
        return self.norm(self.mobivari(torch.cat(parts, 1)))


@ARCH_REGISTRY.register()
class RAMiT(nn.Module):
    """Reciprocal attention mixing transformer. Its channel attention looks at the whole image.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C, divisible by 16; if not `slim`, with `mobivari=2` by 64.
        depths: Blocks of each of the four stages, the second at half, the third at a quarter of the size.
        num_heads: Heads of each stage; they divide C.
        channel_head_ratio: Share of the heads that attend to channels.
        window_size: Side of the windows; images are extended with zeros to multiples of four windows.
        mlp_ratio: Channels inside a feed-forward network, in units of C.
        qkv_bias: Whether queries, keys and values have biases.
        mobivari: Version of the convolutions that mix, 1 or 2.
        expand_ratio: Ratio of those in the tail, for version 2.
        expand_groups: Groups of those in the tail, for version 2.
        num_tail: How many of them are in the tail.
        helper: Whether pixels and channels weigh each other's values.
        slim: As slimSR, whose bottleneck and mixing are wider and have no groups.
        img_norm: Whether mean and deviation of the images are normalised.
        upscale: 1 or more.

    Raises:
        ValueError: The arguments do not fit together.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        depths: Sequence[int] = (6, 4, 4, 6),
        num_heads: Sequence[int] = (4, 4, 4, 4),
        channel_head_ratio: float = 0.25,
        window_size: int = 8,
        mlp_ratio: float = 2,
        qkv_bias: bool = True,
        mobivari: int = 2,
        expand_ratio: float = 1.2,
        expand_groups: int = 4,
        num_tail: int = 2,
        helper: bool = True,
        slim: bool = False,
        img_norm: bool = True,
        upscale: int = 4,
    ):
        super().__init__()
        check(between(1, 2), mobivari=mobivari)
        check_divisible(num_feat=num_feat, multiple=16)
        check_length(depths=depths, stages=4)
        check_length(num_heads=num_heads, stages=4)
        num_channel = [int(heads * channel_head_ratio) for heads in num_heads]
        if any(
            heads < 1 or num_feat % heads or not 0 < some < heads
            for heads, some in zip(num_heads, num_channel, strict=True)
        ):
            raise ValueError(
                'num_heads must divide num_feat, and channel_head_ratio leave heads of both kinds, got '
                f'{num_feat=}, {num_heads=}, {channel_head_ratio=}'
            )
        self.upscale, self.multiple = upscale, 4 * window_size
        normalises = img_norm and num_in_ch == num_out_ch == 3
        # Not buffers: the authors' are exact in float64, those of a network made in float32 would not be.
        self.mean = _MEAN if normalises else (0.0,)
        self.std = _STD.get(upscale, _STD[4]) if normalises else (1.0,)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.stage1, self.stage2, self.stage3, self.stage4 = (
            Stage(
                ReciprocalBlock(
                    num_feat,
                    heads,
                    some,
                    window_size,
                    block % 2 * (window_size // 2),
                    mlp_ratio,
                    qkv_bias,
                    mobivari,
                    helper,
                )
                for block in range(depth)
            )
            for depth, heads, some in zip(depths, num_heads, num_channel, strict=True)
        )
        wide = (2.0, 1) if slim else (1.2, 4)
        self.down1 = Downsampling(num_feat, mobivari)
        self.down2 = Downsampling(num_feat, mobivari)
        self.bottleneck = Bottleneck(num_feat, mobivari, *wide)
        self.mix = MobiVari(2 * num_feat + num_feat // 4 + num_feat // 16, num_feat, mobivari, *wide)
        self.tail = nn.Sequential(
            *(MobiVari(num_feat, num_feat, mobivari, expand_ratio, expand_groups) for _ in range(num_tail))
        )
        self.conv_upsample = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_out_ch, num_out_ch, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = x.shape[2:]
        mean, std = (
            torch.tensor(values, dtype=x.dtype, device=x.device).view(1, -1, 1, 1) for values in (self.mean, self.std)
        )
        x = (pad_to_multiple(x, self.multiple, zeros=True) - mean) / std
        shallow = self.conv_first(x)
        out1, mixed1 = self.stage1(shallow)
        out2, mixed2 = self.stage2(self.down1(out1))
        out3, mixed3 = self.stage3(self.down2(out2))
        out4, mixed4 = self.stage4(self.bottleneck(shallow, (out1, out2, out3)))
        mixed = (mixed1, F.pixel_shuffle(mixed2, 2), F.pixel_shuffle(mixed3, 4), mixed4)
        deep = out4 * self.mix(torch.cat(mixed, 1)) + shallow
        image = self.conv_last(F.pixel_shuffle(self.conv_upsample(self.tail(deep)), self.upscale))
        return (image * std + mean)[..., : height * self.upscale, : width * self.upscale]


_BLOCK, _OURS = 'stage{stage}.blocks.block{block}.', 'stage{stage}.{block}.'
_MOBIVARI = '{conv:exp_conv|dw_conv|pw_conv}.{end}'


def _to_official(official: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the numbers of the offsets in a window."""
    added = {}
    for name, value in ours.items():
        if match := re.fullmatch(r'stage(\d)\.(\d+)\.spatial\.bias\.table', name):
            size = (math.isqrt(len(value)) + 1) // 2
            index = relative_position_index(size).to(value.device)
            added[_BLOCK.format(stage=match[1], block=match[2]) + 'sp_attn.relative_position_index'] = index
    return official | added


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    num_feat = len(weights['conv_first.weight'])
    heads = [
        [len(weights[f'stage{stage}.0.{kind}.logit_scale']) for kind in ('spatial', 'channel')]
        for stage in (1, 2, 3, 4)
    ]
    arguments = {
        **shapes.images(weights),
        'depths': tuple(shapes.count(weights, f'stage{stage}.{{}}.') for stage in (1, 2, 3, 4)),
        'num_heads': tuple(map(sum, heads)),
        'channel_head_ratio': heads[0][1] / sum(heads[0]),
        'window_size': (math.isqrt(len(weights['stage1.0.spatial.bias.table'])) + 1) // 2,
        'mlp_ratio': shapes.ratio(len(weights['stage1.0.fc1.weight']), num_feat),
        'qkv_bias': 'stage1.0.qkv.bias' in weights,
        'mobivari': 2 if 'down1.reduction.exp_conv.weight' in weights else 1,
        'num_tail': shapes.count(weights, 'tail.{}.'),
        'upscale': math.isqrt(len(weights['conv_upsample.weight']) // len(weights['conv_last.weight'])),
    }
    if arguments['mobivari'] == 2:
        inside, of_group = weights['tail.0.exp_conv.weight'].shape[:2]
        groups = num_feat // of_group
        as_published = expanded(num_feat, 1.2, groups) == inside
        arguments |= {
            'expand_groups': groups,
            'expand_ratio': 1.2 if as_published else (inside - 0.5) / num_feat,
            'slim': weights['bottleneck.mobivari.exp_conv.weight'].shape[1]
            == num_feat + num_feat // 4 + num_feat // 16,
        }
    return arguments


_translate = renamed(
    in_chans='num_in_ch',
    dim='num_feat',
    head_dim=None,  # the authors' code ignores it
    drop_path_rate=None,  # likewise
    chsa_head_ratio='channel_head_ratio',
    hidden_ratio='mlp_ratio',
    norm_layer=None,
    tail_mv='num_tail',
    act_layer=None,
    mv_act=None,
    target_mode=None,
    variant=None,
    mv_ver='mobivari',
    exp_factor=None,
    expand_groups=None,
)


def _official_arguments(variant: str, official: Mapping[str, Any]) -> dict[str, Any]:
    of_tail = {'exp_factor': 'expand_ratio', 'expand_groups': 'expand_groups'}
    return {
        **_translate(variant, official),
        **{ours: official[theirs] for theirs, ours in of_tail.items() if official.get(theirs) is not None},
        'num_out_ch': official.get('in_chans', 3),
        'slim': official.get('variant') == 'slimSR',
        'upscale': int(official['target_mode'].rpartition('_x')[2]),
    }


register_format(
    ArchFormat(
        arch=RAMiT,
        names=(
            ('shallow.conv.{end}', 'conv_first.{end}'),
            (_BLOCK + 'qkv_proj.qkv.{end}', _OURS + 'qkv.{end}'),
            (_BLOCK + 'sp_attn.logit_scale', _OURS + 'spatial.logit_scale'),
            (_BLOCK + 'sp_attn.relative_position_bias_table', _OURS + 'spatial.bias.table'),
            (_BLOCK + 'sp_attn.relative_position_index', None),
            (_BLOCK + 'sp_attn.proj.{end}', _OURS + 'spatial.proj.{end}'),
            (_BLOCK + 'ch_attn.logit_scale', _OURS + 'channel.logit_scale'),
            (_BLOCK + 'ch_attn.proj.{end}', _OURS + 'channel.proj.{end}'),
            (_BLOCK + f'mobivari.{_MOBIVARI}', _OURS + f'mix.{_MOBIVARI}'),
            (_BLOCK + '{norm:norm1|norm2}.norm.{end}', _OURS + '{norm}.{end}'),
            (_BLOCK + 'ffn.hidden.{end}', _OURS + 'fc1.{end}'),
            (_BLOCK + 'ffn.out.{end}', _OURS + 'fc2.{end}'),
            ('down{stage}.norm.norm.{end}', 'down{stage}.norm.{end}'),
            f'down{{stage}}.reduction.{_MOBIVARI}',
            f'bottleneck.mobivari.{_MOBIVARI}',
            ('bottleneck.norm.norm.{end}', 'bottleneck.norm.{end}'),
            (f'attn_mix.mobivari.{_MOBIVARI}', f'mix.{_MOBIVARI}'),
            (f'to_target.mobivari.mobivari{{number}}.{_MOBIVARI}', f'tail.{{number}}.{_MOBIVARI}'),
            ('to_target.conv.{end}', 'conv_upsample.{end}'),
            ('to_target.final_conv.{end}', 'conv_last.{end}'),
        ),
        arguments=_arguments,
        configurations={
            'RAMiT-1': {'mobivari': 1},
            'RAMiT-slimSR': {'num_feat': 48, 'depths': (8, 2, 2, 8), 'slim': True},
        },
        official_arguments=_official_arguments,
        untold={'helper': True, 'img_norm': True},
        to_official=_to_official,
        layout=bare,
        sizes=Sizes(multiple=32, pads=True),
        tiling='discouraged',
        recipe=Recipe(
            about="The recipe is that of the authors' code: LR patches of 64x64, batch 64, epochs of 1,000 "
            'iterations. x2: 500 epochs, the first 20 with a linear warm-up. x3 and x4 start from x2: 50 epochs of '
            'the tail alone, then 300 of the whole network. There the authors begin the second part with a warm-up of '
            '10 epochs, here it is at the start, because a run has one.',
            patch=64,
            batch=64,
            optim_g=adam(4e-4),
            scheduler=multistep(200_000, 300_000, 400_000, 425_000, 450_000, 475_000),
            total_iter=500_000,
            warmup_iter=20_000,
            start=Start(
                scale=2,
                comment='The authors start x3 and x4 from the x2 model, so train that first. What has another shape is '
                'initialised randomly.',
            ),
            by_scale={
                scale: {
                    'scheduler': multistep(100_000, 150_000, 200_000, 225_000, 250_000, 275_000),
                    'total_iter': 350_000,
                    'warmup_iter': 10_000,
                    'train': {
                        'freeze_params': ['conv_first', 'stage*', 'down*', 'bottleneck', 'mix'],
                        'freeze_iters': 50_000,
                    },
                }
                for scale in (3, 4)
            },
            comments={
                'batch_size_per_gpu': 'the authors: 32 on each of two GPUs',
                'freeze_params': 'all but the tail',
                'warmup_iter': '',
            },
        ),
        source=Source(
            'Reciprocal Attention Mixing Transformer for Lightweight Image Restoration (Choi et al., CVPRW 2024)',
            2024,
            'https://github.com/rami0205/RAMiT',
            weights='repository',
        ),
    )
)
