"""The flag --import: modules that register networks, data sets or models of other packages in BasicSR."""

import argparse
import importlib
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


def import_modules(names: Iterable[str]) -> None:
    """Imports modules, also from the working directory; BasicSR must have been made importable.

    Args:
        names: The modules.

    Raises:
        ImportFailed: A module does not exist, fails, or exits.
    """
    names = list(names)
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except SystemExit as error:  # a script without `if __name__ == '__main__'`
            raise ImportFailed(f'--import {name}: the module exits ({error}) when it is imported') from error
        except Exception as error:  # whatever the code of others raises
            reason = next(iter(str(error).splitlines()), '') or type(error).__name__
            raise ImportFailed(f'--import {name}: {reason}') from error
