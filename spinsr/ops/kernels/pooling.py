"""Kernels of the pooling: a program has one cell; forward it sums what the cell gives to its 9 neighbours, backward it
takes for each of its pixels what these 9 hold. Every pixel is in one cell, so nothing is written twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spinsr.ops.association import MASS_EPS, SparseAssociation
from spinsr.ops.kernels.association import BLOCK_P, collect
from spinsr.ops.kernels.launch import NUM_WARPS, block_of, kernel_type, on_device_of


@triton.jit
def pool_fwd_kernel(
    p_x,
    p_weights,
    p_pixels,
    p_given,
    N,
    K,
    P,
    C: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """What one cell gives to its 9 neighbours: sums of A[k, n] (x_n, 1)."""
    b_program = tl.program_id(0).to(tl.int64)
    b_image = b_program // K
    b_cell = b_program % K
    o_j = tl.arange(0, 16)
    o_c = tl.arange(0, BLOCK_C)
    b_given = tl.full((16, BLOCK_C), 0, dtype=TYPE)
    for start in range(0, P, BLOCK_P):
        o_p = start + tl.arange(0, BLOCK_P)
        m_p = o_p < P
        b_pixels = tl.load(p_pixels + b_cell * P + o_p, mask=m_p, other=0)
        o_x = (b_image * N + b_pixels)[:, None] * C + o_c[None, :]
        b_x = tl.load(p_x + o_x, mask=m_p[:, None] & (o_c < C)[None, :], other=0).to(TYPE)
        b_x = tl.where(o_c[None, :] == C, 1, b_x)  # (x, 1): one product sums features and weights
        o_weights = (b_program * 9 + o_j)[:, None] * P + o_p[None, :]
        b_weights = tl.load(p_weights + o_weights, mask=(o_j < 9)[:, None] & m_p[None, :], other=0)
        b_given += tl.dot(b_weights, b_x, input_precision='ieee', out_dtype=TYPE)
    o_given = (b_program * 9 + o_j)[:, None] * (C + 1) + o_c[None, :]
    tl.store(p_given + o_given, b_given, mask=(o_j < 9)[:, None] & (o_c <= C)[None, :])


@triton.jit
def pool_bwd_kernel(
    p_grad,
    p_mass,
    p_weights,
    p_neighbors,
    p_pixels,
    p_is_pixel,
    p_grad_x,
    N,
    K,
    P,
    C: tl.constexpr,
    EPS: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad x_n = sum over the 9 neighbours k of A[k, n] grad s_k / (mass_k + eps), for the pixels n of one cell."""
    b_program = tl.program_id(0).to(tl.int64)
    b_image = b_program // K
    b_cell = b_program % K
    o_j = tl.arange(0, 16)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < C
    # Where there is no neighbour the map says 0 and the weights are 0.
    b_rows = b_image * K + tl.load(p_neighbors + b_cell * 9 + o_j, mask=o_j < 9, other=0)
    b_grad = tl.load(p_grad + b_rows[:, None] * C + o_c[None, :], mask=m_c[None, :], other=0)
    b_grad = b_grad / (tl.load(p_mass + b_rows) + EPS)[:, None]
    for start in range(0, P, BLOCK_P):
        o_p = start + tl.arange(0, BLOCK_P)
        m_p = o_p < P
        b_pixels = tl.load(p_pixels + b_cell * P + o_p, mask=m_p, other=0)
        o_weights = (b_program * 9 + o_j)[:, None] * P + o_p[None, :]
        b_weights = tl.load(p_weights + o_weights, mask=(o_j < 9)[:, None] & m_p[None, :], other=0)
        b_grad_x = tl.dot(tl.trans(b_weights), b_grad, input_precision='ieee', out_dtype=TYPE)
        m_pixel = m_p
        if HAS_PADDING:
            m_pixel = m_p & (tl.load(p_is_pixel + b_cell * P + o_p, mask=m_p, other=0) != 0)
        o_x = (b_image * N + b_pixels)[:, None] * C + o_c[None, :]
        tl.store(p_grad_x + o_x, b_grad_x, mask=m_pixel[:, None] & m_c[None, :])


