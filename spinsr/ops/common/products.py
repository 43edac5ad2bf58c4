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
from torch.utils._python_dispatch import _disable_current_modes

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
                _Region.before, matmul.fp32_precision = _current(matmul), 'bf16'
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


def weight_gradients(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Those of W and b of x W^T + b for that of the result: (N, K) and (N, M) -> (M, K), (M,)."""
    return grad.mT @ x, grad.sum(0)


def linear_by_image(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b by image, not differentiable: (B, N, K), (B, M, K) and (B, M) -> (B, N, M)."""
    if len(x) == 1:
        return linear(x, weight[0], bias[0])
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def linear_by_image_gradients(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of `linear_by_image`: (B, N, K), (B, M, K), (B, N, M) -> (B, N, K), (B, M, K), (B, M)."""
    # For the gradient of W a batch of products would copy the transposed gradient.
    d_x, d_weight, d_bias = torch.empty_like(x), torch.empty_like(weight), grad.new_empty(len(x), grad.shape[2])
    for i in range(len(x)):
        torch.mm(grad[i], weight[i], out=d_x[i])
        d_weight[i], d_bias[i] = weight_gradients(x[i], grad[i])
    return d_x, d_weight, d_bias


@functools.cache
def uses_onednn() -> bool:
    """Whether `cpu_products` are those of oneDNN: faster than MKL's on this processor, and as exact in float32."""
    return has_slow_mkl() and _setting() is not None and _is_exact()


@functools.cache
def has_slow_mkl() -> bool:
    """Whether the processor has AVX-512, of which oneDNN makes use and MKL does not: whether it is by AMD."""
    has_avx512 = getattr(torch.cpu, '_is_avx512_supported', bool)
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and has_avx512() and _is_by_amd()


def _setting() -> Any:
    """What holds `fp32_precision`; None before torch 2.9."""
    return getattr(torch.backends.mkldnn, 'matmul', None)


def _current(matmul: Any) -> str:
    """The value to return to: 'none' where it follows the setting of all of oneDNN."""
    value = matmul.fp32_precision
    return 'none' if value == torch.backends.mkldnn.fp32_precision else value


def _is_by_amd() -> bool:
    if platform.system() == 'Windows':
        return 'AuthenticAMD' in platform.processor()
    try:
        return 'AuthenticAMD' in Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace')
    except OSError:
        return False


def _is_exact() -> bool:
    """Whether products that may go by way of bfloat16 do not."""
    products = [
        lambda x: x @ x,
        lambda x: x.mT @ x,
        lambda x: x[0] @ x[1].mT,
        lambda x: F.linear(x[0], x[1], x[0, 0]),
        lambda x: torch.baddbmm(x, x, x),
    ]
    call = _product()
    # The first call may come from anywhere: from a trace, beside other threads, with another default type or device.
    with _Region.lock, _disable_current_modes():
        x = torch.arange(2**17, dtype=torch.float32, device='cpu').view(2, 256, 256).sin() + 1.5
        exact = [product(x.double()) for product in products]
        matmul = _setting()
        before, matmul.fp32_precision = _current(matmul), 'bf16'
        try:
            found = [product(x) for product in products]
            if call is not None:
                found.append(call(x[0], x[1], x[0, 0], 'none', [], ''))
                exact.append(exact[3])
        finally:
            matmul.fp32_precision = before
        return all(torch.allclose(a.double(), b, rtol=1e-5, atol=0) for a, b in zip(found, exact, strict=True))


def _is_worth_a_call(x: Tensor, weight: Tensor) -> bool:
    if not on_cpu(x) or isinstance(x, FakeTensor) or not x.dtype == weight.dtype == torch.float32:
        return False
    return x.numel() * len(weight) >= WORTH_A_CALL * torch.get_num_threads() and uses_onednn()


@functools.cache
def _product() -> Callable[..., Tensor] | None:
    """x W^T + b by oneDNN, the op that torch's compiler calls; None where this torch lacks it."""
    return getattr(torch.ops.mkldnn, '_linear_pointwise', None)
