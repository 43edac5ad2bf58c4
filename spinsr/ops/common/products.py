"""Products of matrices in float32 on AMD's processors with AVX-512, by oneDNN.

torch multiplies matrices of float32 by MKL, which does not use AVX-512 on processors that are not Intel's, and
convolves by oneDNN, which does. There a convolution with a kernel of 1 x 1 takes half of the time of the same product,
if it is large. Elsewhere, and for other types, these functions are torch's own products.
"""

import functools
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from spinsr.ops.common.chunking import on_cpu

# Multiply-adds of a product for each thread; with less, oneDNN saves no time.
WORTH_A_CALL, WORTH_A_CONVOLUTION = 2.5e6, 5e6


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, differentiable: (..., K), (M, K) and (M,) -> (..., M)."""
    if not _takes_onednn(x, weight, x.numel() * weight.shape[0]):
        return F.linear(x, weight, bias)
    image = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # channels-last, of one row
    # Not conv2d, which takes another way than oneDNN where there is one thread, or little to do.
    out = torch.mkldnn_convolution(image, weight[..., None, None], bias, (0, 0), (1, 1), (1, 1), 1)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def linear_by_image(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b by image, differentiable: (B, N, K), (B, M, K) and (B, M) -> (B, N, M)."""
    if not _takes_onednn(x, weight, x.shape[1] * x.shape[2] * weight.shape[1]):
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
    if len(x) == 1:
        return linear(x, weight[0], bias[0])
    return torch.stack([linear(x[i], weight[i], bias[i]) for i in range(len(x))])


def is_worth_a_call(dtype: torch.dtype, rows: int, inner: int, columns: int) -> bool:
    """Whether a product (rows, inner) x (inner, columns) by `matmul` is faster alone than in a batch."""
    is_large = rows * inner * columns >= WORTH_A_CALL * torch.get_num_threads()
    return is_large and dtype == torch.float32 and uses_onednn() and _product() is not None


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b of batches of matrices, not differentiable: (G, L, K) and (G, K, S) -> (G, L, S), of G = 1 by oneDNN.

    Each may be a transposed view. The result may lie in `out`, of its shape.
    """
    if len(a) != 1 or not is_worth_a_call(a.dtype, a.shape[1], a.shape[2], b.shape[2]):
        return torch.bmm(a, b, out=out)
    product = _product()
    assert product is not None
    a, b = (x if _is_plain(x[0]) or _is_plain(x[0].mT) else x.contiguous() for x in (a, b))
    if a.stride(2) != 1:  # oneDNN is slow where the left factor is transposed
        return product(b[0].mT, a[0]).mT.unsqueeze(0)
    return product(a[0], b[0].mT).unsqueeze(0)


@functools.cache
def uses_onednn() -> bool:
    """Whether the processor is one where oneDNN was measured to be faster than MKL."""
    has_avx512 = getattr(torch.cpu, '_is_avx512_supported', bool)
    is_mkl = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return is_mkl and has_avx512() and _is_by_amd()


def _is_by_amd() -> bool:
    if platform.system() == 'Windows':
        return 'AuthenticAMD' in platform.processor()
    try:
        return 'AuthenticAMD' in Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace')
    except OSError:
        return False


def _takes_onednn(x: Tensor, weight: Tensor, multiply_adds: int) -> bool:
    """Whether a product of `x` and `weight` is to be a convolution."""
    if not on_cpu(x) or isinstance(x, FakeTensor) or not x.dtype == weight.dtype == torch.float32 or not x.numel():
        return False
    return multiply_adds >= WORTH_A_CONVOLUTION * torch.get_num_threads() and uses_onednn()


def _is_plain(x: Tensor) -> bool:
    """Whether the rows of a matrix are contiguous, one after another."""
    return x.stride(1) == 1 and x.stride(0) >= x.shape[1]


@functools.cache
def _product() -> Callable[[Tensor, Tensor], Tensor] | None:
    """x W^T of matrices by oneDNN, by the op that torch's compiler calls; None where this torch lacks it."""
    op = getattr(torch.ops.mkldnn, '_linear_pointwise', None)
    return None if op is None else lambda x, weight: op(x, weight, None, 'none', [], '')
