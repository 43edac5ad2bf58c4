"""Attention by cosine similarity, and attention between channels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.ops.common.precision import full_type


def unit_vectors(x: Tensor, dim: int = -1) -> Tensor:
    """x / max(|x|, 1e-12) along a dimension; the norm is that of float32 or better."""
    return F.normalize(x.to(full_type(x.dtype)), dim=dim).to(x.dtype)


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


class TransposedAttention(nn.Module):
    """The layers of Restormer's attention between channels (MDTA), with a learned temperature for each head.

    Subclasses say over which part of the image it looks.

    Args:
        num_feat: Channels C.
        num_heads: Heads; they divide C.
        activation: As for `attend_channels`.
    """

    def __init__(self, num_feat: int, num_heads: int, activation: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.num_heads, self.activation = num_heads, activation
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(num_feat, 3 * num_feat, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * num_feat, 3 * num_feat, 3, 1, 1, groups=3 * num_feat, bias=False)
        self.project_out = nn.Conv2d(num_feat, num_feat, 1, bias=False)

    def _attend(self, qkv: Tensor) -> Tensor:
        """(B, 3C, H, W) -> (B, C, H, W)."""
        q, k, v = qkv.flatten(2).unflatten(1, (3, self.num_heads, -1)).unbind(1)  # (B, heads, C / heads, H * W)
        return attend_channels(q, k, v, self.temperature, self.activation).flatten(1, 2).unflatten(2, qkv.shape[2:])
