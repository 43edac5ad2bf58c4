"""The sums of pooling as Triton kernels.

A program has one cell; forward it sums what the cell sends to its 9 neighbours, backward it brings their gradients to
its pixels. Every pixel is in one cell, so nothing is written twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spinsr.ops.association.kernels import BLOCK_P
from spinsr.ops.association.sparse import add_incoming
from spinsr.ops.association.types import MASS_EPS, SparseAssociation
from spinsr.ops.common.grid import marked_pixels
from spinsr.ops.common.triton_launch import NUM_WARPS, block_of, kernel_type, load_rows, on_device_of, store_rows


@triton.jit
def pool_kernel(
    p_x,
    p_weights,
    p_pixels,
    p_sums,
    N,
    K,
    P,
    C: tl.constexpr,
    IS_BACKWARD: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Forward: sums over the pixels n of one cell of A[k, n] (x_n, 1); backward: `p_x` from the gradient `p_sums`."""
    b_program = tl.program_id(0).to(tl.int64)
    b_image = b_program // K
    b_cell = b_program % K
    o_j = tl.arange(0, 16)
    o_c = tl.arange(0, BLOCK_C)
    o_sums = b_program * 9 + o_j
    b_sums = tl.full((16, BLOCK_C), 0, dtype=TYPE)
    if IS_BACKWARD:
        b_sums = load_rows(p_sums, o_sums, o_j < 9, C + 1, C, BLOCK_C)
    for start in range(0, P, BLOCK_P):
        o_p = start + tl.arange(0, BLOCK_P)
        b_pixels = tl.load(p_pixels + b_cell * P + o_p, mask=o_p < P, other=-1)
        m_p = b_pixels >= 0
        o_weights = o_sums[:, None] * P + o_p[None, :]
        b_weights = tl.load(p_weights + o_weights, mask=(o_j < 9)[:, None] & m_p[None, :], other=0)
        if IS_BACKWARD:
            b_x = tl.dot(tl.trans(b_weights), b_sums, input_precision='ieee', out_dtype=TYPE)
            store_rows(p_x, b_image * N + b_pixels, m_p, C, b_x, C, BLOCK_C)
        else:
            b_x = load_rows(p_x, b_image * N + b_pixels, m_p, C, C, BLOCK_C).to(TYPE)
            b_x = tl.where(o_c[None, :] == C, 1, b_x)  # (x, 1): one product sums features and weights
            b_sums += tl.dot(b_weights, b_x, input_precision='ieee', out_dtype=TYPE)
    if not IS_BACKWARD:
        store_rows(p_sums, o_sums, o_j < 9, C + 1, b_sums, C + 1, BLOCK_C)


def _launch(x: Tensor, weights: Tensor, pixels: Tensor, sums: Tensor, is_backward: bool) -> None:
    (b, n, c), (k, p) = x.shape, pixels.shape
    options = {'C': c, 'IS_BACKWARD': is_backward, 'TYPE': kernel_type(weights.dtype), 'num_warps': NUM_WARPS}
    options |= {'BLOCK_P': min(BLOCK_P, block_of(p)), 'BLOCK_C': block_of(c + 1)}
    with on_device_of(x):
        pool_kernel[(b * k,)](x, weights, pixels, sums, n, k, p, **options)


@torch.library.custom_op('spinsr::pool', mutates_args=())
def cell_sums(x: Tensor, weights: Tensor, pixels: Tensor) -> Tensor:
    """What each cell sends to its neighbours; differentiable in `x`.

    Args:
        x: Features (B, N, C), any float type.
        weights: (B, K, 9, P), float32 or float64, contiguous.
        pixels: (K, P) int64, the pixels of each cell, -1 in padding slots.

    Returns:
        (B, K, 9, C + 1) in the type of the weights.
    """
    sums = weights.new_empty(*weights.shape[:3], x.shape[2] + 1)
    _launch(x.contiguous(), weights, pixels, sums, False)
    return sums


@cell_sums.register_fake
def _(x, weights, pixels):
    return weights.new_empty(*weights.shape[:3], x.shape[2] + 1)


@torch.library.custom_op('spinsr::pool_backward', mutates_args=())
def cell_sums_backward(grad: Tensor, weights: Tensor, pixels: Tensor, num_pixels: int, dtype: torch.dtype) -> Tensor:
    """The gradient (B, N, C) of the features, in `dtype`, from that of the sums."""
    grad_x = grad.new_empty(len(grad), num_pixels, grad.shape[3] - 1, dtype=dtype)
    _launch(grad_x, weights, pixels, grad.contiguous(), True)
    return grad_x


@cell_sums_backward.register_fake
def _(grad, weights, pixels, num_pixels, dtype):
    return grad.new_empty(grad.shape[0], num_pixels, grad.shape[3] - 1, dtype=dtype)


def _save(ctx, inputs, output) -> None:
    x, weights, pixels = inputs
    ctx.save_for_backward(weights, pixels)
    ctx.x = x.shape[1], x.dtype


def _backward(ctx, grad: Tensor):
    return cell_sums_backward(grad, *ctx.saved_tensors, *ctx.x), None, None


cell_sums.register_autograd(_backward, setup_context=_save)


def pool(x: Tensor, association: SparseAssociation) -> Tensor:
    """Mean features (B, K, C) of features (B, H, W, C); see `spinsr.ops.pool`."""
    grid = association.grid
    sums = cell_sums(x.flatten(1, 2), association.weights.contiguous(), marked_pixels(grid))
    mass, total = add_incoming(sums, grid)
    return total / (mass + MASS_EPS)
