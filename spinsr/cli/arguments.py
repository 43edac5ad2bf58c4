"""What the flags of several commands have in common: their types, and the files that they write."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from spinsr.utils.text import printable


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_stderr(level: int) -> None:
    """Logs to stderr, a line for each message, names of files without control sequences."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter('%(message)s'))
    logging.basicConfig(level=level, handlers=[handler])


def say(command: str, doing: str) -> None:
    """Says on stderr what a command does for the next seconds; stdout is for its results."""
    print(f'spinsr {command}: {printable(doing)} …', file=sys.stderr, flush=True)


def path(text: str) -> Path:
    """A path; ~ is the home folder, and a name that only begins with it stays as it is."""
    # Not Path.expanduser, which fails where there is no such user.
    return Path(os.path.expanduser(text))


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be an integer of at least 1, got {text!r}')
    return int(text)


def index(text: str) -> int:
    """An integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'must be an integer of at least 0, got {text!r}')
    return int(text)


def scales(text: str) -> tuple[int, ...]:
    """Integers, separated by commas."""
    try:
        return tuple(int(part) for part in text.split(',') if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be integers, as 2,4 or 2 4, got {text!r}') from None


def size(text: str) -> tuple[int, int]:
    """Height and width, in LR pixels."""
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f'must be HEIGHTxWIDTH in LR pixels, as 180x320, got {text!r}')
    return int(match[1]), int(match[2])


def check_outputs(paths: Iterable[Path], overwrite: bool) -> None:
    """Finds out before the work starts whether its result can be written; makes the folders.

    Raises:
        OSError: A file exists and is not to be replaced, or a folder cannot be written to.
    """
    for path in paths:
        if path.exists() and (not overwrite or path.is_dir()):
            raise FileExistsError(f'{path} exists{"" if path.is_dir() else "; --overwrite replaces it"}')
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f'{path.parent} cannot be written to')


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --runs, --markdown, --dataset and --overwrite, for a table of what networks cost."""
    parser.add_argument(
        '--runs', metavar='N', type=positive, default=3, help='timed; none begins after a minute (default: 3)'
    )
    parser.add_argument('--markdown', metavar='FILE', type=path, help='write the table')
    parser.add_argument('--dataset', metavar='NAME', default='Set5', help='for --plot (default: Set5)')
    parser.add_argument('--overwrite', action='store_true', help='replace these files where they exist')
