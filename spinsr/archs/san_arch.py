"""SAN: Second-order Attention Network for Single Image Super-Resolution (Dai et al., CVPR 2019).

Upstream: https://github.com/daitao/SAN (no licence; nothing is copied). A new implementation from the paper and the
behaviour of upstream: the same function, equal in float64, with the covariance in O(C^2 N) instead of an N x N matrix,
for images of any size from 1 x 1, and without the parameters that upstream never uses. `spinsr.convert` converts
upstream weights.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import mean_shift, shapes
from spinsr.convert.recipe import AUTHORS_FLIPS, ON_255, Recipe, Start, adam, halved_every
from spinsr.convert.registry import ArchFormat, Onnx, PublishedResult, Source, bare, register_format, renamed
from spinsr.modules.mean_shift import DIV2K_MEAN, register_mean
from spinsr.modules.san import MAX_SIDE, RegionNonLocal, SecondOrderChannelAttention
from spinsr.modules.upsample import Upsample, upsample_and_convolve
from spinsr.utils.validation import between, check, check_equal, check_length, whole


class ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(x))).

    Args:
        num_feat: Channels C.
    """

    def __init__(self, num_feat: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.conv2(self.relu(self.conv1(x)))


class LocalSourceResidualAttentionGroup(nn.Module):
    """LSRAG: residual blocks, second-order channel attention, a convolution, and the local-source skip.

    Args:
        num_feat: Channels C.
        num_block: Residual blocks.
        squeeze_factor: Channel reduction of the attention.
    """

    def __init__(self, num_feat: int, num_block: int, squeeze_factor: int):
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(num_feat) for _ in range(num_block)))
        self.attention = SecondOrderChannelAttention(num_feat, squeeze_factor)
        self.conv = nn.Conv2d(num_feat, num_feat, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.conv(self.attention(self.blocks(x)))


@ARCH_REGISTRY.register()
class SAN(nn.Module):
    """Second-order attention network.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C, at least 8.
        num_group: LSRAGs.
        num_block: Residual blocks in each LSRAG.
        squeeze_factor: Channel reduction of the second-order attention, 1 to `num_feat`.
        upscale: 3 or a power of two.
        img_range: Scale in which the network works; the input is `x * img_range - mean`.
        rgb_mean: Mean of each channel in [0, 1]; `mean` is `img_range * rgb_mean`.

    Raises:
        ValueError: An argument breaks its rule.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_group: int = 20,
        num_block: int = 10,
        squeeze_factor: int = 16,
        upscale: int = 4,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = DIV2K_MEAN,
    ):
        super().__init__()
        check_equal(num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        check_length(rgb_mean=rgb_mean, num_in_ch=num_in_ch)
        check(whole(8), num_feat=num_feat)
        check(between(1, num_feat), squeeze_factor=squeeze_factor)
        self.img_range = img_range
        register_mean(self, img_range, rgb_mean)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.non_local = RegionNonLocal(num_feat, num_feat // 8)  # one, before and after the groups
        self.groups = nn.ModuleList(
            LocalSourceResidualAttentionGroup(num_feat, num_block, squeeze_factor) for _ in range(num_group)
        )
        self.gamma = nn.Parameter(torch.zeros(1))  # weight of the share-source skip
        self.upsample = Upsample(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        shallow = self.conv_first((x * self.img_range - self.mean).contiguous(memory_format=torch.channels_last))
        shared = deep = self.non_local(shallow)
        for group in self.groups:
            deep = group(deep) + self.gamma * shared
        deep = self.non_local(deep) + shallow
        return (upsample_and_convolve(deep, self.upsample, self.conv_last) + self.mean) / self.img_range


def _to_official(official: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the MeanShift, and zeros for the parameters without which the authors' network does not load."""
    conv, theta = (mean_shift.take(ours, name) for name in ('groups.0.conv.weight', 'non_local.theta.weight'))
    reduced, channels = theta.shape[:2]  # an eighth of the channels, in the unused attention too
    unused = {f'RG.{group}.gamma': (1,) for group in range(shapes.count(ours, 'groups.{}.conv.weight'))} | {
        'conv_last.weight': conv.shape,
        'conv_last.bias': (channels,),
        'non_local.soca.conv_du.0.weight': (reduced, channels, 1, 1),
        'non_local.soca.conv_du.0.bias': (reduced,),
        'non_local.soca.conv_du.2.weight': (channels, reduced, 1, 1),
        'non_local.soca.conv_du.2.bias': (channels,),
    }
    return mean_shift.unfold_div2k(official | {name: conv.new_zeros(shape) for name, shape in unused.items()}, ours)


_PUBLISHED = 'SwinIR, ICCVW 2021, Table 2; parameters counted in github.com/daitao/SAN'

register_format(
    ArchFormat(
        arch=SAN,
        names=(
            *mean_shift.ROWS,
            ('head.0.{end}', 'conv_first.{end}'),
            ('tail.0.{stage}.{end}', 'upsample.{stage}.{end}'),
            ('tail.1.{end}', 'conv_last.{end}'),
            'gamma',
            ('RG.{group}.rcab.{block}.conv_first.0.{end}', 'groups.{group}.blocks.{block}.conv1.{end}'),
            ('RG.{group}.rcab.{block}.conv_first.2.{end}', 'groups.{group}.blocks.{block}.conv2.{end}'),
            ('RG.{group}.soca.conv_du.{conv:0|2}.{end}', 'groups.{group}.attention.attention.{conv}.{end}'),
            ('RG.{group}.conv_last.{end}', 'groups.{group}.conv.{end}'),
            ('non_local.non_local.theta.{end}', 'non_local.theta.{end}'),
            ('non_local.non_local.{conv:phi|g}.0.{end}', 'non_local.{conv}.{end}'),
            ('non_local.non_local.W.{end}', 'non_local.out.{end}'),
        ),
        unused=('RG.{group}.gamma', 'conv_last.{end}', 'non_local.soca.conv_du.{conv:0|2}.{end}'),
        arguments=lambda weights: {
            **shapes.images(weights),
            **shapes.mean_of_grey(weights),
            'num_group': shapes.count(weights, 'groups.{}.'),
            'num_block': shapes.count(weights, 'groups.0.blocks.{}.'),
            'squeeze_factor': len(weights['conv_first.weight'])
            // len(weights['groups.0.attention.attention.0.weight']),
            'upscale': shapes.stages(weights),
        },
        official_arguments=renamed(
            n_feats='num_feat', n_resgroups='num_group', n_resblocks='num_block', reduction='squeeze_factor'
        ),
        untold={'img_range': 255.0},
        from_official=mean_shift.fold,
        to_official=_to_official,
        layout=bare,
        tiling='discouraged',
        # Below, a quadrant has a side of 1, which is not pooled; above, covariances are of a crop.
        onnx=Onnx(sides=(4, MAX_SIDE)),
        published=(
            PublishedResult(2, 15_712_800, '38.31 34.07 32.42 33.10 39.32', _PUBLISHED),
            PublishedResult(3, 15_897_440, '34.75 30.59 29.33 28.93 34.30', _PUBLISHED),
            PublishedResult(4, 15_860_512, '32.64 28.92 27.78 26.79 31.18', _PUBLISHED),
        ),
        recipe=Recipe(
            about='Paper and code disagree. The paper: batch 8, lr 1e-4 halved every 200 epochs. The code: batch 16, '
            'lr 1e-4 times 0.6 every 50 epochs, 3,000 epochs of 50 iterations, which does not reproduce the paper: '
            'after about 40 steps the lr is almost zero. We follow the paper; length and number of epochs (1,000 of '
            "1,000 iterations) are RCAN's, which is our choice. For the code's recipe: batch_size_per_gpu 16, "
            'total_iter 150000, gamma 0.6, milestones [2500, 5000, 7500, ..., 147500].',
            scales=(2, 3, 4, 8),
            patch=48,
            batch=8,
            optim_g=adam(1e-4, (0.9, 0.99)),
            scheduler=halved_every(200_000, 1_000_000),
            total_iter=1_000_000,
            start=Start(
                scale=2,
                comment="Our choice, as RCAN's authors do: x3, x4 and x8 start from the x2 model, so train that first. "
                "What is new or different in the upsampler is initialised randomly, everything else is kept. SAN's "
                'code does not do this. To train from scratch: ~ and strict_load_g: true.',
            ),
            save_checkpoint_freq=10_000,
            comments={
                'use_hflip': AUTHORS_FLIPS,
                'batch_size_per_gpu': '8 in total (the code: 16): 4 on each of two GPUs',
                'rgb_mean': 'of DIV2K',
                'milestones': 'every 200 epochs',
                'pixel_opt:loss_weight': ON_255,
                'save_checkpoint_freq': 'about 190 MB each',
            },
        ),
        source=Source(
            'Second-order Attention Network for Single Image Super-Resolution (Dai et al., CVPR 2019)',
            2019,
            'https://github.com/daitao/SAN',
            weights='cloud drive',
        ),
    )
)
