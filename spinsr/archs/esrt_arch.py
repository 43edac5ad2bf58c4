"""ESRT: Transformer for Single Image Super-Resolution (Lu et al., CVPRW 2022).

Upstream: https://github.com/luissen/ESRT (MIT; nothing is copied). Written from a description of the published network:
the same function in float64, without its 12 unused numbers, and with images of any size from 1 x 1. Weights are
converted by `spinsr.convert`.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import shapes
from spinsr.convert.mean_shift import take
from spinsr.convert.recipe import Recipe, adam, halved_every
from spinsr.convert.registry import ArchFormat, PublishedResult, Sizes, Source, bare, register_format, renamed
from spinsr.modules.attention import attend, merge_heads, split_heads
from spinsr.modules.channel_attention import ChannelAttention
from spinsr.modules.distillation import CollectedBlocks
from spinsr.modules.padding import pad_to
from spinsr.modules.upsample import Upsample
from spinsr.utils.validation import between, check, check_divisible

# How often the block works on its features of half the size, with the same weights.
_ROUNDS = 5


class ResidualUnit(nn.Module):
    """RU: two 3 x 3 convolutions, narrow between them, and the input, each with a learned factor.

    Args:
        num_feat: Channels C.
    """

    def __init__(self, num_feat: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, num_feat // 2, 3, 1, 1)
        self.act = nn.PReLU(num_feat // 2)
        self.conv2 = nn.Conv2d(num_feat // 2, num_feat, 3, 1, 1)
        self.scale_skip = nn.Parameter(torch.ones(1))
        self.scale_conv = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.scale_skip * x + self.scale_conv * self.conv2(self.act(self.conv1(x)))


class AdaptiveResidualFeatureBlock(nn.Module):
    """ARFB: two residual units, fused, channel attention, a convolution, and the input; all with learned factors.

    Args:
        num_feat: Channels C.
        squeeze_factor: Channel reduction of the attention.
    """

    def __init__(self, num_feat: int, squeeze_factor: int):
        super().__init__()
        self.unit1 = ResidualUnit(num_feat)
        self.unit2 = ResidualUnit(num_feat)
        self.fuse = nn.Conv2d(2 * num_feat, num_feat, 1, bias=False)
        self.attention = ChannelAttention(num_feat, squeeze_factor)
        self.conv = nn.Conv2d(num_feat, num_feat, 3, 1, 1, bias=False)
        self.scale_unit2 = nn.Parameter(torch.ones(1))
        self.scale_unit1 = nn.Parameter(torch.ones(1))
        self.scale_skip = nn.Parameter(torch.ones(1))
        self.scale_conv = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        first = self.unit1(x)
        both = torch.cat([self.scale_unit2 * self.unit2(first), self.scale_unit1 * first], 1)
        y = F.relu(self.conv(self.attention(F.relu(self.fuse(both)))))
        return self.scale_skip * x + self.scale_conv * y


class HighPreservingBlock(nn.Module):
    """HPB: the features without their details go through more layers, at half the size, than the details.

    Args:
        num_feat: Channels C.
        squeeze_factor: Channel reduction of the attentions.
    """

    def __init__(self, num_feat: int, squeeze_factor: int):
        super().__init__()
        self.arfb_in = AdaptiveResidualFeatureBlock(num_feat, squeeze_factor)
        self.arfb_low = AdaptiveResidualFeatureBlock(num_feat, squeeze_factor)
        self.arfb_high = AdaptiveResidualFeatureBlock(num_feat, squeeze_factor)
        self.fuse = nn.Conv2d(2 * num_feat, num_feat, 1, bias=False)
        self.attention = ChannelAttention(num_feat, squeeze_factor)
        self.arfb_out = AdaptiveResidualFeatureBlock(num_feat, squeeze_factor)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), H, W >= 2."""
        features = self.arfb_in(x)
        low = F.avg_pool2d(features, 2)  # (B, C, H // 2, W // 2)
        high = features - _enlarge(low, features)
        for _ in range(_ROUNDS):
            low = self.arfb_low(low)
        both = torch.cat([_enlarge(low, features), self.arfb_high(high)], 1)
        return x + self.arfb_out(self.attention(F.relu(self.fuse(both))))


def _enlarge(x: Tensor, target: Tensor) -> Tensor:
    return F.interpolate(x, target.shape[2:], mode='bilinear', align_corners=True)


