"""Attention between pixels and superpixels (SPCA), inside superpixels (ISPA) and in overlapping windows."""

import torch
from torch import Tensor

from spinsr.ops.attention import fused, reference
from spinsr.ops.attention.heads import check_heads
from spinsr.ops.attention.reference import attend_heads
from spinsr.ops.attention.windows import batch_rows, windows_of
from spinsr.ops.common.backend import check_floating, check_no_tangents, dense_or_torch, resolve_backend
from spinsr.ops.common.cache import specialize_int

OWN_VALUES = ('all', 'ignored')
IMPLEMENTATIONS = {'reference': reference, 'torch': fused}


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, *, backend: str | None = None) -> Tensor:
    """softmax(scale q k^T) v.

    The `torch` backend is torch's fused attention; on the CPU it is `spinsr.ops.attention.by_hand`, in float32 at least
    unless `v` is bfloat16.

    Args:
        q: (B, heads, L, D).
        k: (B, heads, S, D).
        v: (B, heads, S, E).
        scale: Factor of the logits; None means 1 / sqrt(D).
        backend: See `spinsr.ops.common.backend`.

    Returns:
        (B, heads, L, E).

    Raises:
        ValueError: q and k differ in D, or k and v in S.

    Example:
        >>> attention(torch.rand(1, 2, 9, 4), torch.rand(1, 2, 5, 4), torch.rand(1, 2, 5, 6)).shape
        torch.Size([1, 2, 9, 6])
    """
    check_floating(q=q, k=k, v=v)
    # torch's fused attention reads beyond a short v, and zeros appended to q would hide that k is wider.
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        shapes = ', '.join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f'q, k and v must have the shapes (..., L, D), (..., S, D) and (..., S, E), got {shapes}')
    backend = dense_or_torch('attention', backend, q.device)
    return IMPLEMENTATIONS[backend].attention(q, k, v, scale)


def superpixel_cross_attention(
    q: Tensor, k: Tensor, v: Tensor, tokens: Tensor, num_heads: int = 1, *, backend: str | None = None
) -> Tensor:
    """Lets every pixel gather from all superpixels what they gathered from all pixels (SPCA of SPIN).

        s_out = softmax over pixels (tokens k^T / sqrt(D)) v        (K x C)
        out   = softmax over superpixels (q tokens^T / sqrt(D)) s_out   (N x C)

    The `torch` backend stores no N x K matrix, forward or backward, on the CPU and where torch has a fused kernel for
    the device and type.

    Args:
        q: Queries of the pixels (B, N, num_heads * D).
        k: Keys of the pixels, of the same shape.
        v: Values of the pixels (B, N, C), C divisible by num_heads.
        tokens: Projected superpixel tokens (B, K, num_heads * D).
        num_heads: Number of heads.
        backend: See `spinsr.ops.common.backend`.

    Returns:
        (B, N, C).

    Raises:
        ValueError: Sizes disagree, or channels are not divisible by `num_heads`.

    Example:
        >>> q, k, v, tokens = torch.rand(1, 60, 8), torch.rand(1, 60, 8), torch.rand(1, 60, 12), torch.rand(1, 6, 8)
        >>> superpixel_cross_attention(q, k, v, tokens).shape
        torch.Size([1, 60, 12])
    """
    _check_shapes('(B, N, C)', q, k, v)
    if tokens.ndim != 3 or tokens.shape[::2] != q.shape[::2]:
        raise ValueError(
            f'tokens must have the shape (B, K, C) with the B and C of q, {tuple(q.shape)}, got {tuple(tokens.shape)}'
        )
    check_heads(num_heads, q, k, v, tokens)
    check_floating(q=q, k=k, v=v, tokens=tokens)
    backend = dense_or_torch('superpixel_cross_attention', backend, q.device)
    attend = IMPLEMENTATIONS[backend].attention
    return attend_heads(q, tokens, attend_heads(tokens, k, v, num_heads, attend), num_heads, attend)


