"""IPT: Pre-Trained Image Processing Transformer (Chen et al., CVPR 2021).

Upstream: https://github.com/huawei-noah/Pretrained-IPT (Apache-2.0; nothing is copied). Written from a description of
the published network, with its tiles for images that are larger than the one size it takes: the same function in
float64. Smaller images are extended. Weights are converted by `spinsr.convert`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.convert import mean_shift, shapes
from spinsr.convert.registry import ArchFormat, PublishedResult, Sizes, Source, bare, register_format, renamed
from spinsr.modules.attention import attend, merge_heads
from spinsr.modules.mean_shift import register_mean
from spinsr.modules.padding import pad_to
from spinsr.modules.upsample import Upsample
from spinsr.utils.validation import check_divisible, check_equal, check_length


class ResidualBlock(nn.Module):
    """Two 5 x 5 convolutions with ReLU between them, and the input.

    Args:
        num_feat: Channels C.
    """

    def __init__(self, num_feat: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, num_feat, 5, 1, 2)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.conv2(F.relu(self.conv1(x)))


class Attention(nn.Module):
    """Attention between tokens, without biases.

    Args:
        dim: Width D of a token.
        num_heads: Heads; they divide D.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, N, D) each -> (B, N, D)."""
        heads = (
            F.linear(x, weight).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for x, weight in zip((q, k, v), self.qkv.weight.chunk(3), strict=True)
        )  # (B, heads, N, D / heads) each
        return self.proj(merge_heads(attend(*heads, self.scale)))


class EncoderLayer(nn.Module):
    """Attention and a feed-forward network, each on its normalised input, to which it is added.

    Args:
        dim: Width D of a token.
        num_heads: Heads.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, 4 * dim)
        self.linear2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        y = self.norm1(x)
        x = x + self.self_attn(y, y, y)
        return x + self.linear2(F.relu(self.linear1(self.norm2(x))))


