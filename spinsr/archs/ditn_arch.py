"""DITN: Unfolding Once is Enough: A Deployment-Friendly Transformer Unit for Super-Resolution (Liu et al., 2023).

Upstream: https://github.com/yongliuy/DITN (Apache-2.0; nothing is copied). Written from a description of the published
network, there `DITN_Real`: the same function in float64, with images of any size from 1 x 1. Weights are converted by
`spinsr.convert`.
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
from spinsr.convert.registry import ArchFormat, Sizes, Source, bare, register_format, renamed
from spinsr.modules.cosine import attend_channels
from spinsr.modules.gated_feed_forward import GatedFeedForward
from spinsr.modules.padding import pad_to_multiple
from spinsr.modules.windows import from_windows, to_windows

# The authors extend images to multiples of it, whatever the patch size.
_MULTIPLE = 8


class InteriorAttention(nn.Module):
    """ISA: attention between the channels of a patch, one head.

    Args:
        num_feat: Channels C.
        bias: Whether the last convolution has one.
    """

    def __init__(self, num_feat: int, bias: bool):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1, 1, 1))
        self.qkv = nn.Linear(num_feat, 3 * num_feat)
        self.project_out = nn.Conv2d(num_feat, num_feat, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(patches, C, P, P) -> (patches, C, P, P)."""
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).transpose(1, 2).chunk(3, 1)  # (patches, C, P * P)
        return self.project_out(attend_channels(q, k, v, self.temperature).view_as(x))


class DepthwiseAttention(nn.Module):
    """SDA: one half of the features times what large depthwise convolutions see of the other.

    Args:
        num_feat: Channels C.
    """

    def __init__(self, num_feat: int):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1, num_feat, 1, 1))
        self.proj_first = nn.Conv2d(num_feat, 2 * num_feat, 1)
        self.large_kernel = nn.Sequential(
            nn.Conv2d(num_feat, num_feat, 5, 1, 2, groups=num_feat),
            nn.Conv2d(num_feat, num_feat, 7, 1, 9, groups=num_feat, dilation=3),
            nn.Conv2d(num_feat, num_feat, 1),
        )
        self.proj_last = nn.Conv2d(num_feat, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        seen, value = self.proj_first(x).chunk(2, 1)
        return self.proj_last(value * self.large_kernel(seen)) * self.scale


class TransformerLayer(nn.Module):
    """Attention and a feed-forward network, each added to its input, which goes through tanh and a 1 x 1 convolution.

    Args:
        num_feat: Channels C.
        attention: `InteriorAttention` (ITL) or `DepthwiseAttention` (SAL).
        hidden: Channels of a half of the feed-forward network.
        bias: Whether its convolutions have one.
    """

    def __init__(self, num_feat: int, attention: nn.Module, hidden: int, bias: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, num_feat, 1)
        self.attn = attention
        self.conv2 = nn.Conv2d(num_feat, num_feat, 1)
        self.ffn = GatedFeedForward(num_feat, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.attn(self.conv1(torch.tanh(x)))
        return x + self.ffn(self.conv2(torch.tanh(x)))


class UnfoldOnceBlock(nn.Module):
    """UFONE: layers inside patches, into which the image is cut once, then layers on the whole image.

    Args:
        num_feat: Channels C.
        num_itl: Layers inside patches.
        num_sal: Layers on the image.
        patch_size: Side P of a patch.
        hidden, bias: Of the feed-forward networks.
    """

    def __init__(self, num_feat: int, num_itl: int, num_sal: int, patch_size: int, hidden: int, bias: bool):
        super().__init__()
        self.patch_size = patch_size
        self.itl = nn.Sequential(
            *(TransformerLayer(num_feat, InteriorAttention(num_feat, bias), hidden, bias) for _ in range(num_itl))
        )
        self.sal = nn.Sequential(
            *(TransformerLayer(num_feat, DepthwiseAttention(num_feat), hidden, bias) for _ in range(num_sal))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), sides divisible by P."""
        patches = self.itl(to_windows(x, self.patch_size, self.patch_size))  # (patches, C, P, P)
        height, width = x.shape[2:]
        return self.sal(from_windows(patches, height, width))


@ARCH_REGISTRY.register()
class DITN(nn.Module):
    """Deployment-friendly transformer network, the form without layer normalisation.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels C.
        num_block: Blocks.
        num_itl: Layers inside patches, in each block.
        num_sal: Layers on the image, in each block.
        patch_size: Side of a patch in LR pixels.
        mlp_ratio: Channels of a half of a feed-forward network, in units of C.
        bias: Whether feed-forward networks and the last convolution of the attention have biases.
        upscale: 1 or more.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 60,
        num_block: int = 1,
        num_itl: int = 4,
        num_sal: int = 4,
        patch_size: int = 8,
        mlp_ratio: float = 2,
        bias: bool = False,
        upscale: int = 4,
    ):
        super().__init__()
        self.upscale, self.multiple = upscale, math.lcm(_MULTIPLE, patch_size)
        hidden = int(mlp_ratio * num_feat)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = nn.Sequential(
            *(UnfoldOnceBlock(num_feat, num_itl, num_sal, patch_size, hidden, bias) for _ in range(num_block))
        )
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        shallow = self.conv_first(pad_to_multiple(x, self.multiple))
        deep = shallow + self.conv_after_body(self.body(shallow))
        return F.pixel_shuffle(self.conv_last(deep), self.upscale)[..., :height, :width]


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        **shapes.images(weights),
        'num_block': shapes.count(weights, 'body.{}.'),
        'num_itl': shapes.count(weights, 'body.0.itl.{}.'),
        'num_sal': shapes.count(weights, 'body.0.sal.{}.'),
        'mlp_ratio': shapes.ratio(
            weights['body.0.itl.0.ffn.project_out.weight'].shape[1], len(weights['conv_first.weight'])
        ),
        'bias': 'body.0.itl.0.ffn.project_out.bias' in weights,
        'upscale': shapes.shuffle(weights),
    }


