"""The two layouts: images (B, C, H, W) and tokens (B, H, W, C), which are channels-last images."""

from torch import Tensor

from spinsr.ops.common.backend import resolve_backend


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), contiguous; no copy after a channels-last convolution.

    With the `reference` backend a view, so that convolutions work on contiguous images as in the authors' code.
    """
    x = x.permute(0, 2, 3, 1)
    return x if resolve_backend() == 'reference' else x.contiguous()


def to_image(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a channels-last view."""
    return x.permute(0, 3, 1, 2)
