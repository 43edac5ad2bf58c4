"""Attention between the pixels of windows."""

import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """softmax(scale q k^T + bias) v, by torch's fused attention.

    Args:
        q, k, v: (windows, heads, pixels, D).
        scale: Factor of the logits.
        bias: Added to the logits; (windows or 1, heads or 1, pixels, pixels).

    Returns:
        (windows, heads, pixels, D).
    """
    # Torch's fused attention is slow for a width that does not fill its vectors; zeros change nothing.
    dim, missing = v.shape[-1], -v.shape[-1] % 16
    q, k, v = (F.pad(part, (0, missing)) for part in (q, k, v))
    bias = None if bias is None else bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, bias, scale=scale)[..., :dim]


def split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """(windows, pixels, parts * C), heads side by side in each part -> (windows, heads, pixels, C / heads) each."""
    return x.unflatten(2, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(x: Tensor) -> Tensor:
    """(windows, heads, pixels, D) -> (windows, pixels, heads * D)."""
    return x.transpose(1, 2).flatten(2)
