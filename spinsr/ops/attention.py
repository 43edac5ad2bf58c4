"""Attention between pixels and superpixels (SPCA) and inside superpixels (ISPA)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spinsr.ops import pieces
from spinsr.ops.backend import resolve_backend
from spinsr.ops.parts import no_autocast, on_cpu

OWN_VALUES = ('all', 'ignored')
# With no more weights than these, 4 MB in float32, storing them is faster than computing them in pieces and again.
FEW_WEIGHTS = 2**20


def superpixel_cross_attention(
    q: Tensor, k: Tensor, v: Tensor, tokens: Tensor, num_heads: int = 1, backend: str | None = None
) -> Tensor:
    """Lets every pixel gather from all superpixels what they gathered from all pixels (SPCA of SPIN).

        s_out = softmax over pixels (tokens k^T / sqrt(D)) v        (K x C)
        out   = softmax over superpixels (q tokens^T / sqrt(D)) s_out   (N x C)

    The `torch` backend does not store an N x K matrix of more than `FEW_WEIGHTS` numbers, forward or backward, on the
    CPU, and none where torch has a fused kernel for the device and type.

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
    _check_heads(num_heads, q, k, v, tokens)
    attend = attention_reference if resolve_backend(backend, q.device) == 'reference' else attention
    if attend is not attention_reference and on_cpu(q):
        if len(q) * num_heads * q.shape[1] * tokens.shape[1] > FEW_WEIGHTS:
            return pieces.cross_attention(q, k, v, tokens, num_heads)
        attend = _stored_attention
    q, k, v, tokens = (split_heads(x, num_heads) for x in (q, k, v, tokens))
    return merge_heads(attend(q, tokens, attend(tokens, k, v)))


def intra_superpixel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    num_heads: int = 1,
    backend: str | None = None,
    *,
    own_values: str = 'all',
) -> Tensor:
    """Attention among the selected pixels of each superpixel, merged by a mean (ISPA of SPIN).

        a_k   = softmax(q_k k_k^T / sqrt(D)) v_k    for the T pixels of superpixel k
        out_n = (v_n + sum of the a_k that hold n) / (1 + number of superpixels that hold n)

    That is the authors' code. With `own_values='ignored'`, as the paper says, only the pixels that no superpixel holds
    have their own value:

        out_n = sum of the a_k that hold n / number of superpixels that hold n, v_n where there is none

    Args:
        q, k: (B, N, num_heads * D).
        v: (B, N, C), C divisible by num_heads.
        indices: (B, K, T) int64, the pixels of each superpixel, each at most once; from `top_n`.
        num_heads: Number of heads.
        backend: See `spinsr.ops.backend`.
        own_values: Whose own values enter the mean, one of `OWN_VALUES`.

    Returns:
        (B, N, C).

    Raises:
        ValueError: `own_values` is none of them, or channels are not divisible by `num_heads`.

    Example:
        >>> q, k, v = torch.rand(1, 60, 8), torch.rand(1, 60, 8), torch.rand(1, 60, 12)
        >>> intra_superpixel_attention(q, k, v, torch.arange(60).view(1, 6, 10)).shape
        torch.Size([1, 60, 12])
    """
    check_own_values(own_values)
    backend = resolve_backend(backend, v.device)
    if backend == 'reference':
        return _intra_superpixel_attention_reference(q, k, v, indices, num_heads, own_values)
    b, n, c = v.shape
    rows = (indices + n * torch.arange(b, device=v.device).view(b, 1, 1)).flatten(0, 1)  # (B K, T) rows of (B N, C)
    q, k, v = (x.reshape(b * n, -1) for x in (q, k, v))
    if backend == 'triton':
        from spinsr.ops.kernels.attention import intra_superpixel_attention as attend

        return attend(q, k, v, rows, num_heads, own_values).view(b, n, c)
    total = add_attended_rows(q, k, v, rows, num_heads, start=own_values == 'all')
    rows = rows.flatten()
    count = v.new_full((b * n, 1), own_values == 'all')
    count = count.index_add_(0, rows, count.new_ones(1, 1).expand(len(rows), 1))
    if own_values == 'ignored':
        return torch.where(count > 0, total / count.clamp(min=1), v).view(b, n, c)
    return (total / count).view(b, n, c)


def check_own_values(own_values: str) -> None:
    """Refuses what `intra_superpixel_attention` cannot do.

    Raises:
        ValueError: `own_values` is none of `OWN_VALUES`.
    """
    if own_values not in OWN_VALUES:
        raise ValueError(f'own_values must be one of {", ".join(OWN_VALUES)}, got {own_values=}')


def _intra_superpixel_attention_reference(q, k, v, indices, num_heads, own_values):
    inside = []
    for x in (q, k, v):
        index = indices.unsqueeze(-1).expand(-1, -1, -1, x.shape[2])  # (B, K, T, C)
        pixels = x.unsqueeze(1).expand(-1, indices.shape[1], -1, -1).gather(2, index)
        inside.append(split_heads(pixels.flatten(0, 1), num_heads))
    out = merge_heads(attention_reference(*inside)).reshape(len(v), -1, v.shape[2]).to(v.dtype)  # (B, K T, C)
    index = indices.flatten(1).unsqueeze(-1).expand_as(out)
    count = torch.full_like(v, own_values == 'all').scatter_add(1, index, torch.ones_like(out))
    if own_values == 'ignored':
        return torch.where(count > 0, torch.zeros_like(v).scatter_add(1, index, out) / count.clamp(min=1), v)
    return v.scatter_add(1, index, out) / count


def add_attended_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int, start: bool) -> Tensor:
    """Attention within groups of rows, added up by row: (R, D), (R, D), (R, C) and rows (G, T) int64 -> (R, C).

    The sum starts at `v` with `start`, else at 0.
    """
    _check_heads(num_heads, q, k, v)
    if on_cpu(q):
        return pieces.add_attended_rows(q, k, v, rows, num_heads, start)
    inside = (x.index_select(0, rows.flatten()).view(*rows.shape, x.shape[1]) for x in (q, k, v))
    out = merge_heads(attention(*(split_heads(x, num_heads) for x in inside)))  # (G, T, C)
    return (v if start else torch.zeros_like(v)).index_add(0, rows.flatten(), out.flatten(0, 1).to(v.dtype))


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v; (B, heads, L, D), (B, heads, S, D), (B, heads, S, E) -> (B, heads, L, E).

    By torch's fused attention, which takes one width for q, k and v (zeros appended to the narrower change nothing);
    on the CPU without gradients in pieces, because torch has no fused kernel for every width.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if on_cpu(q) and not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
        return pieces.attend(q, k, v, scale)
    width = max(q.shape[-1], v.shape[-1])
    padded = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
    return F.scaled_dot_product_attention(*padded, scale=scale)[..., : v.shape[-1]]


def attention_reference(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v with the matrix of weights stored; shapes as in `attention`."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return ((q * scale) @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v


def _stored_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `attention_reference`, but in float32 at least."""
    with no_autocast(q.device.type):
        full = (x if x.dtype == torch.float64 else x.float() for x in (q, k, v))
        return attention_reference(*full).to(v.dtype)


def _check_heads(num_heads: int, *tensors: Tensor) -> None:
    for x in tensors:
        if num_heads < 1 or x.shape[-1] % num_heads:
            raise ValueError(f'channels must be divisible by num_heads, got {x.shape[-1]} and {num_heads=}')


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    _check_heads(num_heads, x)
    b, n, c = x.shape
    return x.view(b, n, num_heads, c // num_heads).transpose(1, 2)  # (B, heads, N, C / heads)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, N, C)
