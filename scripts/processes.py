"""Objects in processes of their own, for scripts that measure; importing this module does not import torch.

Peak memory is a number of a process, so each variant that is measured has its own.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spinsr.cli.arguments import positive, size
from spinsr.utils import memory

GRACE = 5  # seconds


class WorkerError(Exception):
    """What runs in the process failed; the message is one line."""


def one_line(error: Exception) -> str:
    """An error as one short line, which says so where memory ran out."""
    text = textwrap.shorten(str(error), 300) or type(error).__name__
    if memory.ran_out(error):
        return f'out of memory: {text}'
    return text if isinstance(error, (ValueError, ImportError)) else f'{type(error).__name__}: {text}'


class Worker:
    """A process that makes an object and calls its methods, one after another.

    Args:
        make: Returns the object, at the first command; must be picklable.
    """

    def __init__(self, make: Callable[[], Any]):
        context = multiprocessing.get_context('spawn')  # a forked process would start with this one's peak memory
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, make), daemon=True)
        self.process.start()
        other.close()

    def ask(self, command: str) -> Any:
        """What the method of this name returns.

        Raises:
            WorkerError: Whatever it raised, or how the process ended.
        """
        try:
            self.pipe.send(command)
            answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            code = self.process.exitcode
            assert code is not None
            hint = ': out of memory?' if code == -signal.SIGKILL else ''
            raise WorkerError(f'killed by signal {-code}{hint}' if code < 0 else f'ended with status {code}') from error
        if isinstance(answer, WorkerError):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the process, which ends by itself where it waits for a command."""
        self.pipe.close()
        self.process.join(GRACE)
        self.process.kill()


def _serve(pipe: Any, make: Callable[[], Any]) -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a plugin prints
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C and ends this one
    made = None
    while True:
        try:
            command = pipe.recv()
        except EOFError:
            return
        try:
            made = made or make()
            pipe.send(getattr(made, command)())
        except Exception as error:  # whatever a network raises becomes one line of the report
            pipe.send(WorkerError(one_line(error)))


def add_arguments(parser: argparse.ArgumentParser, *, lr_size: tuple[int, int], repeats: int) -> None:
    """Adds what is measured and how; `check_arguments` checks it. The keywords are defaults."""
    height, width = lr_size
    add = parser.add_argument
    add('--scale', type=positive, default=4, help='upscaling factor (default: 4)')
    add('--lr-size', type=size, default=lr_size, metavar='HxW', help=f'LR pixels (default: {height}x{width})')
    add('--repeats', type=positive, default=repeats, metavar='N', help='timed runs of each (default: %(default)s)')
    add('--threads', type=positive, default=1, metavar='N', help='CPU threads (default: 1)')
    add('--processor-time', action='store_true', help='for one thread on a busy machine: other work counts for less')
    add('--json', type=Path, metavar='FILE', help='write all numbers here')


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program with status 2 and the reason where arguments do not fit together."""
    if args.processor_time and args.threads > 1:
        parser.error('--processor-time is for one thread, got --threads')
    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        parser.error(f'--json must be a file in an existing folder, got {args.json}')
