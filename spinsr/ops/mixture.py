"""The association of all pixels with all superpixels, as of a mixture of Gaussians, without its K x N matrix.

A weight is a softmax over superpixels of what follows from a pixel and the centroids, so both are kept and a weight is
computed whenever it is needed, some pixels at a time. Memory is O(N C), time O(K N C).
"""

import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.association import MASS_EPS, Association, initial_centroids, log_odds_of, matmul_exact
from spinsr.ops.constant import static
from spinsr.ops.grid import Grid
from spinsr.ops.parts import no_autocast

WEIGHTS_AT_ONCE = 2**20  # 4 MB in float32


@dataclasses.dataclass(frozen=True, eq=False)
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
        return torch.cat([self.weights_of(part) for part in self.parts()], 1).transpose(1, 2)

    def dense_log_odds(self) -> Tensor:
        return torch.cat([self.log_odds_of(part) for part in self.parts()], 1).transpose(1, 2)

    def by_pixel(self) -> Tensor:
        return torch.cat([self.weights_of(part) for part in self.parts()], 1)

    def parts(self) -> Iterator[slice]:
        """The pixels, some at a time."""
        return parts(self.pixels, self.centroids)

    def weights_of(self, part: slice) -> Tensor:
        """(B, pixels, K), summing to 1 over the superpixels."""
        return logits_of(self.pixels[:, part], self.centroids).softmax(-1)

    def log_odds_of(self, part: slice) -> Tensor:
        """(B, pixels, K)."""
        return log_odds_of(logits_of(self.pixels[:, part], self.centroids))


def parts(pixels: Tensor, centroids: Tensor) -> Iterator[slice]:
    """Slices of the pixels with about `WEIGHTS_AT_ONCE` weights each, of all images."""
    count = static(pixels.shape[1])
    step = max(1, WEIGHTS_AT_ONCE // static(centroids.shape[0] * centroids.shape[1]))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def logits_of(pixels: Tensor, centroids: Tensor) -> Tensor:
    """(B, pixels, C + 1), (B, K, C + 1) -> (B, pixels, K); autocast is off whenever they are asked for."""
    with no_autocast(pixels.device.type):
        return matmul_exact(pixels, centroids.transpose(1, 2))


def associate(x: Tensor, grid: Grid, num_iter: int) -> MixtureAssociation:
    """See `spinsr.ops.associate`; the last round is left to those who ask for weights."""
    # As in the sparse form: nothing changes when everything moves by the mean, and float32 keeps its digits.
    mean = x.mean((1, 2), keepdim=True)  # (B, 1, 1, C)
    x = x - mean
    pixels = F.pad(x.flatten(1, 2), (0, 1), value=1.0)
    centroids = _linear_form(initial_centroids(x, grid))
    for _ in range(num_iter - 1):
        sums = _weighted_sums(pixels, pixels, centroids)
        mass, total = sums[..., -1:], sums[..., :-1]
        centroids = _linear_form((total - MASS_EPS * mean[:, 0]) / (mass + MASS_EPS))
    return MixtureAssociation(grid, pixels, centroids)


def _linear_form(centroids: Tensor) -> Tensor:
    return torch.cat([2 * centroids, -centroids.square().sum(-1, keepdim=True)], -1)


def _weighted_sums(x: Tensor, pixels: Tensor, centroids: Tensor) -> Tensor:
    """sum_n A[k, n] x_n: (B, N, D) -> (B, K, D)."""
    sums = x.new_zeros(centroids.shape[0], centroids.shape[1], x.shape[2])
    for part in parts(pixels, centroids):
        weights = logits_of(pixels[:, part], centroids).softmax(-1)
        sums = sums + matmul_exact(weights.transpose(1, 2), x[:, part])
    return sums


def pool_mixture(x: Tensor, association: MixtureAssociation) -> Tensor:
    """Mean features (B, K, C) of features (B, H, W, C); see `spinsr.ops.pool`."""
    return _Pool.apply(x.flatten(1, 2), association.pixels, association.centroids)


class _Pool(torch.autograd.Function):
    """Keeps no weights for the backward pass, which computes them again."""

    @staticmethod
    def forward(ctx, x: Tensor, pixels: Tensor, centroids: Tensor) -> Tensor:
        sums = _weighted_sums(F.pad(x, (0, 1), value=1.0), pixels, centroids)
        mass = sums[..., -1:] + MASS_EPS
        ctx.save_for_backward(pixels, centroids, mass)
        return sums[..., :-1] / mass

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        pixels, centroids, mass = ctx.saved_tensors
        grad = grad / mass
        grads = [
            matmul_exact(logits_of(pixels[:, part], centroids).softmax(-1), grad) for part in parts(pixels, centroids)
        ]
        return torch.cat(grads, 1), None, None
