"""The feed-forward network of SPIN, with channel and pixel attention in front."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr import ops
from spinsr.modules.layout import pointwise, to_image
from spinsr.ops.backend import resolve_backend


class FeedForward(nn.Module):
    """fc2(GELU(fc1(cat[ca(y) * y, pa(y) * y]))) with y = LayerNorm(x), channel attention ca and pixel attention pa.

    The concatenation is never made; see `spinsr.ops.gated_feed_forward`.

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

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if resolve_backend() == 'reference':
            return self._reference(x)
        squeeze, _, expand, _ = self.channel_attention
        pixel_squeeze, _, pixel_expand, _ = self.pixel_attention
        out = ops.gated_feed_forward(
            x.flatten(1, 2),
            (self.norm.weight, self.norm.bias),
            (squeeze.weight, squeeze.bias, expand.weight, expand.bias),
            (pixel_squeeze.weight, pixel_squeeze.bias, pixel_expand.weight, pixel_expand.bias),
            (self.fc1.weight, self.fc1.bias),
            (self.fc2.weight, self.fc2.bias),
            self.norm.eps,
        )
        return out.view(x.shape)

    def _reference(self, x: Tensor) -> Tensor:
        y = to_image(self.norm(x)).contiguous()
        by_channel = self.channel_attention(y.mean((2, 3)))[..., None, None]
        squeeze, gelu, expand, sigmoid = self.pixel_attention
        by_pixel = sigmoid(pointwise(expand, gelu(pointwise(squeeze, y))))
        both = torch.cat([y * by_channel, y * by_pixel], 1)  # (B, 2 C, H, W)
        return pointwise(self.fc2, F.gelu(pointwise(self.fc1, both))).permute(0, 2, 3, 1)
