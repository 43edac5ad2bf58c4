"""Second-order statistics for SAN: covariance pooling and its square root by Newton-Schulz."""

import torch
from torch import Tensor

from spinsr.ops.common.backend import check_features, check_floating, dense_or_torch
from spinsr.ops.common.precision import no_autocast


def covariance(x: Tensor, *, backend: str | None = None) -> Tensor:
    """Covariance of the channels over all pixels: X (I - 11^T / N) X^T / N with X of shape C x N.

    The `torch` backend centres X instead of storing the N x N matrix: time O(C^2 N), memory O(C N).

    Args:
        x: Features (B, C, H, W), float32 or float64.
        backend: See `spinsr.ops.common.backend`.

    Returns:
        (B, C, C), symmetric, positive semi-definite.

    Raises:
        ValueError: `x` is not of shape (B, C, H, W), or has no channels.
        TypeError: `x` is not of a floating-point type.

    Example:
        >>> covariance(torch.rand(2, 8, 5, 7)).shape
        torch.Size([2, 8, 8])
    """
    check_features(x, '(B, C, H, W)')
    backend = dense_or_torch('covariance', backend, x.device)
    x = x.flatten(2)  # (B, C, N)
    n = x.shape[2]
    with no_autocast(x.device.type):
        if backend == 'reference':
            centring = torch.eye(n, dtype=x.dtype, device=x.device) / n - 1 / n / n
            return x @ centring @ x.transpose(1, 2)
        x = x - x.mean(2, keepdim=True)
        return x @ x.transpose(1, 2) / n


def sqrtm_newton_schulz(a: Tensor, num_iter: int = 5) -> Tensor:
    """Approximate square root of a symmetric positive semi-definite matrix by coupled Newton-Schulz iterations.

        Y_0 = A / tr(A), Z_0 = I;  Y <- Y (3I - Z Y) / 2,  Z <- (3I - Z Y) Z / 2;  sqrt(A) ~ sqrt(tr(A)) Y

    Five iterations, as SAN uses, have not converged; that is part of the network. A matrix of trace 0 gives a zero
    matrix with a zero gradient. The gradient is autograd's through the iterations.

    Args:
        a: (B, C, C).
        num_iter: Number of iterations, >= 1.

    Returns:
        (B, C, C).

    Raises:
        ValueError: `num_iter` is below 1.
        TypeError: `a` is not a floating-point tensor.

    Example:
        >>> root = sqrtm_newton_schulz(4 * torch.eye(3).unsqueeze(0), num_iter=20)
        >>> torch.allclose(root[0], 2 * torch.eye(3))
        True
    """
    if num_iter < 1:
        raise ValueError(f'num_iter must be at least 1, got {num_iter=}')
    check_floating(a=a)
    trace = a.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
    nonzero = trace != 0
    trace = trace.where(nonzero, 1)
    three = 3 * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    y = a / trace
    z = None  # the identity
    for i in range(num_iter):
        half = 0.5 * (three - (y if z is None else z @ y))
        y = y @ half
        if i < num_iter - 1:
            z = half if z is None else half @ z
    return (y * trace.sqrt()).where(nonzero, 0)
