"""IPT: Pre-Trained Image Processing Transformer (Chen et al., CVPR 2021).

Upstream: https://github.com/huawei-noah/Pretrained-IPT (Apache-2.0; nothing is copied). Written from a description of
the published network: the same function in float64, with the authors' way to cut an image into tiles as part of the
network, since it knows the positions of one size only. Weights are converted by `spinsr.convert`.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import mean_shift, shapes
from spinsr.convert.recipe import Recipe, adam, l1, multistep
from spinsr.convert.registry import ArchFormat, PublishedResult, Sizes, Source, bare, register_format
from spinsr.modules.mean_shift import DIV2K_MEAN, register_mean
from spinsr.modules.padding import pad_to
from spinsr.modules.upsample import Upsample
from spinsr.utils.validation import check, check_divisible, check_equal, check_length, whole


class ResidualBlock(nn.Module):
    """x + convolutions(x), of 5 x 5 pixels.

    Args:
        num_feat: Channels C.
    """

    def __init__(self, num_feat: int):
        super().__init__()
        convs = [nn.Conv2d(num_feat, num_feat, 5, 1, 2) for _ in range(2)]
        self.body = nn.Sequential(convs[0], nn.ReLU(), convs[1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.body(x)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with several heads and without biases.

    Args:
        dim: Width D of the tokens.
        num_heads: Heads; they divide D.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Three of (B, N, D) -> (B, N, D)."""
        projected = (F.linear(x, w) for x, w in zip((q, k, v), self.in_proj.weight.chunk(3), strict=True))
        # (B, heads, N, D / heads)
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Attention and a network for each token, both after a layer normalisation and added to their input.

    Args:
        dim: Width D of the tokens.
        num_heads: Heads of the attention.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.self_attn = MultiHeadAttention(dim, num_heads)
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        y = self.norm1(x)
        x = x + self.self_attn(y, y, y)
        return x + self.linear2(F.relu(self.linear1(self.norm2(x))))


class DecoderLayer(nn.Module):
    """As an encoder layer, with attention to the encoder's result; the task's embedding is added to the queries.

    Args:
        dim: Width D of the tokens.
        num_heads: Heads of the attention.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.self_attn = MultiHeadAttention(dim, num_heads)
        self.multihead_attn = MultiHeadAttention(dim, num_heads)
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, memory: Tensor, task: Tensor) -> Tensor:
        """(B, N, D), the encoder's result (B, N, D), the task's embedding (N, D) -> (B, N, D)."""
        y = self.norm1(x)
        x = x + self.self_attn(y + task, y + task, y)
        x = x + self.multihead_attn(self.norm2(x) + task, memory, memory)
        return x + self.linear2(F.relu(self.linear1(self.norm3(x))))


class Tail(nn.Module):
    """Upsampler and last convolution of a task.

    Args:
        num_feat: Channels C.
        num_out_ch: Channels of the image.
        scale: 1, 3 or a power of two.
    """

    def __init__(self, num_feat: int, num_out_ch: int, scale: int):
        super().__init__()
        self.upsample = nn.Sequential() if scale == 1 else Upsample(scale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_out_ch, scale*H, scale*W)."""
        return self.conv_last(self.upsample(x))


