"""Superpixel aggregation of SPIN: the soft association of pixels with superpixels.

    A[k, n] = exp(-|x_n - c_k|^2) / sum over the 3x3 neighbouring cells j of n's cell of exp(-|x_n - c_j|^2)
    c_k     = sum_n A[k, n] x_n / (sum_n A[k, n] + 1e-16)

`num_iter` associations with `num_iter - 1` updates of the centroids between them, which start as the adaptive average
pooling of the cells. The softmax over the neighbouring superpixels of a pixel is the authors' code; the paper's Eq. 3
prints exp(-d^2) alone (docs/paper.md), which is the association 'exponential'.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from spinsr.ops.backend import resolve_backend
from spinsr.ops.grid import Grid, gather_incoming, superpixel_grid, to_cells
from spinsr.ops.parts import no_autocast

MASS_EPS = 1e-16  # of the authors' code: a superpixel that no pixel belongs to has the centroid 0
ASSOCIATIONS = ('softmax', 'exponential')


class Association:
    """How far each pixel belongs to each superpixel, A[k, n]; what `associate` returns, in one of several forms.

    Attributes:
        grid: The superpixel grid; its `reach` says which superpixels a pixel can belong to, M of them.
        batch: B.
        dtype: The type of the weights, float32 or float64.
    """

    grid: Grid

    @property
    def batch(self) -> int:
        return self.weights.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype

    def dense(self) -> Tensor:
        """The association as the paper writes it: (B, K, N), zeros out of reach. Memory O(K N)."""
        raise NotImplementedError

    def dense_log_odds(self) -> Tensor:
        """The log-odds as (B, K, N), -inf out of reach. Memory O(K N)."""
        raise NotImplementedError

    def by_pixel(self) -> Tensor:
        """The weights of each pixel for the `grid.neighbors` of its cell: (B, N, M), 0 where there is none."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class SparseAssociation(Association):
    """An association stored for the M superpixels that a pixel can belong to, 9 as a rule: memory O(M N).

    Attributes:
        grid: The superpixel grid.
        weights: (B, K, M, P) in [0, 1], what pooling averages with, 0 in padding slots. 'softmax': A, which sums to 1
            over the neighbours of a cell; 'exponential': A[k, n] / sum_n A[k, n], which sums to 1 over the pixels of
            a superpixel.
        log_odds: (B, K, M, P), what orders the pixels of a superpixel, a constant. 'softmax': l_k - logsumexp over the
            other neighbours of l_j, inf where there is no other one; 'exponential': log A = -|x_n - c_k|^2. -inf where
            there is no neighbour, of no meaning in padding slots.
        kind: One of `ASSOCIATIONS`.
    """

    grid: Grid
    weights: Tensor
    log_odds: Tensor
    kind: str = 'softmax'

    def dense(self) -> Tensor:
        return _scatter_dense(self.grid, self._by_pixel(self.weights), 0.0)

    def dense_log_odds(self) -> Tensor:
        return _scatter_dense(self.grid, self._by_pixel(self.log_odds), float('-inf'))

    def by_pixel(self) -> Tensor:
        return self._by_pixel(self.weights) if self.kind == 'softmax' else self._by_pixel(self.log_odds).softmax(-1)

    def _by_pixel(self, x: Tensor) -> Tensor:
        keep = slice(None) if self.grid.is_pixel is None else self.grid.is_pixel.reshape(-1)
        order = self.grid.pixels.reshape(-1)[keep].argsort()
        return x.transpose(2, 3).flatten(1, 2)[:, keep][:, order]  # (B, N, M)


@dataclasses.dataclass(frozen=True, eq=False)
class DenseAssociation(Association):
    """An association stored as the paper writes it.

    Attributes:
        grid: The superpixel grid.
        weights: (B, K, N) in [0, 1], zeros out of reach; see `SparseAssociation`.
        log_odds: (B, K, N), -inf out of reach; see `SparseAssociation`.
        kind: One of `ASSOCIATIONS`.
    """

    grid: Grid
    weights: Tensor
    log_odds: Tensor
    kind: str = 'softmax'

    def dense(self) -> Tensor:
        return self.weights

    def dense_log_odds(self) -> Tensor:
        return self.log_odds

    def by_pixel(self) -> Tensor:
        rows, exists = self.grid.neighbors[self.grid.labels], self.grid.is_neighbor[self.grid.labels]  # (N, M)
        rows = rows.expand(len(self.weights), -1, -1)
        if self.kind == 'softmax':
            return self.weights.transpose(1, 2).gather(2, rows) * exists
        return self.log_odds.transpose(1, 2).gather(2, rows).masked_fill(~exists, float('-inf')).softmax(-1)


