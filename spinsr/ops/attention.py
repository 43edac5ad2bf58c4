"""Attention between pixels and superpixels (SPCA) and inside superpixels (ISPA)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spinsr.ops.backend import resolve_backend

PIECE = 2**19  # attention weights of a piece: 2 MB in float32


def superpixel_cross_attention(
    q: Tensor, k: Tensor, v: Tensor, tokens: Tensor, num_heads: int = 1, backend: str | None = None
) -> Tensor:
    """Lets every pixel gather from all superpixels what they gathered from all pixels (SPCA of SPIN).

        s_out = softmax over pixels (tokens k^T / sqrt(D)) v        (K x C)
        out   = softmax over superpixels (q tokens^T / sqrt(D)) s_out   (N x C)

    The `torch` backend does not store an N x K matrix, forward or backward, wherever torch has a fused kernel for the
    device and type, as on the CPU.

    Args:
        q, k: Queries and keys of the pixels (B, N, num_heads * D).
        v: Values of the pixels (B, N, C), C divisible by num_heads.
        tokens: Projected superpixel tokens (B, K, num_heads * D).
        num_heads: Number of heads.
        backend: See `spinsr.ops.backend`.

    Returns:
        (B, N, C).

    Example:
        >>> q, k, v, tokens = torch.rand(1, 60, 8), torch.rand(1, 60, 8), torch.rand(1, 60, 12), torch.rand(1, 6, 8)
        >>> superpixel_cross_attention(q, k, v, tokens).shape
        torch.Size([1, 60, 12])
    """
    attend = attention_reference if resolve_backend(backend, q.device) == 'reference' else attention
    q, k, v, tokens = (split_heads(x, num_heads) for x in (q, k, v, tokens))
    return merge_heads(attend(q, tokens, attend(tokens, k, v)))


def intra_superpixel_attention(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, num_heads: int = 1, backend: str | None = None
) -> Tensor:
    """Attention among the selected pixels of each superpixel, merged by a mean (ISPA of SPIN).

        a_k   = softmax(q_k k_k^T / sqrt(D)) v_k    for the T pixels of superpixel k
        out_n = (v_n + sum of the a_k that hold n) / (1 + number of superpixels that hold n)

    Args:
        q, k: (B, N, num_heads * D).
        v: (B, N, C), C divisible by num_heads.
        indices: (B, K, T) int64, the pixels of each superpixel, each at most once; from `top_n`.
        num_heads: Number of heads.
        backend: See `spinsr.ops.backend`.

    Returns:
        (B, N, C).

    Example:
        >>> q, k, v = torch.rand(1, 60, 8), torch.rand(1, 60, 8), torch.rand(1, 60, 12)
        >>> intra_superpixel_attention(q, k, v, torch.arange(60).view(1, 6, 10)).shape
        torch.Size([1, 60, 12])
    """
    b, n, c = v.shape
    t = indices.shape[2]
    rows = (indices + n * torch.arange(b, device=v.device).view(b, 1, 1)).view(-1, t)  # (B K, T) rows of (B N, C)
    q, k, v = (x.reshape(b * n, -1) for x in (q, k, v))
    backend = resolve_backend(backend, v.device)
    if backend == 'triton':
        from spinsr.ops.kernels.attention import intra_superpixel_attention as attend

        return attend(q, k, v, rows, num_heads).view(b, n, c)
    if backend == 'reference':
        out = merge_heads(attention_reference(*(_gather_heads(x, rows, num_heads) for x in (q, k, v)))).reshape(-1, c)
    else:
        out = attend_rows(q, k, v, rows, num_heads)  # (B K T, C)
    rows = rows.flatten()
    total = v.index_add(0, rows, out.to(v.dtype))
    count = v.new_ones(b * n, 1)
    count = count.index_add_(0, rows, count.new_ones(1, 1).expand(len(rows), 1))
    return (total / count).view(b, n, c)


def attend_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int) -> Tensor:
    """Attention within groups of rows: (R, D), (R, D), (R, C) and rows (G, T) int64 -> (G * T, C).

    Without gradients on the CPU a few groups at a time, whose weights stay in the cache.
    """
    if not in_pieces(q, k, v):
        return merge_heads(attention(*(_gather_heads(x, rows, num_heads) for x in (q, k, v)))).reshape(-1, v.shape[1])
    groups, t = rows.shape
    out = v.new_empty(groups, t, v.shape[1])
    size = max(1, PIECE // (num_heads * t * t))
    for part, place in zip(rows.split(size), out.split(size), strict=True):
        inside = (_gather_heads(x, part, num_heads) for x in (q, k, v))
        place.copy_(merge_heads(attention_reference(*inside)))
    return out.view(-1, v.shape[1])


def _gather_heads(x: Tensor, rows: Tensor, num_heads: int) -> Tensor:
    """(R, D) and rows (G, T) -> (G, heads, T, D / heads)."""
    return split_heads(x.index_select(0, rows.flatten()).view(*rows.shape, x.shape[1]), num_heads)


def in_pieces(*inputs: Tensor) -> bool:
    """Whether attention is cut into pieces whose weights stay in the cache: where torch's fused kernels are slower."""
    return inputs[0].device.type == 'cpu' and not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v; (B, heads, L, D), (B, heads, S, D), (B, heads, S, E) -> (B, heads, L, E).

    By torch's fused attention, which takes one width for q, k and v (zeros appended to the narrower change nothing);
    where it is faster, queries a few at a time.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    size = PIECE // k.shape[2]
    if in_pieces(q, k, v) and 256 <= size < q.shape[2]:
        return torch.cat([attention_reference(part, k, v, scale) for part in q.split(size, 2)], 2)
    width = max(q.shape[-1], v.shape[-1])
    padded = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
    return F.scaled_dot_product_attention(*padded, scale=scale)[..., : v.shape[-1]]


def attention_reference(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v with the matrix of weights stored; shapes as in `attention`."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return ((q * scale) @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    b, n, c = x.shape
    if num_heads < 1 or c % num_heads:
        raise ValueError(f'channels must be divisible by num_heads, got {c} and {num_heads=}')
    return x.view(b, n, num_heads, c // num_heads).transpose(1, 2)  # (B, heads, N, C / heads)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, N, C)
