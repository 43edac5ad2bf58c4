"""SMSR: Exploring Sparsity in Image Super-Resolution for Efficient Inference (Wang et al., CVPR 2021).

Upstream: https://github.com/The-Learning-And-Vision-Atelier-LAVA/SMSR (no licence; nothing is copied). Written from a
description of the published network: the same function in float64, in dense form, so that it needs no preparation after
loading and works on batches and under torch.compile. Without gradients and outside of torch.compile, channels that are
dense and channels that are sparse are convolved apart, which saves three of seven convolutions in a block. On the CPU,
sparse channels are also computed only at the pixels in the mask, as in the authors' inference, where these are so
few that gathering them pays (`SparseMaskConvolutions`). Weights are converted by `spinsr.convert`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import mean_shift, shapes
from spinsr.convert.recipe import Recipe, adam, halved_every, l1
from spinsr.convert.registry import ArchFormat, PublishedResult, Sizes, Source, bare, of_edsr, register_format
from spinsr.modules.channel_attention import ChannelAttention
from spinsr.modules.mean_shift import DIV2K_MEAN, register_mean
from spinsr.modules.padding import pad_to
from spinsr.utils.validation import between, check, check_equal, check_length


class LearnedMask(nn.Module):
    """A mask from logits: soft in training, 0 or 1 in evaluation.

    In training it is a sample of the Gumbel-softmax over two classes, whose noise is the difference of two Gumbel
    variables, a logistic one:

        mask = sigmoid((logit + noise) / temperature)

    In evaluation it is logit > 0, with the gradient of the sigmoid.

    Args:
        temperature: Above 0; the lower, the harder the masks of training. It may be changed during training.
        noise: Whether training adds noise.
    """

    def __init__(self, temperature: float = 1.0, noise: bool = True):
        super().__init__()
        self.temperature, self.noise = temperature, noise

    def forward(self, logit: Tensor) -> Tensor:
        """Logits of any shape -> masks in [0, 1]."""
        if self.training and self.noise:
            uniform = torch.rand(logit.shape, device=logit.device, dtype=torch.float32).clamp(1e-7, 1 - 1e-7)
            logit = logit + torch.logit(uniform).to(logit.dtype)
        soft = torch.sigmoid(logit / self.temperature)
        if self.training:
            return soft
        return (logit > 0).to(soft.dtype) + (soft - soft.detach())


class SparseMaskConvolutions(nn.Module):
    """Convolutions with ReLU, each of whose channels is dense, or sparse: computed only where the spatial mask M is 1.

    With D = 1 for a dense and 0 for a sparse channel, and e the result of the convolution W before,

        e <- relu(W(e D') (D + (1 - D) M) + W(e (1 - D')) M)

    where D' are the channels of e: outside the mask, sparse channels neither receive nor contribute.

    At a pixel in the mask this is relu(W(e)), for all channels. In evaluation on the CPU, with at most `SPARSE_BELOW`
    of the pixels in the mask, these pixels' patches of 3x3 are gathered and multiplied by W at once; W(e D') alone is
    computed everywhere, for the dense channels.

    Args:
        num_feat: Channels C.
        num_conv: Convolutions.
        mask: From logits to masks.
    """

    SPARSE_BELOW = 0.3

    def __init__(self, num_feat: int, num_conv: int, mask: LearnedMask):
        super().__init__()
        # The last axis: logits of dense, and of sparse.
        self.channel_mask = nn.Parameter(torch.rand(1, num_feat, num_conv, 2))
        self.convs = nn.ModuleList(nn.Conv2d(num_feat, num_feat, 3, 1, 1, bias=False) for _ in range(num_conv))
        self.fuse = nn.Conv2d(num_conv * num_feat, num_feat, 1)
        self.mask = mask

    def forward(self, x: Tensor, spatial: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) and M, (B, 1, H, W) -> (B, C, H, W), and the share of the values is computed, a scalar."""
        dense = self.mask(self.channel_mask[..., 0] - self.channel_mask[..., 1])  # (1, C, convolutions)
        share = spatial.mean()
        sparsity = (dense + (1 - dense) * share).mean()
        if self._may_look_at_values(x) and _on_plain_cpu(x) and share <= self.SPARSE_BELOW:
            return self._convolve_pixels(x, spatial, dense[0] > 0), sparsity
        dense = dense[..., None, None].unbind(2)  # (1, C, 1, 1) each
        results = [F.relu(self.convs[0](x) * _gate(dense[0], spatial))]
        for conv, before, now in zip(self.convs[1:], dense, dense[1:], strict=False):
            known, sparse = self._convolve_apart(conv, results[-1], before)
            results.append(F.relu(known * _gate(now, spatial) + sparse * spatial))
        return self.fuse(torch.cat(results, 1)), sparsity

    def _convolve_apart(self, conv: Any, x: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """The convolutions of x D and of x (1 - D), with D of shape (1, C, 1, 1).

        Without gradients each is computed from its own channels alone, so that both together cost what one does.
        """
        if not self._may_look_at_values(x):
            return conv(x * dense), conv(x * (1 - dense))
        known = dense.flatten() > 0
        return _convolve(conv, x, known), _convolve(conv, x, ~known)

    def _convolve_pixels(self, x: Tensor, spatial: Tensor, dense: Tensor) -> Tensor:
        """As `forward`, for masks of 0 and 1: (B, C, H, W), M, and which channels are dense, (C, convolutions)."""
        batch, channels, height, width = x.shape
        # Pixels are rows of one matrix, with a border of zeros: the neighbours of a row are at fixed distances.
        rows = F.pad(spatial, (1, 1, 1, 1)).flatten().nonzero().flatten()
        around = [dy * (width + 2) + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        neighbours = (rows[:, None] + torch.tensor(around)).flatten()
        e = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()  # (B, H + 2, W + 2, C)
        order, known = torch.arange(channels), channels  # dense channels come first
        total, fuse = self.fuse.get_parameter('bias'), self.fuse.weight.flatten(1).split(channels, 1)
        for number, conv in enumerate(self.convs):
            now = dense[:, number]
            before, order = order, (~now).int().argsort(stable=True)
            weight = conv.get_parameter('weight')[order][:, before]
            out = torch.zeros_like(e)
            if now.any() and known:
                count = int(now.sum())
                everywhere = F.conv2d(e[..., :known].permute(0, 3, 1, 2), weight[:count, :known])
                out[:, 1:-1, 1:-1, :count] = F.relu(everywhere).permute(0, 2, 3, 1)
            patches = e.view(-1, channels).index_select(0, neighbours).view(-1, 9 * channels)
            values = F.relu(patches @ weight.permute(2, 3, 1, 0).flatten(0, 2))
            e, known = out, int(now.sum())
            e.view(-1, channels).index_copy_(0, rows, values)
            total = torch.addmm(total, e.view(-1, channels), fuse[number][:, order].t())
        return total.view(batch, height + 2, width + 2, -1)[:, 1:-1, 1:-1].permute(0, 3, 1, 2).contiguous()

    def _may_look_at_values(self, x: Tensor) -> bool:
        """Whether masks may decide what is computed: not for gradients, graphs, and tensors without values."""
        has_values = type(x) is Tensor and not x.is_meta and not torch.compiler.is_compiling()
        return has_values and not self.training and not torch.is_grad_enabled()


def _on_plain_cpu(x: Tensor) -> bool:
    return x.device.type == 'cpu' and not torch.is_autocast_enabled('cpu')


def _convolve(conv: nn.Conv2d, x: Tensor, chosen: Tensor) -> Tensor:
    """The convolution of some channels, all others being 0; (1, 1, 1, 1) for none."""
    channels = chosen.nonzero().flatten()
    if not len(channels):
        return x.new_zeros(1, 1, 1, 1)
    return F.conv2d(x.index_select(1, channels), conv.weight.index_select(1, channels), padding=1)


def _gate(dense: Tensor, spatial: Tensor) -> Tensor:
    """Where channels are computed: everywhere if they are dense, else in the mask."""
    return dense + (1 - dense) * spatial


class SparseMaskModule(nn.Module):
    """SMM: a spatial mask from the features, convolutions under it, channel attention, and the input.

    Args:
        num_feat: Channels C, a multiple of 4.
        num_conv: Convolutions.
        squeeze_factor: Channel reduction of the attention, 1 to C.
        temperature, noise: Of the masks.
    """

    def __init__(self, num_feat: int, num_conv: int, squeeze_factor: int, temperature: float, noise: bool):
        super().__init__()
        quarter = num_feat // 4
        self.spatial_mask = nn.Sequential(
            nn.Conv2d(num_feat, quarter, 3, 1, 1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(quarter, quarter, 3, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(quarter, 2, 3, stride=2, padding=1, output_padding=1),
        )
        self.mask = LearnedMask(temperature, noise)
        self.body = SparseMaskConvolutions(num_feat, num_conv, self.mask)
        self.ca = ChannelAttention(num_feat, squeeze_factor)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), H, W >= 2 -> (B, C, H, W), and the share of the values is computed, a scalar."""
        logits = self.spatial_mask(x)
        mask = self.mask(logits[:, 1:] - logits[:, :1])
        # An odd last row or column is outside the mask.
        mask = F.pad(mask, (0, x.shape[3] % 2, 0, x.shape[2] % 2))  # (B, 1, H, W)
        out, sparsity = self.body(x, mask)
        return self.ca(out) + x, sparsity


@ARCH_REGISTRY.register()
class SMSR(nn.Module):
    """Sparse mask super-resolution network.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C, a multiple of 4.
        num_block: Sparse mask modules.
        num_conv: Convolutions in each module.
        squeeze_factor: Channel reduction of the attention, 1 to C.
        upscale: 1 or more.
        temperature: Of the masks in training; the lower, the harder.
        gumbel_noise: Whether the masks are sampled in training; if not, they are the probabilities.
        img_range: Scale in which the network works; the input is `x * img_range - mean`.
        rgb_mean: Mean of each channel in [0, 1]; `mean` is `img_range * rgb_mean`.

    Raises:
        ValueError: An argument breaks its rule.
    """

    TRAINING_LOSSES: ClassVar[dict[str, tuple[str, ...]]] = {'sparsity_opt': ('sparsity', 'iteration')}

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 5,
        num_conv: int = 4,
        squeeze_factor: int = 16,
        upscale: int = 4,
        temperature: float = 1.0,
        gumbel_noise: bool = True,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = DIV2K_MEAN,
    ):
        super().__init__()
        check_equal(num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        check_length(rgb_mean=rgb_mean, num_in_ch=num_in_ch)
        check(between(1, num_feat), squeeze_factor=squeeze_factor)
        if num_feat < 4 or num_feat % 4:
            raise ValueError(f'num_feat must be a multiple of 4, got {num_feat=}')
        self.upscale, self.img_range = upscale, img_range
        register_mean(self, img_range, rgb_mean)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.conv_second = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.body = nn.ModuleList(
            SparseMaskModule(num_feat, num_conv, squeeze_factor, temperature, gumbel_noise) for _ in range(num_block)
        )
        self.fuse = nn.Conv2d(num_block * num_feat, num_feat, 1)
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)
        self.set_temperature(temperature)

    def set_temperature(self, temperature: float) -> None:
        """Sets the temperature of all masks.

        Raises:
            ValueError: It is not above 0.
        """
        if temperature is None or temperature <= 0:
            raise ValueError(f'temperature must be a number above 0, got {temperature=}')
        for block in cast(Iterable[SparseMaskModule], self.body):
            block.mask.temperature = temperature

    def forward(self, x: Tensor, auxiliary: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W).

        Args:
            x: The images.
            auxiliary: Whether to return beside the result, as `{'sparsity': ...}`, the share of the values in the
                modules is computed, a scalar in [0, 1]: what the sparsity loss of the paper makes small.
        """
        height, width = (side * self.upscale for side in x.shape[2:])
        x = pad_to(x, 2, 2) * self.img_range - self.mean
        shallow = self.conv_second(F.relu(self.conv_first(x)))
        seen, shares, out = [], [], shallow
        for block in self.body:
            out, sparsity = block(out)
            seen.append(out)
            shares.append(sparsity)
        deep = shallow + self.conv_after_body(F.relu(self.fuse(torch.cat(seen, 1))))
        image = F.pixel_shuffle(self.conv_last(deep), self.upscale)
        image = image + F.interpolate(x, scale_factor=self.upscale, mode='bicubic', align_corners=False)
        image = ((image + self.mean) / self.img_range)[..., :height, :width]
        return (image, {'sparsity': torch.stack(shares).mean()}) if auxiliary else image


_PUBLISHED = 'CVPR 2021, Table 2'

register_format(
    ArchFormat(
        arch=SMSR,
        names=(
            *mean_shift.ROWS,
            ('head.0.{end}', 'conv_first.{end}'),
            ('head.2.{end}', 'conv_second.{end}'),
            ('body.{block}.spa_mask.{layer:0|3|5}.{end}', 'body.{block}.spatial_mask.{layer}.{end}'),
            ('body.{block}.body.ch_mask', 'body.{block}.body.channel_mask'),
            ('body.{block}.body.body.{conv}.weight', 'body.{block}.body.convs.{conv}.weight'),
            ('body.{block}.body.collect.{end}', 'body.{block}.body.fuse.{end}'),
            ('body.{block}.body.bias', None),  # the bias of `collect` once more, where their network was run before
            ('body.{block}.ca.conv_du.0.{end}', 'body.{block}.ca.attention.1.{end}'),
            ('body.{block}.ca.conv_du.2.{end}', 'body.{block}.ca.attention.3.{end}'),
            ('collect.0.{end}', 'fuse.{end}'),
            ('collect.2.{end}', 'conv_after_body.{end}'),
            ('tail.0.{end}', 'conv_last.{end}'),
        ),
        arguments=lambda weights: {
            **shapes.images(weights),
            **shapes.mean_of_grey(weights),
            'num_block': shapes.count(weights, 'body.{}.'),
            'num_conv': shapes.count(weights, 'body.0.body.convs.{}.'),
            'squeeze_factor': len(weights['conv_first.weight']) // len(weights['body.0.ca.attention.1.weight']),
            'upscale': shapes.shuffle(weights),
        },
        official_arguments=lambda variant, official: of_edsr(official, num_smm='num_block', rgb_range='img_range'),
        untold={'temperature': 1.0, 'gumbel_noise': True, 'img_range': 255.0},
        from_official=mean_shift.take_frozen(),
        to_official=mean_shift.put_frozen(),
        layout=bare,
        sizes=Sizes(minimum=2, pads=True),
        published=(
            PublishedResult(2, 985_000, '38.00 33.64 32.17 32.19 38.76', _PUBLISHED),
            PublishedResult(3, 993_000, '34.40 30.33 29.10 28.25 33.68', _PUBLISHED),
            PublishedResult(4, 1_006_000, '32.12 28.55 27.55 26.11 30.54', _PUBLISHED),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' code: LR patches of 48x48, batch 16, 1,000 epochs of 1,000 "
            'iterations, L1 and a sparsity loss whose factor grows to 0.1 in 50 epochs. The paper lowers the '
            'temperature of the masks; in the code it stays at 1, because the function that would change it is not '
            'called. We follow the code.',
            patch=48,
            batch=16,
            optim_g=adam(2e-4),
            scheduler=halved_every(200_000, 1_000_000),
            total_iter=1_000_000,
            losses={
                'pixel_opt': l1(255.0),
                'sparsity_opt': {
                    'type': 'SparsityLoss',
                    'loss_weight': 0.1,
                    'ramp_epochs': 50,
                    'epoch_iters': 1000,
                },
            },
            comments={
                'milestones': 'every 200 epochs',
                'pixel_opt:loss_weight': "the authors' loss is on 0..255, ours on 0..1",
            },
        ),
        source=Source(
            'Exploring Sparsity in Image Super-Resolution for Efficient Inference (Wang et al., CVPR 2021)',
            2021,
            'https://github.com/The-Learning-And-Vision-Atelier-LAVA/SMSR',
            weights='repository (x2)',
        ),
    )
)
