"""Kernels of the association: a program has one cell, its pixels and the 9 superpixels that these can belong to.

A round computes the 9 logits of each pixel, their softmax, and what the cell gives to each of its 9 neighbours: the
sums of A[k, n] (x_n, 1) over its pixels n. Weights are stored in the last round only. Between two rounds a program a
superpixel collects the 9 sums that come to it, in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spinsr.ops.association import MASS_EPS, SparseAssociation, initial_centroids
from spinsr.ops.grid import Grid
from spinsr.ops.kernels.launch import NUM_WARPS, at_a_time, block_of, kernel_type, on_device_of

BLOCK_P = at_a_time(32)  # pixels


@triton.jit
def associate_fwd_kernel(
    p_x,
    p_mean,
    p_centroids,
    p_neighbors,
    p_is_neighbor,
    p_pixels,
    p_is_pixel,
    p_given,
    p_weights,
    p_log_odds,
    N,
    K,
    P,
    C: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    IS_LAST: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One round for the pixels of one cell: their 9 logits, the softmax, and what the cell gives or the result."""
    b_program = tl.program_id(0).to(tl.int64)
    b_image = b_program // K
    b_cell = b_program % K
    o_j = tl.arange(0, 16)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < C

    b_neighbors = tl.load(p_neighbors + b_cell * 9 + o_j, mask=o_j < 9, other=0)
    m_j = (tl.load(p_is_neighbor + b_cell * 9 + o_j, mask=o_j < 9, other=0) != 0) & (o_j < 9)
    o_centroids = (b_image * K + b_neighbors)[:, None] * C + o_c[None, :]
    b_centroids = tl.load(p_centroids + o_centroids, mask=m_j[:, None] & m_c[None, :], other=0)
    b_bias = tl.where(m_j, -tl.sum(b_centroids * b_centroids, 1), float('-inf'))
    b_mean = tl.load(p_mean + b_image * C + o_c, mask=m_c, other=0)

    b_given = tl.full((16, BLOCK_C), 0, dtype=TYPE)
    for start in range(0, P, BLOCK_P):
        o_p = start + tl.arange(0, BLOCK_P)
        m_p = o_p < P
        b_pixels = tl.load(p_pixels + b_cell * P + o_p, mask=m_p, other=0)
        o_x = (b_image * N + b_pixels)[:, None] * C + o_c[None, :]
        b_x = tl.load(p_x + o_x, mask=m_p[:, None] & m_c[None, :], other=0) - b_mean[None, :]
        # |x|^2 cancels in the softmax; what is left of -|x - c|^2 is 2 c.x - |c|^2.
        b_logits = tl.dot(2 * b_centroids, tl.trans(b_x), input_precision='ieee', out_dtype=TYPE) + b_bias[:, None]
        b_top = tl.max(b_logits, 0)
        b_exps = tl.exp(b_logits - b_top[None, :])
        b_sum = tl.sum(b_exps, 0)
        b_weights = b_exps / b_sum[None, :]
        m_pixel = m_p
        if HAS_PADDING:
            m_pixel = m_p & (tl.load(p_is_pixel + b_cell * P + o_p, mask=m_p, other=0) != 0)
        b_weights = tl.where(m_pixel[None, :], b_weights, 0)
        if IS_LAST:
            o_out = (b_program * 9 + o_j)[:, None] * P + o_p[None, :]
            m_out = (o_j < 9)[:, None] & m_p[None, :]
            tl.store(p_weights + o_out, b_weights, mask=m_out)
            # l_k - logsumexp of the others. For every entry but the first of the largest the others hold the largest,
            # so that their sum is at least 1; that one has the sum over the others taken from their own largest.
            b_best = tl.min(tl.where(b_logits == b_top[None, :], o_j[:, None], 16), 0)
            m_best = o_j[:, None] == b_best[None, :]
            b_others = tl.where(m_best, float('-inf'), b_logits)
            b_second = tl.max(b_others, 0)
            m_alone = b_second == float('-inf')
            b_second = tl.where(m_alone, 0, b_second)
            b_without_best = tl.log(tl.maximum(tl.sum(tl.exp(b_others - b_second[None, :]), 0), 1)) + b_second
            b_without_best = tl.where(m_alone, float('-inf'), b_without_best)
            b_rest = tl.log(tl.maximum(b_sum[None, :] - b_exps, 1)) + b_top[None, :]
            b_rest = tl.where(m_best, b_without_best[None, :], b_rest)
            b_log_odds = tl.where(m_j[:, None], b_logits - b_rest, float('-inf'))
            tl.store(p_log_odds + o_out, b_log_odds, mask=m_out)
        else:
            b_ones = tl.where(o_c[None, :] == C, 1, b_x)  # (x, 1): one product sums features and weights
            b_given += tl.dot(b_weights, b_ones, input_precision='ieee', out_dtype=TYPE)
    if not IS_LAST:
        o_given = (b_program * 9 + o_j)[:, None] * (C + 1) + o_c[None, :]
        tl.store(p_given + o_given, b_given, mask=(o_j < 9)[:, None] & (o_c <= C)[None, :])