def intra_superpixel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    num_heads: int = 1,
    *,
    own_values: str = 'all',
    add_to: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention among the selected pixels of each superpixel, merged by a mean (ISPA of SPIN).

        a_k   = softmax(q_k k_k^T / sqrt(D)) v_k    for the T pixels of superpixel k
        out_n = (v_n + sum of the a_k that hold n) / (1 + number of superpixels that hold n)

    That is the authors' code. With `own_values='ignored'`, as the paper says, only the pixels that no superpixel holds
    have their own value:

        out_n = sum of the a_k that hold n / number of superpixels that hold n, or v_n if no superpixel holds n

    Args:
        q: Queries (B, N, num_heads * D).
        k: Keys, of the same shape.
        v: (B, N, C), C divisible by num_heads.
        indices: (B, K, T) int64, the pixels of each superpixel, each at most once; from `top_n`.
        num_heads: Number of heads.
        own_values: Whose own values enter the mean, one of `OWN_VALUES`.
        add_to: Added to the result, in the same pass; of its shape.
        backend: See `spinsr.ops.common.backend`.

    Returns:
        (B, N, C), in the wider type of `v` and `add_to`.

    Raises:
        ValueError: `own_values` is not one of these, sizes disagree, or channels are not divisible by `num_heads`.

    Example:
        >>> q, k, v = torch.rand(1, 60, 8), torch.rand(1, 60, 8), torch.rand(1, 60, 12)
        >>> intra_superpixel_attention(q, k, v, torch.arange(60).view(1, 6, 10)).shape
        torch.Size([1, 60, 12])
    """
    check_own_values(own_values)
    _check_shapes('(B, N, C)', q, k, v)
    check_heads(num_heads, q, k, v)
    check_floating(q=q, k=k, v=v)
    _check_add_to(add_to, v)
    backend = resolve_backend(backend, v.device)
    b, n, c = v.shape
    rows = batch_rows(indices, n, b)  # (B K, T) rows of (B N, C)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    start = own_values == 'all'
    if backend == 'triton':
        from spinsr.ops.attention import kernels

        check_no_tangents(q, k, v)
        total = kernels.attend_rows(q, k, v, *kernels.row_map(rows, b * n), num_heads)[0]
        total = total + v if start else total
    else:
        total = IMPLEMENTATIONS[backend].add_attended_rows(q, k, v, rows, num_heads, start)
    rows = rows.flatten()
    count = v.new_full((b * n, 1), start)
    count = count.index_add_(0, rows, count.new_ones(1, 1).expand(rows.shape[0], 1))
    if not start:  # where no superpixel holds a pixel, its value is the sum of one
        total, count = torch.where(count > 0, total, v), count.clamp(min=1)
    return _divide(total, count, v, add_to).view(b, n, c)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    overlap: int = 2,
    num_heads: int = 1,
    *,
    add_to: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention inside square windows that overlap; where windows overlap, the mean of their results.

    Windows start every `window - overlap` pixels; the last one of a side is pushed back inside. On a side shorter than
    the window there is one window of that length.

    Args:
        q: Queries (B, H, W, num_heads * D).
        k: Keys, of the same shape.
        v: (B, H, W, C), C divisible by num_heads.
        window: Side of a window in pixels, >= 1.
        overlap: Pixels that neighbouring windows share, >= 0; windows move by at least one pixel.
        num_heads: Number of heads.
        add_to: Added to the result, in the same pass; of its shape.
        backend: See `spinsr.ops.common.backend`.

    Returns:
        (B, H, W, C), in the wider type of `v` and `add_to`.

    Raises:
        ValueError: A size is out of its range, sizes disagree, or channels are not divisible by num_heads.

    Example:
        >>> q, k, v = torch.rand(1, 9, 14, 8), torch.rand(1, 9, 14, 8), torch.rand(1, 9, 14, 12)
        >>> window_attention(q, k, v, window=6).shape
        torch.Size([1, 9, 14, 12])
    """
    if window < 1 or overlap < 0:
        raise ValueError(f'window must be at least 1 and overlap at least 0, got {window=}, {overlap=}')
    _check_shapes('(B, H, W, C)', q, k, v)
    check_heads(num_heads, q, k, v)
    check_floating(q=q, k=k, v=v)
    _check_add_to(add_to, v)
    backend = resolve_backend(backend, v.device)
    b, h, w, _ = v.shape
    rows, count = windows_of(h, w, window, overlap, v.device)
    flat = [x.flatten(0, 2) for x in (q, k, v)]
    if backend == 'triton':
        from spinsr.ops.attention import kernels

        check_no_tangents(q, k, v)
        row_map = kernels.window_map(*map(specialize_int, (b, h, w)), window, overlap, v.device)
        total = kernels.attend_rows(*flat, *row_map, num_heads)[0]
    else:
        rows = batch_rows(rows, h * w, b)
        total = IMPLEMENTATIONS[backend].add_attended_rows(*flat, rows, num_heads, start=False)
    return _divide(total.unflatten(0, (b, h * w)), count, v, add_to).view(v.shape)


def check_own_values(own_values: str) -> None:
    """Raises ValueError if `own_values` is not one of `OWN_VALUES`."""
    if own_values not in OWN_VALUES:
        raise ValueError(f'own_values must be one of {", ".join(OWN_VALUES)}, got {own_values=}')


def _divide(total: Tensor, count: Tensor, v: Tensor, add_to: Tensor | None) -> Tensor:
    """total / count in the type of `v`, or added to `add_to`: (..., R, C) and (R, 1) -> (..., R, C)."""
    count = count.to(total.dtype)
    if add_to is None:
        return (total / count).to(v.dtype)
    mean = torch.addcdiv(add_to.reshape(total.shape), total, count)
    return mean.to(torch.promote_types(add_to.dtype, v.dtype))


def _check_add_to(add_to: Tensor | None, v: Tensor) -> None:
    if add_to is not None and add_to.shape != v.shape:
        raise ValueError(f'add_to must have the shape of v, {tuple(v.shape)}, got {tuple(add_to.shape)}')


def _check_shapes(layout: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.shape != k.shape or k.shape[:-1] != v.shape[:-1] or v.ndim != layout.count(',') + 1:
        shapes = ', '.join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f'q and k must have the same shape {layout}, and v may only have another C, got {shapes}')
