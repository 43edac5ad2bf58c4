"""The feed-forward network of SPIN, with channel and pixel attention in front."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXELS_AT_ONCE = 4096


class FeedForward(nn.Module):
    """fc2(GELU(fc1(cat[ca(y) * y, pa(y) * y]))) with y = LayerNorm(x), channel attention ca and pixel attention pa.

    The concatenation is never made: fc1(cat[ca * y, pa * y]) = (W_c ca) y + pa * (W_p y) + b, where ca scales the
    columns of W_c, so that one matmul reads y once for both halves and the first layer of pa. Without gradients this
    runs on a few thousand pixels at a time, which stay in the cache.

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
        y = self.norm(x).flatten(1, 2)  # (B, N, C)
        w_channel, w_pixel = self.fc1.weight.chunk(2, 1)  # (mlp_dim, C) each
        squeeze = self.pixel_attention[0]
        by_channel = self.channel_attention(y.mean(1)).unsqueeze(1)  # (B, 1, C)
        shared = torch.cat([w_pixel, squeeze.weight]).expand(len(x), -1, -1)
        weight = torch.cat([w_channel * by_channel, shared], 1).transpose(1, 2)  # (B, C, 2 * mlp_dim + squeezed)
        bias = torch.cat([self.fc1.bias, self.fc1.bias.new_zeros(len(w_pixel)), squeeze.bias])
        chunk = y.shape[1] if torch.is_grad_enabled() else PIXELS_AT_ONCE
        return torch.cat([self._mix(part, weight, bias) for part in y.split(chunk, 1)], 1).view(x.shape)

    def _mix(self, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        by_weight = torch.baddbmm(bias, y.to(weight.dtype), weight)  # (B, N, 2 * mlp_dim + squeezed)
        mlp_dim = self.fc1.out_features
        channel, pixel, squeezed = by_weight.split([mlp_dim, mlp_dim, by_weight.shape[2] - 2 * mlp_dim], 2)
        by_pixel = self.pixel_attention[1:](squeezed)  # (B, N, 1)
        return self.fc2(F.gelu(torch.addcmul(channel, by_pixel, pixel)))
