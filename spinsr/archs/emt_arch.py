"""EMT: Efficient Mixed Transformer for Single Image Super-Resolution (Zheng et al., 2023).

Upstream: https://github.com/Fried-Rice-Lab/EMT (MIT; nothing is copied). Written from a description of the published
network: the same function in float64, with the fixed one-hot convolutions as slices and rolls, and with images of any
size from 1 x 1. Weights are converted by `spinsr.convert`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import mean_shift, shapes
from spinsr.convert.recipe import AUTHORS_FLIPS, DF2K, ON_255, Recipe, adam, cosine
from spinsr.convert.registry import ArchFormat, Sizes, Source, register_format, renamed, under
from spinsr.modules.attention import attend
from spinsr.modules.mean_shift import register_mean
from spinsr.modules.padding import pad_to
from spinsr.modules.shift import ShiftedMLP, fixed_kernels
from spinsr.modules.windows import from_windows, to_windows


class StripedWindowAttention(nn.Module):
    """Attention inside windows, several shapes side by side: each shape has its own share of the channels.

    Queries and keys are the same. The logits have neither a scale nor a position bias; windows that wrap around are not
    masked.

    Args:
        num_feat: Channels C, divisible by len(window_size) * num_heads.
        num_heads: Heads of each share.
        window_size: (rows, columns) of the windows of each share.
        shift_size: (rows, columns) by which each share is rolled before it is cut into windows.
    """

    def __init__(
        self,
        num_feat: int,
        num_heads: int,
        window_size: Sequence[tuple[int, int]],
        shift_size: Sequence[tuple[int, int]],
    ):
        super().__init__()
        self.num_heads, self.window_size, self.shift_size = num_heads, window_size, shift_size
        self.attn = nn.Sequential(nn.Conv2d(num_feat, 2 * num_feat, 1), nn.BatchNorm2d(2 * num_feat))
        self.proj = nn.Sequential(nn.Conv2d(num_feat, num_feat, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        shares = self.attn(x).chunk(len(self.window_size), 1)  # (B, 2C / shares, H, W) each
        mixed = [self._attend(*share) for share in zip(shares, self.window_size, self.shift_size, strict=True)]
        return self.proj(torch.cat(mixed, 1))

    def _attend(self, x: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
        """(B, 2D, H, W): queries and values -> (B, D, H, W)."""
        height, width = x.shape[2:]
        rows, columns = -height % window[0], -width % window[1]
        if rows or columns:
            x = F.pad(x, (0, columns, 0, rows), mode='reflect')
        if any(shift):
            x = x.roll(shift, (2, 3))
        x = _attend_in_windows(x, window, self.num_heads)
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (2, 3))
        return x[..., :height, :width]


def _attend_in_windows(x: Tensor, window: tuple[int, int], num_heads: int) -> Tensor:
    """softmax(q q^T) v in every window: (B, 2D, H, W), sides multiples of the window's -> (B, D, H, W)."""
    windows = to_windows(x, *window).flatten(2).unflatten(1, (2, num_heads, -1))  # (windows, 2, heads, D/heads, pixels)
    q, v = windows.transpose(3, 4).unbind(1)  # (windows, heads, pixels, D / heads)
    mixed = attend(q, q, v, 1.0).transpose(2, 3).flatten(1, 2).unflatten(2, window)
    height, width = x.shape[2:]
    return from_windows(mixed, height, width)


