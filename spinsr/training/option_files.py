"""The option files: the shipped and the generated ones by name, a file read, single values forced.

The repository's folder options/ travels in the wheel as spinsr/options/; a checkout and an editable install use it
where it stands. `spinsr.training.recipes` generates those of the other networks, by name.
"""

import difflib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from spinsr import weights
from spinsr.utils.errors import OptionError
from spinsr.utils.text import nearest

if TYPE_CHECKING:
    from spinsr.training.recipes import RecipeFile

logger = logging.getLogger('spinsr')

# YAML 1.1 reads a number with an exponent as text unless it has both a point and a signed exponent: 2.0e-4, not 2e-4.
_INTEGER = re.compile(r'[-+]?\d+')
_FLOAT = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')
# Far beyond any option file; what is larger would take minutes, or Python's whole stack.
_MOST_BYTES, _DEEPEST, _MOST_VALUES, _MOST_DIGITS = 1 << 20, 50, 100_000, 18
# Options of a run rather than of an experiment: --force_yml sets them even if the option file does not have them.
_ADDED = ('train:time_limit',)
# Arguments that SPIN had before SPINVariant took them over.
SPIN_SWITCHES = ('interaction', 'aggregation', 'top_n', 'differentiable', 'association', 'position_weight')
SPIN_SWITCHES += ('own_values',)


def folder() -> Path:
    """The folder of the shipped option files."""
    here = Path(weights.__file__).parent.parent
    installed = here / 'options'
    return installed if installed.is_dir() else here.parent / 'options'


def shipped() -> dict[str, Path]:
    """The shipped option files, name -> path; a name is relative to the folder: train_SPIN_x4.yml, ablation/…."""
    root = folder()
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob('*.yml'))}


def generated() -> dict[str, 'RecipeFile']:
    """The option files that recipes determine and that are not shipped, by name."""
    from spinsr.training import recipes  # imports torch and the networks

    on_disk = shipped()
    return {name: file for name, file in recipes.files().items() if name not in on_disk}


def find(name: str | Path) -> 'Path | RecipeFile':
    """Finds the option file that -opt names: an existing file, else a shipped one, else one generated from a recipe.

    A leading `options/` is dropped for the look-up, so the checkout's command works from everywhere. A name without a
    folder finds a file in one, too.

    Args:
        name: A path, or the name of a shipped or generated option file.

    Raises:
        OptionError: It is none of them; the message names the nearest one.
    """
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return path
    files = shipped()
    wanted = path.as_posix().removeprefix('./').removeprefix('options/')
    anywhere = {name.rpartition('/')[2]: path for name, path in files.items()}
    for candidate in (wanted, f'{wanted}.yml'):
        if candidate in files or candidate in anywhere:
            return files.get(candidate) or anywhere[candidate]
    # The networks, whose import takes seconds, are asked only for a name that one of them can have.
    from_recipes = generated() if wanted.startswith(('train_', 'test_')) else {}
    for candidate in (wanted, f'{wanted}.yml'):
        if candidate in from_recipes:
            return from_recipes[candidate]
    close = difflib.get_close_matches(path.name, [*anywhere, *from_recipes], n=1, cutoff=0.7)
    hint = f'; did you mean {close[0]!r}?' if close else ''
    raise OptionError(f'-opt {name}: no such file, nor an option file of spinsr (spinsr options lists them){hint}')


def origin(file: 'Path | RecipeFile') -> str:
    """A line about an option file that is not on the disk; '' for one that is."""
    if isinstance(file, Path):
        return ''
    command = f'spinsr options {file.name} -o DIR'
    return f'{file.name} was generated from the recipe of {file.configuration}; to change it: {command}'


def load(name: str | Path, forced: Iterable[str] = ()) -> 'tuple[Path | RecipeFile, dict[str, Any]]':
    """Reads an option file, sets its forced values, and finds shipped weights by their name.

    `pretrain_network_*` may be the name of a file that spinsr ships, SPIN_x4.safetensors; a file of that name in the
    working directory comes first. Networks of older option files get their current type; see `current_arch`.

    Args:
        name: A path, or the name of a shipped or generated option file.
        forced: The entries of --force_yml.

    Returns:
        The option file, as `find` returns it, and its content.

    Raises:
        OptionError: As `find`, `read` and `force`.
    """
    path = find(name)
    options = read(path)
    force(options, forced)
    for key, network in options.items():
        if str(key).startswith('network_') and isinstance(network, MutableMapping) and 'type' in network:
            network['type'] = current_arch(network['type'], network)
    section = options.get('path')
    section = section if isinstance(section, MutableMapping) else {}
    for key, value in section.items():
        if str(key).startswith('pretrain_network') and isinstance(value, str):
            if not os.path.isfile(os.path.expanduser(value)):
                section[key] = str(weights.shipped().get(value, value))
    return path, options


def current_arch(arch: Any, arguments: Iterable[str]) -> Any:
    """'SPINVariant' for a SPIN with one of the variants' switches, with a warning in the log; any other arch unchanged.

    Args:
        arch: The `type` of a network section, or the name given to `spinsr.load`.
        arguments: Names of the network's arguments.
    """
    switches = [key for key in arguments if key in SPIN_SWITCHES]
    if arch != 'SPIN' or not switches:
        return arch
    logger.warning('SPIN no longer has the argument %s; use SPINVariant (type: SPINVariant)', ', '.join(switches))
    return 'SPINVariant'


