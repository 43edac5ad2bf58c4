"""Full precision where the ops promise it: no autocast, no TF32."""

import contextlib
import functools

import torch
from torch import Tensor


def no_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """A region without autocast, so that logits and sums are never rounded to half types.

    Does nothing where autocast is off: an exported graph would hold the region as a subgraph, which ONNX lacks.
    """
    return torch.autocast(device_type, enabled=False) if has_autocast(device_type) else contextlib.nullcontext()


def has_autocast(device_type: str) -> bool:
    """Whether autocast is on for a type of device."""
    return device_type != 'meta' and torch.is_autocast_enabled(device_type)


def full_type(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: the type that attention weights and sums are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def attention_type(x: Tensor) -> torch.dtype:
    """The type of logits and weights of attention on the CPU: bfloat16 where x has it and the processor multiplies it.

    Elsewhere `full_type`. The softmax is computed in float32 in both cases; the sum of the weights that a result is
    divided by is added up in float32, and rounded like the result.
    """
    return x.dtype if x.dtype == torch.bfloat16 and multiplies_bf16() else full_type(x.dtype)


@functools.cache
def multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products of bfloat16 (AVX512-BF16 or AMX); torch imitates them on others."""
    checks = (getattr(torch.cpu, name, bool) for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'))
    return any(check() for check in checks)


def matmul_exact(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the inputs' full precision: in float64 where float32 matmuls may run in TF32."""
    if a.is_cuda and a.dtype == torch.float32 and _tf32_allowed():
        return (a.double() @ b.double()).float()
    return a @ b


def _tf32_allowed() -> bool:
    # Since torch 2.9 the old flag cannot be read after the new one was set; the new one knows both.
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision == 'tf32' if hasattr(matmul, 'fp32_precision') else bool(matmul.allow_tf32)
