"""Mean features of the superpixels."""

from torch import Tensor

from spinsr.ops.association import MASS_EPS, Association, DenseAssociation, homogeneous, matmul_exact, weighted_sums
from spinsr.ops.backend import resolve_backend
from spinsr.ops.mixture import MixtureAssociation, pool_mixture
from spinsr.ops.parts import no_autocast


def pool(x: Tensor, association: Association, backend: str | None = None) -> Tensor:
    """Averages pixel features over each superpixel: s_k = sum_n A[k, n] x_n / (sum_n A[k, n] + 1e-16).

    The gradient with respect to `x` is A^T applied to the normalised upstream gradient; that of the association exists
    where it is differentiable. The sparse form costs O(9 N C) time and O(N C) memory. With the association
    'exponential', the sums are over A[k, n] / sum_n A[k, n] and so 1.

    Args:
        x: Features (B, H, W, C), any float type; averaged in the association's type.
        association: From `associate`, of the same batch and size.
        backend: How a sparse association is pooled, see `spinsr.ops.backend`; the others are pooled in one way. The
            kernel has no gradient to the association: 'triton' pools one that has a gradient as 'torch' does.

    Returns:
        (B, K, C) in the type of the association.

    Raises:
        ValueError: The sizes of `x` and the association differ.

    Example:
        >>> import torch
        >>> from spinsr.ops import associate
        >>> x = torch.rand(2, 16, 24, 8)
        >>> pool(x, associate(x, cell=8)).shape
        torch.Size([2, 6, 8])
    """
    grid = association.grid
    if x.ndim != 4 or x.shape[0] != association.batch or tuple(x.shape[1:3]) != grid.size:
        expected = (association.batch, *grid.size, 'C')
        raise ValueError(f'x must have the shape {expected} of the association, got {tuple(x.shape)}')
    backend = resolve_backend(backend, x.device)
    with no_autocast(x.device.type):
        if isinstance(association, MixtureAssociation):
            return pool_mixture(x.to(association.dtype), association)
        weights = association.weights
        if isinstance(association, DenseAssociation):
            return matmul_exact(weights, x.flatten(1, 2).to(weights.dtype)) / (weights.sum(2, keepdim=True) + MASS_EPS)
        if backend == 'triton' and grid.reach == 1 and not weights.requires_grad:
            from spinsr.ops.kernels.pooling import pool as pool_triton

            return pool_triton(x, association)
        mass, total = weighted_sums(homogeneous(x.to(weights.dtype), grid), weights, grid)
        return total / (mass + MASS_EPS)
