"""A training run that ends on time: after SIGTERM, or early enough before `train: time_limit`.

SLURM, `timeout`, `docker stop` and most schedulers send SIGTERM some seconds before they kill. BasicSR's loop knows
nothing of it: `Stop` notes the signal and the time, and the functions that spinsr.train puts into the loop ask it.
Importing this module does not import torch, so it can come first.
"""

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType, TracebackType
from typing import Any

from spinsr.utils.validation import Rule, is_number

# One SIGTERM may arrive several times: `timeout` sends it to the process and to its group, SLURM to torchrun and to the
# processes that torchrun forwards it to. In seconds.
_SAME_SIGNAL = 2
# The longest of so many iterations is what the next one may take.
_RECENT = 100
# Bytes of weights, EMA and Adam's two moments for a byte of weights; bytes that a slow disk takes in a second.
_COPIES, _DISK = 4, 100e6
_UNITS = {'d': 86400, 'h': 3600, 'm': 60, 's': 1}
_WANTED = 'a time such as 170m, 2h30m, 90s or 1d, a number of seconds above 0, or ~'
_TIME = re.compile(r'\s*'.join(rf'(?:(\d+(?:\.\d+)?)\s*{unit})?' for unit in _UNITS))

# What is said when no iteration was done: a time limit always allows one.
NOTHING = 'SIGTERM before the first iteration of this run: nothing was trained'
# Why a run ends; of several processes the largest counts.
_NO, _TIME_LIMIT, _SIGTERM = range(3)


class Stopped(BaseException):
    """Leaves BasicSR's loop between two iterations. Not an Exception, which code on the way could take for an error."""


def seconds(value: Any) -> float | None:
    """The time limit that an option means, in seconds; None for no limit.

    Args:
        value: '170m', '2h30m', '90s', '1d', a number of seconds, or None.

    Raises:
        ValueError: It is something else.

    Example:
        >>> seconds('2h30m'), seconds('1.5d'), seconds(90), seconds(None)
        (9000.0, 129600.0, 90.0, None)
    """
    if value is None:
        return None
    if isinstance(value, str) and (match := _TIME.fullmatch(value.strip())):
        value = sum(float(count or 0) * size for count, size in zip(match.groups(), _UNITS.values(), strict=True))
    if not is_number(value) or not value > 0:
        raise ValueError(f'must be {_WANTED}, got {value!r}')
    return float(value)


def _holds(value: Any) -> bool:
    try:
        seconds(value)
    except ValueError:
        return False
    return True


TIME_LIMIT = Rule(_holds, _WANTED)


