"""The gated feed-forward network of Restormer (GDFN), in the forms of Omni-SR, DITN and DLGSANet."""

import torch.nn.functional as F
from torch import Tensor, nn


class GatedFeedForward(nn.Module):
    """1 x 1 convolution, depthwise 3 x 3 convolution, GELU of one half times the other half, 1 x 1 convolution.

    Args:
        num_feat: Channels C.
        hidden: Channels of a half.
        bias: Whether the convolutions have one.
    """

    def __init__(self, num_feat: int, hidden: int, bias: bool = False):
        super().__init__()
        self.project_in = nn.Conv2d(num_feat, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, 1, 1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, num_feat, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        gate, value = self.dwconv(self.project_in(x)).chunk(2, 1)
        return self.project_out(F.gelu(gate) * value)