def associate(
    x: Tensor,
    cell: int,
    num_iter: int = 3,
    backend: str | None = None,
    reach: int | None = 1,
    *,
    differentiable: bool = False,
    association: str = 'softmax',
    position_weight: float = 0.0,
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
        backend: See `spinsr.ops.backend`; the kernel is of the constant 'softmax', and else 'triton' runs as 'torch'.
        reach: How many cells away a pixel's superpixels are. 1: the 3x3 cells around its own. None: all superpixels;
            the rounds are then those of expectation and maximisation for a mixture of Gaussians of one weight and one
            variance (1/2); a constant 'softmax' alone. 0: its own cell, so that the superpixels are regular patches.
        differentiable: Whether gradients flow through the weights, over all rounds and centroids. Without it the result
            is a constant, as in the authors' code. The log-odds always are: a selection has no gradient.
        association: One of `ASSOCIATIONS`.
        position_weight: How much a distance of one cell counts beside the features, >= 0; SSN's scale of positions. 0
            clusters by features alone.

    Raises:
        ValueError: `x` has not four dimensions, or an argument is out of its range.

    Example:
        >>> x = torch.rand(1, 16, 24, 8)
        >>> associate(x, cell=8).dense().shape
        torch.Size([1, 6, 384])
    """
    if x.ndim != 4:
        raise ValueError(f'x must have the shape (B, H, W, C), got {tuple(x.shape)}')
    if num_iter < 1:
        raise ValueError(f'num_iter must be at least 1, got {num_iter=}')
    check_association(association, position_weight, differentiable, reach)
    run = _implementation(resolve_backend(backend, x.device), reach, association, differentiable)
    with (
        torch.set_grad_enabled(differentiable and torch.is_grad_enabled()),
        no_autocast(x.device.type),
    ):
        x = x if differentiable else x.detach()
        x = x if x.dtype == torch.float64 else x.float()
        grid = superpixel_grid(x.shape[1], x.shape[2], cell, x.device, x.dtype, reach)
        if position_weight:
            x = torch.cat([x, _positions(x, position_weight / cell)], -1)
        return run(x, grid, num_iter)


def check_association(association: str, position_weight: float, differentiable: bool, reach: int | None) -> None:
    """Refuses what `associate` cannot do.

    Raises:
        ValueError: An argument is out of its range.
    """
    if association not in ASSOCIATIONS:
        raise ValueError(f'association must be one of {", ".join(ASSOCIATIONS)}, got {association=}')
    # As a tuple: the compiler of torch 2.6 does not know a union in isinstance.
    if not isinstance(position_weight, (int, float)) or not 0 <= position_weight < math.inf:
        raise ValueError(f'position_weight must be a number of at least 0, got {position_weight=}')
    if reach is None and (differentiable or association != 'softmax'):
        raise ValueError(f"a mixture (reach=None) must be a constant 'softmax', got {differentiable=}, {association=}")


def _implementation(
    backend: str, reach: int | None, association: str, differentiable: bool
) -> Callable[[Tensor, Grid, int], Association]:
    if backend == 'reference':
        return functools.partial(_associate_reference, association=association)
    if reach is None:
        from spinsr.ops.mixture import associate as associate_mixture

        return associate_mixture
    if backend == 'triton' and reach == 1 and association == 'softmax' and not differentiable:
        from spinsr.ops.kernels.association import associate as associate_triton

        return associate_triton
    return functools.partial(_associate_torch, association=association)


def _positions(x: Tensor, scale: float) -> Tensor:
    """Row and column of each pixel times `scale`, as features: (B, H, W, 2)."""
    b, h, w, _ = x.shape
    rows, columns = (scale * torch.arange(side, device=x.device, dtype=x.dtype) for side in (h, w))
    return torch.stack(torch.meshgrid(rows, columns, indexing='ij'), -1).expand(b, -1, -1, -1)


def _associate_reference(x: Tensor, grid: Grid, num_iter: int, association: str) -> DenseAssociation:
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
        if association == 'softmax':
            weights = _scatter_dense(grid, logits.softmax(-1), 0.0)
        else:
            weights = _scatter_dense(grid, logits, float('-inf')).softmax(2)  # A over its sum over the pixels
    logits = logits.detach()
    if association == 'softmax':
        others = logits.unsqueeze(-2).masked_fill(itself, float('-inf'))
        logits = _difference(logits, others.logsumexp(-1))
    return DenseAssociation(grid, weights, _scatter_dense(grid, logits, float('-inf')), association)


def _associate_torch(x: Tensor, grid: Grid, num_iter: int, association: str) -> SparseAssociation:
    # Distances do not change when everything moves by the image's mean, and then the terms that cancel in
    # |x|^2 - 2 x.c + |c|^2 are small, which keeps digits in float32.
    mean = x.detach().mean((1, 2), keepdim=True)  # (B, 1, 1, C)
    x = x - mean
    cells = homogeneous(x, grid)  # (B, K, P, C + 1)
    centroids = initial_centroids(x, grid)  # (B, K, C)
    for i in range(num_iter):
        if i > 0:
            mass, total = weighted_sums(cells, weights, grid)  # noqa: F821
            # The sum was taken over x - mean; what the eps adds to the denominator must not pull it to the mean.
            centroids = (total - MASS_EPS * mean[:, 0]) / (mass + MASS_EPS)
        logits = _logits(cells, centroids, grid)  # (B, K, M, P)
        if association == 'softmax':
            weights = logits.softmax(2)
            if grid.is_pixel is not None:
                fill = weights.masked_fill if weights.requires_grad else weights.masked_fill_
                weights = fill(~grid.is_pixel[:, None], 0.0)
        else:
            logits = logits - cells[..., :-1].square().sum(-1).unsqueeze(2)
            weights = _softmax_over_pixels(logits, grid)
    logits = logits.detach()
    return SparseAssociation(grid, weights, log_odds_of(logits) if association == 'softmax' else logits, association)


def _logits(cells: Tensor, centroids: Tensor, grid: Grid) -> Tensor:
    """-|x - c|^2 + |x|^2 = 2 c.x - |c|^2 for the neighbours, linear in (x, 1); -inf where there is none.

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
    """(B, H, W, C) -> (x, 1) by cell, (B, K, P, C + 1): one matmul then gives sums of features and of weights."""
    cells = to_cells(x.flatten(1, 2), grid)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return F.pad(cells, (0, 1), value=1.0)
    out = cells.new_empty(*cells.shape[:-1], cells.shape[-1] + 1)  # one pass where F.pad fills first
    out[..., :-1] = cells
    out[..., -1] = 1
    return out


def weighted_sums(cells: Tensor, weights: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Sums over the pixels of every superpixel: mass (B, K, 1) = sum_n A[k, n], total (B, K, C) = sum_n A[k, n] x_n.

    Each cell adds up what it gives to each of its neighbours (a small matmul); each superpixel then collects its sums.
    """
    given = matmul_exact(weights, cells)  # (B, K, M, C + 1)
    got = (gather_incoming(given, grid) * grid.is_neighbor.flip(1).unsqueeze(-1)).sum(2)
    return got[..., -1:], got[..., :-1]


def matmul_exact(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the inputs' full precision: where float32 matmuls may run in TF32, in float64."""
    if a.is_cuda and a.dtype == torch.float32 and _tf32_allowed():
        return (a.double() @ b.double()).float()
    return a @ b


def _tf32_allowed() -> bool:
    # Since torch 2.9 the old flag cannot be read after the new one was set; the new one knows both.
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision == 'tf32' if hasattr(matmul, 'fp32_precision') else matmul.allow_tf32


def initial_centroids(x: Tensor, grid: Grid) -> Tensor:
    pooled = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), grid.shape)
    return pooled.flatten(2).transpose(1, 2)  # (B, K, C)


