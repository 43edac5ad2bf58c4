"""Channels by head."""

from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads).

    Raises:
        ValueError: The channels are not a positive multiple of `num_heads`.
    """
    check_heads(num_heads, x)
    return x.unflatten(2, (num_heads, x.shape[2] // num_heads)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, D) -> (B, N, heads * D)."""
    return x.transpose(1, 2).flatten(2)


def check_heads(num_heads: int, *tensors: Tensor) -> None:
    """Raises ValueError where the channels of a tensor are not a positive multiple of `num_heads`."""
    for x in tensors:
        if num_heads < 1 or x.shape[-1] % num_heads or not x.shape[-1]:
            raise ValueError(f'channels must be a positive multiple of num_heads, got {x.shape[-1]} and {num_heads=}')
