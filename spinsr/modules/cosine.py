"""Attention by cosine similarity, and attention between channels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from spinsr.ops.common.precision import full_type


def unit_vectors(x: Tensor) -> Tensor:
    """x / max(|x|, 1e-12) along the last dimension; the norm is that of float32 or better."""
    return F.normalize(x.to(full_type(x.dtype)), dim=-1).to(x.dtype)


def attend_channels(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor, activation: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """activation(scale cos(q, k)) v between the channels of a head, the "transposed" attention of Restormer.

    Args:
        q, k, v: (..., D, N): D channels of N pixels.
        scale: One for each head, broadcast to (..., D, D).
        activation: None for a softmax over the last dimension.

    Returns:
        (..., D, N).
    """
    logits = (unit_vectors(q) @ unit_vectors(k).transpose(-2, -1)) * scale
    return (torch.softmax(logits, -1) if activation is None else activation(logits)) @ v