def log_odds_of(logits: Tensor) -> Tensor:
    """l_k - logsumexp over j != k of l_j, over axis 2, without the cancellation of log(p / (1 - p))."""
    top, best = logits.max(2, keepdim=True)
    exps = (logits - top).exp_()
    # For every entry but the largest the rest still holds the largest one, so that the difference is at least 1.
    rest = exps.sum(2, keepdim=True).sub(exps).clamp_(min=1).log_().add_(top)
    without_best = logits.scatter(2, best, float('-inf')).logsumexp(2, keepdim=True)
    return _difference(logits, rest.scatter_(2, best, without_best))


def _difference(logits: Tensor, rest: Tensor) -> Tensor:
    """logits - rest, with -inf (no such superpixel) staying -inf where the rest is empty too."""
    return (logits - rest).masked_fill_(logits == float('-inf'), float('-inf'))


def _scatter_dense(grid: Grid, by_pixel: Tensor, fill: float) -> Tensor:
    """(B, N, M) for the neighbours of each pixel -> (B, K, N), `fill` elsewhere."""
    b, n, _ = by_pixel.shape
    # Directions without a neighbour are written to an extra row, which is cut off again.
    rows = grid.neighbors.masked_fill(~grid.is_neighbor, grid.num_cells)[grid.labels]  # (N, M)
    dense = by_pixel.new_full((b, grid.num_cells + 1, n), fill)
    dense.scatter_(1, rows.t().expand(b, -1, -1), by_pixel.transpose(1, 2))
    return dense[:, :-1]
