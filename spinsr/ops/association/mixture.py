"""The association of all pixels with all superpixels, as of a mixture of Gaussians, without its K x N matrix.

A weight is a softmax over superpixels of what follows from a pixel and the centroids, so both are kept and a weight is
computed whenever it is needed, some pixels at a time. Memory is O(N C), time O(K N C).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.association.types import MASS_EPS, MixtureAssociation
from spinsr.ops.common.grid import Grid, initial_centroids
from spinsr.ops.common.precision import matmul_exact


def associate(x: Tensor, grid: Grid, num_iter: int) -> MixtureAssociation:
    """See `spinsr.ops.associate`; the last round is left to those who ask for weights."""
    # As in the sparse form: nothing changes when everything moves by the mean, and float32 keeps its digits.
    mean = x.mean((1, 2), keepdim=True)  # (B, 1, 1, C)
    x = x - mean
    pixels = F.pad(x.flatten(1, 2), (0, 1), value=1.0)
    association = MixtureAssociation(grid, pixels, _linear_form(initial_centroids(x, grid)))
    for _ in range(num_iter - 1):
        sums = _weighted_sums(pixels, association)
        mass, total = sums[..., -1:], sums[..., :-1]
        centroids = _linear_form((total - MASS_EPS * mean[:, 0]) / (mass + MASS_EPS))
        association = MixtureAssociation(grid, pixels, centroids)
    return association


def _linear_form(centroids: Tensor) -> Tensor:
    return torch.cat([2 * centroids, -centroids.square().sum(-1, keepdim=True)], -1)


def _weighted_sums(x: Tensor, association: MixtureAssociation) -> Tensor:
    """sum_n A[k, n] x_n: (B, N, D) -> (B, K, D)."""
    sums = x.new_zeros(*association.centroids.shape[:2], x.shape[2])
    for chunk in association.chunks():
        sums = sums + matmul_exact(association.weights_of(chunk).transpose(1, 2), x[:, chunk])
    return sums


def pool(x: Tensor, association: MixtureAssociation) -> Tensor:
    """Mean features (B, K, C) of features (B, N, C); see `spinsr.ops.pool`."""
    return _Pool.apply(x, association)


class _Pool(torch.autograd.Function):
    """Keeps no weights for the backward pass, which computes them again."""

    @staticmethod
    def forward(ctx, x: Tensor, association: MixtureAssociation) -> Tensor:
        sums = _weighted_sums(F.pad(x, (0, 1), value=1.0), association)
        mass = sums[..., -1:] + MASS_EPS
        ctx.association = association
        ctx.save_for_backward(mass)
        return sums[..., :-1] / mass

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (mass,), association = ctx.saved_tensors, ctx.association
        grad = grad / mass
        return torch.cat([matmul_exact(association.weights_of(c), grad) for c in association.chunks()], 1), None
