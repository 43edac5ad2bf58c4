"""Weights in half types, for files of half the size."""

from collections.abc import Mapping

import torch
from torch import Tensor

from spinsr.utils.text import printable

HALF_TYPES = {'fp16': torch.float16, 'bf16': torch.bfloat16}
# Numbers; what a smaller tensor saves is not worth its rounding: means, biases, norms.
SMALLEST = 256


def is_stored_in_half(value: Tensor) -> bool:
    """Whether a tensor is one of those that are rounded: floating-point numbers, and many."""
    return value.is_floating_point() and value.numel() >= SMALLEST


def to_half(state_dict: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Rounds the large tensors of a state dict to a half type; the others stay as they are.

    Args:
        state_dict: Names to tensors.
        dtype: A key of `HALF_TYPES`.

    Returns:
        A new dict.

    Raises:
        ValueError: Another `dtype`, or a number that it cannot hold.

    Example:
        >>> half = to_half({'weight': torch.zeros(16, 16), 'bias': torch.zeros(16)}, 'fp16')
        >>> half['weight'].dtype, half['bias'].dtype
        (torch.float16, torch.float32)
    """
    if dtype not in HALF_TYPES:
        raise ValueError(f'dtype must be one of {", ".join(HALF_TYPES)}, got {dtype!r}')
    rounded = {
        name: value.to(HALF_TYPES[dtype]) if is_stored_in_half(value) else value for name, value in state_dict.items()
    }
    for name, value in rounded.items():
        # A value that is not finite in the source says nothing about the type.
        if not (value.isfinite() | ~state_dict[name].isfinite()).all():
            largest = state_dict[name].nan_to_num(0, 0, 0).abs().max().item()
            other = 'bf16 or fp32' if dtype == 'fp16' else 'fp32'
            raise ValueError(f'{printable(name)} holds {largest:.4g}, which {dtype} cannot; use {other}')
    return rounded