class Stop:
    """When a run ends: on SIGTERM, or when the next iteration and its checkpoint would not fit into the time limit.

    In a with statement it handles SIGTERM. The first one is noted, and ends at once what is only waited for; a second
    one raises KeyboardInterrupt.

    Args:
        program: The run is the whole program: its time counts from the start of the process, and SIGTERM is handled to
            its end.
    """

    def __init__(self, program: bool) -> None:
        self._program = program
        self._begin = time.monotonic() - (_process_age() if program else 0)
        self.limit: float | None = None
        # Seconds that a checkpoint takes to be written.
        self.writing = 0.0
        self._iterations: deque[float] = deque(maxlen=_RECENT)
        self._waits_since: float | None = None
        self._signalled: float | None = None
        self._late = False
        self._agreed = _NO
        self._alone = not _has_peers()
        # Nothing is lost before the first iteration.
        self._at_once = self._alone

    def __enter__(self) -> 'Stop':
        self._handles = threading.current_thread() is threading.main_thread()
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(self, *_: object) -> None:
        self._at_once = False
        if self._handles and not self._program:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
        elif now - self._signalled > _SAME_SIGNAL:
            raise KeyboardInterrupt('ended by a second SIGTERM')
        if self._at_once:
            self._at_once = False
            raise Stopped

    @property
    def cause(self) -> str:
        """Why the run ends: the beginning of a sentence."""
        return 'SIGTERM' if max(self._agreed, self._own()) == _SIGTERM else 'train:time_limit'

    def _own(self) -> int:
        return _SIGTERM if self._signalled is not None else _TIME_LIMIT if self._late else _NO

    def asked(self) -> bool:
        """Whether the run ends now; the processes of a training call it together, and all get the same answer."""
        from spinsr.training import distributed

        if self._iterations:  # the shortest limit still allows one: a training that is started again makes progress
            self._check_time(max(self._iterations))
        self._agreed = max(self._agreed, distributed.largest(self._own()))
        return self._agreed != _NO

    def _check_time(self, needed: float) -> None:
        if self.limit is not None and time.monotonic() - self._begin + needed + self.writing > self.limit:
            self._late = True

    def end_if_asked(self) -> None:
        """Raises Stopped if the run ends now; as `asked`, for all processes together."""
        if self.asked():
            raise Stopped

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While data is waited for: SIGTERM raises Stopped at once, if no other process would wait for this one."""
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        if not self._alone:
            yield
            return
        with self._interruptible():
            yield

    @contextlib.contextmanager
    def validating(self, longest: float) -> Iterator[None]:
        """While an image is validated: Stopped is raised before it, if its time is up, or by SIGTERM at once.

        Args:
            longest: Seconds that an image has taken.
        """
        if self._iterations:
            self._check_time(longest)
        with self._interruptible():
            if self._late:
                raise Stopped
            yield

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        before, self._at_once = self._at_once, True
        try:
            if self._signalled is not None:
                raise Stopped
            yield
        finally:
            # A SIGTERM that arrives twice must not disturb what the first one has begun.
            self._at_once = before and self._signalled is None

    @contextlib.contextmanager
    def uninterrupted(self, blocked: bool = False) -> Iterator[None]:
        """While processes start or end, which must not be left half-way: SIGTERM raises Stopped afterwards.

        Args:
            blocked: The processes that are started begin with SIGTERM blocked, as `Unterminated` wants it.
        """
        before, self._at_once = self._at_once, False
        # In this process another thread still takes the signal, and the handler runs in this one.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}) if blocked else None
        try:
            yield
        finally:
            if mask is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._at_once = before and self._signalled is None
        if before and self._signalled is not None:
            raise Stopped

    def iterating(self) -> None:
        """An iteration begins, which is finished."""
        self._at_once = False

    def iterated(self) -> None:
        """An iteration is done; its time includes that of its data."""
        now = time.monotonic()
        if self._waits_since is not None:
            self._iterations.append(now - self._waits_since)
        self._waits_since = None

    def expect_checkpoint(self, optimizers: list[Any]) -> None:
        """Guesses from the size of the weights how long the first checkpoint takes to be written."""
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        size = sum(weight.numel() * weight.element_size() for group in groups for weight in group['params'])
        self.writing = _COPIES * size / _DISK


def end_at_sigterm(name: str) -> None:
    """Lets SIGTERM end the program with status 0 until a `Stop` handles it; one of several processes fails instead.

    Args:
        name: The program's, for the message.
    """

    def end(number: int, frame: FrameType | None) -> None:
        sys.stderr.write(f'{name}: {NOTHING}\n')
        sys.stderr.flush()
        os._exit(0)

    if not _has_peers():
        signal.signal(signal.SIGTERM, end)


def end_at_ctrl_c(name: str) -> None:
    """Lets Ctrl-C end the program in one line, with status 130, until `obey_ctrl_c`.

    Args:
        name: The program's, for the message.
    """

    def end(number: int, frame: FrameType | None) -> None:
        sys.stderr.write(f'\n{name}: interrupted\n')
        sys.stderr.flush()
        os._exit(130)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in the background
        signal.signal(signal.SIGINT, end)
        _ends_at_ctrl_c.append(end)


# The handler of `end_at_ctrl_c`, while Ctrl-C has one.
_ends_at_ctrl_c: list[Callable[[int, FrameType | None], None]] = []


def obey_ctrl_c() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt again after `end_at_ctrl_c`."""
    if _ends_at_ctrl_c and signal.getsignal(signal.SIGINT) is _ends_at_ctrl_c.pop():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _has_peers() -> bool:
    """Whether a launcher has started other processes of this training; they do not know each other yet."""
    return any(int(os.environ.get(name) or 1) > 1 for name in ('WORLD_SIZE', 'SLURM_NTASKS'))


def _process_age() -> float:
    """Seconds since the process was started; 0 where the system does not tell."""
    try:
        with open('/proc/self/stat', encoding='ascii', errors='replace') as file:
            ticks = int(file.read().rpartition(')')[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf('SC_CLK_TCK')
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0
    return max(age, 0.0)


class Unterminated:
    """A data loader whose worker processes only their parent can end by SIGTERM.

    A scheduler sends SIGTERM to all processes of a job; the workers are needed until the iteration is done. They still
    end with the iterator, or when their parent has gone.

    Args:
        loader: The data loader; it gets another `worker_init_fn`.
        stop: What handles SIGTERM in this process.
    """

    def __init__(self, loader: Any, stop: Stop) -> None:
        self.loader, self.stop = loader, stop
        self._guarded = loader.num_workers > 0 and hasattr(signal, 'sigwaitinfo')
        if loader.num_workers > 0:
            loader.worker_init_fn = functools.partial(_init_worker, loader.worker_init_fn)

    def __iter__(self) -> Iterator[Any]:
        if self._guarded and (self.loader.multiprocessing_context or multiprocessing).get_start_method() != 'fork':
            resource_tracker.ensure_running()  # started below, it would unblock SIGTERM
        with self.stop.uninterrupted(blocked=self._guarded):
            return iter(self.loader)


def _init_worker(own: Callable[[int], None] | None, worker: int) -> None:
    # Ctrl-C reaches all processes of a terminal, and each worker would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report_unless_parent_left
    if hasattr(signal, 'sigwaitinfo'):  # neither macOS nor Windows has it
        threading.Thread(target=_obey_parent, daemon=True).start()
    if own is not None:
        own(worker)


def _report_unless_parent_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    # The thread that hands batches to the parent reports here. That the parent stops meanwhile is not an error.
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _obey_parent() -> None:
    # Not os.getppid(): a fork server may have been in between.
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
