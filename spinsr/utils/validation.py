"""Rules on values of option files and constructor arguments, and the checks that raise where one is broken."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard


class Rule(NamedTuple):
    """A rule on a value.

    Attributes:
        holds: Whether a value satisfies the rule.
        wanted: The words after 'must be' in the error.
        default: The value of a missing key.
        is_whole: The value is an integer, so that 5e3 means 5000.
    """

    holds: Callable[[Any], bool]
    wanted: str
    default: Any = None
    is_whole: bool = False


def whole(least: int, *others: Any, default: Any = None) -> Rule:
    """A whole number of at least `least`, or one of the others."""
    words = ''.join(f', or {"~" if other is None else other}' for other in others)
    return Rule(
        lambda value: (
            any(value is other or (value == other and value is not True) for other in others)
            or (is_whole(value) and value >= least)
        ),
        f'a whole number of at least {least}{words}',
        default,
        is_whole=True,
    )


def between(least: int, most: int) -> Rule:
    """A whole number from `least` to `most`."""
    return Rule(lambda value: is_whole(value) and least <= value <= most, f'a whole number from {least} to {most}')


def one_of(*values: str) -> Rule:
    """One of these words; the first is the default."""
    return Rule(lambda value: value in values, f'one of {", ".join(values)}', values[0])


def each(rule: Rule) -> Rule:
    """A list or tuple whose items all satisfy a rule."""
    return Rule(
        lambda value: isinstance(value, Sequence) and not isinstance(value, str) and all(map(rule.holds, value)),
        f'a list, each item {rule.wanted}',
    )


FLAG = Rule(lambda value: isinstance(value, bool), 'true or false', False)
ABOVE_0 = Rule(lambda value: value is None or (is_number(value) and 0 < value < math.inf), 'a number above 0, or ~')

NAMES = Rule(
    lambda value: value is None or (isinstance(value, list) and all(isinstance(name, str) and name for name in value)),
    'a list of names of modules or parameters',
)
SECTION = Rule(lambda value: value is None or isinstance(value, Mapping), 'a section (key: value), or ~')


def as_whole(value: Any) -> Any:
    """A float that is a whole number as an int, also in a list; anything else unchanged: YAML reads 5e3 as a float."""
    if isinstance(value, list):
        return [as_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check(rule: Rule, **values: Any) -> None:
    """Checks values, given by their names.

    Raises:
        ValueError: A value breaks the rule.

    Example:
        >>> check(whole(1), num_block=0)
        Traceback (most recent call last):
        ValueError: num_block must be a whole number of at least 1, got num_block=0
    """
    for name, value in values.items():
        if not rule.holds(value):
            raise ValueError(f'{name} must be {rule.wanted}, got {name}={value!r}')


def check_divisible(**values: int) -> None:
    """Checks that the last of the values is at least 1 and divides all the others.

    Raises:
        ValueError: It does not.
    """
    *others, divisor = values
    if values[divisor] < 1 or any(values[name] % values[divisor] for name in others):
        raise ValueError(f'{" and ".join(others)} must be divisible by {divisor}, got {_listed(values)}')


def check_equal(**values: Any) -> None:
    """Checks that all values are equal.

    Raises:
        ValueError: They are not.
    """
    first, *others = values.values()
    if any(value != first for value in others):
        raise ValueError(f'{" and ".join(values)} must be equal, got {_listed(values)}')


def check_length(**values: Any) -> None:
    """Checks that the first value, a sequence, has as many items as the second says.

    Raises:
        ValueError: It has another number of items.
    """
    (name, sequence), (count_name, count) = values.items()
    if len(sequence) != count:
        raise ValueError(f'{name} must have {count_name} items, got {_listed(values)}')


def _listed(values: Mapping[str, Any]) -> str:
    return ', '.join(f'{name}={value!r}' for name, value in values.items())
