"""Second-order channel attention (SOCA) of SAN."""

import torch
from torch import Tensor, nn

from spinsr import ops
from spinsr.ops.parts import no_autocast

MAX_SIDE = 1000  # LR pixels: the authors take the covariance of at most the central 1000 x 1000 pixels


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
            center = center if center.dtype == torch.float64 else center.float()
            root = ops.sqrtm_newton_schulz(ops.covariance(center))
        statistics = root.mean(1)[..., None, None]  # (B, C, 1, 1)
        return x * self.attention(statistics.to(x.dtype))


def _center(side: int) -> slice:
    return slice(None) if side <= MAX_SIDE else slice((side - MAX_SIDE) // 2, (side - MAX_SIDE) // 2 + MAX_SIDE)
