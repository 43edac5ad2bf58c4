"""Main memory: what is available, what this process has, and the most it has had. All in bytes."""

import contextlib
import importlib.util
import os
import sys
from pathlib import Path

import psutil

_CGROUPS = Path('/sys/fs/cgroup')
# What the system's refusals of memory and threads are called, in lower case, where no exception says it: by torch on
# Linux and elsewhere, by Python's threads, and by the loader of shared libraries.
_REFUSALS = (
    *("can't allocate memory", 'not enough memory', 'cannot allocate memory'),
    *("can't start new thread", 'failed to map segment', 'cannot map zero-fill pages'),
)

# What importing torch takes of RLIMIT_DATA (ulimit -d) and RLIMIT_AS (ulimit -v). Measured with torch 2.14 for CUDA:
# 0.75 GB and 3 to 4 GB; with less, libraries crash in their own ways. Builds for the CPU are much smaller; their limits
# are estimates, low enough not to refuse a process that could import torch.
_IMPORT_OF_TORCH = {'ulimit -d': (700 * 10**6, 200 * 10**6), 'ulimit -v': (3 * 10**9, 500 * 10**6)}


def use_huge_pages() -> None:
    """Lets torch ask Linux for pages of 2 MB for tensors of that size; to be called before torch is imported.

    Each page of 4 KB is a fault when it is first touched, some millions for an LR image of half a megapixel.
    """
    if 'torch' not in sys.modules:
        os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')


def available() -> int:
    """Memory that this process can still take without swapping; less where the limit of its container is lower."""
    free = psutil.virtual_memory().available
    left = _left_in_container()
    return free if left is None else max(min(free, left), 0)


def resident() -> int:
    """Memory that this process holds now."""
    return psutil.Process().memory_info().rss


def peak_resident() -> int | None:
    """The most that this process has held until now; None where the system does not report it."""
    # getrusage's peak outlives exec: a new process would start with that of the process that started it.
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
        return int(next(line for line in lines if line.startswith('VmHWM:')).split()[1]) * 1024
    if sys.platform == 'win32':
        return psutil.Process().memory_info().peak_wset
    import resource

    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that the system gave no memory or no thread.

    torch and Python's threads raise plain RuntimeErrors for it, and the import of a library ImportError.
    """
    text = str(error).lower()
    # torch.OutOfMemoryError by its name, because this module does not import torch.
    named = isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError'
    return named or any(words in text for words in _REFUSALS)


def require_for_torch() -> None:
    """Makes sure that this process may take what importing torch needs; call it before the import.

    Raises:
        MemoryError: A limit of the process (`ulimit`) is below that.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, kind in (('ulimit -d', resource.RLIMIT_DATA), ('ulimit -v', resource.RLIMIT_AS)):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < (least := _IMPORT_OF_TORCH[name][not _torch_is_for_gpus()]):
            raise MemoryError(
                f'out of memory: this process is limited to {limit / 1e6:,.0f} MB ({name}), and importing torch takes '
                f'more than {least / 1e6:,.0f} MB: raise the limit'
            )


def _torch_is_for_gpus() -> bool:
    spec = importlib.util.find_spec('torch')  # does not import it
    folders = spec.submodule_search_locations or () if spec else ()
    return any(Path(folder, 'lib', f'libtorch_{name}.so').exists() for folder in folders for name in ('cuda', 'hip'))


def _left_in_container() -> int | None:
    """Limit of the control group minus what it cannot drop, as it could the file cache; None without a limit."""
    for limit, key in (('memory.max', 'anon'), ('memory/memory.limit_in_bytes', 'total_rss')):  # version 2, version 1
        path = _CGROUPS / limit
        try:
            # 'max' where version 2 sets no limit; version 1 then has a number larger than any memory.
            most = int(path.read_text())
            lines = (line.split() for line in (path.parent / 'memory.stat').read_text().splitlines())
            return most - next(int(words[1]) for words in lines if words[0] == key)
        except (OSError, ValueError, StopIteration):
            continue
    return None
