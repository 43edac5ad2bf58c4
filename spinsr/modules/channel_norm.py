"""Normalisation over the channels of each pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer normalisation of the channels of each pixel of an image (NCHW).

    Args:
        num_feat: Channels C.
        eps: Added to the variance, which is that of the population.
        bias: Whether to learn a shift in addition to the scale; the mean is subtracted in both cases.
    """

    def __init__(self, num_feat: int, eps: float, bias: bool = True):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_feat))
        self.bias = nn.Parameter(torch.zeros(num_feat)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