@torch.library.custom_op('spinsr::pool', mutates_args=())
def pool_mean(
    x: Tensor,
    weights: Tensor,
    neighbors: Tensor,
    is_neighbor: Tensor,
    incoming: Tensor,
    pixels: Tensor,
    is_pixel: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Mean features of the superpixels; differentiable in `x`.

    Args:
        x: Features (B, N, C), any float type.
        weights: (B, K, 9, P), float32 or float64, contiguous, 0 in padding slots and where there is no neighbour.
        neighbors, is_neighbor, incoming: (K, 9), see `spinsr.ops.grid.Grid`.
        pixels, is_pixel: (K, P), likewise.

    Returns:
        Means (B, K, C) and masses (B, K) in the type of the weights. The masses have no gradient.
    """
    (b, n, c), (k, p) = x.shape, pixels.shape
    given = weights.new_empty(b, k, 9, c + 1)
    with on_device_of(x):
        pool_fwd_kernel[(b * k,)](
            x.contiguous(),
            weights,
            pixels,
            given,
            n,
            k,
            p,
            C=c,
            TYPE=kernel_type(weights.dtype),
            BLOCK_P=min(BLOCK_P, block_of(p)),
            BLOCK_C=block_of(c + 1),
            num_warps=NUM_WARPS,
        )
    return collect(given, (incoming, is_neighbor))


@pool_mean.register_fake
def _(x, weights, neighbors, is_neighbor, incoming, pixels, is_pixel):
    b, k = weights.shape[:2]
    return weights.new_empty(b, k, x.shape[2]), weights.new_empty(b, k)


@torch.library.custom_op('spinsr::pool_backward', mutates_args=())
def pool_mean_backward(
    grad: Tensor,
    mass: Tensor,
    weights: Tensor,
    neighbors: Tensor,
    pixels: Tensor,
    is_pixel: Tensor | None,
    num_pixels: int,
    dtype: torch.dtype,
) -> Tensor:
    """A^T applied to the normalised gradient (B, K, C): the gradient of the features (B, N, C) in `dtype`."""
    (b, k, c), p = grad.shape, pixels.shape[1]
    grad_x = grad.new_empty(b, num_pixels, c, dtype=dtype)
    with on_device_of(grad):
        pool_bwd_kernel[(b * k,)](
            grad.contiguous(),
            mass,
            weights,
            neighbors,
            pixels,
            pixels if is_pixel is None else is_pixel,
            grad_x,
            num_pixels,
            k,
            p,
            C=c,
            EPS=MASS_EPS,
            HAS_PADDING=is_pixel is not None,
            TYPE=kernel_type(weights.dtype),
            BLOCK_P=min(BLOCK_P, block_of(p)),
            BLOCK_C=block_of(c),
            num_warps=NUM_WARPS,
        )
    return grad_x


@pool_mean_backward.register_fake
def _(grad, mass, weights, neighbors, pixels, is_pixel, num_pixels, dtype):
    return grad.new_empty(grad.shape[0], num_pixels, grad.shape[2], dtype=dtype)


def _save(ctx, inputs, output) -> None:
    x, weights, neighbors, _, _, pixels, is_pixel = inputs
    ctx.save_for_backward(output[1], weights, neighbors, pixels, is_pixel)
    ctx.x = x.shape[1], x.dtype


def _backward(ctx, grad: Tensor, _grad_mass: Tensor):
    return pool_mean_backward(grad, *ctx.saved_tensors, *ctx.x), None, None, None, None, None, None


pool_mean.register_autograd(_backward, setup_context=_save)


def pool(x: Tensor, association: SparseAssociation) -> Tensor:
    """Mean features (B, K, C) of features (B, H, W, C); see `spinsr.ops.pool`."""
    grid = association.grid
    maps = (grid.neighbors, grid.is_neighbor, grid.incoming, grid.pixels, grid.is_pixel)
    return pool_mean(x.flatten(1, 2), association.weights.contiguous(), *maps)[0]
