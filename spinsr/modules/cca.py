"""Contrast-aware channel attention (CCA), of IMDN, RFDN and BSRN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.ops.common.precision import full_type


class ContrastAwareChannelAttention(nn.Module):
    """A factor in (0, 1) for every channel, from its mean and its contrast over the image.

        out = x * sigmoid(conv_out(ReLU(conv_in(std(x) + mean(x)))))

    The standard deviation is that of the population, without an eps. That of a constant channel is exactly 0, and so is
    its gradient there.

    Args:
        num_feat: Channels C.
        num_mid: Channels between the convolutions.
    """

    def __init__(self, num_feat: int, num_mid: int):
        super().__init__()
        self.conv_in = nn.Conv2d(num_feat, num_mid, 1)
        self.conv_out = nn.Conv2d(num_mid, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        statistics = _mean_and_contrast(x).to(x.dtype)  # (B, C, 1, 1)
        return x * torch.sigmoid(self.conv_out(F.relu(self.conv_in(statistics))))


def _mean_and_contrast(x: Tensor) -> Tensor:
    x = x.to(full_type(x.dtype))  # a sum over the image does not fit into a half type
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean).square().mean((2, 3), keepdim=True)
    varies = variance > 0  # the root has no finite gradient at 0
    return mean + torch.where(varies, variance, 1).sqrt() * varies
