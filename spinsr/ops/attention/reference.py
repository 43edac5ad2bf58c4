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
    q, k, v = (split_heads(x, num_heads) for x in (q, k, v))
    return merge_heads(attention_reference(q, k, v))


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
    out = attend_heads(*inside, num_heads=num_heads).unflatten(0, indices.shape[:2]).flatten(1, 2)
    out = out.to(v.dtype)  # (B, K T, C)
    index = indices.flatten(1).unsqueeze(-1).expand_as(out)
    count = torch.full_like(v, own_values == 'all').scatter_add(1, index, torch.ones_like(out))
    if own_values == 'ignored':
        return torch.where(count > 0, torch.zeros_like(v).scatter_add(1, index, out) / count.clamp(min=1), v)
    return v.scatter_add(1, index, out) / count


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int, overlap: int, num_heads: int) -> Tensor:
    """See `spinsr.ops.window_attention`."""
    b, h, w, c = v.shape
    rows, columns = (
        torch.tensor(window_starts(side, window, overlap), device=v.device)[:, None]
        + torch.arange(min(window, side), device=v.device)
        for side in (h, w)
    )  # (R, height of a window), (L, width of a window): the pixels of R x L windows along each side
    inside = []
    for x in (q, k, v):
        x = x.index_select(1, rows.flatten()).index_select(2, columns.flatten())
        x = x.unflatten(1, rows.shape).unflatten(3, columns.shape).transpose(2, 3)  # (B, R, L, height, width, C)
        inside.append(x.flatten(3, 4).flatten(0, 2))
    out = attend_heads(*inside, num_heads=num_heads)  # (B * windows, T, C)
    out = out.view(b, len(rows), len(columns), rows.shape[1], columns.shape[1], c).transpose(2, 3)
    out = out.flatten(1, 2).flatten(2, 3)  # (B, R * height, L * width, C)
    total = v.new_zeros(b, h, columns.numel(), c).index_add(1, rows.flatten(), out)
    total = torch.zeros_like(v).index_add(2, columns.flatten(), total)
    ones = v.new_ones(max(rows.numel(), columns.numel()))
    in_rows, in_columns = (
        v.new_zeros(side).index_add(0, i.flatten(), ones[: i.numel()]) for side, i in ((h, rows), (w, columns))
    )
    return total / (in_rows[:, None, None] * in_columns[:, None])