class PixelMixer(nn.Module):
    """Every channel becomes the difference to one of its four neighbours, channel by channel in turn, or zero.

    The border wraps round.

    Args:
        num_feat: Channels C, divisible by 5.
    """

    def __init__(self, num_feat: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        right, left, below, above, same = x.unflatten(1, (-1, 5)).unbind(2)
        moved = (right.roll(-1, 3), left.roll(1, 3), below.roll(-1, 2), above.roll(1, 2), same)
        return self.norm(torch.stack(moved, 2).flatten(1, 2) - x)


class MixedTransformerBlock(nn.Module):
    """Layers of a mixer and an MLP, each added to its input: windows first, shifted in every second layer, then pixels.

    Args:
        num_feat: Channels C.
        num_layer: Layers.
        num_attention: How many of the layers, the first ones, mix by attention; the others mix pixels.
        num_heads, window_size, shift_size: Of the attention.
        mlp_ratio: Channels inside an MLP, in units of C.
    """

    def __init__(
        self,
        num_feat: int,
        num_layer: int,
        num_attention: int,
        num_heads: int,
        window_size: Sequence[tuple[int, int]],
        shift_size: Sequence[tuple[int, int]],
        mlp_ratio: float,
    ):
        super().__init__()
        unshifted = ((0, 0),) * len(window_size)
        self.sa_list = nn.ModuleList(
            StripedWindowAttention(num_feat, num_heads, window_size, shift_size if layer % 2 else unshifted)
            if layer < num_attention
            else PixelMixer(num_feat)
            for layer in range(num_layer)
        )
        self.mlp_list = nn.ModuleList(ShiftedMLP(num_feat, int(mlp_ratio * num_feat), F.silu) for _ in range(num_layer))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        for mixer, mlp in zip(self.sa_list, self.mlp_list, strict=True):
            x = x + mixer(x)
            x = x + mlp(x)
        return x


@ARCH_REGISTRY.register()
class EMT(nn.Module):
    """Efficient mixed transformer. Its batch normalisation makes an image depend on its batch, except in eval mode.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C, divisible by 5 and by len(window_size) * num_heads.
        num_block: Mixed transformer blocks.
        num_layer: Layers in each block.
        num_attention: How many of the layers, the first ones, are attention; the others mix pixels.
        num_heads: Heads of each window shape.
        mlp_ratio: Channels inside an MLP, in units of C; mlp_ratio * C is divisible by 5.
        window_size: (rows, columns) of the windows, one pair a share of the channels.
        shift_size: (rows, columns) by which the windows of every second layer are shifted, one pair a share.
        upscale: 1 or more.
        img_range: Scale in which the network works; the input is `x * img_range - mean`.
        rgb_mean: Mean of each channel in [0, 1]; `mean` is `img_range * rgb_mean`.

    Raises:
        ValueError: The arguments do not fit together.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 60,
        num_block: int = 6,
        num_layer: int = 6,
        num_attention: int = 2,
        num_heads: int = 3,
        mlp_ratio: float = 2,
        window_size: Sequence[Sequence[int]] = ((32, 8), (8, 32)),
        shift_size: Sequence[Sequence[int]] = ((16, 4), (4, 16)),
        upscale: int = 4,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = (0.4690, 0.4490, 0.4036),
    ):
        super().__init__()
        if not len(rgb_mean) == num_in_ch == num_out_ch:
            raise ValueError(
                f'rgb_mean must have num_in_ch = num_out_ch numbers, got {rgb_mean=}, {num_in_ch=}, {num_out_ch=}'
            )
        if len(window_size) != len(shift_size):
            raise ValueError(f'shift_size must have a pair for each window_size, got {window_size=}, {shift_size=}')
        if num_feat % 5 or int(mlp_ratio * num_feat) % 5 or num_feat % (len(window_size) * num_heads):
            raise ValueError(
                'num_feat and mlp_ratio * num_feat must be divisible by 5, and num_feat by len(window_size) * '
                f'num_heads, got {num_feat=}, {mlp_ratio=}, {window_size=}, {num_heads=}'
            )
        self.upscale, self.img_range = upscale, img_range
        window_size, shift_size = (tuple((rows, columns) for rows, columns in x) for x in (window_size, shift_size))
        # The features are extended to whole windows by reflection, which needs more than half a window.
        self.min_size = tuple(max(sides) // 2 + 1 for sides in zip(*window_size, strict=True))
        register_mean(self, img_range, rgb_mean)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = nn.Sequential(
            *(
                MixedTransformerBlock(num_feat, num_layer, num_attention, num_heads, window_size, shift_size, mlp_ratio)
                for _ in range(num_block)
            )
        )
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        shallow = self.conv_first(pad_to(x, *self.min_size) * self.img_range - self.mean)
        image = F.pixel_shuffle(self.conv_last(shallow + self.body(shallow)), self.upscale)
        return ((image + self.mean) / self.img_range)[..., :height, :width]


def _fixed_kernels(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The kernels in the authors' form, which are `shift` and `PixelMixer` here."""
    kernels, fixed = fixed_kernels(5), {}
    for name, value in ours.items():
        if re.fullmatch(r'body\.\d+\.mlp_list\.\d+\.fc[12]\.weight', name):
            fixed[name.replace('weight', 'mask')] = fixed_kernels(value.shape[1]).to(value)
        elif re.fullmatch(r'body\.\d+\.sa_list\.\d+\.norm\.weight', name):
            mask = kernels.repeat(len(value) // 5, 1, 1, 1)
            fixed[name.replace('norm.weight', 'token_mixer.mask')] = mask.to(value)
    return fixed


def _from_official(ours: dict[str, Tensor], official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, expected in _fixed_kernels(ours).items():
        if not torch.equal(mean_shift.take(official, name), expected):
            raise ValueError(f'{name} must hold the fixed kernels of EMT: the code here has no others')
    return mean_shift.fold(ours, official)


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    layers = shapes.count(weights, 'body.0.sa_list.{}.')
    return {
        **shapes.images(weights),
        **shapes.mean_of_grey(weights),
        'num_block': shapes.count(weights, 'body.{}.'),
        'num_layer': layers,
        'num_attention': sum(f'body.0.sa_list.{layer}.proj.0.weight' in weights for layer in range(layers)),
        'mlp_ratio': shapes.ratio(len(weights['body.0.mlp_list.0.fc1.weight']), len(weights['conv_first.weight'])),
        'upscale': shapes.shuffle(weights),
    }


register_format(
    ArchFormat(
        arch=EMT,
        names=(
            *mean_shift.ROWS,
            ('head.{end}', 'conv_first.{end}'),
            ('tail.0.{end}', 'conv_last.{end}'),
            'body.{block}.sa_list.{layer}.{conv:attn.0|proj.0}.{end}',
            'body.{block}.sa_list.{layer}.{norm:attn.1|norm}.{statistic}',
            'body.{block}.mlp_list.{layer}.{conv:fc1|fc2}.{end}',
            ('body.{block}.sa_list.{layer}.token_mixer.mask', None),
            ('body.{block}.mlp_list.{layer}.{conv:fc1|fc2}.mask', None),
        ),
        arguments=_arguments,
        official_arguments=renamed(
            task=None,  # the tails of other tasks
            dim='num_feat',
            n_blocks='num_block',
            n_layers='num_layer',
            n_GTLs='num_attention',
            window_list='window_size',
            shift_list='shift_size',
        ),
        untold={
            'num_heads': 1,
            'window_size': ((32, 8), (8, 32)),
            'shift_size': ((16, 4), (4, 16)),
            'img_range': 255.0,
        },
        from_official=_from_official,
        to_official=lambda official, ours: mean_shift.unfold(official | _fixed_kernels(ours), ours),
        layout=under('params'),
        sizes=Sizes(minimum=17, pads=True),
        recipe=Recipe(
            about="The recipe is that of the authors' option file: DIV2K and Flickr2K, HR patches of 256x256 at every "
            'scale, 1,000,000 iterations. The file has 8 patches on each GPU and does not say how many GPUs. At x3 it '
            'cannot run, because 256 is not a multiple of 3: here the patches are 255x255.',
            hr_patch=256,
            batch=8,
            data=DF2K,
            optim_g=adam(5e-4),
            scheduler=cosine(1_000_000, eta_min=1e-6),
            total_iter=1_000_000,
            comments={
                'use_hflip': AUTHORS_FLIPS,
                'batch_size_per_gpu': 'on each GPU; the authors do not say how many',
                'rgb_mean': 'of DF2K',
                'pixel_opt:loss_weight': ON_255,
            },
        ),
        source=Source(
            'Efficient Mixed Transformer for Single Image Super-Resolution (Zheng et al.)',
            2023,
            'https://github.com/Fried-Rice-Lab/EMT',
            'MIT',
            'MIT',
            weights='repository',
        ),
    )
)
