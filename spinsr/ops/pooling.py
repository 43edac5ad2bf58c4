"""Mean features of the superpixels."""

from torch import Tensor

from spinsr.ops.association import mixture
from spinsr.ops.association.sparse import add_incoming, homogeneous
from spinsr.ops.association.types import MASS_EPS, Association, DenseAssociation, MixtureAssociation, SparseAssociation
from spinsr.ops.common.backend import check_floating, check_no_tangents, resolve_backend
from spinsr.ops.common.grid import marked_pixels
from spinsr.ops.common.precision import matmul_exact, no_autocast


def pool(x: Tensor, association: Association, *, backend: str | None = None) -> Tensor:
    """Averages pixel features over each superpixel: s_k = sum_n A[k, n] x_n / (sum_n A[k, n] + 1e-16).

    The gradient with respect to `x` is A^T applied to the normalised upstream gradient; that of the association exists
    where it is differentiable. The sparse form costs O(9 N C) time and O(N C) memory. With an association of the kind
    'exponential', the sums are over A[k, n] / sum_n A[k, n] and so 1.

    Args:
        x: Features (B, H, W, C), any float type; averaged in the association's type.
        association: From `associate`, of the same batch and size. A dense one is pooled by the reference, a mixture in
            chunks; `backend` chooses for a sparse one.
        backend: See `spinsr.ops.common.backend`. The Triton kernels pool a sparse association of reach 1, without a
            gradient to it.

    Returns:
        (B, K, C) in the type of the association.

    Raises:
        ValueError: The sizes of `x` and the association differ.
        TypeError: `x` is not of a floating-point type.
        RuntimeError: The backend was chosen by name and cannot run.

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
    check_floating(x=x)
    no_kernel = None
    if isinstance(association, (DenseAssociation, MixtureAssociation)) or grid.reach != 1:
        form = f'{type(association).__name__} of reach {grid.reach}'
        no_kernel = f'pool has Triton kernels for a SparseAssociation of reach 1 only, got a {form}'
    elif isinstance(association, SparseAssociation) and association.weights.requires_grad:
        no_kernel = 'the Triton kernels of pool have no gradient to a differentiable association'
    backend = resolve_backend(backend, x.device, no_kernel=no_kernel)
    x = x.flatten(1, 2)  # (B, N, C)
    with no_autocast(x.device.type):
        if isinstance(association, MixtureAssociation):
            return mixture.pool(x.to(association.dtype), association)
        if isinstance(association, DenseAssociation):
            return _reference(x, association)
        assert isinstance(association, SparseAssociation)
        weights = association.weights
        if backend == 'triton':
            from spinsr.ops.association.kernels import cell_sums

            check_no_tangents(x)
            sums = cell_sums(x, weights.contiguous(), marked_pixels(grid))
        else:
            sums = matmul_exact(weights, homogeneous(x.to(weights.dtype), grid))
        mass, total = add_incoming(sums, grid)
        return total / (mass + MASS_EPS)


def _reference(x: Tensor, association: DenseAssociation) -> Tensor:
    """As the paper writes it, with the association as a matrix."""
    weights = association.weights
    return matmul_exact(weights, x.to(weights.dtype)) / (weights.sum(2, keepdim=True) + MASS_EPS)
