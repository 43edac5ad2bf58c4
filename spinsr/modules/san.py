"""The parts of SAN as modules: region-level non-local (RL-NL) and second-order channel attention (SOCA)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr import ops
from spinsr.ops.attention import attention
from spinsr.ops.common.precision import full_type, no_autocast

MAX_SIDE = 1000  # LR pixels: the authors take the covariance of at most the central 1000 x 1000 pixels


class RegionNonLocal(nn.Module):
    """Embedded-Gaussian non-local attention within each quadrant of the image: x + W softmax(theta phi^T) g.

    Keys and values are max-pooled 2 x 2, as in the authors' code. Empty quadrants (a side of 1) are skipped, and a
    quadrant's side of 1 is not pooled.

    Args:
        num_feat: Channels C.
        inter_channels: Channels of the embeddings.
    """

    def __init__(self, num_feat: int, inter_channels: int):
        super().__init__()
        self.theta = nn.Conv2d(num_feat, inter_channels, 1)
        self.phi = nn.Conv2d(num_feat, inter_channels, 1)
        self.g = nn.Conv2d(num_feat, inter_channels, 1)
        self.out = nn.Conv2d(inter_channels, num_feat, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.get_parameter('bias'))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q, k, v = self.theta(x), self.phi(x), self.g(x)
        rows = [
            torch.cat([_attend(q[..., r, c], k[..., r, c], v[..., r, c]) for c in _halves(x.shape[3])], 3)
            for r in _halves(x.shape[2])
        ]
        return x + self.out(torch.cat(rows, 2).to(x.dtype))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    window = [min(2, side) for side in q.shape[2:]]
    k, v = F.max_pool2d(k, window), F.max_pool2d(v, window)
    # The logits are not scaled in this network; in half types those of features in the scale of 0..255 would overflow.
    tokens = (t.flatten(2).transpose(1, 2).unsqueeze(1).to(full_type(q.dtype)) for t in (q, k, v))  # (B, 1, N, C)
    with no_autocast(q.device.type):
        return attention(*tokens, scale=1.0).squeeze(1).transpose(1, 2).reshape(q.shape)


def _halves(side: int) -> list[slice]:
    middle = side // 2
    return [slice(0, middle), slice(middle, None)] if middle else [slice(None)]


class SecondOrderChannelAttention(nn.Module):
    """Scales channels by a gate computed from the square root of their covariance matrix.

    Computed in float32 at least: activations are in the scale of 0..255 and their squares leave the range of float16.

    Args:
        num_feat: Channels C.
        squeeze_factor: Channel reduction inside the gate.
    """

    def __init__(self, num_feat: int, squeeze_factor: int = 16):
        super().__init__()
        self.attention = nn.Sequential(
            nn.Conv2d(num_feat, num_feat // squeeze_factor, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(num_feat // squeeze_factor, num_feat, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        center = x[:, :, _center(x.shape[2]), _center(x.shape[3])]
        with no_autocast(x.device.type):
            center = center.to(full_type(center.dtype))
            root = ops.sqrtm_newton_schulz(ops.covariance(center))
        statistics = root.mean(1)[..., None, None]  # (B, C, 1, 1)
        return x * self.attention(statistics.to(x.dtype))


def _center(side: int) -> slice:
    return slice(None) if side <= MAX_SIDE else slice((side - MAX_SIDE) // 2, (side - MAX_SIDE) // 2 + MAX_SIDE)
