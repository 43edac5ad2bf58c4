"""The folder of an experiment: its name, and the lock that keeps a second run out of it while the first one works.

BasicSR moves the folder of an older experiment of the same name aside, even while it is being written.
"""

import contextlib
import datetime
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from spinsr.utils.errors import OptionError
from spinsr.utils.validation import Rule

# Of a name in bytes: BasicSR adds to it what makes it the name of a log file, or of an archived folder.
_LONGEST = 180
_LOCKED_BYTE = 1 << 30  # far behind the text, which others may read


def _is_name(value: Any) -> bool:
    return (
        isinstance(value, str)
        and value.strip() not in ('', '.', '..')
        and not any(character in '/\\' or not character.isprintable() for character in value)
        and len(value.encode(errors='replace')) <= _LONGEST
    )


def _stays_inside(value: Any) -> bool:
    """Whether a path, joined to a folder, stays in it."""
    if not isinstance(value, str) or not value or not value.isprintable():
        return False
    parts = value.replace('\\', '/').split('/')
    return parts[0] != '' and '..' not in parts and ':' not in parts[0]


NAME = Rule(_is_name, f'the name of a folder: text without / and \\, at most {_LONGEST} bytes')
# BasicSR makes a folder of it below that of the results.
NAME_INSIDE = Rule(_stays_inside, 'text that is not an absolute path and has no .. in it')
SUFFIX = Rule(
    lambda value: value is None or (isinstance(value, str) and not set('/\\\0') & set(value)), 'text without /, or ~'
)


class Lock:
    """Keeps other runs out of an experiment's folder; the lock of a process that has died counts for nothing.

    The lock is a file beside the folder, since the folder is moved, with who holds it. It is locked by the system
    (POSIX record locks, which NFS knows and data loader workers do not inherit), so it ends with the process, whatever
    ends that. Where the file system has no locks, a live process on this host counts, and any process on another host.

    Args:
        folder: The experiment's folder, which need not exist.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        folder = Path(folder)
        self.folder, self.path = folder, folder.with_name(f'.{folder.name}.lock')
        self._file: Any = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            OptionError: Another process holds it; the message says which.
            OSError: The lock file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(self.path, 'a+', encoding='utf-8')
            try:
                locked = _lock(file)
                # Who held it may have deleted the file after we opened it: then it is a lock on nothing.
                if locked is not False and not _is_same(file, self.path):
                    file.close()
                    continue
                file.seek(0)
                holder = _holder(file.read())
                if locked is False or (locked is None and _lives(holder)):
                    raise OptionError(
                        f'{self.folder} is in use by {_words(holder)}: wait for it, stop it, or choose another name'
                        + (f' (if it has ended, delete {self.path})' if locked is None else '')
                    )
                file.truncate(0)
                json.dump(_me(), file)
                file.flush()
            except BaseException:
                file.close()
                raise
            self._file = file
            return

    def release(self) -> None:
        """Gives the lock back; harmless without one."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # Windows deletes no open file
            self.path.unlink()
        self._file.close()
        self._file = None

    def __enter__(self) -> 'Lock':
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _lock(file: Any) -> bool | None:
    """Locks an open file until it is closed: True, False if another process has, None if the system cannot."""
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(file)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _lock_on_windows(file: Any) -> bool | None:
    import msvcrt

    file.seek(_LOCKED_BYTE)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    except OSError:
        return False
    return True


def _is_same(file: Any, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _me() -> dict[str, Any]:
    now = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
    return {'host': socket.gethostname(), 'pid': os.getpid(), 'start': now}


def _holder(text: str) -> dict[str, Any]:
    """Who a lock file names; nobody if it was not written whole."""
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _words(holder: dict[str, Any]) -> str:
    if not holder:
        return 'another process'
    return f'process {holder.get("pid")} on {holder.get("host")}, started {holder.get("start")}'


def _lives(holder: dict[str, Any]) -> bool:
    pid = holder.get('pid')
    if not isinstance(pid, int) or pid <= 0:
        return False
    if holder.get('host') != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return pid != os.getpid()
