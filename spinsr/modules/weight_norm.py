"""Weight-normalised convolutions whose parameters have the names and shapes of torch.nn.utils.weight_norm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightNormConv2d(nn.Module):
    """A convolution that keeps the size and learns length and direction of its weight apart: w = g v / ||v||.

    ||v|| is that of each output channel. The parameters are `weight_g` (num_out, 1, 1, 1), `weight_v` and `bias`; they
    start from torch's initialisation of a convolution.

    Args:
        num_in, num_out: Channels before and after.
        kernel_size: Odd.
    """

    def __init__(self, num_in: int, num_out: int, kernel_size: int):
        super().__init__()
        conv = nn.Conv2d(num_in, num_out, kernel_size)
        self.weight_g = nn.Parameter(_norm(conv.weight.detach()))
        self.weight_v = nn.Parameter(conv.weight.detach())
        self.bias = nn.Parameter(conv.get_parameter('bias').detach())

    def forward(self, x: Tensor) -> Tensor:
        """(B, num_in, H, W) -> (B, num_out, H, W)."""
        weight = self.weight_v * (self.weight_g / _norm(self.weight_v))
        return F.conv2d(x, weight, self.bias, padding=self.weight_v.shape[-1] // 2)


def _norm(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
