"""Superpixel aggregation of SPIN: the soft association of pixels with superpixels.

    A[k, n] = exp(-|x_n - c_k|^2) / sum over the 3x3 neighbouring cells j of n's cell of exp(-|x_n - c_j|^2)
    c_k     = sum_n A[k, n] x_n / (sum_n A[k, n] + 1e-16)

`num_iter` associations with `num_iter - 1` updates of the centroids between them, which start as the adaptive average
pooling of the cells. The softmax over the neighbouring superpixels of a pixel is the authors' code; the paper's Eq. 3
prints exp(-d^2) alone (docs/paper.md), which is the kind 'exponential'.
"""

import math

import torch
from torch import Tensor

from spinsr.ops.association import mixture, reference, sparse
from spinsr.ops.association.types import KINDS, Association
from spinsr.ops.common.backend import check_features, resolve_backend
from spinsr.ops.common.grid import superpixel_grid
from spinsr.ops.common.precision import full_type, no_autocast


def associate(
    x: Tensor,
    cell: int,
    num_iter: int = 3,
    reach: int | None = 1,
    *,
    differentiable: bool = False,
    kind: str = 'softmax',
    position_weight: float = 0.0,
    backend: str | None = None,
) -> Association:
    """Associates every pixel with the superpixels around it, with all of them, or with its cell alone.

    The defaults are the authors' code; the rest is what the paper, and SSN on which it builds, write down:

        'softmax'       A[k, n] = exp(-d^2) / sum over the 3x3 neighbouring cells j of exp(-d^2)
        'exponential'   A[k, n] = exp(-d^2)                                         (Eq. 3)
        d^2 = |x_n - c_k|^2 + (position_weight / cell)^2 |p_n - p_k|^2              p = (y, x) in pixels

    The position p_k of a superpixel is averaged as its features are. 'exponential' is computed in log space: pooling
    divides by sum_n A[k, n] (Eq. 4), so that only A over that sum is needed, which cannot underflow for a whole
    superpixel. A pixel that is far from all superpixels has the weight 0 and the gradient 0.

    Args:
        x: Features (B, H, W, C), any float type; computed in float32 at least, without TF32.
        cell: Side of a superpixel cell in pixels; a side of the image below it has one cell.
        num_iter: Number of associations, >= 1.
        reach: How many cells away a pixel's superpixels are. 1: the 3x3 cells around its own. None: all superpixels;
            the rounds are then those of expectation and maximisation for a mixture of Gaussians of one weight and one
            variance (1/2); a constant 'softmax' alone. 0: its own cell, so that the superpixels are regular patches.
        differentiable: Whether gradients flow through the weights, over all rounds and centroids. Without it the result
            is a constant, as in the authors' code. The log-odds always are: a selection has no gradient.
        kind: One of `KINDS`.
        position_weight: How much a distance of one cell counts beside the features, >= 0; SSN's scale of positions. 0
            clusters by features alone.
        backend: See `spinsr.ops.common.backend`; the Triton kernels compute the constant 'softmax' of reach 1.

    Raises:
        ValueError: `x` is not of shape (B, H, W, C), or an argument is out of its range.
        TypeError: `x` is not of a floating-point type.
        RuntimeError: The backend was chosen by name and cannot run.

    Example:
        >>> x = torch.rand(1, 16, 24, 8)
        >>> associate(x, cell=8).dense().shape
        torch.Size([1, 6, 384])
    """
    check_features(x, '(B, H, W, C)')
    if num_iter < 1:
        raise ValueError(f'num_iter must be at least 1, got {num_iter=}')
    check_kind(kind, position_weight, differentiable, reach)
    is_paper = reach == 1 and kind == 'softmax' and not differentiable
    given = f'{kind=}, {reach=}, {differentiable=}'
    no_kernel = f"associate has Triton kernels for a constant 'softmax' of reach 1 only, got {given}"
    backend = resolve_backend(backend, x.device, no_kernel=None if is_paper else no_kernel)
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()), no_autocast(x.device.type):
        x = (x if differentiable else x.detach()).to(full_type(x.dtype))
        grid = superpixel_grid(x.shape[1], x.shape[2], cell, x.device, x.dtype, reach)
        if position_weight:
            x = torch.cat([x, _positions(x, position_weight / cell)], -1)
        if backend == 'reference':
            return reference.associate(x, grid, num_iter, kind)
        if reach is None:
            return mixture.associate(x, grid, num_iter)
        if backend == 'triton':
            from spinsr.ops.association.kernels import associate as associate_triton

            return associate_triton(x, grid, num_iter)
        return sparse.associate(x, grid, num_iter, kind)


def check_kind(kind: str, position_weight: float, differentiable: bool, reach: int | None) -> None:
    """Raises ValueError for a combination that `associate` does not compute."""
    if kind not in KINDS:
        raise ValueError(f'kind must be one of {", ".join(KINDS)}, got {kind=}')
    # As a tuple: the compiler of torch 2.6 does not know a union in isinstance.
    if not isinstance(position_weight, (int, float)) or not 0 <= position_weight < math.inf:
        raise ValueError(f'position_weight must be a number of at least 0, got {position_weight=}')
    if reach is None and (differentiable or kind != 'softmax'):
        raise ValueError(f"a mixture (reach=None) must be a constant 'softmax', got {differentiable=}, {kind=}")


def _positions(x: Tensor, scale: float) -> Tensor:
    """Row and column of each pixel times `scale`, as features: (B, H, W, 2)."""
    b, h, w, _ = x.shape
    rows, columns = (scale * torch.arange(side, device=x.device, dtype=x.dtype) for side in (h, w))
    return torch.stack(torch.meshgrid(rows, columns, indexing='ij'), -1).expand(b, -1, -1, -1)
