"""ETDS: Equivalent Transformation and Dual Stream Network Construction for Mobile Image Super-Resolution (CVPR 2023).

Upstream: https://github.com/ECNUSR/ETDS (Apache-2.0; nothing is copied). Written from a description of the published
networks: the two streams that are trained, and the plain chain of convolutions into which they are converted exactly;
both the same function as the authors' in float64. `to_inference` converts.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import shapes
from spinsr.convert.recipe import Recipe, adam, l1, multistep
from spinsr.convert.registry import ArchFormat, Onnx, PublishedResult, Source, register_format, renamed, under


def _conv(num_in: int, num_out: int) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, 3, 1, 1)


@ARCH_REGISTRY.register()
class ETDS(nn.Module):
    """The dual-stream network, to be trained: a backbone, and a narrow stream that starts as nearest upsampling.

    Blocks compute b <- ReLU(B b + A r), r <- ReLU(R r) for the backbone b and the residual stream r, with ReLU as the
    only activation, so that `to_inference` can join the streams. The defaults are ETDS-M; ETDS-T has `num_feat=16,
    num_block=5`, ETDS-S `num_block=4`, ETDS-L `num_feat=48, num_block=7`.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels of both streams together.
        num_block: Blocks.
        num_residual_feat: Channels of the residual stream, at least `num_in_ch`, below `num_feat`.
        upscale: 1 or more.

    Raises:
        ValueError: The arguments do not fit together.
    """

    # The authors' loss has a term of the residual stream alone.
    TRAINING_LOSSES: ClassVar[dict[str, tuple[str, ...]]] = {'residual_opt': ('residual', 'gt')}

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 32,
        num_block: int = 6,
        num_residual_feat: int = 3,
        upscale: int = 4,
    ):
        super().__init__()
        if not num_in_ch == num_out_ch <= num_residual_feat < num_feat:
            raise ValueError(
                'num_in_ch = num_out_ch <= num_residual_feat < num_feat must hold, '
                f'got {num_in_ch=}, {num_out_ch=}, {num_residual_feat=}, {num_feat=}'
            )
        backbone, residual, self.upscale = num_feat - num_residual_feat, num_residual_feat, upscale
        self.conv_first = _conv(num_in_ch, backbone)
        self.conv_residual_first = _conv(num_in_ch, residual)
        self.backbone_convs = nn.ModuleList(_conv(backbone, backbone) for _ in range(num_block))
        self.residual_convs = nn.ModuleList(_conv(residual, residual) for _ in range(num_block))
        self.add_residual_convs = nn.ModuleList(_conv(residual, backbone) for _ in range(num_block))
        self.conv_last = _conv(backbone, num_out_ch * upscale**2)
        self.conv_residual_last = _conv(residual, num_out_ch * upscale**2)
        self._start_as_nearest_upsampling(num_in_ch)

    def _start_as_nearest_upsampling(self, channels: int) -> None:
        for parameter in (*self.add_residual_convs.parameters(), *self.conv_residual_last.parameters()):
            nn.init.zeros_(parameter)
        for parameter in (*self.conv_residual_first.parameters(), *self.residual_convs.parameters()):
            (nn.init.dirac_ if parameter.ndim == 4 else nn.init.zeros_)(parameter)
        with torch.no_grad():
            for channel, taps in enumerate(self.conv_residual_last.weight.chunk(channels)):
                taps[:, channel, 1, 1] = 1

    def forward(self, x: Tensor, auxiliary: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W).

        Args:
            x: The image.
            auxiliary: Return the share of the residual stream too, as `{'residual': ...}`, for its loss.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        backbone, residual = F.relu(self.conv_first(x)), F.relu(self.conv_residual_first(x))
        for b_to_b, r_to_r, r_to_b in zip(
            self.backbone_convs, self.residual_convs, self.add_residual_convs, strict=True
        ):
            backbone, residual = F.relu(b_to_b(backbone) + r_to_b(residual)), F.relu(r_to_r(residual))
        low = F.pixel_shuffle(self.conv_residual_last(residual), self.upscale)
        image = F.pixel_shuffle(self.conv_last(backbone), self.upscale) + low
        return (image, {'residual': low}) if auxiliary else image


def _padding(upscale: int) -> int:
    """Extra channels of the last convolutions, for mobile hardware."""
    return int(upscale == 3)


@ARCH_REGISTRY.register()
class ETDSInference(nn.Module):
    """ETDS as a chain of convolutions with ReLU, to be run. The image is clipped to [0, 1], by two of the ReLUs.

    `conv_last` computes 1 - y; ReLU(1 - ReLU(1 - y)) is y clipped. An untrained network is of little use: create it
    with `to_inference`, or load the authors' file.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        num_feat: Channels.
        num_block: Convolutions between the first and the last two.
        upscale: 1 or more.
    """

    def __init__(
        self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 32, num_block: int = 6, upscale: int = 4
    ):
        super().__init__()
        self.upscale, self.num_last = upscale, num_out_ch * upscale**2
        num_last = self.num_last + _padding(upscale)
        self.conv_first = _conv(num_in_ch, num_feat)
        self.backbone_convs = nn.ModuleList(_conv(num_feat, num_feat) for _ in range(num_block))
        self.conv_last = _conv(num_feat, num_last)
        self.conv_clip = nn.Conv2d(num_last, num_last, 1)
        nn.init.dirac_(self.conv_clip.weight)
        with torch.no_grad():
            self.conv_clip.weight.neg_()
        nn.init.ones_(_bias(self.conv_clip))

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        x = x.contiguous(memory_format=torch.channels_last)
        for conv in (self.conv_first, *self.backbone_convs, self.conv_last, self.conv_clip):
            x = F.relu(conv(x))
        return F.pixel_shuffle(x[:, : self.num_last], self.upscale)


@torch.no_grad()
def to_inference(net: ETDS) -> ETDSInference:
    """The network that computes what `net` computes, clipped to [0, 1], for images that are nowhere negative.

    Exact, for any width of the residual stream.

    Returns:
        A network in eval mode, of the type and on the device of `net`.
    """
    first = net.conv_first.weight
    inference = ETDSInference(
        num_in_ch=first.shape[1],
        num_out_ch=len(net.conv_last.weight) // net.upscale**2,
        num_feat=len(first) + len(net.conv_residual_first.weight),
        num_block=len(net.backbone_convs),
        upscale=net.upscale,
    ).to(first)
    _fill(
        inference.conv_first,
        torch.cat([first, net.conv_residual_first.weight]),
        torch.cat([_bias(net.conv_first), _bias(net.conv_residual_first)]),
    )
    for conv, backbone, residual, added in zip(
        inference.backbone_convs, net.backbone_convs, net.residual_convs, net.add_residual_convs, strict=True
    ):
        upper = torch.cat([_weight(backbone), _weight(added)], 1)
        lower = torch.cat([torch.zeros_like(_weight(added).transpose(0, 1)), _weight(residual)], 1)
        _fill(conv, torch.cat([upper, lower]), torch.cat([_bias(backbone) + _bias(added), _bias(residual)]))
    weight = torch.cat([net.conv_last.weight, net.conv_residual_last.weight], 1)
    bias = _bias(net.conv_last) + _bias(net.conv_residual_last)
    # A channel of padding is 0 after the clip: 1 - ReLU(1).
    padding = (0, _padding(net.upscale))
    _fill(inference.conv_last, F.pad(-weight, (0,) * 6 + padding), F.pad(1 - bias, padding, value=1.0))
    return inference.eval()


def _weight(conv: nn.Module) -> Tensor:
    return conv.get_parameter('weight')


def _bias(conv: nn.Module) -> Tensor:
    return conv.get_parameter('bias')


def _fill(conv: nn.Module, weight: Tensor, bias: Tensor) -> None:
    _weight(conv).copy_(weight)
    _bias(conv).copy_(bias)


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        **shapes.images(weights),
        'num_block': shapes.count(weights, 'backbone_convs.{}.'),
        'upscale': shapes.shuffle(weights),
    }


def _dual_arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    arguments, residual = _arguments(weights), len(weights['conv_residual_first.weight'])
    return {**arguments, 'num_feat': arguments['num_feat'] + residual, 'num_residual_feat': residual}


_SIZES = {
    'T': {'num_feat': 16, 'num_block': 5},
    'S': {'num_feat': 32, 'num_block': 4},
    'M': {},
    'L': {'num_feat': 48, 'num_block': 7},
}
_PUBLISHED = 'CVPR 2023, github.com/ECNUSR/ETDS; HR cropped to multiples of 12, parameters after conversion'
_RESULTS = {  # parameters and PSNR at x2, x3 and x4
    'T': (
        (13_944, '37.18 32.76 31.62 30.10 -'),
        (16_920, '33.14 29.53 28.54 26.48 -'),
        (21_360, '30.87 27.75 27.04 24.71 -'),
    ),
    'S': (
        (41_512, '37.38 32.96 31.77 30.62 -'),
        (46_792, '33.49 29.76 28.71 26.90 -'),
        (54_112, '31.19 28.01 27.18 25.03 -'),
    ),
    'M': (
        (60_008, '37.54 33.09 31.86 30.87 -'),
        (65_288, '33.65 29.86 28.78 27.12 -'),
        (72_608, '31.41 28.13 27.27 25.20 -'),
    ),
    'L': (
        (152_184, '37.64 33.24 31.98 31.22 -'),
        (159_768, '33.88 30.00 28.90 27.45 -'),
        (169_968, '31.69 28.31 27.37 25.47 -'),
    ),
}
_PAPER = (
    'Equivalent Transformation and Dual Stream Network Construction for Mobile Image Super-Resolution '
    '(Chao et al., CVPR 2023)'
)
_REPOSITORY = 'https://github.com/ECNUSR/ETDS'


def _published(network: str) -> tuple[PublishedResult, ...]:
    """The results, which are the same before and after the conversion."""
    return tuple(
        PublishedResult(scale, *result, _PUBLISHED, f'ETDS-{size}', f'{network}-{size}')
        for size, results in _RESULTS.items()
        for scale, result in zip((2, 3, 4), results, strict=True)
    )


register_format(
    ArchFormat(
        arch=ETDS,
        names=(
            '{conv:conv_first|conv_residual_first|conv_last|conv_residual_last}.{end}',
            '{convs:backbone_convs|residual_convs|add_residual_convs}.{number}.{end}',
        ),
        arguments=_dual_arguments,
        configurations={f'ETDS-{size}': arguments for size, arguments in _SIZES.items()},
        layout=under('params'),
        onnx=Onnx(sides=(2, None)),
        published=_published('ETDS'),
        protocol='y_mod12',
        recipe=Recipe(
            about="The recipe is that of the authors' option files: LR patches of 64x64, batch 32, 1,600,000 "
            'iterations at a constant learning rate, and a loss of the residual stream besides that of the image. For '
            'the first 100,000 iterations the residual stream and what it adds to the backbone stay as they start: '
            'nearest upsampling. How the channels are shuffled is not said; here each image has one of the six '
            'orders, which is our choice.',
            patch=64,
            batch=32,
            ema_decay=0.999,
            optim_g=adam(5e-4, (0.9, 0.99)),
            scheduler=multistep(),
            total_iter=1_600_000,
            losses={'pixel_opt': l1(), 'residual_opt': l1(0.5)},
            train={'freeze_params': ['*residual*'], 'freeze_iters': 100_000, 'shuffle_channels': True},
            by_configuration={'ETDS-M': {'scales': ()}},  # the same as ETDS
            comments={'milestones': 'none: the learning rate is constant', 'residual_opt': 'of the residual stream'},
        ),
        source=Source(_PAPER, 2023, _REPOSITORY, 'Apache-2.0', weights='none before conversion'),
    )
)

register_format(
    ArchFormat(
        arch=ETDSInference,
        names=('{conv:conv_first|conv_last|conv_clip}.{end}', 'backbone_convs.{number}.{end}'),
        arguments=_arguments,
        configurations={f'ETDSInference-{size}': arguments for size, arguments in _SIZES.items()},
        official_arguments=renamed(num_residual_feat=None),
        parity=('etds_infer',),
        layout=under('params'),
        onnx=Onnx(sides=(2, None)),
        published=_published('ETDSInference'),
        protocol='y_mod12',
        source=Source(_PAPER, 2023, _REPOSITORY, 'Apache-2.0', 'Apache-2.0', 'repository'),
    )
)
