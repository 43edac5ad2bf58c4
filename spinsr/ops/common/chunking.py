"""Work on the CPU in chunks of rows.

The intermediate results of a chunk stay in the processor's cache, and none exists for the whole image.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator

import torch
from torch import Tensor

# Pixels of a chunk of float32, of one image; images that share a chunk have half as many together.
ROWS = 8192
# Bytes of freed memory that are kept, and of the largest block that is taken from them.
KEPT, FROM_THE_HEAP = 2**28, 2**25
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_SETTINGS = 'trim_threshold', 'mmap_threshold', 'mmap_max', 'top_pad', 'hugetlb'  # of what glibc keeps
CHUNK_TYPES = {torch.float32, torch.float64, torch.bfloat16}


def on_cpu(x: Tensor) -> bool:
    """Whether an op on `x` runs as Python on the CPU and not inside a compiled graph."""
    return x.device.type == 'cpu' and not torch.compiler.is_compiling()


def chunk_type(*tensors: Tensor) -> torch.dtype | None:
    """The type of the products if chunks pay, which is on the CPU in float32, float64 or bfloat16; None if they do not.

    It is the type that all `tensors` have, or that of autocast.
    """
    types = {t.dtype for t in tensors}
    if not on_cpu(tensors[0]) or (len(types) > 1 and torch.float64 in types):
        return None
    if torch.is_autocast_enabled('cpu') and torch.float64 not in types:
        types = {torch.get_autocast_dtype('cpu')}
    return types.pop() if len(types) == 1 and types <= CHUNK_TYPES else None


def chunks(rows: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` of `rows`; one that is empty if there are none."""
    size = max(1, size)
    for start in range(0, max(1, rows), size):
        yield slice(start, min(start + size, rows))


def keep_freed_memory() -> None:
    """Lets glibc keep 256 MB that a process has freed for the next chunk, where it would return nearly all of it.

    Pages that are taken again are cleared by the system, which takes longer than what a chunk computes in them. Blocks
    of more than 32 MB, the most that glibc allows, still come from the system and return to it. Does nothing with other
    C libraries, and where the environment says what is kept.
    """
    if not _is_glibc() or _environment_says_what_is_kept():
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # Each of them ends glibc's own adjustment of both.
        if mallopt(_M_MMAP_THRESHOLD, FROM_THE_HEAP):
            mallopt(_M_TRIM_THRESHOLD, KEPT)


def _is_glibc() -> bool:
    try:
        return os.confstr('CS_GNU_LIBC_VERSION') is not None
    except (AttributeError, ValueError, OSError):  # where the function or the value does not exist
        return False


def _environment_says_what_is_kept() -> bool:
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    return any(f'MALLOC_{name.upper()}_' in os.environ or f'malloc.{name}=' in tunables for name in _SETTINGS)


keep_freed_memory()


def places(x: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, slice]]:
    """Images and rows of each chunk of (B, N, C) in `dtype`: several small images, or some rows of one."""
    size = max(1, 4 * ROWS // dtype.itemsize)
    for some in chunks(x.shape[0], size // 2 // max(1, x.shape[1])):
        for place in chunks(x.shape[1], size):
            yield some, place
