"""The two layouts: images (B, C, H, W) and tokens (B, H, W, C), which are channels-last images."""

import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.ops.backend import resolve_backend


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), contiguous; no copy after a channels-last convolution.

    With the `reference` backend a view, so that convolutions work on contiguous images as in the authors' code.
    """
    x = x.permute(0, 2, 3, 1)
    return x if resolve_backend() == 'reference' else x.contiguous()


def to_image(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a channels-last view."""
    return x.permute(0, 3, 1, 2)


def pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer as the authors write it, a 1 x 1 convolution: (B, C, H, W) -> (B, D, H, W). For `reference`."""
    return F.conv2d(x, linear.weight[..., None, None], linear.bias)
