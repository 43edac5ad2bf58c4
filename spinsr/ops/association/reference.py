"""The association as the paper writes it: (B, K, N) with zeros, differentiable, in float64 the oracle of the tests."""

import torch
from torch import Tensor

from spinsr.ops.association.types import MASS_EPS, DenseAssociation, scatter_dense, subtract_rest
from spinsr.ops.common.grid import Grid, initial_centroids
from spinsr.ops.common.precision import matmul_exact


def associate(x: Tensor, grid: Grid, num_iter: int, kind: str) -> DenseAssociation:
    """See `spinsr.ops.associate`."""
    tokens = x.flatten(1, 2)  # (B, N, C)
    centroids = initial_centroids(x, grid)
    near = grid.neighbors[grid.labels]  # (N, M)
    outside = ~grid.is_neighbor[grid.labels]
    itself = torch.eye(near.shape[1], dtype=torch.bool, device=x.device)
    for i in range(num_iter):
        if i > 0:
            centroids = matmul_exact(weights, tokens) / (weights.sum(2, keepdim=True) + MASS_EPS)  # noqa: F821
        distances = [(tokens - centroids.index_select(1, near_j)).square().sum(-1) for near_j in near.t()]
        logits = -torch.stack(distances, -1).masked_fill(outside, float('inf'))  # (B, N, M)
        if kind == 'softmax':
            weights = scatter_dense(grid, logits.softmax(-1), 0.0)
        else:
            weights = scatter_dense(grid, logits, float('-inf')).softmax(2)  # A over its sum over the pixels
    logits = logits.detach()
    if kind == 'softmax':
        others = logits.unsqueeze(-2).masked_fill(itself, float('-inf'))
        logits = subtract_rest(logits, others.logsumexp(-1))
    return DenseAssociation(grid, weights, scatter_dense(grid, logits, float('-inf')), kind)
