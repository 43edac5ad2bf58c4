"""Main memory: what is available, what this process has, and the most it has had. All in bytes."""

import contextlib
import sys
from pathlib import Path

import psutil

_CGROUPS = Path('/sys/fs/cgroup')
# What the system's refusals of memory and threads are called, in lower case, where no exception says it: by torch on
# Linux and elsewhere, by Python's threads, and by the loader of shared libraries.
_REFUSALS = (
    *("can't allocate memory", 'not enough memory', 'cannot allocate memory'),
    *("can't start new thread", 'failed to map segment'),
)


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
