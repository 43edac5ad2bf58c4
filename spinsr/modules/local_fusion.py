"""Local fusion blocks with learned weights, of AWSRN and LAPAR."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.modules.weight_norm import WeightNormConv2d


class AdaptiveWeightedResidualUnit(nn.Module):
    """AWRU: res_scale * reduce(ReLU(expand(x))) + x_scale * x, with two learned scalars that start at 1.

    Args:
        num_feat: Channels C.
        num_mid: Channels between the convolutions.
    """

    def __init__(self, num_feat: int, num_mid: int):
        super().__init__()
        self.expand = WeightNormConv2d(num_feat, num_mid, 3)
        self.reduce = WeightNormConv2d(num_mid, num_feat, 3)
        self.res_scale = nn.Parameter(torch.ones(1))
        self.x_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.res_scale * self.reduce(F.relu(self.expand(x))) + self.x_scale * x


class LocalFusionBlock(nn.Module):
    """LFB: units in a row; their results, fused by a convolution, and the input are added with learned weights.

    Args:
        num_feat: Channels C.
        num_mid: Channels inside a unit.
        num_unit: Adaptive weighted residual units.
    """

    def __init__(self, num_feat: int, num_mid: int, num_unit: int = 4):
        super().__init__()
        self.units = nn.ModuleList(AdaptiveWeightedResidualUnit(num_feat, num_mid) for _ in range(num_unit))
        self.fuse = WeightNormConv2d(num_unit * num_feat, num_feat, 3)
        self.res_scale = nn.Parameter(torch.ones(1))
        self.x_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        results, y = [], x
        for unit in self.units:
            y = unit(y)
            results.append(y)
        return self.res_scale * self.fuse(torch.cat(results, 1)) + self.x_scale * x