def tile_shares(length: int, tile: int, scale: int, first_alone: bool = False) -> dict[int, Tensor]:
    """The share of each tile in the result along one axis, by where it begins; over all tiles exactly 1 everywhere.

    Tiles begin every quarter of their side. Each loses a quarter on both sides, except at the image's beginning, and
    where several are left the result is their mean. One more tile ends where the image does, and takes over in the
    middle of what it has in common with the last of the others.

    Args:
        length: Side of the image in LR pixels, at least `tile`.
        tile: Side of a tile in LR pixels, at least 4.
        scale: Upscaling factor.
        first_alone: The first tile has all that it covers, except what the last one takes over.

    Returns:
        Start in LR pixels -> (scale * tile,), float64.

    Example:
        >>> list(tile_shares(14, 8, 1)), tile_shares(8, 8, 1)[0].tolist()
        ([0, 2, 4, 6], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """
    margin = tile // 4
    cut = (length - tile) % margin
    starts = range(0, length - tile - cut + 1, margin)
    end = (length - tile) * scale - (-(tile - cut) * scale // 2)  # rounded up
    shares = torch.zeros(len(starts) + 1, length * scale, dtype=torch.float64)
    for number, start in enumerate(starts):
        shares[number, (start + margin if start else 0) * scale : (start + tile - margin) * scale] = 1
    shares = shares / shares.sum(0).clamp(min=1)
    if first_alone:
        shares[:, : tile * scale] = 0
        shares[0, : tile * scale] = 1
    shares[:, end:] = 0
    shares[-1, end:] = 1
    found: dict[int, Tensor] = {}
    for share, start in zip(shares, (*starts, length - tile), strict=True):
        part = share[start * scale : (start + tile) * scale]
        found[start] = found[start] + part if start in found else part
    return found


@ARCH_REGISTRY.register()
class IPT(nn.Module):
    """Image processing transformer: a transformer over the patches of a tile, with a head and a tail for each task.

    An image larger than a tile is cut into overlapping tiles (`tile_shares`), so the cost grows with their number: one
    for every 12 x 12 pixels by default.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C.
        patch_size: Side of a tile in pixels, at least 4, a multiple of `token_size`.
        token_size: Side of the patch of features that is a token, of the width D = C * token_size**2.
        num_layer: Layers of the encoder, and of the decoder.
        num_heads: Heads of the attention; they divide D.
        upscale: 1, 3 or a power of two.
        tasks: The factors of several tasks, as (2, 3, 4, 1, 1, 1); None for the single task of `upscale`.
        task: Which of them the network does, also as an attribute; None for the first with the factor `upscale`.
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
        patch_size: int = 48,
        token_size: int = 3,
        num_layer: int = 12,
        num_heads: int = 12,
        upscale: int = 4,
        tasks: Sequence[int] | None = None,
        task: int | None = None,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = DIV2K_MEAN,
    ):
        super().__init__()
        dim = num_feat * token_size**2
        check_equal(num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        check_length(rgb_mean=rgb_mean, num_in_ch=num_in_ch)
        check_divisible(patch_size=patch_size, token_size=token_size)
        check_divisible(dim=dim, num_heads=num_heads)
        check(whole(4), patch_size=patch_size)
        tasks = (upscale,) if tasks is None else tuple(tasks)
        if upscale not in tasks or (task is not None and (task not in range(len(tasks)) or tasks[task] != upscale)):
            raise ValueError(f'upscale must be the factor of the task, got {upscale=}, {tasks=}, {task=}')
        self.task = tasks.index(upscale) if task is None else task
        self.upscale, self.patch_size, self.token_size, self.img_range = upscale, patch_size, token_size, img_range
        register_mean(self, img_range, rgb_mean)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(num_in_ch, num_feat, 3, 1, 1), ResidualBlock(num_feat), ResidualBlock(num_feat))
            for _ in tasks
        )
        tokens = (patch_size // token_size) ** 2
        self.linear_encoding = nn.Linear(dim, dim)
        self.position = nn.Parameter(torch.randn(tokens, dim))
        self.task_embedding = nn.Parameter(torch.randn(len(tasks), tokens * dim))
        self.body = nn.Sequential(
            OrderedDict(
                (f'{name}_{number}', layer(dim, num_heads))
                for name, layer in (('encoder', EncoderLayer), ('decoder', DecoderLayer))
                for number in range(num_layer)
            )
        )
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.tails = nn.ModuleList(Tail(num_feat, num_out_ch, scale) for scale in tasks)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        side, scale, (height, width) = self.patch_size, self.upscale, x.shape[2:]
        x = pad_to(x, side, side) * self.img_range - self.mean
        rows, columns = (tile_shares(length, side, scale) for length in x.shape[2:])
        # As the authors join their strips: in the rows that only the first tiles cover, the left one is not averaged.
        edge = tile_shares(x.shape[3], side, scale, first_alone=True)
        image = x.new_zeros(*x.shape[:2], *(scale * length for length in x.shape[2:]))
        for top, row_share in rows.items():
            tiles = [x[..., top : top + side, left : left + side] for left in columns]
            results = self._super_resolve_tiles(torch.cat(tiles)).chunk(len(tiles))
            for (left, share), result in zip(columns.items(), results, strict=True):
                shares = row_share[:, None] * share
                if top == 0:
                    shares[: side // 4 * scale] = edge[left]
                place = image[..., scale * top : scale * (top + side), scale * left : scale * (left + side)]
                place += result * shares.to(result)
        return ((image + self.mean) / self.img_range)[..., : scale * height, : scale * width]

    def _super_resolve_tiles(self, x: Tensor) -> Tensor:
        """(B, C, patch_size, patch_size) -> (B, C, upscale * patch_size, upscale * patch_size)."""
        features = self.heads[self.task](x)
        tokens = self._to_tokens(features)
        memory = self.linear_encoding(tokens) + tokens + self.position
        layers = list(self.body)
        for layer in layers[: len(layers) // 2]:
            memory = layer(memory)
        out, task = memory, self.task_embedding[self.task].view_as(self.position)
        for layer in layers[len(layers) // 2 :]:
            out = layer(out, memory, task)
        return self.tails[self.task](self._to_features(self.mlp(out) + out) + features)

    def _to_tokens(self, x: Tensor) -> Tensor:
        """(B, C, patch_size, patch_size) -> (B, N, D), the N patches in raster order."""
        size, count = self.token_size, self.patch_size // self.token_size
        x = x.unflatten(3, (count, size)).unflatten(2, (count, size))  # (B, C, rows, size, columns, size)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _to_features(self, x: Tensor) -> Tensor:
        """The inverse of `_to_tokens`."""
        size, count = self.token_size, self.patch_size // self.token_size
        x = x.unflatten(2, (-1, size, size)).unflatten(1, (count, count))  # (B, rows, columns, C, size, size)
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    num_feat, channels = weights['heads.0.0.weight'].shape[:2]
    tasks = [_factor(weights, task) for task in range(shapes.count(weights, 'tails.{}.'))]
    tokens, dim = weights['position'].shape
    token_size = math.isqrt(dim // num_feat)
    return {
        'num_in_ch': channels,
        'num_out_ch': channels,
        'num_feat': num_feat,
        'patch_size': token_size * math.isqrt(tokens),
        'token_size': token_size,
        'num_layer': shapes.count(weights, 'body.encoder_{}.'),
        'upscale': max(tasks),
        **({'tasks': tuple(tasks)} if len(tasks) > 1 else {}),
        **({} if channels == 3 else {'rgb_mean': (0.0,) * channels}),
    }


def _factor(weights: Mapping[str, Tensor], task: int) -> int:
    template = f'tails.{task}.upsample.{{}}.weight'
    return shapes.stages(weights, template) if template.format(0) in weights else 1


def _factor_of_task(arguments: Mapping[str, Any]) -> dict[str, Any]:
    tasks, task = arguments.get('tasks', ()), arguments.get('task')
    return {'upscale': tasks[task]} if task in range(len(tasks)) else {}


_SIZES = {
    'n_feats': 'num_feat',
    'patch_size': 'patch_size',
    'patch_dim': 'token_size',
    'num_layers': 'num_layer',
    'num_heads': 'num_heads',
    'rgb_range': 'img_range',
}


def _official_arguments(variant: str, official: Mapping[str, Any]) -> dict[str, Any]:
    """Their scale is the list of tasks, and `set_scale` selects one.

    Raises:
        ValueError: A part of the network is switched off, or position embeddings are added in every layer.
    """
    if switched := [name for name in ('no_mlp', 'pos_every', 'no_pos', 'no_norm') if official.get(name)]:
        raise ValueError(f'{", ".join(switched)} must be off: no published IPT has it')
    tasks, task, channels = tuple(official['scale']), official.get('scale_idx', 0), official.get('n_colors', 3)
    return {
        'num_in_ch': channels,
        'num_out_ch': channels,
        **{ours: official[theirs] for theirs, ours in _SIZES.items() if theirs in official},
        'upscale': tasks[task],
        'tasks': tasks,
        'task': task,
    }


def _to_official(official: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ids = torch.arange(len(mean_shift.take(ours, 'position')))[None]
    return mean_shift.put_frozen()(official, ours) | {'body.position_encoding.position_ids': ids}


_ATTENTION, _OTHERS = '{attn:self_attn|multihead_attn}', '{name:linear1|linear2|norm1|norm2|norm3}'
_PUBLISHED = 'CVPR 2021, as quoted by github.com/huawei-noah/Pretrained-IPT'

register_format(
    ArchFormat(
        arch=IPT,
        names=(
            *mean_shift.ROWS,
            ('head.{task}.0.{end}', 'heads.{task}.0.{end}'),
            ('head.{task}.{block}.body.{conv:0|2}.{end}', 'heads.{task}.{block}.body.{conv}.{end}'),
            ('body.linear_encoding.{end}', 'linear_encoding.{end}'),
            ('body.mlp_head.0.{end}', 'mlp.0.{end}'),
            ('body.mlp_head.3.{end}', 'mlp.2.{end}'),
            ('body.query_embed.weight', 'task_embedding'),
            ('body.position_encoding.pe.weight', 'position'),
            ('body.position_encoding.position_ids', None),
            *(
                (f'body.{part}.layers.{{layer}}.{theirs}', f'body.{part}_{{layer}}.{ours}')
                for part in ('encoder', 'decoder')
                for theirs, ours in (
                    (f'{_ATTENTION}.in_proj_weight', f'{_ATTENTION}.in_proj.weight'),
                    (f'{_ATTENTION}.out_proj.weight', f'{_ATTENTION}.out_proj.weight'),
                    (f'{_OTHERS}.{{end}}', f'{_OTHERS}.{{end}}'),
                )
            ),
            ('tail.{task}.0.{stage}.{end}', 'tails.{task}.upsample.{stage}.{end}'),
            ('tail.{task}.1.{end}', 'tails.{task}.conv_last.{end}'),
        ),
        arguments=_arguments,
        implied=_factor_of_task,
        configurations={'IPT-multi': {'tasks': (2, 3, 4, 1, 1, 1)}},
        official_arguments=_official_arguments,
        untold={'num_heads': 1, 'task': None, 'img_range': 255.0},
        from_official=mean_shift.take_frozen(),
        to_official=_to_official,
        layout=bare,
        sizes=Sizes(minimum=48, pads=True),
        tiling='discouraged',
        published=(
            PublishedResult(2, 115_500_000, '38.37 34.43 32.48 33.76 -', _PUBLISHED),
            PublishedResult(3, 115_500_000, '34.81 30.85 29.38 29.49 -', _PUBLISHED),
            PublishedResult(4, 115_500_000, '32.64 29.01 27.82 27.26 -', _PUBLISHED),
        ),
        recipe=Recipe(
            about="The authors' training code is not public. They train one network for several tasks on ImageNet, and "
            'then fine-tune it for each. The first part, without which IPT is not competitive, is not included: this '
            'is the second part, for one scale on DIV2K, from weights that pretrain_network_g must name. LR patches '
            'have the size of a tile. A learning rate of 2e-5 is how the authors are said to have fine-tuned; we could '
            'not check it. Data, batch size and 100,000 iterations are our choice.',
            patch=48,
            batch=16,
            optim_g=adam(2e-5),
            scheduler=multistep(),
            total_iter=100_000,
            losses={'pixel_opt': l1(255.0)},
            by_configuration={'IPT-multi': {'scales': ()}},
            comments={
                'pixel_opt:loss_weight': 'the network works in 0..255, the loss in 0..1',
                'pretrain_network_g': "The authors' weights of this scale, or those of a pre-training of your own; ~ "
                'starts from scratch.',
            },
        ),
        source=Source(
            'Pre-Trained Image Processing Transformer (Chen et al., CVPR 2021)',
            2021,
            'https://github.com/huawei-noah/Pretrained-IPT',
            'Apache-2.0',
            weights='cloud drive',
        ),
    )
)
