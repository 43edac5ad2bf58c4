"""The association of every pixel with the superpixels within its reach, 9 as a rule: time and memory O(9 N)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from spinsr.ops.association.types import MASS_EPS, SparseAssociation, log_odds_of
from spinsr.ops.common.grid import Grid, gather_incoming, initial_centroids, to_cells
from spinsr.ops.common.precision import matmul_exact


def associate(x: Tensor, grid: Grid, num_iter: int, kind: str) -> SparseAssociation:
    """See `spinsr.ops.associate`."""
    # Distances do not change when everything moves by the image's mean, and then the terms that cancel in
    # |x|^2 - 2 x.c + |c|^2 are small, which keeps digits in float32.
    mean = x.detach().mean((1, 2), keepdim=True)  # (B, 1, 1, C)
    x = x - mean
    cells = homogeneous(x.flatten(1, 2), grid)  # (B, K, P, C + 1)
    centroids = initial_centroids(x, grid)  # (B, K, C)
    for i in range(num_iter):
        if i > 0:
            mass, total = add_incoming(matmul_exact(weights, cells), grid)  # noqa: F821
            # The sum was taken over x - mean; what the eps adds to the denominator must not pull it to the mean.
            centroids = (total - MASS_EPS * mean[:, 0]) / (mass + MASS_EPS)
        logits = _logits(cells, centroids, grid)  # (B, K, M, P)
        if kind == 'softmax':
            weights = logits.softmax(2)
            if grid.is_pixel is not None:
                fill = weights.masked_fill if weights.requires_grad else weights.masked_fill_
                weights = fill(~grid.is_pixel[:, None], 0.0)
        else:
            logits = logits - cells[..., :-1].square().sum(-1).unsqueeze(2)
            weights = _softmax_over_pixels(logits, grid)
    logits = logits.detach()
    return SparseAssociation(grid, weights, log_odds_of(logits) if kind == 'softmax' else logits, kind)


def _logits(cells: Tensor, centroids: Tensor, grid: Grid) -> Tensor:
    """-|x - c|^2 + |x|^2 = 2 c.x - |c|^2 for the neighbours, linear in (x, 1); -inf where a cell has no such neighbour.

    |x|^2 cancels in a softmax over the neighbours.
    """
    bias = -centroids.square().sum(-1, keepdim=True)
    near = _near(torch.cat([2 * centroids, bias], -1), grid)  # (B, K, M, C + 1)
    if not near.requires_grad:
        near[..., -1].masked_fill_(~grid.is_neighbor, float('-inf'))
        return matmul_exact(near, cells.transpose(-1, -2))
    # An infinity inside the product would be a NaN in its gradient.
    return matmul_exact(near, cells.transpose(-1, -2)).masked_fill(~grid.is_neighbor.unsqueeze(-1), float('-inf'))


def _near(x: Tensor, grid: Grid) -> Tensor:
    """Of each superpixel (B, K, D) -> of the neighbours of each cell (B, K, M, D)."""
    return x.index_select(1, grid.neighbors.flatten()).unflatten(1, grid.neighbors.shape)


def _softmax_over_pixels(logits: Tensor, grid: Grid) -> Tensor:
    """exp(l) / sum of exp(l) over the pixels of each superpixel: (B, K, M, P), 0 in padding slots."""
    if grid.is_pixel is not None:
        logits = logits.masked_fill(~grid.is_pixel[:, None], float('-inf'))
    seen = grid.is_neighbor.flip(1).unsqueeze(-1)
    top = gather_incoming(logits.detach().amax(3, keepdim=True), grid)  # (B, K, M, 1)
    top = top.masked_fill(~seen, float('-inf')).amax(2)  # (B, K, 1)
    exps = (logits - _near(top, grid)).exp_()
    mass = (gather_incoming(exps.sum(3, keepdim=True), grid) * seen).sum(2)  # (B, K, 1), at least 1
    return exps / _near(mass, grid)


def homogeneous(x: Tensor, grid: Grid) -> Tensor:
    """(B, N, C) -> (x, 1) by cell, (B, K, P, C + 1): one matmul then gives sums of features and of weights."""
    cells = to_cells(x, grid)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return F.pad(cells, (0, 1), value=1.0)
    out = cells.new_empty(*cells.shape[:-1], cells.shape[-1] + 1)  # one pass where F.pad fills first
    out[..., :-1] = cells
    out[..., -1] = 1
    return out


def add_incoming(sums: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Adds up what each superpixel receives: mass (B, K, 1) = sum_n A[k, n], total (B, K, C) = sum_n A[k, n] x_n.

    `sums` (B, K, M, C + 1) is what each cell sums up over its pixels for each of its neighbours, a small matmul.
    """
    received = (gather_incoming(sums, grid) * grid.is_neighbor.flip(1).unsqueeze(-1)).sum(2)
    return received[..., -1:], received[..., :-1]
