"""Arguments of `super_resolve` that can be checked before torch is imported."""

# Name -> the type of autocast, an attribute of torch; '' for none.
PRECISIONS = {'fp32': '', 'bf16': 'bfloat16', 'fp16': 'float16'}
# In LR pixels. Below it a tile is mostly overlap, and its memory is that of the network itself.
SMALLEST_TILE = 32


def check_options(tile: int | None, precision: str) -> None:
    """Checks arguments of `super_resolve` that need no network.

    Raises:
        ValueError: `tile` or `precision` is not among those allowed.
    """
    if tile is not None and tile < SMALLEST_TILE:
        raise ValueError(f'tile must be at least {SMALLEST_TILE}, got {tile=}')
    if precision not in PRECISIONS:
        raise ValueError(f'precision must be one of {", ".join(PRECISIONS)}, got {precision!r}')
