"""The parts of SPIN as modules; image features are tokens (B, H, W, C)."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from spinsr import ops
from spinsr.ops.association import check_kind
from spinsr.ops.attention import check_own_values


def project(
    x: Tensor, norm: nn.LayerNorm, linear: nn.Linear, widths: Sequence[int], with_norm: bool = False
) -> tuple[Tensor, ...]:
    """linear(norm(x)) in slices: (B, H, W, C) -> (B, N, D) for each D in `widths`; `linear` has no bias.

    With `with_norm`, then norm(x), (B, N, C).
    """
    parameters = norm.weight, norm.bias
    return ops.norm_project(x.flatten(1, 2), parameters, linear.weight, widths, norm.eps, with_norm=with_norm)


class SuperpixelAggregation(nn.Module):
    """Associates each pixel with the superpixels around it; see `spinsr.ops.associate`. Has no parameters.

    Args:
        stoken_size: Side of a superpixel cell in LR pixels.
        num_iter: Number of association rounds.
        reach: How many cells away the superpixels of a pixel are; None: any of the image. 0: only its own, a patch.
        differentiable: Whether gradients flow through the association and its centroids.
        kind: 'softmax' over the neighbouring superpixels, or 'exponential', Eq. 3.
        position_weight: How much a distance of one cell counts beside the features; 0: features alone.

    Raises:
        ValueError: `kind` or `position_weight` is out of its range.
    """

    def __init__(
        self,
        stoken_size: int,
        num_iter: int = 3,
        reach: int | None = 1,
        differentiable: bool = False,
        kind: str = 'softmax',
        position_weight: float = 0.0,
    ):
        super().__init__()
        check_kind(kind, position_weight, differentiable, reach)
        self.stoken_size = stoken_size
        self.num_iter = num_iter
        self.options = {
            'reach': reach,
            'differentiable': differentiable,
            'kind': kind,
            'position_weight': position_weight,
        }

    def forward(self, x: Tensor) -> ops.Association:
        """(B, H, W, C) -> association, a constant to autograd unless it is differentiable."""
        return ops.associate(x, self.stoken_size, self.num_iter, **self.options)

    def extra_repr(self) -> str:
        options = ', '.join(f'{name}={value}' for name, value in self.options.items())
        return f'stoken_size={self.stoken_size}, num_iter={self.num_iter}, {options}'


class SuperpixelCrossAttention(nn.Module):
    """Superpixels gather from all pixels, then every pixel gathers from all superpixels.

    Args:
        dim: Channels C.
        num_heads: Number of heads.
        qk_dim: Channels of queries and keys, over all heads.
    """

    def __init__(self, dim: int, num_heads: int, qk_dim: int):
        super().__init__()
        self.split = (qk_dim, qk_dim, dim)
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.to_qkv = nn.Linear(dim, sum(self.split), bias=False)
        self.to_token = nn.Linear(dim, qk_dim, bias=False)

    def inputs(self, x: Tensor, association: ops.Association) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values of the pixels (B, N, D), and the superpixels' tokens (B, K, qk_dim)."""
        q, k, v, y = project(x, self.norm, self.to_qkv, self.split, with_norm=True)
        return q, k, v, self.to_token(ops.pool(y.view(x.shape), association).to(q.dtype))

    def forward(self, x: Tensor, association: ops.Association) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return ops.superpixel_cross_attention(*self.inputs(x, association), self.num_heads).view(x.shape)


class IntraSuperpixelAttention(nn.Module):
    """Attention among the pixels that belong most to a superpixel.

    Args:
        dim: Channels C.
        num_heads: Number of heads.
        qk_dim: Channels of queries and keys, over all heads.
        num_pixels: Pixels a superpixel (the paper's N); None means the area of its cell.
        own_values: Whose own values enter the result, 'all' pixels' or only those of 'ignored' ones.

    Raises:
        ValueError: `own_values` is neither.
    """

    def __init__(self, dim: int, num_heads: int, qk_dim: int, num_pixels: int | None = None, own_values: str = 'all'):
        super().__init__()
        check_own_values(own_values)
        self.own_values = own_values
        self.split = (qk_dim, qk_dim, dim)
        self.num_heads = num_heads
        self.num_pixels = num_pixels
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.to_qkv = nn.Linear(dim, sum(self.split), bias=False)

    def forward(self, x: Tensor, association: ops.Association, residual: bool = False) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); with `residual`, x is added."""
        q, k, v = project(x, self.norm, self.to_qkv, self.split)
        add_to = x.flatten(1, 2) if residual else None
        indices = ops.top_n(association, self.num_pixels)  # (B, K, T)
        out = ops.intra_superpixel_attention(
            q, k, v, indices, self.num_heads, own_values=self.own_values, add_to=add_to
        )
        return out.view(x.shape)


class LocalAttention(nn.Module):
    """Attention inside windows of the cell's size with two pixels of overlap; overlaps are averaged.

    The logits are scaled by qk_dim^-0.5 for any number of heads, as in the authors' code.

    Args:
        dim: Channels C.
        num_heads: Number of heads.
        qk_dim: Channels of queries and keys, over all heads.
        window: Side of a window in LR pixels.
    """

    def __init__(self, dim: int, num_heads: int, qk_dim: int, window: int):
        super().__init__()
        self.split = (qk_dim, qk_dim, dim)
        self.num_heads = num_heads
        self.window = window
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.to_qkv = nn.Linear(dim, sum(self.split), bias=False)

    def forward(self, x: Tensor, residual: bool = False) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); with `residual`, x is added."""
        q, k, v = (t.unflatten(1, x.shape[1:3]) for t in project(x, self.norm, self.to_qkv, self.split))
        if self.num_heads > 1:
            q = q * self.num_heads**-0.5  # the op scales by (qk_dim / num_heads)^-0.5
        add_to = x if residual else None
        return ops.window_attention(q, k, v, self.window, num_heads=self.num_heads, add_to=add_to)


class FeedForward(nn.Module):
    """fc2(GELU(fc1(cat[ca(y) * y, pa(y) * y]))) with y = LayerNorm(x), channel attention ca and pixel attention pa.

    See `spinsr.ops.gated_feed_forward`.

    Args:
        dim: Channels C.
        mlp_dim: Hidden channels.
        squeeze_factor: Channel reduction inside both attentions.
    """

    def __init__(self, dim: int, mlp_dim: int, squeeze_factor: int = 8):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        hidden = dim // squeeze_factor
        self.channel_attention = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim), nn.Sigmoid()
        )  # on the mean over pixels
        self.pixel_attention = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, 1), nn.Sigmoid())
        self.fc1 = nn.Linear(2 * dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor, residual: bool = False) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); with `residual`, x is added."""
        out = ops.gated_feed_forward(
            x.flatten(1, 2),
            (self.norm.weight, self.norm.bias),
            _parameters(self.channel_attention),
            _parameters(self.pixel_attention),
            (self.fc1.weight, self.fc1.bias),
            (self.fc2.weight, self.fc2.bias),
            self.norm.eps,
            residual=residual,
        )
        return out.view(x.shape)


def _parameters(attention: Iterable[Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    squeeze, _, expand, _ = attention
    return squeeze.weight, squeeze.bias, expand.weight, expand.bias
