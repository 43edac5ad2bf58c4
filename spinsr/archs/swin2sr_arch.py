"""Swin2SR: SwinV2 Transformer for Compressed Image Super-Resolution and Restoration (Conde et al., ECCVW 2022).

Upstream: https://github.com/mv-lab/swin2sr (Apache-2.0; nothing is copied). Written from a description of the published
network: the same function in float64, with images of any size from 1 x 1. The form `pixelshuffle_hf`, which returns
three images, is left out. Weights are converted by `spinsr.convert`.
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
from spinsr.convert.recipe import DF2K, Recipe, Start, adam, multistep
from spinsr.convert.registry import ArchFormat, PublishedResult, Sizes, Source, register_format, renamed, under
from spinsr.modules.attention import attend, merge_heads, split_heads
from spinsr.modules.cosine import unit_vectors
from spinsr.modules.layout import to_image, to_tokens
from spinsr.modules.mean_shift import register_constant_mean
from spinsr.modules.padding import pad_to_multiple
from spinsr.modules.position_bias import gather_bias, relative_position_index
from spinsr.modules.upsample import Upsample
from spinsr.modules.windows import from_windows, shift_mask, to_windows
from spinsr.utils.validation import check, check_divisible, check_length, one_of

# As the authors have it, in float32.
_LARGEST_LOGIT_SCALE = torch.tensor(math.log(100), dtype=torch.float32).item()


def _relative_coords(window_size: int) -> Tensor:
    """Offsets (row, column) of query - key, on a logarithmic scale: (1, 2 size - 1, 2 size - 1, 2)."""
    along = torch.arange(1 - window_size, window_size, dtype=torch.float32) / max(window_size - 1, 1) * 8
    along = along.sign() * torch.log2(along.abs() + 1) / math.log2(8)
    return torch.stack(torch.meshgrid(along, along, indexing='ij'), -1)[None]


class CosineWindowAttention(nn.Module):
    """Attention inside windows by cosine similarity, with biases that a small network computes from the offsets.

    Args:
        embed_dim: Channels C.
        num_heads: Heads; they divide C.
        window_size: Side of the windows.
    """

    relative_coords_table: Tensor
    index: Tensor

    def __init__(self, embed_dim: int, num_heads: int, window_size: int):
        super().__init__()
        self.num_heads, self.window_size = num_heads, window_size
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, num_heads, bias=False))
        self.register_buffer('relative_coords_table', _relative_coords(window_size))
        self.register_buffer('index', relative_position_index(window_size), persistent=False)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(embed_dim))
        self.v_bias = nn.Parameter(torch.zeros(embed_dim))
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Mixes the pixels of each window.

        Args:
            x: (B * windows, P, C).
            mask: (windows, 1, P, P), added to the logits.

        Returns:
            (B * windows, P, C).
        """
        no_bias = torch.zeros_like(self.q_bias)
        qkv = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, no_bias, self.v_bias]))
        q, k, v = split_heads(qkv, 3, self.num_heads)  # (B * windows, heads, P, C / heads)
        scale = self.logit_scale.clamp(max=_LARGEST_LOGIT_SCALE).exp().to(q.dtype)
        bias = 16 * torch.sigmoid(gather_bias(self.cpb_mlp(self.relative_coords_table).flatten(0, 2), self.index))[None]
        if mask is not None:
            bias = (bias + mask).repeat(len(x) // len(mask), 1, 1, 1)
        return self.proj(merge_heads(attend(unit_vectors(q) * scale, unit_vectors(k), v, 1.0, bias)))


class SwinBlock(nn.Module):
    """Attention and an MLP, each normalised and then added to its input.

    Args:
        embed_dim: Channels C.
        num_heads, window_size: Of the attention.
        shift: Pixels by which the image is rolled before it is cut into windows.
        mlp_ratio: Channels inside the MLP, in units of C.
        drop_path: Probability of leaving out a residual of an image in training.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, window_size: int, shift: int, mlp_ratio: float, drop_path: float
    ):
        super().__init__()
        self.window_size, self.shift, self.drop_path = window_size, shift, drop_path
        hidden = int(mlp_ratio * embed_dim)
        self.attn = CosineWindowAttention(embed_dim, num_heads, window_size)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.mlp = nn.ModuleDict({'fc1': nn.Linear(embed_dim, hidden), 'fc2': nn.Linear(hidden, embed_dim)})
        self.norm2 = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), sides divisible by the window's; the mask is that of shifted windows."""
        height, width = x.shape[1:3]
        y = x.roll((-self.shift, -self.shift), (1, 2)) if self.shift else x
        tokens = to_windows(to_image(y), self.window_size, self.window_size).flatten(2).transpose(1, 2)
        tokens = self.norm1(self.attn(tokens, mask if self.shift else None))  # (B * windows, P, C)
        windows = tokens.transpose(1, 2).unflatten(2, (self.window_size, self.window_size))
        y = to_tokens(from_windows(windows, height, width))
        y = y.roll((self.shift, self.shift), (1, 2)) if self.shift else y
        x = x + self._drop(y)
        return x + self._drop(self.norm2(self.mlp['fc2'](F.gelu(self.mlp['fc1'](x)))))

    def _drop(self, x: Tensor) -> Tensor:
        if not (self.training and self.drop_path):
            return x
        keep = 1 - self.drop_path
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(keep) / keep


class ResidualSwinBlocks(nn.Module):
    """RSTB: blocks, a convolution or three, a 1 x 1 convolution, and the input.

    Args:
        embed_dim: Channels C.
        blocks: The blocks.
        resi_connection: '1conv' or '3conv'.
    """

    def __init__(self, embed_dim: int, blocks: Sequence[SwinBlock], resi_connection: str):
        super().__init__()
        self.residual_group = nn.ModuleDict({'blocks': nn.ModuleList(blocks)})
        self.conv = _residual_convolution(embed_dim, resi_connection)
        self.patch_embed = nn.ModuleDict({'proj': nn.Conv2d(embed_dim, embed_dim, 1)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        y = x
        for block in self.residual_group['blocks'].children():
            y = block(y, mask)
        return x + to_tokens(self.patch_embed['proj'](self.conv(to_image(y))))


def _residual_convolution(channels: int, resi_connection: str) -> nn.Module:
    if resi_connection == '1conv':
        return nn.Conv2d(channels, channels, 3, 1, 1)
    narrow = channels // 4
    return nn.Sequential(
        nn.Conv2d(channels, narrow, 3, 1, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, narrow, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, channels, 3, 1, 1),
    )


@ARCH_REGISTRY.register()
class Swin2SR(nn.Module):
    """SwinV2 transformer; the defaults are the light network.

    Names of arguments and tensors are those of BasicSR's SwinIR where it has them.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        embed_dim: Channels C.
        depths: Blocks of each group.
        num_heads: Heads of each group; they divide C.
        window_size: Side of the windows.
        mlp_ratio: Channels inside an MLP, in units of C.
        drop_path_rate: Probability of leaving out a residual of the last block in training, rising from 0 at the first;
            the authors' is 0.1.
        upscale: 3 or a power of two; 4 with 'nearest+conv', 1 or more with 'pixelshuffledirect'.
        img_range: Scale in which the network works: it sees `(x - mean) * img_range`.
        upsampler: 'pixelshuffledirect', 'pixelshuffle', 'nearest+conv', or 'pixelshuffle_aux', which also makes an
            image of the LR's size (`forward(x, auxiliary=True)`).
        resi_connection: '1conv' or '3conv', the convolutions at the end of a group and of the body.
        num_feat: Channels after the body; without meaning for 'pixelshuffledirect'.
        shifted: Whether every second block shifts its windows. In the authors' code it does not if their `img_size` is
            at most `window_size`.

    Raises:
        ValueError: An argument breaks its rule.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        embed_dim: int = 60,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6),
        window_size: int = 8,
        mlp_ratio: float = 2,
        drop_path_rate: float = 0.0,
        upscale: int = 4,
        img_range: float = 1.0,
        upsampler: str = 'pixelshuffledirect',
        resi_connection: str = '1conv',
        num_feat: int = 64,
        shifted: bool = True,
    ):
        super().__init__()
        check(one_of('pixelshuffledirect', 'pixelshuffle', 'nearest+conv', 'pixelshuffle_aux'), upsampler=upsampler)
        check(one_of('1conv', '3conv'), resi_connection=resi_connection)
        check_length(num_heads=num_heads, groups=len(depths))
        for heads in num_heads:
            check_divisible(embed_dim=embed_dim, num_heads=heads)
        if upsampler == 'nearest+conv' and upscale != 4:
            raise ValueError(f"upscale must be 4 with upsampler='nearest+conv', got {upscale=}")
        self.upscale, self.img_range, self.window_size, self.upsampler = upscale, img_range, window_size, upsampler
        register_constant_mean(self, num_in_ch, num_out_ch)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        self.conv_first = nn.Conv2d(num_in_ch, embed_dim, 3, 1, 1)
        self.patch_embed = nn.ModuleDict({'proj': nn.Conv2d(embed_dim, embed_dim, 1), 'norm': nn.LayerNorm(embed_dim)})
        self.layers = nn.ModuleList()
        for depth, heads in zip(depths, num_heads, strict=True):
            shifts = [window_size // 2 if shifted and block % 2 else 0 for block in range(depth)]
            blocks = [SwinBlock(embed_dim, heads, window_size, shift, mlp_ratio, next(rates)) for shift in shifts]
            self.layers.append(ResidualSwinBlocks(embed_dim, blocks, resi_connection))
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = _residual_convolution(embed_dim, resi_connection)
        if upsampler == 'pixelshuffledirect':
            self.upsample = nn.Sequential(
                nn.Conv2d(embed_dim, upscale**2 * num_out_ch, 3, 1, 1), nn.PixelShuffle(upscale)
            )
            return
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, num_feat, 3, 1, 1), nn.LeakyReLU())
        if upsampler == 'nearest+conv':
            self.conv_up1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
            self.conv_up2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
            self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        else:
            self.upsample = Upsample(upscale, num_feat)
        if upsampler == 'pixelshuffle_aux':
            self.conv_bicubic = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
            self.conv_aux = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
            self.conv_after_aux = nn.Sequential(nn.Conv2d(num_out_ch, num_feat, 3, 1, 1), nn.LeakyReLU())
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)

    def forward(self, x: Tensor, auxiliary: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W).

        Args:
            x: The images.
            auxiliary: Return the image of the LR's size that 'pixelshuffle_aux' makes too, as `{'aux': ...}`; its sides
                are extended to whole windows.

        Raises:
            ValueError: `auxiliary` is for a network with another upsampler.
        """
        if auxiliary and self.upsampler != 'pixelshuffle_aux':
            raise ValueError(f"auxiliary needs upsampler='pixelshuffle_aux', got {self.upsampler!r}")
        size = tuple(side * self.upscale for side in x.shape[2:])
        x = (pad_to_multiple(x, self.window_size) - self.mean) * self.img_range
        shallow = self.conv_first(x)
        deep = shallow + self.conv_after_body(self._body(shallow))
        image, aux = self._reconstruct(deep, x, size)
        image = image[..., : size[0], : size[1]] / self.img_range + self.mean
        if not auxiliary:
            return image
        assert aux is not None
        return image, {'aux': aux / self.img_range + self.mean}

    def _body(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), sides divisible by the window's."""
        height, width = x.shape[2:]
        mask = shift_mask(height, width, self.window_size, x)
        x = self.patch_embed['norm'](to_tokens(self.patch_embed['proj'](x)))  # (B, H, W, C)
        for layer in self.layers:
            x = layer(x, mask)
        return to_image(self.norm(x))

    def _reconstruct(self, x: Tensor, lr: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Features (B, C, H, W) -> the image, at least of the size, and the auxiliary image."""
        if self.upsampler == 'pixelshuffledirect':
            return self.upsample(x), None
        x = self.conv_before_upsample(x)
        if self.upsampler == 'pixelshuffle':
            return self.conv_last(self.upsample(x)), None
        if self.upsampler == 'nearest+conv':
            for conv in (self.conv_up1, self.conv_up2):
                x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode='nearest')), 0.2)
            return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2)), None
        aux = self.conv_aux(x)
        # As the authors: the extended LR shrinks to the size of the image that was not, so it is not aligned.
        bicubic = self.conv_bicubic(F.interpolate(lr, size, mode='bicubic', align_corners=False))
        features = self.upsample(self.conv_after_aux(aux))[..., : size[0], : size[1]]
        return self.conv_last(features + bicubic), aux


# The authors' training size, from which the shape of the masks in their files follows.
_IMG_SIZE = 64
_ATTENTION = 'layers.{layer}.residual_group.blocks.{block}.attn.'


def _to_official(official: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the constants of each block: the numbers of the offsets, and the masks of an image of 64 x 64."""
    added = {}
    for name, value in ours.items():
        if match := re.fullmatch(r'(layers\.\d+\.residual_group\.blocks\.(\d+)\.)attn\.relative_coords_table', name):
            size = (value.shape[1] + 1) // 2
            added[f'{match[1]}attn.relative_position_index'] = relative_position_index(size).to(value.device)
            if int(match[2]) % 2:
                side = _IMG_SIZE // size * size
                added[f'{match[1]}attn_mask'] = shift_mask(side, side, size, value).squeeze(1)
    return official | added


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    first, groups = weights['conv_first.weight'], range(shapes.count(weights, 'layers.{}.'))
    block = 'layers.{}.residual_group.blocks.'
    if 'conv_before_upsample.0.weight' not in weights:
        tail: dict[str, Any] = {
            'upsampler': 'pixelshuffledirect',
            'upscale': shapes.shuffle(weights, 'upsample.0.weight'),
        }
    else:
        words = {'conv_aux.weight': 'pixelshuffle_aux', 'conv_up1.weight': 'nearest+conv'}
        upsampler = next((word for name, word in words.items() if name in weights), 'pixelshuffle')
        tail = {
            'upsampler': upsampler,
            'num_feat': len(weights['conv_before_upsample.0.weight']),
            'upscale': 4 if upsampler == 'nearest+conv' else shapes.stages(weights),
        }
    return {
        'num_in_ch': first.shape[1],
        'num_out_ch': first.shape[1],
        'embed_dim': len(first),
        'depths': tuple(shapes.count(weights, block.format(group) + '{}.') for group in groups),
        'num_heads': tuple(len(weights[block.format(group) + '0.attn.logit_scale']) for group in groups),
        'window_size': (weights[block.format(0) + '0.attn.relative_coords_table'].shape[1] + 1) // 2,
        'mlp_ratio': shapes.ratio(len(weights[block.format(0) + '0.mlp.fc1.weight']), len(first)),
        'resi_connection': '3conv' if 'conv_after_body.0.weight' in weights else '1conv',
        **tail,
    }


_translate = renamed(
    in_chans='num_in_ch',
    img_size=None,
    patch_size=None,  # always 1
    qkv_bias=None,
    drop_rate=None,
    attn_drop_rate=None,
    norm_layer=None,
    ape=None,
    patch_norm=None,
    use_checkpoint=None,
)


def _official_arguments(variant: str, official: Mapping[str, Any]) -> dict[str, Any]:
    shifted = official.get('img_size', _IMG_SIZE) > official['window_size']
    return {**_translate(variant, official), 'num_out_ch': official.get('in_chans', 3), 'shifted': shifted}


_REDUX = 'ECCVW 2022, as cited by github.com/the-database/traiNNer-redux; trained on DF2K'
_CLASSICAL = {'embed_dim': 180, 'depths': (6,) * 6, 'num_heads': (6,) * 6, 'upsampler': 'pixelshuffle'}

register_format(
    ArchFormat(
        arch=Swin2SR,
        names=(
            '{conv:conv_first|conv_last|conv_up1|conv_up2|conv_hr|conv_bicubic|conv_aux|conv_after_body}.{end}',
            '{conv:conv_after_body|conv_before_upsample|conv_after_aux|upsample}.{number}.{end}',
            'patch_embed.{part:proj|norm}.{end}',
            'norm.{end}',
            'layers.{layer}.residual_group.blocks.{block}.{part:norm1|norm2|mlp.fc1|mlp.fc2}.{end}',
            _ATTENTION + '{part:qkv|proj|cpb_mlp.0|cpb_mlp.2}.{end}',
            _ATTENTION + '{part:logit_scale|q_bias|v_bias|relative_coords_table}',
            (_ATTENTION + 'relative_position_index', None),
            ('layers.{layer}.residual_group.blocks.{block}.attn_mask', None),
            'layers.{layer}.conv.{end}',
            'layers.{layer}.conv.{number}.{end}',
            'layers.{layer}.patch_embed.proj.{end}',
        ),
        arguments=_arguments,
        configurations={
            'Swin2SR-light': {},
            'Swin2SR-classical': _CLASSICAL,
            'Swin2SR-compressed': {**_CLASSICAL, 'upsampler': 'pixelshuffle_aux'},
            'Swin2SR-real': {**_CLASSICAL, 'upsampler': 'nearest+conv'},
            'Swin2SR-real-large': {
                'embed_dim': 240,
                'depths': (6,) * 9,
                'num_heads': (8,) * 9,
                'upsampler': 'nearest+conv',
                'resi_connection': '3conv',
            },
        },
        official_arguments=_official_arguments,
        untold={'img_range': 1.0, 'shifted': True},
        to_official=_to_official,
        layout=under('params'),
        sizes=Sizes(minimum=5, multiple=8, pads=True),
        published=(
            PublishedResult(2, 1_005_348, '- - - 32.85 -', _REDUX, 'Swin2SR-light'),
            PublishedResult(2, 12_091_571, '- - - 33.89 -', _REDUX, 'Swin2SR-classical'),
            PublishedResult(4, 12_239_283, '- - - 27.51 -', _REDUX, 'Swin2SR-classical'),
        ),
        recipe=Recipe(
            about="The authors' training code is not in their repository. Our choice is the recipe of SwinIR, on which "
            'the network builds: 500,000 iterations, 2e-4 halved at 250,000, 400,000, 450,000 and 475,000, EMA, x3 and '
            'x4 from x2. Swin2SR-light: LR patches of 64x64, batch 64, DIV2K. Swin2SR-classical: batch 32, DIV2K and '
            'Flickr2K. We have recipes only for these two.',
            patch=64,
            batch=64,
            network={'drop_path_rate': 0.1},
            ema_decay=0.999,
            optim_g=adam(2e-4),
            scheduler=multistep(250_000, 400_000, 450_000, 475_000),
            total_iter=500_000,
            start=Start(
                scale=2,
                comment='As for SwinIR, x3 and x4 start from the x2 model, so train that first. What has another shape '
                'is initialised randomly. To train from scratch: ~ and strict_load_g: true.',
            ),
            by_configuration={
                'Swin2SR-light': {'scales': ()},  # the same as Swin2SR here
                'Swin2SR-classical': {'batch': 32, 'data': DF2K},
                'Swin2SR-compressed': {'scales': ()},
                'Swin2SR-real': {'scales': ()},
                'Swin2SR-real-large': {'scales': ()},
            },
            comments={'drop_path_rate': 'the authors; 0.0 when the network is used makes no difference'},
        ),
        source=Source(
            'Swin2SR: SwinV2 Transformer for Compressed Image Super-Resolution and Restoration (Conde et al., '
            'ECCVW 2022)',
            2022,
            'https://github.com/mv-lab/swin2sr',
            'Apache-2.0',
            weights='release',
        ),
    )
)
