"""Which implementation of an op runs, and why."""

import functools
import importlib
import importlib.util
import logging
import os

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spinsr.ops.common.cache import cached_table

BACKENDS = ('auto', 'reference', 'torch', 'triton')

# Compute capabilities of the GPUs on which scripts/gpu_check.py found the Triton kernels to be right, and faster than
# plain torch in inference and in training. No GPU has been measured yet.
FASTER_BY_TRITON: frozenset[tuple[int, int]] = frozenset()

logger = logging.getLogger('spinsr.ops')


def resolve_backend(
    backend: str | None = None, device: torch.device | None = None, *, no_kernel: str | None = None
) -> str:
    """Returns the implementation to run: 'reference', 'torch' or 'triton'.

    'auto' is 'triton' on the GPUs of `FASTER_BY_TRITON` where the call has kernels, and 'torch' everywhere else: where
    nothing was measured, nothing says that the kernels are faster. 'triton' runs on CUDA tensors, and on any tensors
    when TRITON_INTERPRET=1 was set before triton was imported.

    Args:
        backend: One of `BACKENDS`; None reads the environment variable SPINSR_OPS_BACKEND (default 'auto').
        device: Where the tensors are; None skips the check whether the kernels can run there.
        no_kernel: Why the call has no Triton kernel, if so.

    Raises:
        ValueError: The name is not one of `BACKENDS`.
        RuntimeError: 'triton' was asked for and cannot run; the message says why.

    Example:
        >>> resolve_backend('reference')
        'reference'
    """
    name = backend or os.environ.get('SPINSR_OPS_BACKEND') or 'auto'
    if name not in BACKENDS:
        raise ValueError(f'the ops backend must be one of {", ".join(BACKENDS)}, got {name!r}')
    if name == 'triton':
        reason = _why_not_triton(device) or no_kernel
        if reason:
            raise RuntimeError(f"the ops backend 'triton' cannot run: {reason}; use 'torch'")
    if name == 'auto':
        if device is not None and device.type == 'cuda' and _is_faster(device) and no_kernel is None:
            name = 'triton'
            _log_once("ops backend 'auto' chose 'triton': its kernels were measured to be faster on this kind of GPU")
        else:
            name = 'torch'
            _log_once("ops backend 'auto' chose 'torch': the sparse path in plain torch runs on every device")
    return name


def dense_or_torch(op: str, backend: str | None, device: torch.device) -> str:
    """As `resolve_backend` for an op that has no Triton kernels at all.

    SPINSR_OPS_BACKEND=triton chooses for a whole network, so there such an op runs as 'torch' and logs that once, at
    INFO. The argument `backend='triton'` raises.
    """
    if backend is None and resolve_backend(None, device) == 'triton':
        _log_once(f"{op} has no Triton kernels; with SPINSR_OPS_BACKEND=triton it runs as 'torch'", logging.INFO)
        return 'torch'
    return resolve_backend(backend, device, no_kernel=f'{op} has no Triton kernels')


def check_features(x: Tensor, layout: str) -> None:
    """Checks an input of the layout `layout`, such as '(B, N, C)'.

    Raises:
        ValueError: `x` has another number of dimensions, or no channels.
        TypeError: `x` is not of a floating-point type.
    """
    axes = layout.strip('()').split(', ')
    if x.ndim != len(axes):
        raise ValueError(f'x must have the shape {layout}, got {tuple(x.shape)}')
    if not x.shape[axes.index('C')]:
        raise ValueError(f'x must have at least one channel, got the shape {tuple(x.shape)}')
    check_floating(x=x)


def check_floating(**tensors: Tensor) -> None:
    """Raises TypeError for a tensor that is not of a floating-point type."""
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise TypeError(f'{name} must be a floating-point tensor, got {x.dtype}; convert it with .float()')


def check_no_tangents(*tensors: Tensor) -> None:
    """Raises NotImplementedError in forward-mode AD: the Triton kernels would drop the tangents without a word."""
    if not torch.compiler.is_compiling() and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError("the Triton kernels have no forward-mode derivative; use the ops backend 'reference'")


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


@cached_table
def _is_faster(device: torch.device) -> bool:
    """Whether the kernels can run on this GPU, and were measured to be faster; a constant to torch.compile."""
    return torch.cuda.get_device_capability(device) in FASTER_BY_TRITON and _why_not_triton(device) is None


@cached_table
def _triton() -> tuple[str | None, bool]:
    """Why triton cannot be used at all, if so, and whether the kernels are interpreted; a constant to torch.compile."""
    if importlib.util.find_spec('triton') is None:
        return 'triton is not installed', False
    try:
        launch = importlib.import_module('spinsr.ops.common.triton_launch')
    except ImportError as error:
        return f'triton does not import ({error})', False
    return launch.obstacle(), launch.INTERPRETED


def _log_once(message: str, level: int = logging.DEBUG) -> None:
    if not torch.compiler.is_compiling():
        _log(message, level)


@functools.cache
def _log(message: str, level: int) -> None:
    logger.log(level, message)
