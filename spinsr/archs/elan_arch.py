"""ELAN: Efficient Long-Range Attention Network for Image Super-Resolution (Zhang et al., ECCV 2022).

Upstream: https://github.com/xindongzhang/ELAN (Apache-2.0; nothing is copied). Written from a description of the
published network: the same function in float64, with the fixed one-hot convolutions as slices, and with images of any
size from 1 x 1. Weights are converted by `spinsr.convert`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import mean_shift, shapes
from spinsr.convert.recipe import AUTHORS_FLIPS, ON_255, Recipe, adam, multistep
from spinsr.convert.registry import ArchFormat, PublishedResult, Sizes, Source, bare, register_format, renamed
from spinsr.modules.mean_shift import DIV2K_MEAN, register_mean
from spinsr.modules.padding import pad_to_multiple
from spinsr.modules.shift import ShiftedMLP, fixed_kernels
from spinsr.modules.windows import from_windows, to_windows
from spinsr.utils.validation import check_divisible, check_equal, check_length


class GroupwiseAttention(nn.Module):
    """GMSA: attention inside windows of several sizes side by side, each with its own share of the channels.

    Queries and keys are the same; there is no scale, no position bias, and no mask for windows that wrap round.

    Args:
        num_feat: Channels C, divisible by len(window_size).
        window_size: Sides of the windows.
        has_maps: Computes attention maps of its own; otherwise it takes those of an earlier layer.
    """

    def __init__(self, num_feat: int, window_size: Sequence[int], has_maps: bool):
        super().__init__()
        self.window_size, self.has_maps = window_size, has_maps
        self.project_in = nn.Conv2d(num_feat, (1 + has_maps) * num_feat, 1)
        self.norm = nn.BatchNorm2d((1 + has_maps) * num_feat)
        self.project_out = nn.Conv2d(num_feat, num_feat, 1)

    def forward(self, x: Tensor, maps: list[Tensor], shifted: bool) -> tuple[Tensor, list[Tensor]]:
        """Mixes the pixels of each window.

        Args:
            x: (B, C, H, W), sides divisible by every window.
            maps: (B * windows, pixels, pixels) for each share; ignored where the layer has its own.
            shifted: Rolls the image by half a window before it is cut, and back afterwards.

        Returns:
            (B, C, H, W) and the maps.
        """
        shares = self.norm(self.project_in(x)).chunk(len(self.window_size), 1)  # (B, 2C or C / shares, H, W) each
        shifts = [size // 2 if shifted else 0 for size in self.window_size]
        windows = [
            to_windows(share.roll((-offset, -offset), (2, 3)), size, size).flatten(2).transpose(1, 2)
            for share, size, offset in zip(shares, self.window_size, shifts, strict=True)
        ]  # (B * windows, pixels, 2C or C / shares) each
        if self.has_maps:
            queries, windows = zip(*(window.chunk(2, 2) for window in windows), strict=True)
            maps = [(q @ q.transpose(1, 2)).softmax(2) for q in queries]
        height, width = x.shape[2:]
        mixed = [
            from_windows((m @ v).transpose(1, 2).unflatten(2, (size, size)), height, width).roll(
                (offset, offset), (2, 3)
            )
            for m, v, size, offset in zip(maps, windows, self.window_size, shifts, strict=True)
        ]
        return self.project_out(torch.cat(mixed, 1)), maps


class EfficientLongRangeAttentionBlock(nn.Module):
    """ELAB: layers of local features and attention, each added to its input; all share the first layer's maps.

    Args:
        num_feat: Channels C.
        num_layer: Layers.
        mlp_ratio: Channels inside the local feature extraction, in units of C.
        window_size: Sides of the windows.
        shifted: Cuts the windows half a window further.
    """

    def __init__(self, num_feat: int, num_layer: int, mlp_ratio: float, window_size: Sequence[int], shifted: bool):
        super().__init__()
        self.shifted = shifted
        self.lfe = nn.ModuleList(ShiftedMLP(num_feat, int(mlp_ratio * num_feat), F.relu) for _ in range(num_layer))
        self.gmsa = nn.ModuleList(
            GroupwiseAttention(num_feat, window_size, has_maps=layer == 0) for layer in range(num_layer)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        maps: list[Tensor] = []
        for lfe, gmsa in zip(self.lfe, self.gmsa, strict=True):
            x = x + lfe(x)
            mixed, maps = gmsa(x, maps, self.shifted)
            x = x + mixed
        return x


@ARCH_REGISTRY.register()
class ELAN(nn.Module):
    """Efficient long-range attention network; ELAN-light is `num_feat=60, num_block=12, num_layer=2`.

    Its batch normalisation makes an image depend on its batch, except in eval mode.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C, divisible by len(window_size).
        num_block: Blocks; the windows of every second one are shifted.
        num_layer: Layers in each block, with the attention maps of the first.
        mlp_ratio: Channels inside the local feature extraction, in units of C.
        window_size: Sides of the windows, one a share of the channels.
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
        num_feat: int = 180,
        num_block: int = 36,
        num_layer: int = 1,
        mlp_ratio: float = 2,
        window_size: Sequence[int] = (4, 8, 16),
        upscale: int = 4,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = DIV2K_MEAN,
    ):
        super().__init__()
        check_equal(num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        check_length(rgb_mean=rgb_mean, num_in_ch=num_in_ch)
        check_divisible(**{'num_feat': num_feat, 'len(window_size)': len(window_size)})
        self.upscale, self.img_range, self.multiple = upscale, img_range, math.lcm(*window_size)
        register_mean(self, img_range, rgb_mean)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = nn.Sequential(
            *(
                EfficientLongRangeAttentionBlock(num_feat, num_layer, mlp_ratio, tuple(window_size), block % 2 == 1)
                for block in range(num_block)
            )
        )
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        shallow = self.conv_first(pad_to_multiple(x, self.multiple) * self.img_range - self.mean)
        image = F.pixel_shuffle(self.conv_last(shallow + self.body(shallow)), self.upscale)
        return ((image + self.mean) / self.img_range)[..., :height, :width]


_LFE, _GMSA = 'body.{block}.modules_lfe.lfe_{layer}.', 'body.{block}.modules_gmsa.gmsa_{layer}.'


def _fixed_kernels(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The kernels in the authors' form, which are `shift` here."""
    fixed = {}
    for name, value in ours.items():
        if name.endswith(('.fc1.weight', '.fc2.weight')):
            _, block, _, layer, conv, _ = name.split('.')
            kernel = f'{_LFE.format(block=block, layer=layer)}conv{int(conv[2]) - 1}.shift_conv.weight'
            fixed[kernel] = fixed_kernels(value.shape[1]).to(value)
    return fixed


def _from_official(ours: dict[str, Tensor], official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, expected in _fixed_kernels(ours).items():
        if not torch.equal(mean_shift.take(official, name), expected):
            raise ValueError(f'{name} must hold the fixed kernels of ELAN: the code here has no others')
    return mean_shift.fold(ours, official)


_translate = renamed(
    scale='upscale',
    colors=None,
    rgb_range='img_range',
    act_type=None,  # the authors' code ignores it
    c_elan='num_feat',
    m_elan=None,
    n_share=None,
    r_expand='mlp_ratio',
    window_sizes='window_size',
)


def _official_arguments(variant: str, official: Mapping[str, Any]) -> dict[str, Any]:
    layers = 1 + official['n_share']
    return {**_translate(variant, official), 'num_layer': layers, 'num_block': official['m_elan'] // layers}


_PUBLISHED = 'ECCV 2022, github.com/xindongzhang/ELAN'

register_format(
    ArchFormat(
        arch=ELAN,
        names=(
            *mean_shift.ROWS,
            ('head.0.{end}', 'conv_first.{end}'),
            ('tail.0.{end}', 'conv_last.{end}'),
            (_LFE + 'conv0.shift_conv.conv1x1.{end}', 'body.{block}.lfe.{layer}.fc1.{end}'),
            (_LFE + 'conv1.shift_conv.conv1x1.{end}', 'body.{block}.lfe.{layer}.fc2.{end}'),
            (_LFE + 'conv{conv:0|1}.shift_conv.weight', None),
            (_GMSA + 'project_inp.0.{end}', 'body.{block}.gmsa.{layer}.project_in.{end}'),
            (_GMSA + 'project_inp.1.{statistic}', 'body.{block}.gmsa.{layer}.norm.{statistic}'),
            (_GMSA + 'project_out.{end}', 'body.{block}.gmsa.{layer}.project_out.{end}'),
        ),
        arguments=lambda weights: {
            **shapes.images(weights),
            **shapes.mean_of_grey(weights),
            'num_block': shapes.count(weights, 'body.{}.'),
            'num_layer': shapes.count(weights, 'body.0.lfe.{}.'),
            'mlp_ratio': shapes.ratio(len(weights['body.0.lfe.0.fc1.weight']), len(weights['conv_first.weight'])),
            'upscale': shapes.shuffle(weights),
        },
        configurations={'ELAN-light': {'num_feat': 60, 'num_block': 12, 'num_layer': 2}},
        official_arguments=_official_arguments,
        untold={'window_size': (16,), 'img_range': 255.0},
        from_official=_from_official,
        to_official=lambda official, ours: mean_shift.unfold(official | _fixed_kernels(ours), ours),
        layout=bare,
        sizes=Sizes(minimum=9, multiple=16, pads=True),
        published=(
            PublishedResult(2, 582_000, '38.17 33.94 32.30 32.76 39.11', _PUBLISHED, 'ELAN-light'),
            PublishedResult(3, 590_000, '34.64 30.55 29.21 28.69 34.00', _PUBLISHED, 'ELAN-light'),
            PublishedResult(4, 601_000, '32.43 28.78 27.69 26.54 30.92', _PUBLISHED, 'ELAN-light'),
            PublishedResult(4, 8_310_000, '32.75 28.96 27.83 27.13 -', _PUBLISHED),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' option files, which are for x4 alone; that x2 and x3 are trained "
            'likewise is our choice. ELAN: HR patches of 192x192, batch 32, 1,000 epochs of 2,000 iterations. '
            'ELAN-light: HR patches of 256x256 (x3: 255x255), batch 64, 1,000 epochs of 1,000 iterations.',
            hr_patch=192,
            batch=32,
            optim_g=adam(2e-4),
            scheduler=multistep(500_000, 800_000, 900_000, 950_000, 1_000_000),
            total_iter=2_000_000,
            by_configuration={
                'ELAN-light': {
                    'hr_patch': 256,
                    'batch': 64,
                    'scheduler': multistep(250_000, 400_000, 450_000, 475_000, 500_000),
                    'total_iter': 1_000_000,
                }
            },
            comments={
                'use_hflip': AUTHORS_FLIPS,
                'batch_size_per_gpu': 'on all GPUs together: batch normalisation sees the images of one device',
                'milestones': 'epochs 250, 400, 450, 475, 500',
                'pixel_opt:loss_weight': ON_255,
            },
        ),
        protocol='spin_published',
        source=Source(
            'Efficient Long-Range Attention Network for Image Super-Resolution (Zhang et al., ECCV 2022)',
            2022,
            'https://github.com/xindongzhang/ELAN',
            'Apache-2.0',
            weights='none',
        ),
    )
)
