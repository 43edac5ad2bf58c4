"""Products of matrices in float32 on AMD's processors with AVX-512, by oneDNN.

torch multiplies matrices of float32 by MKL, which does not use AVX-512 on processors that are not Intel's, and
convolves by oneDNN, which does. There oneDNN's product takes half of the time of MKL's, if it is large. Elsewhere,
and for other types, these functions are torch's own products.
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
WORTH_A_CALL = 1.5e6


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, not differentiable by oneDNN: (..., K), (M, K) and (M,) -> (..., M)."""
    if not _takes_onednn(x, weight):
        return F.linear(x, weight, bias)
    return _call(x, weight, bias)


def linear_gradients(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of x, W and b of `linear` for that of its result: (N, K), (M, K), (N, M) -> (N, K), (M, K), (M,)."""
    if not _takes_onednn(x, weight):
        return grad @ weight, grad.mT @ x, grad.sum(0)
    # oneDNN's products are slow where the left factor is transposed, its convolutions' gradients are not. With a
    # dilation, which a kernel of 1 x 1 does not show, torch calls oneDNN for one thread, too.
    images = (t.reshape(1, 1, *t.shape).permute(0, 3, 1, 2) for t in (grad, x))  # channels-last, of one row
    geometry = [1, 1], [0, 0], [2, 2], False, [0, 0], 1
    only_weight = [False, True, False]
    d_weight = torch.ops.aten.convolution_backward(*images, weight[..., None, None], None, *geometry, only_weight)[1]
    return _call(grad, weight.mT), d_weight.view_as(weight), grad.sum(0)


def linear_by_image(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b by image, not differentiable by oneDNN: (B, N, K), (B, M, K) and (B, M) -> (B, N, M)."""
    if len(x) != 1 and not _takes_onednn(x, weight[:1].flatten(0, 1)):
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
    return _stacked([linear(x[i], weight[i], bias[i]) for i in range(len(x))])


def linear_by_image_gradients(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of `linear_by_image`: (B, N, K), (B, M, K), (B, N, M) -> (B, N, K), (B, M, K), (B, M)."""
    if len(x) != 1 and not _takes_onednn(x, weight[:1].flatten(0, 1)):
        return grad @ weight, grad.mT @ x, grad.sum(1)
    found = [linear_gradients(x[i], weight[i], grad[i]) for i in range(len(x))]
    d_x, d_weight, d_bias = (_stacked(list(parts)) for parts in zip(*found, strict=True))
    return d_x, d_weight, d_bias


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)


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
    a, b = (x if _is_plain(x[0]) or _is_plain(x[0].mT) else x.contiguous() for x in (a, b))
    if a.stride(2) != 1:  # oneDNN is slow where the left factor is transposed
        return _call(b[0].mT, a[0]).mT.unsqueeze(0)
    return _call(a[0], b[0].mT).unsqueeze(0)


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


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of `x` and `weight` is to be one of oneDNN."""
    if not on_cpu(x) or isinstance(x, FakeTensor) or not x.dtype == weight.dtype == torch.float32 or not x.numel():
        return False
    return is_worth_a_call(x.dtype, x.numel() // x.shape[-1], *weight.shape)


def _is_plain(x: Tensor) -> bool:
    """Whether the rows of a matrix are contiguous, one after another."""
    return x.stride(1) == 1 and x.stride(0) >= x.shape[1]


@functools.cache
def _product() -> Callable[..., Tensor] | None:
    """x W^T + b by oneDNN, the op that torch's compiler calls; None where this torch lacks it."""
    return getattr(torch.ops.mkldnn, '_linear_pointwise', None)


def _call(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = _product()
    assert product is not None
    return product(x, weight, bias, 'none', [], '')
