"""Pooling of an association that is stored for the superpixels within reach."""

from torch import Tensor

from spinsr.ops.association.sparse import homogeneous, weighted_sums
from spinsr.ops.association.types import MASS_EPS, SparseAssociation


def pool(x: Tensor, association: SparseAssociation) -> Tensor:
    """See `spinsr.ops.pool`."""
    weights, grid = association.weights, association.grid
    mass, total = weighted_sums(homogeneous(x.to(weights.dtype), grid), weights, grid)
    return total / (mass + MASS_EPS)