def read(path: 'str | Path | RecipeFile') -> dict[str, Any]:
    """Reads an option file.

    Args:
        path: The file, or a generated one.

    Raises:
        OptionError: It is not YAML, not a mapping, too large or too deeply nested; a key occurs twice or is not text.
    """
    if not isinstance(path, str | os.PathLike):
        return _parse(path.text(), f'option file {path.name}')
    try:
        with open(path, 'rb') as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise OptionError(f'option file {path} cannot be read: {error.strerror or error}') from error
    if len(content) > _MOST_BYTES:
        raise OptionError(f'option file {path} is larger than {_MOST_BYTES // 1024} KB')
    try:
        options = _parse(content.decode('utf-8-sig'), f'option file {path}')
    except UnicodeDecodeError as error:
        raise OptionError(f'option file {path} is not a text file in UTF-8: {error}') from error
    if not isinstance(options, dict):
        raise OptionError(f'option file {path} must be a YAML mapping (key: value), got {type(options).__name__}')
    return options


def _parse(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        text: The text.
        where: How errors name it.

    Raises:
        OptionError: As `read`.
    """
    try:
        # The nesting first, without recursion: what follows calls itself for each level.
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise OptionError(f'{_line(where, event)}: nested more than {_DEEPEST} levels deep')
        loader = _Loader(text)
        loader.where = where
        node = loader.get_single_node()
        if node is None:
            return None
        loader.check(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        problem = ' '.join(str(getattr(error, 'problem', None) or error).split())
        raise OptionError(f'{_line(where, error)}: not valid YAML: {problem}') from error


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses duplicate keys, keys that are not text, and values that Python refuses."""

    where = ''

    def check(self, node: yaml.Node, counts: dict[int, int]) -> int:
        """How many values a node holds, each alias counted as what it stands for; checks its keys.

        Args:
            node: The node, before anything is constructed: a merge (<<) writes keys into it.
            counts: What is known of other nodes, by id; 0 while a node is being counted.

        Raises:
            OptionError: Too many values, a value that contains itself, a duplicate key, or one that is not text.
        """
        if id(node) in counts:
            if counts[id(node)] == 0:
                raise OptionError(f'{_line(self.where, node)}: the value of an anchor contains itself')
            return counts[id(node)]
        counts[id(node)] = 0
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        count = counts[id(node)] = 1 + sum(self.check(part, counts) for part in parts)
        if count > _MOST_VALUES:
            raise OptionError(f'{_line(self.where, node)}: more than {_MOST_VALUES} values, aliases counted in full')
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        return count

    def _check_keys(self, node: yaml.MappingNode) -> None:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == 'tag:yaml.org,2002:merge':
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise OptionError(f'{self.where}, line {line}: a key must be text, got {_short(key)}; put it in quotes')
            if key in lines:
                raise OptionError(
                    f'{self.where}, line {line}: duplicate key {_short(key)} (first at line {lines[key]})'
                )
            lines[key] = line

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
            if isinstance(error, OptionError):
                raise
            kind = node.tag.rpartition(':')[2]
            raise OptionError(f'{_line(self.where, node)}: not a valid {kind}: {_short(node.value)}') from error
        if type(value) is int and abs(value) >= 10**_MOST_DIGITS:
            raise OptionError(f'{_line(self.where, node)}: a number of more than {_MOST_DIGITS} digits')
        return value


def _line(where: str, part: Any) -> str:
    """Where a part of a YAML text is: `option file my.yml, line 12`."""
    mark = getattr(part, 'problem_mark', None) or getattr(part, 'start_mark', None)
    return f'{where}, line {mark.line + 1}' if mark else where


def _short(value: Any) -> str:
    """A value for an error line, shortened."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text[:40] + '…') if len(text) > 40 else repr(value)


def force(options: MutableMapping[str, Any], entries: Iterable[str]) -> None:
    """Sets values of an option file in place, as --force_yml asks.

    Args:
        options: The option file.
        entries: `section:key=value`; the key must exist in the option file, or be `train:time_limit`.

    Raises:
        OptionError: An entry has no '=', or its key does not exist; the message names the nearest key.
    """
    for entry in entries:
        key, equals, value = entry.partition('=')
        if not equals:
            raise OptionError(f'--force_yml must be section:key=value, got {entry!r}')
        *sections, last = key.strip().split(':')
        section: Any = options
        for name in sections:
            section = section.get(name) if isinstance(section, Mapping) else None
        if not isinstance(section, MutableMapping) or (last not in section and key.strip() not in _ADDED):
            hint = nearest(key.strip(), _keys(options))
            raise OptionError(f'--force_yml {entry}: the option file has no key {key.strip()!r}; {hint}')
        # The name of an experiment stays text, be it digits only.
        section[last] = value.strip() if key.strip() == 'name' else parse_value(value)


def _keys(options: Mapping[str, Any], prefix: str = '') -> Iterator[str]:
    for key, value in options.items():
        yield f'{prefix}{key}'
        if isinstance(value, Mapping):
            yield from _keys(value, f'{prefix}{key}:')


def parse_value(text: str) -> Any:
    """Reads the value of a forced text: None, a bool, an int, a float (1e-3 too), a list, else the text itself.

    Example:
        >>> parse_value('1e-3'), parse_value('[2, 1e-1]'), parse_value('~')
        (0.001, [2, 0.1], None)
    """
    text = text.strip()
    if text == '~' or text.lower() in ('none', 'null'):
        return None
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    number = text.removeprefix('!!float').strip()
    if _INTEGER.fullmatch(text):
        if len(text.lstrip('+-')) > _MOST_DIGITS:
            raise OptionError(f'a number of more than {_MOST_DIGITS} digits: {text[:20]}…')
        return int(text)
    if _FLOAT.fullmatch(number):
        return float(number)
    if text.startswith('[') and text.endswith(']'):
        values = _parse(text, f'list {_short(text)}')
        return [parse_value(value) if isinstance(value, str) else value for value in values]
    return text


def is_number(text: str) -> bool:
    """Whether a text reads as a number."""
    return _FLOAT.fullmatch(text.strip()) is not None
