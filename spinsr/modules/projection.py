"""The projection of normalised pixels to queries, keys and values."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from spinsr import ops
from spinsr.modules.layout import to_image
from spinsr.ops.backend import resolve_backend


def project(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """linear(norm(x)) in slices: (B, H, W, C) -> (B, N, D) for each D in `widths`; `linear` has no bias.

    By one matmul; with the `reference` backend one 1 x 1 convolution a slice, as in the authors' code.
    """
    if resolve_backend() == 'reference':
        y = to_image(norm(x)).contiguous()
        weights = linear.weight[..., None, None].split(list(widths))
        return tuple(F.conv2d(y, weight).flatten(2).transpose(1, 2) for weight in weights)
    return ops.norm_project(x.flatten(1, 2), (norm.weight, norm.bias), linear.weight, widths, norm.eps)