register_format(
    ArchFormat(
        arch=DITN,
        names=(
            ('sft.{end}', 'conv_first.{end}'),
            'conv_after_body.{end}',
            ('upsample.0.{end}', 'conv_last.{end}'),
            ('UFONE.{block}.ITLs.{layer}.attn.temperature', 'body.{block}.itl.{layer}.attn.temperature'),
            *(
                (
                    f'UFONE.{{block}}.{theirs}.{{layer}}.{part}.{{end}}',
                    f'body.{{block}}.{ours}.{{layer}}.{part}.{{end}}',
                )
                for theirs, ours, part in (
                    ('ITLs', 'itl', 'attn.{part:qkv|project_out}'),
                    ('ITLs', 'itl', '{part:conv1|conv2|ffn.project_in|ffn.dwconv|ffn.project_out}'),
                    ('SALs', 'sal', '{part:conv1|conv2|ffn.project_in|ffn.dwconv|ffn.project_out}'),
                )
            ),
            ('UFONE.{block}.SALs.{layer}.SDA.scale', 'body.{block}.sal.{layer}.attn.scale'),
            (
                'UFONE.{block}.SALs.{layer}.SDA.DConvs.{conv}.{end}',
                'body.{block}.sal.{layer}.attn.large_kernel.{conv}.{end}',
            ),
            (
                'UFONE.{block}.SALs.{layer}.SDA.{conv:proj_first|proj_last}.0.{end}',
                'body.{block}.sal.{layer}.attn.{conv}.{end}',
            ),
        ),
        arguments=_arguments,
        official_arguments=renamed(
            inp_channels='num_in_ch',
            LayerNorm_type=None,  # the layers are made and never used
            dim='num_feat',
            UFONE_blocks='num_block',
            ITL_blocks='num_itl',
            SAL_blocks='num_sal',
            ffn_expansion_factor='mlp_ratio',
        ),
        untold={'patch_size': 8},
        layout=bare,
        sizes=Sizes(minimum=5, multiple=8, pads=True),
        recipe=Recipe(
            about="The authors' training code is not public, so everything is our choice: the recipe of DLGSANet, a "
            'transformer of the same size (LR patches of 48x48, batch 16, 500,000 iterations on DIV2K).',
            patch=48,
            batch=16,
            ema_decay=0.999,
            optim_g=adam(5e-4, (0.9, 0.99)),
            scheduler=multistep(250_000, 400_000, 450_000, 475_000),
            total_iter=500_000,
        ),
        source=Source(
            'Unfolding Once is Enough: A Deployment-Friendly Transformer Unit for Super-Resolution (Liu et al., 2023)',
            2023,
            'https://github.com/yongliuy/DITN',
            'Apache-2.0',
            weights='cloud drive',
        ),
    )
)
