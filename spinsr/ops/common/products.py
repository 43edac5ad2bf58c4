"""Products of matrices in float32 on AMD's processors with AVX-512, by oneDNN.

torch multiplies matrices of float32 by MKL, which does not use AVX-512 on processors that are not Intel's. oneDNN does,
and takes half of the time; torch calls it where `torch.backends.mkldnn.matmul.fp32_precision` allows products by way of
bfloat16. oneDNN makes use of that permission on processors with AMX, and computes in float32 on others, which is
checked before it is given. Elsewhere, and for other types, nothing changes.
"""

import contextlib
import functools
import platform
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from spinsr.ops.common.chunking import on_cpu
from spinsr.ops.common.precision import no_autocast

# Multiply-adds of a product with a bias for each thread; with less, a call of oneDNN's op saves no time.
WORTH_A_CALL = 1.5e6


class _Region:
    """How many threads are inside `cpu_products`, and the setting to return to after the last one."""

    lock = threading.Lock()
    depth = 0
    before = 'none'


@contextlib.contextmanager
def cpu_products() -> Iterator[None]:
    """A region without autocast on the CPU in which float32 products are those of the faster library."""
    with no_autocast('cpu'):
        if not uses_onednn():
            yield
            return
        matmul = _setting()
        with _Region.lock:
            if not _Region.depth:
                _Region.before, matmul.fp32_precision = matmul.fp32_precision, 'bf16'
            _Region.depth += 1
        try:
            yield
        finally:
            with _Region.lock:
                _Region.depth -= 1
                if not _Region.depth:
                    matmul.fp32_precision = _Region.before


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b, not differentiable: (..., K), (M, K) and (M,) -> (..., M)."""
    product = _product()
    if product is None or not _is_worth_a_call(x, weight):
        return F.linear(x, weight, bias)
    return product(x, weight, bias, 'none', [], '')


def linear_gradients(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of x, W and b of x W^T + b: (N, K), (M, K), (N, M) -> (N, K), (M, K), (M,)."""
    return grad @ weight, grad.mT @ x, grad.sum(0)


def linear_by_image(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b by image, not differentiable: (B, N, K), (B, M, K) and (B, M) -> (B, N, M)."""
    if len(x) == 1:
        return linear(x, weight[0], bias[0])
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def linear_by_image_gradients(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of `linear_by_image`: (B, N, K), (B, M, K), (B, N, M) -> (B, N, K), (B, M, K), (B, M)."""
    # For the gradient of W a batch of products would copy the transposed gradient.
    out = torch.empty_like(x), torch.empty_like(weight), grad.new_empty(len(x), grad.shape[2])
    for i in range(len(x)):
        for whole, part in zip(out, linear_gradients(x[i], weight[i], grad[i]), strict=True):
            whole[i] = part
    return out


@functools.cache
def uses_onednn() -> bool:
    """Whether oneDNN is faster than MKL on this processor and as exact in float32."""
    has_avx512 = getattr(torch.cpu, '_is_avx512_supported', bool)
    is_mkl = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return is_mkl and _setting() is not None and has_avx512() and _is_by_amd() and _is_exact()


def _setting() -> Any:
    """What holds `fp32_precision`; None before torch 2.9."""
    return getattr(torch.backends.mkldnn, 'matmul', None)


def _is_by_amd() -> bool:
    if platform.system() == 'Windows':
        return 'AuthenticAMD' in platform.processor()
    try:
        return 'AuthenticAMD' in Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace')
    except OSError:
        return False


def _is_exact() -> bool:
    """Whether products that may go by way of bfloat16 do not."""
    matmul, x = _setting(), torch.rand(2, 256, 256, generator=torch.Generator().manual_seed(0)) + 0.5
    before, products = matmul.fp32_precision, (lambda x: x @ x, lambda x: x.mT @ x, lambda x: x[0] @ x[1].mT)
    try:
        matmul.fp32_precision = 'bf16'
        return all(torch.allclose(f(x).double(), f(x.double()), rtol=1e-5, atol=0) for f in products)
    finally:
        matmul.fp32_precision = before


def _is_worth_a_call(x: Tensor, weight: Tensor) -> bool:
    if not on_cpu(x) or isinstance(x, FakeTensor) or not x.dtype == weight.dtype == torch.float32:
        return False
    return x.numel() * len(weight) >= WORTH_A_CALL * torch.get_num_threads() and uses_onednn()


@functools.cache
def _product() -> Callable[..., Tensor] | None:
    """x W^T + b by oneDNN, the op that torch's compiler calls; None where this torch lacks it."""
    return getattr(torch.ops.mkldnn, '_linear_pointwise', None)