class DecoderLayer(EncoderLayer):
    """As `EncoderLayer`, with a second attention between them, to what the encoder made.

    Args:
        dim: Width D of a token.
        num_heads: Heads.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__(dim, num_heads)
        self.cross_attn = Attention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, memory: Tensor, query: Tensor) -> Tensor:  # type: ignore[override]
        """(B, N, D), the same, and (N, D), which tells the task -> (B, N, D)."""
        y = self.norm1(x)
        x = x + self.self_attn(y + query, y + query, y)
        x = x + self.cross_attn(self.norm2(x) + query, memory, memory)
        return x + self.linear2(F.relu(self.linear1(self.norm3(x))))


@ARCH_REGISTRY.register()
class IPT(nn.Module):
    """Image processing transformer. It takes images of one size; larger ones are cut into tiles as by its authors.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C.
        patch_size: Side of the images that it takes, divisible by `patch_dim`.
        patch_dim: Side of the pixels that are one token, which is C * patch_dim^2 wide.
        num_heads: Heads; they divide the width of a token.
        num_layer: Layers of the encoder, and of the decoder.
        upscale: Of the task that the network does: 1, 3 or a power of two.
        tasks: Upscaling factor of each task that the weights are for, 1 for those without; None for the one.
        task: Which of them the network does, from 0.
        num_query: Embeddings of tasks; None for as many as tasks.
        img_range: Scale in which the network works; the input is `x * img_range - mean`.
        rgb_mean: Mean of each channel in [0, 1]; `mean` is `img_range * rgb_mean`.

    Raises:
        ValueError: The arguments do not fit together.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        patch_size: int = 48,
        patch_dim: int = 3,
        num_heads: int = 12,
        num_layer: int = 12,
        upscale: int = 4,
        tasks: Sequence[int] | None = None,
        task: int = 0,
        num_query: int | None = None,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
    ):
        super().__init__()
        tasks = (upscale,) if tasks is None else tuple(tasks)
        dim, num_token = num_feat * patch_dim**2, (patch_size // patch_dim) ** 2
        check_equal(num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        check_length(rgb_mean=rgb_mean, num_in_ch=num_in_ch)
        check_divisible(patch_size=patch_size, patch_dim=patch_dim)
        check_divisible(**{'num_feat * patch_dim**2': dim, 'num_heads': num_heads})
        if not 0 <= task < len(tasks) or tasks[task] != upscale:
            raise ValueError(f'upscale must be that of the task, tasks[task], got {upscale=}, {tasks=}, {task=}')
        self.upscale, self.patch_size, self.patch_dim, self.task = upscale, patch_size, patch_dim, task
        self.img_range = img_range
        register_mean(self, img_range, rgb_mean)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(num_in_ch, num_feat, 3, 1, 1), ResidualBlock(num_feat), ResidualBlock(num_feat))
            for _ in tasks
        )
        self.linear_encoding = nn.Linear(dim, dim)
        self.positions = nn.Parameter(torch.randn(num_token, dim))
        self.queries = nn.Parameter(torch.randn(num_query or len(tasks), num_token * dim))
        self.encoder = nn.Sequential(*(EncoderLayer(dim, num_heads) for _ in range(num_layer)))
        self.decoder = nn.ModuleList(DecoderLayer(dim, num_heads) for _ in range(num_layer))
        self.mlp_head = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.upsamples = nn.ModuleList(nn.Sequential() if scale == 1 else Upsample(scale, num_feat) for scale in tasks)
        self.tails = nn.ModuleList(nn.Conv2d(num_feat, num_out_ch, 3, 1, 1) for _ in tasks)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        height, width = (side * self.upscale for side in x.shape[2:])
        x = pad_to(x, self.patch_size, self.patch_size)
        image = self._of_tile(x) if x.shape[2] == x.shape[3] == self.patch_size else self._of_tiles(x)
        return image[..., :height, :width]

    def _of_tile(self, x: Tensor) -> Tensor:
        """(B, num_in_ch, P, P) -> (B, num_out_ch, upscale*P, upscale*P)."""
        features = self.heads[self.task](x * self.img_range - self.mean)
        tokens = F.unfold(features, self.patch_dim, stride=self.patch_dim).transpose(1, 2)  # (B, N, D)
        tokens = tokens + self.linear_encoding(tokens)
        memory = y = self.encoder(tokens + self.positions)
        query = self.queries[self.task].view_as(self.positions)
        for layer in self.decoder:
            y = layer(y, memory, query)
        y = (y + self.mlp_head(y)).transpose(1, 2)
        deep = features + F.fold(y, features.shape[2:], self.patch_dim, stride=self.patch_dim)
        image = self.tails[self.task](self.upsamples[self.task](deep))
        return (image + self.mean) / self.img_range

    def _of_tiles(self, x: Tensor) -> Tensor:
        """The weighted sum of what it makes of each tile: (B, num_in_ch, H, W), sides of at least P."""
        (batch, _, height, width), size, scale = x.shape, self.patch_size, self.upscale
        columns = tile_weights(width, size, scale)
        # In the first rows the authors overwrite the average of the tiles with the whole width of the first.
        first_rows = [x.new_tensor(weights) for _, weights in tile_weights(width, size, scale, alone=size)]
        image = x.new_zeros(batch, self.tails[self.task].out_channels, height * scale, width * scale)
        for top, down in tile_weights(height, size, scale):
            tiles = torch.cat([x[..., top : top + size, left : left + size] for left, _ in columns])
            made = self._of_tile(tiles).split(batch)
            for (left, across), at_top, tile in zip(columns, first_rows, made, strict=True):
                weights = x.new_tensor(down)[:, None] * x.new_tensor(across)
                if top == 0:
                    weights[: _margin(size) * scale] = at_top
                place = (..., slice(top * scale, (top + size) * scale), slice(left * scale, (left + size) * scale))
                image[place] += tile * weights
        return image


