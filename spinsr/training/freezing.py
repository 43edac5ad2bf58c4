"""Parameters by name, and those that stay as they are at first: `train: freeze_params` and `freeze_iters`."""

import fnmatch
from collections.abc import Collection, Mapping
from typing import Any


def problem(train: Mapping[str, Any], names: Collection[str] | None = None) -> tuple[str, str] | None:
    """The first key of a section `train` that is wrong, and what is wrong with it.

    Args:
        train: Its `freeze_params` is a list of texts where it is given.
        names: The parameters of the network; None leaves out what depends on them.
    """
    params, iters = train.get('freeze_params'), train.get('freeze_iters')
    if bool(params) != bool(iters):
        return 'freeze_params', f'freeze_params and freeze_iters must be set together, got {params!r} and {iters!r}'
    if not params or names is None:
        return None
    for entry in params:
        if not any(matches(name, entry) for name in names):
            return 'freeze_params', f'{entry!r} matches no parameter of the network'
    if len(frozen(train, names)) == len(names):
        return 'freeze_params', f'must leave parameters to train, but {params!r} matches all of them'
    return None


def frozen(train: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """The parameters that `freeze_params` matches."""
    entries = train.get('freeze_params') or ()
    return [name for name in names if any(matches(name, entry) for entry in entries)]


def matches(name: str, entry: str) -> bool:
    """Whether an entry names a parameter, or a module around it; either may be a pattern."""
    return fnmatch.fnmatchcase(name, entry) or fnmatch.fnmatchcase(name, f'{entry}.*')