class EfficientTransformer(nn.Module):
    """ET: attention inside each of four parts of the tokens, and an MLP, each added to its input.

    Args:
        dim: Width D of a token; attention has half of it.
        num_heads: Heads; they divide D // 2.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        # The authors' scale is that of a head of the full width.
        self.scale = (dim // num_heads) ** -0.5
        self.norm1 = nn.LayerNorm(dim)
        self.reduce = nn.Linear(dim, dim // 2, bias=False)
        self.qkv = nn.Linear(dim // 2, 3 * (dim // 2), bias=False)
        self.proj = nn.Linear(dim // 2, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim // 4)
        self.fc2 = nn.Linear(dim // 4, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D), N >= 4 -> (B, N, D). If 4 does not divide N, the other N % 4 tokens are a fifth part."""
        part = x.shape[1] // 4
        q, k, v = (y.split(part, 2) for y in split_heads(self.qkv(self.reduce(self.norm1(x))), 3, self.num_heads))
        mixed = [merge_heads(attend(*one, self.scale)) for one in zip(q, k, v, strict=True)]  # (B, part, D // 2) each
        x = x + self.proj(torch.cat(mixed, 1))
        return x + self.fc2(F.relu(self.fc1(self.norm2(x))))


@ARCH_REGISTRY.register()
class ESRT(nn.Module):
    """Efficient super-resolution transformer.

    Its attention cuts the tokens of the whole image into four equal parts, in raster order.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C, an even number.
        num_block: High-preserving blocks.
        squeeze_factor: Channel reduction of the channel attentions, 1 to C.
        num_heads: Heads of the transformer; they divide 9 C / 2.
        upscale: 3 or a power of two.

    Raises:
        ValueError: The arguments do not fit together.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 32,
        num_block: int = 3,
        squeeze_factor: int = 16,
        num_heads: int = 8,
        upscale: int = 4,
    ):
        super().__init__()
        check(between(1, num_feat), squeeze_factor=squeeze_factor)
        check_divisible(**{'9 * num_feat // 2': 9 * num_feat // 2, 'num_heads': num_heads})
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.blocks = CollectedBlocks(HighPreservingBlock(num_feat, squeeze_factor) for _ in range(num_block))
        self.conv_fuse = nn.Conv2d(num_block * num_feat, num_feat, 3, 1, 1)
        self.transformer = EfficientTransformer(9 * num_feat, num_heads)
        self.conv_tokens = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.scale_skip = nn.Parameter(torch.ones(1))
        self.scale_deep = nn.Parameter(torch.ones(1))
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.upsample = Upsample(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        self.upsample_skip = Upsample(upscale, num_feat)
        self.conv_skip = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1, bias=False)
        self.upscale = upscale

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        shallow = self.conv_first(pad_to(x, 2, 2))
        y = self.conv_fuse(self.blocks(shallow))
        tokens = F.unfold(y, 3, padding=1).transpose(1, 2)  # (B, H * W, 9C)
        y = F.fold(self.transformer(tokens).transpose(1, 2), y.shape[2:], 3, padding=1)  # (B, C, H, W)
        deep = self.conv_after_body(self.scale_skip * shallow + self.scale_deep * self.conv_tokens(y))
        image = self.conv_last(self.upsample(deep)) + F.relu(self.conv_skip(self.upsample_skip(shallow)))
        return image[..., :height, :width]


_ARFB = {'encoder': 'arfb_in', 'decoder_low': 'arfb_low', 'decoder_high': 'arfb_high', 'alise': 'arfb_out'}
_IN_ARFB = (
    ('layer{unit:1|2}.conv.{end}', 'unit{unit}.conv1.{end}'),
    ('layer{unit:1|2}.relu.weight', 'unit{unit}.act.weight'),
    ('layer{unit:1|2}.conv1.{end}', 'unit{unit}.conv2.{end}'),
    ('layer{unit:1|2}.weight1.scale', 'unit{unit}.scale_skip'),
    ('layer{unit:1|2}.weight2.scale', 'unit{unit}.scale_conv'),
    ('alise.conv.weight', 'fuse.weight'),
    ('atten.conv_du.0.{end}', 'attention.attention.1.{end}'),
    ('atten.conv_du.2.{end}', 'attention.attention.3.{end}'),
    ('layer4.conv.weight', 'conv.weight'),
    ('weight2.scale', 'scale_unit2'),
    ('weight3.scale', 'scale_unit1'),
    ('weight4.scale', 'scale_skip'),
    ('weight5.scale', 'scale_conv'),
)
_UNUSED = 'body.0.encoder{number}.{arfb:encoder|decoder_low|decoder_high|alise}.weight1.scale'


def _to_official(official: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds zeros for the factors without which the authors' network does not load."""
    like, blocks = take(ours, 'scale_skip'), range(1, shapes.count(ours, 'blocks.block_{}.'))
    unused = (f'body.0.encoder{number}.{arfb}.weight1.scale' for number in blocks for arfb in _ARFB)
    return official | {name: torch.zeros_like(like) for name in unused}


