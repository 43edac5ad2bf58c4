"""Association and pooling as Triton kernels: a program has one cell, its pixels and the 9 superpixels within reach.

A round of the association computes the 9 logits of each pixel, their softmax, and what the cell sends to each of its 9
neighbours: the sums of A[k, n] (x_n, 1) over its pixels n. Weights and logits are stored in the last round only. The
pooling sends the same sums of other features, and backward it brings their gradients to the pixels. Every pixel is in
one cell, so nothing is written twice.
"""

# Triton's annotations of min, max and sum leave the tensor out.
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from spinsr.ops.association.types import MASS_EPS, SparseAssociation, log_odds_of
from spinsr.ops.common.grid import Grid, initial_centroids, marked_pixels
from spinsr.ops.common.triton_launch import at_a_time, block_of, launch, load_rows, store_rows

BLOCK_P = at_a_time(32)  # pixels


@triton.jit
def associate_fwd_kernel(
    p_x,
    p_pixels,
    p_mean,
    p_centroids,
    p_neighbors,
    p_sums,
    p_weights,
    p_logits,
    N,
    K,
    P,
    C: tl.constexpr,
    IS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One round for the pixels of one cell."""
    TYPE = p_weights.dtype.element_ty
    b_program = tl.program_id(0).to(tl.int64)
    b_image = b_program // K
    b_cell = b_program % K
    o_j = tl.arange(0, 16)
    o_c = tl.arange(0, BLOCK_C)
    o_out = b_program * 9 + o_j
    b_neighbors = tl.load(p_neighbors + b_cell * 9 + o_j, mask=o_j < 9, other=-1)
    m_j = b_neighbors >= 0
    b_centroids = load_rows(p_centroids, b_image * K + b_neighbors, m_j, C, C, BLOCK_C)
    b_bias = tl.where(m_j, -tl.sum(b_centroids * b_centroids, 1), float('-inf'))
    b_mean = tl.load(p_mean + b_image * C + o_c, mask=o_c < C, other=0)
    b_sums = tl.full((16, BLOCK_C), 0, dtype=TYPE)
    for start in range(0, P, BLOCK_P):
        o_p = start + tl.arange(0, BLOCK_P)
        b_pixels = tl.load(p_pixels + b_cell * P + o_p, mask=o_p < P, other=-1)
        m_p = b_pixels >= 0
        b_x = load_rows(p_x, b_image * N + b_pixels, m_p, C, C, BLOCK_C) - b_mean[None, :]
        # |x|^2 cancels in the softmax; what is left of -|x - c|^2 is 2 c.x - |c|^2.
        b_logits = tl.dot(2 * b_centroids, tl.trans(b_x), input_precision='ieee', out_dtype=TYPE) + b_bias[:, None]
        b_exps = tl.exp(b_logits - tl.max(b_logits, 0)[None, :])
        b_weights = tl.where(m_p[None, :], b_exps / tl.sum(b_exps, 0)[None, :], 0)
        if IS_LAST:
            m_out = (o_j < 9)[:, None] & (o_p < P)[None, :]
            tl.store(p_weights + o_out[:, None] * P + o_p[None, :], b_weights, mask=m_out)
            tl.store(p_logits + o_out[:, None] * P + o_p[None, :], b_logits, mask=m_out)
        else:
            b_ones = tl.where(o_c[None, :] == C, 1, b_x)  # (x, 1): one product sums features and weights
            b_sums += tl.dot(b_weights, b_ones, input_precision='ieee', out_dtype=TYPE)
    if not IS_LAST:
        store_rows(p_sums, o_out, o_j < 9, C + 1, b_sums, C + 1, BLOCK_C)


@triton.jit
def pool_kernel(
    p_x,
    p_pixels,
    p_weights,
    p_sums,
    N,
    K,
    P,
    C: tl.constexpr,
    IS_BACKWARD: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Forward: sums over the pixels n of one cell of A[k, n] (x_n, 1); backward: `p_x` from the gradient `p_sums`."""
    TYPE = p_weights.dtype.element_ty
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


def _launch(kernel, x: Tensor, pixels: Tensor, *tensors: Tensor, **flag: bool) -> None:
    (b, n, c), (k, p) = x.shape, pixels.shape
    blocks = {'BLOCK_P': min(BLOCK_P, block_of(p)), 'BLOCK_C': block_of(c + 1)}
    launch(kernel, (b * k,), x, pixels, *tensors, n, k, p, C=c, **blocks, **flag)


@torch.library.custom_op('spinsr::associate', mutates_args=())
def associate_rounds(
    x: Tensor, mean: Tensor, centroids: Tensor, neighbors: Tensor, incoming: Tensor, pixels: Tensor, num_iter: int
) -> tuple[Tensor, Tensor]:
    """All rounds of the association; has no gradient, as in the authors' code.

    Args:
        x: Features (B, N, C), float32 or float64, contiguous.
        mean: (B, C), near the features: distances are taken between x - mean and the centroids.
        centroids: (B, K, C), those of the first round, less `mean`.
        neighbors: (K, 9) int64, -1 where there is no such cell.
        incoming: (K, 9), see `spinsr.ops.common.grid.Grid`.
        pixels: (K, P) int64, the pixels of each cell, -1 in padding slots.
        num_iter: Number of associations.

    Returns:
        Weights and logits, (B, K, 9, P).
    """
    (b, _, c), (k, p) = x.shape, pixels.shape
    weights, logits, sums = x.new_empty(b, k, 9, p), x.new_empty(b, k, 9, p), x.new_empty(b, k, 9, c + 1)
    is_sent = (neighbors >= 0).flip(1).unsqueeze(2)
    for i in range(num_iter):
        if i > 0:
            received = sums.flatten(1, 2).index_select(1, incoming.flatten()).view_as(sums)
            total = received.where(is_sent, 0).sum(2)  # (B, K, C + 1)
            # The sum was taken over x - mean; what the eps adds to the denominator must not pull it to the mean.
            centroids = (total[..., :-1] - MASS_EPS * mean.unsqueeze(1)) / (total[..., -1:] + MASS_EPS)
        inputs, is_last = (x, pixels, mean, centroids.contiguous(), neighbors), i == num_iter - 1
        _launch(associate_fwd_kernel, *inputs, sums, weights, logits, IS_LAST=is_last)
    return weights, logits


@associate_rounds.register_fake
def _(x, mean, centroids, neighbors, incoming, pixels, num_iter):
    shape = (x.shape[0], pixels.shape[0], 9, pixels.shape[1])
    return x.new_empty(shape), x.new_empty(shape)


def associate(x: Tensor, grid: Grid, num_iter: int) -> SparseAssociation:
    """The association of features (B, H, W, C), float32 or float64; see `spinsr.ops.associate`."""
    mean = x.mean((1, 2))  # (B, C)
    centroids = initial_centroids(x - mean[:, None, None], grid)  # (B, K, C)
    neighbors = grid.neighbors.masked_fill(~grid.is_neighbor, -1)
    tokens = x.flatten(1, 2).contiguous()  # (B, N, C)
    maps = neighbors, grid.incoming, marked_pixels(grid)
    weights, logits = associate_rounds(tokens, mean, centroids, *maps, num_iter)
    return SparseAssociation(grid, weights, log_odds_of(logits))


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
    _launch(pool_kernel, x.contiguous(), pixels, weights, sums, IS_BACKWARD=False)
    return sums


@cell_sums.register_fake
def _(x, weights, pixels):
    return weights.new_empty(*weights.shape[:3], x.shape[2] + 1)


@torch.library.custom_op('spinsr::pool_backward', mutates_args=())
def cell_sums_backward(grad: Tensor, weights: Tensor, pixels: Tensor, num_pixels: int, dtype: torch.dtype) -> Tensor:
    """The gradient (B, N, C) of the features, in `dtype`, from that of the sums."""
    grad_x = grad.new_empty(len(grad), num_pixels, grad.shape[3] - 1, dtype=dtype)
    _launch(pool_kernel, grad_x, pixels, weights, grad.contiguous(), IS_BACKWARD=True)
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
