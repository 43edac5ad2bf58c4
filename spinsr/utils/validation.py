"""What a value of an option file may be: a predicate, and how an error says it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a value must be.

    Attributes:
        holds: Whether a value is right.
        wanted: What stands after 'must be' in the error.
        default: The value of a missing key.
        is_whole: It is an integer, so that 5e3 means 5000.
    """

    holds: Callable[[Any], bool]
    wanted: str
    default: Any = None
    is_whole: bool = False


def whole(least: int, *others: Any, default: Any = None) -> Rule:
    """A whole number of at least so much, or one of the others."""
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


def one_of(*values: str) -> Rule:
    """One of some words, the first by default."""
    return Rule(lambda value: value in values, f'one of {", ".join(values)}', values[0])


FLAG = Rule(lambda value: isinstance(value, bool), 'true or false', False)
ABOVE_0 = Rule(lambda value: value is None or (is_number(value) and value > 0), 'a number above 0, or ~')

SECTION = Rule(lambda value: value is None or isinstance(value, Mapping), 'a section (key: value), or ~')


def as_whole(value: Any) -> Any:
    """A float that is a whole number as an int, also in a list; anything else unchanged: YAML reads 5e3 as a float."""
    if isinstance(value, list):
        return [as_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
