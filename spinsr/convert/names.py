"""What the authors and we call the tensors of a network: one table, read in both directions."""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

from spinsr.utils.text import printable

Row = str | tuple[str | None, str | None]

# How many names an error shows.
_SHOWN = 5
# Fields with a meaning of their own; every other field without alternatives is a number.
_FIELDS = {'end': 'weight|bias', 'statistic': 'weight|bias|running_mean|running_var|num_batches_tracked'}
_FIELD = re.compile(r'\{(\w+)(?::([^}]*))?\}')


class Rule(NamedTuple):
    """A row of a table: templates with plain fields; None where a side has no such tensor."""

    official: str | None
    ours: str | None


class NameTable:
    """The tensors of a network, by the authors' names ('official') and by ours ('ours').

    A template has fields in braces, which have the same value on both sides of a row: `{end}` is weight or bias,
    `{statistic}` one of the five tensors of a batch normalisation, `{part:conv1|conv2}` one of the words after the
    colon, and any other field a number. A field occurs once in a template. A number that only the authors' name has is
    the argument of the network with the name of the field: `('body.{num_group}.{end}', 'conv_after_body.{end}')`.

    Args:
        rows: A template, or (official, ours) where the names differ. The first row that fits a name counts.
        arch: The network's name, for errors.
    """

    def __init__(self, rows: Iterable[Row], arch: str):
        self.arch = arch
        self.rules: list[Rule] = []
        self._patterns: dict[str, list[tuple[re.Pattern, Rule]]] = {'official': [], 'ours': []}
        for row in rows:
            pair = (row, row) if isinstance(row, str) else row
            words = dict(_FIELDS)
            for template in filter(None, pair):
                words |= {m[1]: '|'.join(map(re.escape, m[2].split('|'))) for m in _FIELD.finditer(template) if m[2]}
            rule = Rule(*(template and _FIELD.sub(r'{\1}', template) for template in pair))
            self.rules.append(rule)
            for side, template in zip(Rule._fields, rule, strict=True):
                if template:
                    self._patterns[side].append((re.compile(_pattern(template, words)), rule))

    @cached_property
    def _any(self) -> dict[str, re.Pattern]:
        """One pattern a side for all rows, for tests of hundreds of names against tens of networks."""
        whole = {}
        for side, patterns in self._patterns.items():
            whole[side] = re.compile('|'.join(re.sub(r'\?P<\w+>', '?:', pattern.pattern) for pattern, _ in patterns))
        return whole

    @cached_property
    def needs_arguments(self) -> bool:
        """Whether the authors' names hold numbers that are arguments of the network."""
        return any(_only_official(rule) for rule in self.rules)

    def fits(self, name: str, side: str) -> bool:
        """Whether a name is one of a side's."""
        return self._any[side].fullmatch(name) is not None

    def count(self, names: Iterable[str]) -> int:
        """How many names are those of this network, in the form that fits better."""
        names = list(names)
        return max(sum(self.fits(name, side) for name in names) for side in Rule._fields)

    def is_official(self, names: Iterable[str]) -> bool:
        """Whether there is a name that only the authors' form has."""
        return any(self.fits(name, 'official') and not self.fits(name, 'ours') for name in names)

    def check(self, names: Iterable[str], side: str) -> None:
        """Refuses names that a form does not have.

        Raises:
            ValueError: There are such names; the first are named.
        """
        if unmatched := sorted(name for name in names if not self.fits(name, side)):
            raise ValueError(f'{unexpected(unmatched)} for {self.arch}: {some(unmatched)}')

    def to_ours(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Renames from the authors' names to ours; tensors that we do not have are left out.

        Raises:
            ValueError: A name that the authors' form does not have, or two names for one tensor.
        """
        self.check(state_dict, 'official')
        renamed: dict[str, Tensor] = {}
        for name, value in state_dict.items():
            rule, fields = self._find(name, 'official')
            if not rule.ours:
                continue
            ours = rule.ours.format(**fields)
            if ours in renamed:
                raise ValueError(f'the {self.arch} state dict has {name} and another name for {ours}')
            renamed[ours] = value
        return renamed

    def to_official(self, state_dict: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """Renames from our names to the authors'; tensors that they do not have are left out.

        Args:
            state_dict: In our form.
            arguments: Of the network, for names that hold them.

        Raises:
            ValueError: A name that our form does not have.
        """
        self.check(state_dict, 'ours')
        renamed: dict[str, Tensor] = {}
        for name, value in state_dict.items():
            rule, fields = self._find(name, 'ours')
            if rule.official:
                further = {key: arguments[key] for key in _only_official(rule)}
                renamed[rule.official.format(**fields, **further)] = value
        return renamed

    def _find(self, name: str, side: str) -> tuple[Rule, dict[str, str]]:
        """The rule of a name, and the fields in it."""
        for pattern, rule in self._patterns[side]:
            if match := pattern.fullmatch(name):
                return rule, match.groupdict()
        raise KeyError(name)


def _only_official(rule: Rule) -> set[str]:
    if not (rule.official and rule.ours):
        return set()
    official, ours = ({match[1] for match in _FIELD.finditer(side)} for side in (rule.official, rule.ours))
    return official - ours


def _pattern(template: str, words: Mapping[str, str]) -> str:
    parts, end = [], 0
    for match in _FIELD.finditer(template):
        parts += re.escape(template[end : match.start()]), f'(?P<{match[1]}>{words.get(match[1], "[0-9]+")})'
        end = match.end()
    return ''.join((*parts, re.escape(template[end:])))


def some(names: Iterable[str]) -> str:
    """The first names of a list, fit for an error line."""
    names = list(names)
    return ', '.join(map(printable, names[:_SHOWN])) + ', …' * (len(names) > _SHOWN)


def unexpected(names: list[str]) -> str:
    """The beginning of an error line: how many keys do not belong there."""
    return f'{len(names)} unexpected key{"s" * (len(names) > 1)}'
