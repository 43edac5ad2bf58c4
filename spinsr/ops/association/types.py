"""What `associate` returns: how far each pixel belongs to each superpixel, in one of three forms."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from spinsr.ops.common.cache import specialize_int
from spinsr.ops.common.chunking import chunks
from spinsr.ops.common.grid import Grid
from spinsr.ops.common.precision import matmul_exact, no_autocast

KINDS = ('softmax', 'exponential')
MASS_EPS = 1e-16  # of the authors' code: a superpixel that no pixel belongs to has the centroid 0
WEIGHTS = 2**20  # of a mixture that are computed at a time, of all images: 4 MB in float32


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
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        raise NotImplementedError

    def __repr__(self) -> str:
        grid, device = self.grid, self.grid.labels.device
        size, shape = ('x'.join(map(str, pair)) for pair in (grid.size, grid.shape))
        kind = f', kind={self.kind!r}' if isinstance(self, (SparseAssociation, DenseAssociation)) else ''
        return (
            f'{type(self).__name__}(batch={self.batch}, {size} pixels, {shape} superpixels, reach={grid.reach}{kind}, '
            f'{self.dtype}, {device})'
        )

    def dense(self) -> Tensor:
        """The association as the paper writes it: (B, K, N), zeros out of reach. Memory O(K N)."""
        raise NotImplementedError

    def dense_log_odds(self) -> Tensor:
        """The log-odds as (B, K, N), -inf out of reach. Memory O(K N)."""
        raise NotImplementedError

    def by_pixel(self) -> Tensor:
        """The weights of each pixel for the `grid.neighbors` of its cell: (B, N, M), 0 outside the grid."""
        raise NotImplementedError


class _Stored(Association):
    weights: Tensor

    @property
    def batch(self) -> int:
        return self.weights.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SparseAssociation(_Stored):
    """An association stored for the M superpixels that a pixel can belong to, 9 as a rule: memory O(M N).

    Attributes:
        grid: The superpixel grid.
        weights: (B, K, M, P) in [0, 1], what pooling averages with, 0 in padding slots. 'softmax': A, which sums to 1
            over the neighbours of a cell; 'exponential': A[k, n] / sum_n A[k, n], which sums to 1 over the pixels of
            a superpixel.
        log_odds: (B, K, M, P), what orders the pixels of a superpixel, a constant. 'softmax': l_k - logsumexp over the
            other neighbours of l_j, inf if it is the only one; 'exponential': log A = -|x_n - c_k|^2. -inf outside
            the grid, undefined in padding slots.
        kind: One of `KINDS`.
    """

    grid: Grid
    weights: Tensor
    log_odds: Tensor
    kind: str = 'softmax'

    def dense(self) -> Tensor:
        return scatter_dense(self.grid, self._by_pixel(self.weights), 0.0)

    def dense_log_odds(self) -> Tensor:
        return scatter_dense(self.grid, self._by_pixel(self.log_odds), float('-inf'))

    def by_pixel(self) -> Tensor:
        return self._by_pixel(self.weights) if self.kind == 'softmax' else self._by_pixel(self.log_odds).softmax(-1)

    def _by_pixel(self, x: Tensor) -> Tensor:
        keep = slice(None) if self.grid.is_pixel is None else self.grid.is_pixel.reshape(-1)
        order = self.grid.pixels.reshape(-1)[keep].argsort()
        return x.transpose(2, 3).flatten(1, 2)[:, keep][:, order]  # (B, N, M)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DenseAssociation(_Stored):
    """An association stored as the paper writes it.

    Attributes:
        grid: The superpixel grid.
        weights: (B, K, N) in [0, 1], zeros out of reach; see `SparseAssociation`.
        log_odds: (B, K, N), -inf out of reach; see `SparseAssociation`.
        kind: One of `KINDS`.
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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MixtureAssociation(Association):
    """An association of every pixel with every superpixel, computed where it is asked for.

    Attributes:
        grid: The superpixel grid, of reach None.
        pixels: (B, N, C + 1), the features less the image's mean, and 1.
        centroids: (B, K, C + 1), the linear form 2 c.x - |c|^2 of each superpixel: what is left of -|x - c|^2 in the
            softmax.
    """

    grid: Grid
    pixels: Tensor
    centroids: Tensor

    @property
    def batch(self) -> int:
        return self.pixels.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.pixels.dtype

    def dense(self) -> Tensor:
        return self.by_pixel().transpose(1, 2)

    def dense_log_odds(self) -> Tensor:
        return torch.cat([self.log_odds_of(chunk) for chunk in self.chunks()], 1).transpose(1, 2)

    def by_pixel(self) -> Tensor:
        return torch.cat([self.weights_of(chunk) for chunk in self.chunks()], 1)

    def chunks(self) -> Iterator[slice]:
        """The pixels in chunks of about `WEIGHTS` weights."""
        count, of_pixel = specialize_int(self.pixels.shape[1]), specialize_int(self.batch * self.centroids.shape[1])
        return chunks(count, WEIGHTS // max(1, of_pixel))

    def weights_of(self, chunk: slice) -> Tensor:
        """(B, pixels, K), summing to 1 over the superpixels."""
        return self._logits_of(chunk).softmax(-1)

    def log_odds_of(self, chunk: slice) -> Tensor:
        """(B, pixels, K)."""
        return log_odds_of(self._logits_of(chunk))

    def _logits_of(self, chunk: slice) -> Tensor:
        with no_autocast(self.pixels.device.type):
            return matmul_exact(self.pixels[:, chunk], self.centroids.transpose(1, 2))


def log_odds_of(logits: Tensor) -> Tensor:
    """l_k - logsumexp over j != k of l_j, over axis 2, without the cancellation of log(p / (1 - p))."""
    top, best = logits.max(2, keepdim=True)
    exps = (logits - top).exp_()
    # For every entry but the largest the rest still holds the largest one, so that the difference is at least 1.
    rest = exps.sum(2, keepdim=True).sub(exps).clamp_(min=1).log_().add_(top)
    without_best = logits.scatter(2, best, float('-inf')).logsumexp(2, keepdim=True)
    return subtract_rest(logits, rest.scatter_(2, best, without_best))


def subtract_rest(logits: Tensor, rest: Tensor) -> Tensor:
    """logits - rest, with -inf (no such superpixel) staying -inf where the rest is empty too."""
    return (logits - rest).masked_fill_(logits == float('-inf'), float('-inf'))


def scatter_dense(grid: Grid, by_pixel: Tensor, fill: float) -> Tensor:
    """(B, N, M) for the neighbours of each pixel -> (B, K, N), `fill` elsewhere."""
    b, n, _ = by_pixel.shape
    # Directions without a neighbour are written to an extra row, which is cut off again.
    rows = grid.neighbors.masked_fill(~grid.is_neighbor, grid.num_cells)[grid.labels]  # (N, M)
    dense = by_pixel.new_full((b, grid.num_cells + 1, n), fill)
    dense.scatter_(1, rows.t().expand(b, -1, -1), by_pixel.transpose(1, 2))
    return dense[:, :-1]
