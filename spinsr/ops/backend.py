"""Which implementation of an op runs, and why."""

import functools
import logging
import os

BACKENDS = ('auto', 'reference', 'torch', 'triton')

logger = logging.getLogger('spinsr.ops')


def resolve_backend(backend: str | None = None) -> str:
    """Returns the implementation to run: 'reference' or 'torch'.

    Args:
        backend: One of `BACKENDS`; None reads the environment variable SPINSR_OPS_BACKEND (default 'auto').

    Raises:
        ValueError: The name is not one of `BACKENDS`.
        RuntimeError: A backend that was asked for by name cannot run; the message says why.

    Example:
        >>> resolve_backend('reference')
        'reference'
    """
    name = backend or os.environ.get('SPINSR_OPS_BACKEND') or 'auto'
    if name not in BACKENDS:
        raise ValueError(f'the ops backend must be one of {", ".join(BACKENDS)}, got {name!r}')
    if name == 'triton':
        raise RuntimeError("the ops backend 'triton' cannot run: spinsr has no Triton kernels yet; use 'torch'")
    if name == 'auto':
        name = 'torch'
        _log_choice(name)
    return name


@functools.cache
def _log_choice(name: str) -> None:
    logger.debug("ops backend 'auto' chose %r: the sparse path in plain torch runs on every device", name)
