"""The feed-forward network of SPIN, with channel and pixel attention in front."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Module):
    """fc2(GELU(fc1(cat[ca(y) * y, pa(y) * y]))) with y = LayerNorm(x), channel attention ca and pixel attention pa.

    The concatenation is never made: fc1(cat[ca * y, pa * y]) = W_c (ca * y) + pa * (W_p y) + b.

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
        y = self.norm(x)
        by_channel = self.channel_attention(y.mean((1, 2), keepdim=True))  # (B, 1, 1, C)
        by_pixel = self.pixel_attention(y)  # (B, H, W, 1)
        w_channel, w_pixel = self.fc1.weight.chunk(2, 1)
        hidden = F.linear(y * by_channel, w_channel, self.fc1.bias)
        hidden = torch.addcmul(hidden, by_pixel, F.linear(y, w_pixel))  # (B, H, W, mlp_dim)
        return self.fc2(F.gelu(hidden))
