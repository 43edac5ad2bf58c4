"""Which implementation of an op runs, and why."""

import functools
import importlib
import importlib.util
import logging
import os

import torch

from spinsr.ops.constant import constant

BACKENDS = ('auto', 'reference', 'torch', 'triton')

logger = logging.getLogger('spinsr.ops')


def resolve_backend(backend: str | None = None, device: torch.device | None = None) -> str:
    """Returns the implementation to run: 'reference', 'torch' or 'triton'.

    'auto' is 'torch' on every device: the Triton kernels have not been measured on a GPU yet, so that nothing says that
    they are faster there. Asked for by name, 'triton' runs on CUDA tensors, and on any tensors when TRITON_INTERPRET=1
    was set before triton was imported; ops that have no kernel of their own (SPCA, which is torch's fused attention,
    top-N, the feed-forward network, projection, tail, covariance and its root) then run as 'torch' does.

    Args:
        backend: One of `BACKENDS`; None reads the environment variable SPINSR_OPS_BACKEND (default 'auto').
        device: Where the tensors are; None means not to ask whether the kernels can run there.

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
        reason = _why_not_triton(device)
        if reason:
            raise RuntimeError(f"the ops backend 'triton' cannot run: {reason}; use 'torch'")
    if name == 'auto':
        name = 'torch'
        if not torch.compiler.is_compiling():
            _log_choice(name)
    return name


def _why_not_triton(device: torch.device | None) -> str | None:
    reason, interpreted = _triton()
    if reason or interpreted:
        return reason
    remedy = 'TRITON_INTERPRET=1, set before triton is imported, interprets the kernels on any device'
    if device is not None and device.type != 'cuda':
        return f'the tensors are on {str(device)!r} and its kernels need CUDA ({remedy})'
    if not torch.cuda.is_available():
        return f'its kernels need CUDA, which torch does not find here ({remedy})'
    return None


@constant
def _triton() -> tuple[str | None, bool]:
    """Why triton cannot be used at all, if so, and whether the kernels are interpreted; a constant to torch.compile."""
    if importlib.util.find_spec('triton') is None:
        return 'triton is not installed', False
    try:
        launch = importlib.import_module('spinsr.ops.kernels.launch')
    except ImportError as error:
        return f'triton does not import ({error})', False
    return launch.obstacle(), launch.INTERPRETED


@functools.cache
def _log_choice(name: str) -> None:
    logger.debug("ops backend 'auto' chose %r: the sparse path in plain torch runs on every device", name)
