"""The attention ops as the papers write them: dense, differentiable, in float64 the oracle of the tests."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from spinsr.ops.attention.heads import merge_heads, split_heads


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v with the matrix of weights stored; shapes as in `spinsr.ops.attention.attention`."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return ((q * scale) @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v


def attend_heads(q: Tensor, k: Tensor, v: Tensor, num_heads: int, attend: Callable = attention) -> Tensor:
    """`attend` by head: (G, L, heads * D), (G, S, heads * D), (G, S, C) -> (G, L, C)."""
    return merge_heads(attend(*(split_heads(x, num_heads) for x in (q, k, v))))


def add_attended_rows(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int, start: bool, attend: Callable = attention
) -> Tensor:
    """Attention within groups of rows, added up by row; differentiable in q, k and v.

    Args:
        q, k: (R, num_heads * D).
        v: (R, C).
        rows: (G, T) int64 in [0, R), the rows of each group; a row may be in several groups or in none.
        num_heads: Number of heads.
        start: Whether the sum starts at `v` and not at 0.
        attend: As `attention`.

    Returns:
        (R, C) in the type of `v`: for each row the sum of what it got in its groups.
    """
    out = attend_heads(*(take(x, rows) for x in (q, k, v)), num_heads, attend)  # (G, T, C)
    return (v if start else torch.zeros_like(v)).index_add(0, rows.flatten(), out.flatten(0, 1).to(v.dtype))


def take(x: Tensor, rows: Tensor) -> Tensor:
    """(R, C) and rows (G, T) -> (G, T, C)."""
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape)