@triton.jit
def collect_fwd_kernel(
    p_given,
    p_incoming,
    p_is_neighbor,
    p_mean,
    p_out,
    p_mass,
    K,
    C: tl.constexpr,
    EPS: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean of one superpixel from the 9 sums that come to it."""
    b_program = tl.program_id(0).to(tl.int64)
    b_image = b_program // K
    b_cell = b_program % K
    o_j = tl.arange(0, 16)
    o_c = tl.arange(0, BLOCK_C)
    b_incoming = tl.load(p_incoming + b_cell * 9 + o_j, mask=o_j < 9, other=0)
    # What comes from direction j is there if there is a neighbour in direction 8 - j.
    m_j = (tl.load(p_is_neighbor + b_cell * 9 + 8 - o_j, mask=o_j < 9, other=0) != 0) & (o_j < 9)
    o_given = (b_image * K * 9 + b_incoming)[:, None] * (C + 1) + o_c[None, :]
    b_got = tl.sum(tl.load(p_given + o_given, mask=m_j[:, None] & (o_c <= C)[None, :], other=0), 0)
    b_mass = tl.sum(tl.where(o_c == C, b_got, 0), 0)
    if HAS_MEAN:
        # The sum was taken over x - mean; what the eps adds to the denominator must not pull it to the mean.
        b_got = b_got - EPS * tl.load(p_mean + b_image * C + o_c, mask=o_c < C, other=0)
    tl.store(p_out + b_program * C + o_c, b_got / (b_mass + EPS), mask=o_c < C)
    tl.store(p_mass + b_program, b_mass)


def collect(given: Tensor, grid_maps: tuple[Tensor, Tensor], mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Means of the superpixels from what the cells gave.

    Args:
        given: (B, K, 9, C + 1), the sums of (x, 1) that each cell gives to its 9 neighbours.
        grid_maps: `incoming` and `is_neighbor` of the grid.
        mean: (B, C), what was subtracted from x before it was summed.

    Returns:
        Means (B, K, C), less `mean`, and masses (B, K).
    """
    b, k, _, c = given.shape
    out, mass = given.new_empty(b, k, c - 1), given.new_empty(b, k)
    incoming, is_neighbor = grid_maps
    with on_device_of(given):
        collect_fwd_kernel[(b * k,)](
            given,
            incoming,
            is_neighbor,
            given if mean is None else mean,
            out,
            mass,
            k,
            C=c - 1,
            EPS=MASS_EPS,
            HAS_MEAN=mean is not None,
            BLOCK_C=block_of(c),
            num_warps=1,
        )
    return out, mass


@torch.library.custom_op('spinsr::associate', mutates_args=())
def associate_rounds(
    x: Tensor,
    mean: Tensor,
    centroids: Tensor,
    neighbors: Tensor,
    is_neighbor: Tensor,
    incoming: Tensor,
    pixels: Tensor,
    is_pixel: Tensor | None,
    num_iter: int,
) -> tuple[Tensor, Tensor]:
    """All rounds of the association; has no gradient, as in the authors' code.

    Args:
        x: Features (B, N, C), float32 or float64, contiguous.
        mean: (B, C), near the features: distances are taken between x - mean and the centroids.
        centroids: (B, K, C), those of the first round, less `mean`.
        neighbors, is_neighbor, incoming: (K, 9), see `spinsr.ops.grid.Grid`.
        pixels, is_pixel: (K, P), likewise.
        num_iter: Number of associations.

    Returns:
        Weights and log-odds, (B, K, 9, P).
    """
    (b, n, c), (k, p) = x.shape, pixels.shape
    weights, log_odds = x.new_empty(b, k, 9, p), x.new_empty(b, k, 9, p)
    given = x.new_empty(b, k, 9, c + 1)
    for i in range(num_iter):
        if i > 0:
            centroids, _ = collect(given, (incoming, is_neighbor), mean)
        with on_device_of(x):
            associate_fwd_kernel[(b * k,)](
                x,
                mean,
                centroids,
                neighbors,
                is_neighbor,
                pixels,
                pixels if is_pixel is None else is_pixel,
                given,
                weights,
                log_odds,
                n,
                k,
                p,
                C=c,
                HAS_PADDING=is_pixel is not None,
                IS_LAST=i == num_iter - 1,
                TYPE=kernel_type(x.dtype),
                BLOCK_P=min(BLOCK_P, block_of(p)),
                BLOCK_C=block_of(c + 1),
                num_warps=NUM_WARPS,
            )
    return weights, log_odds


@associate_rounds.register_fake
def _(x, mean, centroids, neighbors, is_neighbor, incoming, pixels, is_pixel, num_iter):
    shape = (x.shape[0], pixels.shape[0], 9, pixels.shape[1])
    return x.new_empty(shape), x.new_empty(shape)


def associate(x: Tensor, grid: Grid, num_iter: int) -> SparseAssociation:
    """The association of features (B, H, W, C), float32 or float64; see `spinsr.ops.associate`."""
    mean = x.mean((1, 2))  # (B, C)
    centroids = initial_centroids(x - mean[:, None, None], grid)  # (B, K, C)
    maps = (grid.neighbors, grid.is_neighbor, grid.incoming, grid.pixels, grid.is_pixel)
    tokens = x.flatten(1, 2).contiguous()  # (B, N, C)
    return SparseAssociation(grid, *associate_rounds(tokens, mean, centroids.contiguous(), *maps, num_iter))
