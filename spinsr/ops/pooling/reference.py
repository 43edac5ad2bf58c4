"""Pooling as the paper writes it, with the association as a matrix."""

from torch import Tensor

from spinsr.ops.association.types import MASS_EPS, DenseAssociation
from spinsr.ops.common.precision import matmul_exact


def pool(x: Tensor, association: DenseAssociation) -> Tensor:
    """See `spinsr.ops.pool`."""
    weights = association.weights
    return matmul_exact(weights, x.flatten(1, 2).to(weights.dtype)) / (weights.sum(2, keepdim=True) + MASS_EPS)
