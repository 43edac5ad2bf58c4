"""Arguments of `upscale` that can be checked before torch is imported."""

# Name -> the type of autocast, an attribute of torch; '' for none.
PRECISIONS = {'fp32': '', 'bf16': 'bfloat16', 'fp16': 'float16'}
AUTO = 'auto'  # see `spinsr.inference.precision.choose`
# What runs a network: PyTorch, or ONNX Runtime.
ENGINES = ('torch', 'onnx')
# In LR pixels. Below it a tile is mostly overlap, and its memory is that of the network itself.
SMALLEST_TILE = 32


def check_options(tile: int | None, precision: str, engine: str = 'torch') -> None:
    """Checks arguments of `upscale` that need no network.

    Raises:
        ValueError: `tile`, `precision` or `engine` is not among those allowed.
    """
    if tile is not None and tile < SMALLEST_TILE:
        raise ValueError(f'tile must be at least {SMALLEST_TILE}, got {tile=}')
    if precision != AUTO and precision not in PRECISIONS:
        raise ValueError(f'precision must be one of {", ".join([AUTO, *PRECISIONS])}, got {precision!r}')
    if engine not in ENGINES:
        raise ValueError(f'engine must be one of {", ".join(ENGINES)}, got {engine!r}')
    if engine == 'onnx' and precision not in (AUTO, 'fp32'):
        raise ValueError(f"engine 'onnx' computes in fp32, got {precision=}; leave out one of them")