_PUBLISHED = 'CVPRW 2022, github.com/luissen/ESRT'

register_format(
    ArchFormat(
        arch=ESRT,
        names=(
            ('head.0.{end}', 'conv_first.{end}'),
            *(
                (f'body.0.encoder{{number}}.{theirs}.{their_part}', f'blocks.block_{{number}}.{ours}.{our_part}')
                for theirs, ours in _ARFB.items()
                for their_part, our_part in _IN_ARFB
            ),
            ('body.0.encoder{number}.alise2.conv.weight', 'blocks.block_{number}.fuse.weight'),
            ('body.0.encoder{number}.att.conv_du.0.{end}', 'blocks.block_{number}.attention.attention.1.{end}'),
            ('body.0.encoder{number}.att.conv_du.2.{end}', 'blocks.block_{number}.attention.attention.3.{end}'),
            ('body.0.reduce.{end}', 'conv_fuse.{end}'),
            ('body.0.attention.{norm:norm1|norm2}.{end}', 'transformer.{norm}.{end}'),
            ('body.0.attention.atten.{linear:reduce|qkv|proj}.{end}', 'transformer.{linear}.{end}'),
            ('body.0.attention.mlp.{linear:fc1|fc2}.{end}', 'transformer.{linear}.{end}'),
            ('body.0.alise.{end}', 'conv_tokens.{end}'),
            ('body.0.weight1.scale', 'scale_skip'),
            ('body.0.weight2.scale', 'scale_deep'),
            ('reduce.{end}', 'conv_after_body.{end}'),
            ('tail.0.{stage}.{end}', 'upsample.{stage}.{end}'),
            ('tail.1.{end}', 'conv_last.{end}'),
            ('up.0.{stage}.{end}', 'upsample_skip.{stage}.{end}'),
            ('up.1.conv.weight', 'conv_skip.weight'),
        ),
        unused=(_UNUSED,),
        arguments=lambda weights: {
            **shapes.images(weights),
            'num_block': shapes.count(weights, 'blocks.block_{}.') - 1,  # numbered from 1
            'squeeze_factor': len(weights['conv_first.weight'])
            // len(weights['blocks.block_1.attention.attention.1.weight']),
            'upscale': shapes.stages(weights),
        },
        official_arguments=renamed(n_feats='num_feat', reduction='squeeze_factor'),
        untold={'num_heads': 1},
        to_official=_to_official,
        layout=bare,
        sizes=Sizes(minimum=2, pads=True),
        tiling='discouraged',
        published=(
            PublishedResult(2, 677_000, '38.03 33.75 32.25 32.58 39.12', _PUBLISHED),
            PublishedResult(3, 770_000, '34.42 30.43 29.15 28.46 33.95', _PUBLISHED),
            PublishedResult(4, 751_000, '32.19 28.69 27.69 26.39 30.75', _PUBLISHED),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' code: LR patches of 48x48, batch 16, 1,000 epochs of 500 "
            'iterations. They call larger patches (LR 64x64) better. The folder that the code reads is named after '
            'DIV2K and Flickr2K, but it takes 800 images, the number of those of DIV2K, which we use.',
            patch=48,
            batch=16,
            optim_g=adam(2e-4),
            scheduler=halved_every(100_000, 500_000),
            total_iter=500_000,
            comments={'milestones': 'every 200 epochs'},
        ),
        source=Source(
            'Transformer for Single Image Super-Resolution (Lu et al., CVPRW 2022)',
            2022,
            'https://github.com/luissen/ESRT',
            'MIT',
            weights='none',
        ),
    )
)
