"""What a check finds, and the small things that every check needs."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from spinsr.utils.errors import OptionError
from spinsr.utils.text import printable


class Finding(NamedTuple):
    """One line about an option file.

    Attributes:
        level: 'error' (training or testing fails, or does other than the file says), 'warning' (it runs, and may
            mislead) or 'note' (good to know).
        key: `section:sub:key`, or '' for the whole file.
        message: The rule and the value.
    """

    level: str
    key: str
    message: str

    def __str__(self) -> str:
        return printable(f'{self.key}: {self.message}' if self.key else self.message)


def error(key: str, message: str) -> Finding:
    """An error."""
    return Finding('error', key, message)


def warning(key: str, message: str) -> Finding:
    """A warning."""
    return Finding('warning', key, message)


def note(key: str, message: str) -> Finding:
    """A note."""
    return Finding('note', key, message)


def stop_at_error(findings: Iterable[Finding]) -> list[Finding]:
    """Goes through findings up to the first error.

    Returns:
        The other findings, where none is an error.

    Raises:
        OptionError: The first error.
    """
    others = []
    for finding in findings:
        if finding.level == 'error':
            raise OptionError(str(finding))
        others.append(finding)
    return others


def section(options: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A section of the options; an empty one where it is missing or no section, which `structure` says."""
    value: Any = options
    for name in names:
        value = value.get(name)
        if not isinstance(value, Mapping):
            return {}
    return value


def datasets(options: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """The data sets: key (`datasets:val_1`), phase (train, val or test), section."""
    found = section(options, 'datasets').items()
    return [
        (f'datasets:{name}', str(name).partition('_')[0], part) for name, part in found if isinstance(part, Mapping)
    ]
