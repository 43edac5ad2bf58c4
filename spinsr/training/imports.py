"""The flag --import: modules that register networks, data sets or models of other packages in BasicSR."""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable

from spinsr.utils.errors import UserError


class ImportFailed(UserError, ImportError):
    """A module of --import cannot be imported."""


def add_import(parser: argparse._ActionsContainer) -> None:
    """Adds --import to a parser or a group; the modules are `imports`."""
    parser.add_argument(
        '--import',
        metavar='MODULE',
        dest='imports',
        action='append',
        default=[],
        help="import a module first, such as one that registers another plugin's network; may be repeated",
    )


def require_modules(names: Iterable[str]) -> None:
    """Makes sure that the modules can be found, or their packages, also in the working directory; imports nothing.

    Raises:
        ImportFailed: A module does not exist.
    """
    _search_working_directory(names)
    for name in names:
        package = name.partition('.')[0]
        try:
            found = importlib.util.find_spec(package)
        except ValueError:  # it is imported already, and has no spec
            continue
        if found is None:
            raise ImportFailed(f'--import {name}: No module named {package!r}')


def _search_working_directory(names: Iterable[str]) -> None:
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def import_modules(names: Iterable[str]) -> None:
    """Imports modules, also from the working directory; BasicSR must have been made importable.

    Args:
        names: The modules.

    Raises:
        ImportFailed: A module does not exist, fails, or exits.
    """
    names = list(names)
    _search_working_directory(names)
    for name in names:
        try:
            importlib.import_module(name)
        except SystemExit as error:  # a script without `if __name__ == '__main__'`
            raise ImportFailed(f'--import {name}: the module exits ({error}) when it is imported') from error
        except Exception as error:  # whatever the code of others raises
            reason = next(iter(str(error).splitlines()), '') or type(error).__name__
            raise ImportFailed(f'--import {name}: {reason}') from error