def _margin(size: int) -> int:
    return max(size // 4, 1)


def tile_weights(side: int, size: int, scale: int, alone: int | None = None) -> list[tuple[int, list[float]]]:
    """The tiles along a side of an image, and how much their pixels count.

    Tiles begin every quarter of their size, and one ends at the end. A quarter at both of their ends does not count,
    except at the border; the last tile counts alone from the middle of what it shares with the one before.

    Args:
        side: Of the image, in LR pixels, at least `size`.
        size: Of a tile.
        scale: Upscaling factor.
        alone: LR pixels at the start for which the first tile counts alone; None for a quarter.

    Returns:
        First LR pixel of each tile, and the weights of its size * scale HR pixels; over all tiles that hold a pixel
        they sum to 1.
    """
    margin, last = _margin(size), side - size
    left_over = last % margin
    regular = range(0, last + 1, margin)
    joint = (last + size - left_over) * scale - (size - left_over) * scale // 2
    weights = {start: [0.0] * (size * scale) for start in (*regular, last)}
    for pixel in range(side * scale):
        if pixel >= joint:
            holding = [last]
        elif pixel < (margin if alone is None else alone) * scale:
            holding = [0]
        else:
            inner = ((start, (start + margin) * scale, (start + size - margin) * scale) for start in regular)
            holding = [start for start, first, end in inner if first <= pixel < end]
        for start in holding:
            weights[start][pixel - start * scale] = 1 / len(holding)
    return sorted(weights.items())


_LAYER = '{linear:linear1|linear2|norm1|norm2|norm3}.{end}'
_FLAGS = ('no_mlp', 'pos_every', 'no_pos', 'no_norm')

_translate = renamed(
    n_colors='num_in_ch',
    rgb_range='img_range',
    dropout_rate=None,
    scale='tasks',
    scale_idx='task',
    n_feats='num_feat',
    num_layers='num_layer',
    num_queries='num_query',
    **dict.fromkeys(_FLAGS),
)


def _official_arguments(variant: str, official: Mapping[str, Any]) -> dict[str, Any]:
    if on := [flag for flag in _FLAGS if official.get(flag)]:
        raise ValueError(f'{" and ".join(_FLAGS)} must be off, got {on[0]}={official[on[0]]!r}')
    ours = {**_translate(variant, official), 'num_out_ch': official.get('n_colors', 3)}
    return {**ours, 'upscale': ours['tasks'][ours.get('task', 0)]}


def _to_official(official: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the numbers of the tokens, and the MeanShift."""
    positions = mean_shift.take(ours, 'positions')
    numbers = torch.arange(len(positions), device=positions.device)[None]
    return mean_shift.unfold(official | {'body.position_encoding.position_ids': numbers}, ours)


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    first = weights['heads.0.0.weight']
    num_token, dim = weights['positions'].shape
    patch_dim = math.isqrt(dim // len(first))
    tasks = []
    for task in range(shapes.count(weights, 'tails.{}.')):
        has_stages = f'upsamples.{task}.0.weight' in weights
        tasks.append(shapes.stages(weights, f'upsamples.{task}.{{}}.weight') if has_stages else 1)
    return {
        'num_in_ch': first.shape[1],
        'num_out_ch': first.shape[1],
        'num_feat': len(first),
        'patch_size': math.isqrt(num_token) * patch_dim,
        'patch_dim': patch_dim,
        'num_layer': shapes.count(weights, 'encoder.{}.'),
        'upscale': tasks[0],
        'tasks': tuple(tasks),
        'num_query': len(weights['queries']),
        **({} if first.shape[1] == 3 else {'rgb_mean': (0.0,) * first.shape[1]}),
    }


_PUBLISHED = 'CVPR 2021, github.com/huawei-noah/Pretrained-IPT'

register_format(
    ArchFormat(
        arch=IPT,
        names=(
            *mean_shift.ROWS,
            ('head.{task}.0.{end}', 'heads.{task}.0.{end}'),
            ('head.{task}.{block:1|2}.body.0.{end}', 'heads.{task}.{block}.conv1.{end}'),
            ('head.{task}.{block:1|2}.body.2.{end}', 'heads.{task}.{block}.conv2.{end}'),
            ('body.linear_encoding.{end}', 'linear_encoding.{end}'),
            ('body.position_encoding.pe.weight', 'positions'),
            ('body.position_encoding.position_ids', None),
            ('body.query_embed.weight', 'queries'),
            ('body.mlp_head.0.{end}', 'mlp_head.0.{end}'),
            ('body.mlp_head.3.{end}', 'mlp_head.2.{end}'),
            *(
                (f'body.{part}.layers.{{layer}}.{theirs}', f'{part}.{{layer}}.{ours}')
                for part in ('encoder', 'decoder')
                for theirs, ours in (
                    ('self_attn.in_proj_weight', 'self_attn.qkv.weight'),
                    ('self_attn.out_proj.weight', 'self_attn.proj.weight'),
                    (_LAYER, _LAYER),
                )
            ),
            ('body.decoder.layers.{layer}.multihead_attn.in_proj_weight', 'decoder.{layer}.cross_attn.qkv.weight'),
            ('body.decoder.layers.{layer}.multihead_attn.out_proj.weight', 'decoder.{layer}.cross_attn.proj.weight'),
            ('tail.{task}.0.{stage}.{end}', 'upsamples.{task}.{stage}.{end}'),
            ('tail.{task}.1.{end}', 'tails.{task}.{end}'),
        ),
        arguments=_arguments,
        official_arguments=_official_arguments,
        untold={'num_heads': 1, 'task': 0, 'img_range': 255.0},
        from_official=mean_shift.fold,
        to_official=_to_official,
        layout=bare,
        sizes=Sizes(minimum=48, pads=True),
        published=(
            PublishedResult(2, 115_500_000, '38.37 34.43 32.48 33.76 -', _PUBLISHED),
            PublishedResult(3, 115_500_000, '34.81 30.85 29.38 29.49 -', _PUBLISHED),
            PublishedResult(4, 115_500_000, '32.64 29.01 27.82 27.26 -', _PUBLISHED),
        ),
        source=Source(
            'Pre-Trained Image Processing Transformer (Chen et al., CVPR 2021)',
            2021,
            'https://github.com/huawei-noah/Pretrained-IPT',
            'Apache-2.0',
        ),
    )
)
