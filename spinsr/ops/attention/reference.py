"""The attention ops as the papers write them: dense, differentiable, in float64 the oracle of the tests."""

import math

import torch
from torch import Tensor

from spinsr.ops.attention.heads import merge_heads, split_heads
from spinsr.ops.attention.windows import window_starts


def attention_reference(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v with the matrix of weights stored; shapes as in `spinsr.ops.attention.attention`."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return ((q * scale) @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v


def attend_heads(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """`attention_reference` by head: (G, L, heads * D), (G, S, heads * D), (G, S, C) -> (G, L, C)."""
    return merge_heads(attention_reference(*(split_heads(x, num_heads) for x in (q, k, v))))


def superpixel_cross_attention(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor, num_heads: int) -> Tensor:
    """See `spinsr.ops.superpixel_cross_attention`."""
    return attend_heads(q, tokens, attend_heads(tokens, k, v, num_heads), num_heads)


def intra_superpixel_attention(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, num_heads: int, own_values: str
) -> Tensor:
    """See `spinsr.ops.intra_superpixel_attention`."""
    inside = []
    for x in (q, k, v):
        index = indices.unsqueeze(-1).expand(-1, -1, -1, x.shape[2])  # (B, K, T, C)
        inside.append(x.unsqueeze(1).expand(-1, indices.shape[1], -1, -1).gather(2, index).flatten(0, 1))
    out = attend_heads(*inside, num_heads).unflatten(0, indices.shape[:2]).flatten(1, 2).to(v.dtype)  # (B, K T, C)
    index = indices.flatten(1).unsqueeze(-1).expand_as(out)
    count = torch.full_like(v, own_values == 'all').scatter_add(1, index, torch.ones_like(out))
    if own_values == 'ignored':
        return torch.where(count > 0, torch.zeros_like(v).scatter_add(1, index, out) / count.clamp(min=1), v)
    return v.scatter_add(1, index, out) / count


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int, overlap: int, num_heads: int) -> Tensor:
    """See `spinsr.ops.window_attention`."""
    b, h, w, c = v.shape
    areas = [
        (slice(None), slice(top, top + window), slice(left, left + window))
        for top in window_starts(h, window, overlap)
        for left in window_starts(w, window, overlap)
    ]
    inside = [torch.stack([x[area] for area in areas], 1).flatten(2, 3).flatten(0, 1) for x in (q, k, v)]
    out = attend_heads(*inside, num_heads).unflatten(0, (b, len(areas)))  # (B, windows, T, C)
    total, count = torch.zeros_like(v), v.new_zeros(h, w, 1)
    for area, part in zip(areas, out.unbind(1), strict=True):
        total[area] += part.unflatten(1, total[area].shape[1:3])
        count[area[1:]] += 1
    return total / count
