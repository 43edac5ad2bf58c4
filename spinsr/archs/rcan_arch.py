"""RCAN: Image Super-Resolution Using Very Deep Residual Channel Attention Networks (Zhang et al., ECCV 2018).

Upstream: https://github.com/yulunzhang/RCAN (no licence; nothing is copied). BasicSR already has this network and keeps
the name RCAN in its registry. Ours has BasicSR's arguments and state-dict names, the paper's 20 blocks per group as the
default, and the image mean as a buffer, so that official weights whose mean drifted in training convert exactly.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import mean_shift, shapes
from spinsr.convert.recipe import AUTHORS_FLIPS, ON_255, Recipe, Start, adam, halved_every
from spinsr.convert.registry import ArchFormat, Form, Onnx, PublishedResult, Source, bare, register_format, renamed
from spinsr.modules.channel_attention import ChannelAttention
from spinsr.modules.mean_shift import DIV2K_MEAN, register_mean
from spinsr.modules.upsample import Upsample, upsample_and_convolve, upscale_factors
from spinsr.utils.validation import between, check, check_equal, check_length


class ResidualChannelAttentionBlock(nn.Module):
    """RCAB: convolution, ReLU, convolution, channel attention, and the input.

    Args:
        num_feat: Channels C.
        squeeze_factor: Channel reduction of the attention, 1 to `num_feat`.
        res_scale: Factor of the residual.
    """

    def __init__(self, num_feat: int, squeeze_factor: int, res_scale: float):
        super().__init__()
        self.res_scale = res_scale
        self.rcab = nn.Sequential(
            nn.Conv2d(num_feat, num_feat, 3, 1, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(num_feat, num_feat, 3, 1, 1),
            ChannelAttention(num_feat, squeeze_factor),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.rcab(x) * self.res_scale


class ResidualGroup(nn.Module):
    """Blocks, a convolution, and the short skip connection.

    Args:
        num_feat: Channels C.
        num_block: Residual channel attention blocks.
        squeeze_factor: Channel reduction of the attention, 1 to `num_feat`.
        res_scale: Factor of the residual of a block.
    """

    def __init__(self, num_feat: int, num_block: int, squeeze_factor: int, res_scale: float):
        super().__init__()
        self.residual_group = nn.Sequential(
            *(ResidualChannelAttentionBlock(num_feat, squeeze_factor, res_scale) for _ in range(num_block))
        )
        self.conv = nn.Conv2d(num_feat, num_feat, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.conv(self.residual_group(x))


@ARCH_REGISTRY.register(suffix='spinsr')
class RCAN(nn.Module):
    """Residual channel attention network; `type: RCAN_spinsr` in option files.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C.
        num_group: Residual groups.
        num_block: Residual channel attention blocks in each group.
        squeeze_factor: Channel reduction of the attention, 1 to `num_feat`.
        upscale: 3 or a power of two.
        res_scale: Factor of the residual of a block.
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
        num_group: int = 10,
        num_block: int = 20,
        squeeze_factor: int = 16,
        upscale: int = 4,
        res_scale: float = 1,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = DIV2K_MEAN,
    ):
        check_equal(num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        check_length(rgb_mean=rgb_mean, num_in_ch=num_in_ch)
        check(between(1, num_feat), squeeze_factor=squeeze_factor)
        upscale_factors(upscale)  # refuses what the tail cannot do before the body is built
        super().__init__()
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = nn.Sequential(
            *(ResidualGroup(num_feat, num_block, squeeze_factor, res_scale) for _ in range(num_group))
        )
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.upsample = Upsample(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        self.img_range = img_range
        register_mean(self, img_range, rgb_mean)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        shallow = self.conv_first((x * self.img_range - self.mean).contiguous(memory_format=torch.channels_last))
        deep = self.conv_after_body(self.body(shallow)) + shallow
        return (upsample_and_convolve(deep, self.upsample, self.conv_last) + self.mean) / self.img_range


def _to_basicsr(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """BasicSR's RCAN has no place for the mean in its files: it subtracts that of DIV2K, in a range of 0..255.

    Raises:
        ValueError: `mean` is another, so that BasicSR's RCAN would be another function.
    """
    usual = mean_shift.DIV2K_MEAN
    mean = ours.get('mean', usual).flatten()
    # As far as float32 holds it; a drift of 1e-6 of the mean is 5e-7 of the range of an image.
    if mean.shape != usual.shape or not torch.allclose(mean, usual.to(mean), rtol=1e-6, atol=0):
        found, theirs = (', '.join(f'{number:.6g}' for number in values.tolist()) for values in (mean, usual))
        raise ValueError(
            f"BasicSR's RCAN always subtracts the mean ({theirs}), and this one subtracts ({found}): it drifted in "
            'training, or img_range or rgb_mean is another; RCAN_spinsr keeps it'
        )
    return {name: value for name, value in ours.items() if name != 'mean'}


_BLOCK = 'body.{group}.residual_group.{block}.rcab.'

_PUBLISHED = 'ECCV 2018, figures in github.com/yulunzhang/RCAN; parameters counted in its code'

register_format(
    ArchFormat(
        arch=RCAN,
        registered='RCAN_spinsr',
        names=(
            *mean_shift.ROWS,
            ('head.0.{end}', 'conv_first.{end}'),
            ('tail.0.{stage}.{end}', 'upsample.{stage}.{end}'),
            ('tail.1.{end}', 'conv_last.{end}'),
            ('body.{group}.body.{block}.body.{conv:0|2}.{end}', _BLOCK + '{conv}.{end}'),
            ('body.{group}.body.{block}.body.3.conv_du.0.{end}', _BLOCK + '3.attention.1.{end}'),
            ('body.{group}.body.{block}.body.3.conv_du.2.{end}', _BLOCK + '3.attention.3.{end}'),
            ('body.{group}.body.{num_block}.{end}', 'body.{group}.conv.{end}'),
            ('body.{num_group}.{end}', 'conv_after_body.{end}'),
        ),
        arguments=lambda weights: {
            **shapes.images(weights),
            **shapes.mean_of_grey(weights),
            'num_group': shapes.count(weights, 'body.{}.'),
            'num_block': shapes.count(weights, 'body.0.residual_group.{}.'),
            'squeeze_factor': len(weights['conv_first.weight'])
            // len(weights['body.0.residual_group.0.rcab.3.attention.1.weight']),
            'upscale': shapes.stages(weights),
        },
        official_arguments=renamed(
            n_feats='num_feat', n_resgroups='num_group', n_resblocks='num_block', reduction='squeeze_factor'
        ),
        untold={'img_range': 255.0, 'res_scale': 1},
        from_official=mean_shift.fold,
        to_official=mean_shift.unfold_div2k,
        layout=bare,
        forms={'basicsr': Form(_to_basicsr, fits=lambda weights: 'mean' not in weights)},
        onnx=Onnx(sides=(2, None)),  # torch.export makes a constant of a side of 1
        published=(
            PublishedResult(2, 15_444_667, '38.27 34.12 32.41 33.34 39.44', _PUBLISHED),
            PublishedResult(3, 15_629_307, '34.74 30.65 29.32 29.09 34.44', _PUBLISHED),
            PublishedResult(4, 15_592_379, '32.63 28.87 27.77 26.82 31.22', _PUBLISHED),
        ),
        recipe=Recipe(
            about="The recipe is the authors': 1,000 epochs of 1,000 iterations, LR patches of 48x48, batch 16. Their "
            "code also skips a batch whose loss passes 1e6, which BasicSR cannot do. (BasicSR's own option file for "
            'RCAN x2 has another recipe: 300,000 iterations, beta2 0.99, EMA.)',
            scales=(2, 3, 4, 8),
            patch=48,
            batch=16,
            optim_g=adam(1e-4),
            scheduler=halved_every(200_000, 1_000_000),
            total_iter=1_000_000,
            start=Start(
                scale=2,
                comment='The authors start x3, x4 and x8 from the x2 model, so train that first. What is new or '
                'different in the upsampler is initialised randomly, everything else is kept. To train from scratch: ~ '
                'and strict_load_g: true.',
            ),
            save_checkpoint_freq=10_000,
            comments={
                'use_hflip': AUTHORS_FLIPS,
                'network_g:type': "the name RCAN is BasicSR's own",
                'num_block': "the paper's; BasicSR's default is 16",
                'res_scale': "the authors' code accepts it but does not use it",
                'rgb_mean': 'of DIV2K',
                'milestones': 'every 200 epochs',
                'pixel_opt:loss_weight': ON_255,
                'save_checkpoint_freq': 'about 190 MB each',
            },
        ),
        source=Source(
            'Image Super-Resolution Using Very Deep Residual Channel Attention Networks (Zhang et al., ECCV 2018)',
            2018,
            'https://github.com/yulunzhang/RCAN',
            weights='cloud drive',
        ),
    )
)
