"""The option files: the shipped ones by name, a file read, single values forced.

The repository's folder options/ travels in the wheel as spinsr/options/; a checkout and an editable install use it
where it stands.
"""

import difflib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import yaml

from spinsr import weights
from spinsr.utils.errors import OptionError
from spinsr.utils.text import nearest

logger = logging.getLogger('spinsr')

# YAML 1.1 reads a number with an exponent as text unless it has both a point and a signed exponent: 2.0e-4, not 2e-4.
_INTEGER = re.compile(r'[-+]?\d+')
_FLOAT = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')
# What belongs to a run rather than to an experiment: --force_yml sets it also where the option file leaves it out.
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


def find(name: str | Path) -> Path:
    """The option file for what -opt says: an existing file, else a shipped one.

    A leading `options/` is dropped for the look-up, so the checkout's command works from everywhere. A name without a
    folder finds a file in one, too.

    Args:
        name: A path, or the name of a shipped option file.

    Raises:
        OptionError: If it is neither; the line names the nearest shipped one.
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
    close = difflib.get_close_matches(path.name, anywhere, n=1, cutoff=0.7)
    hint = f'; did you mean {close[0]!r}?' if close else ''
    raise OptionError(f'-opt {name}: no such file, nor a shipped option file (spinsr options lists them){hint}')


def load(name: str | Path, forced: Iterable[str] = ()) -> tuple[Path, dict[str, Any]]:
    """An option file as the commands use it: with its forced values, and shipped weights found by their name.

    `pretrain_network_*` may be the name of a file that spinsr ships, SPIN_x4.safetensors; a file of that name in the
    working directory comes first. Networks of older option files get their current type; see `current_arch`.

    Args:
        name: A path, or the name of a shipped option file.
        forced: The entries of --force_yml.

    Returns:
        Where the option file is, and its content.

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
    for key, value in section.items() if isinstance(section, MutableMapping) else ():
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


def read(path: str | Path) -> dict[str, Any]:
    """Reads an option file.

    Args:
        path: The file.

    Raises:
        OptionError: If it is not YAML, or not a mapping.
    """
    try:
        with open(path, encoding='utf-8') as file:
            options = yaml.safe_load(file)
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        line = f', line {mark.line + 1}' if mark else ''
        problem = getattr(error, 'problem', None) or error
        raise OptionError(f'{path}{line}: not YAML: {problem}') from error
    except UnicodeDecodeError as error:
        raise OptionError(f'{path}: not a text file: {error}') from error
    if not isinstance(options, dict):
        raise OptionError(f'{path}: an option file is a YAML mapping (key: value), got {type(options).__name__}')
    return options


def force(options: MutableMapping[str, Any], entries: Iterable[str]) -> None:
    """Sets values of an option file in place, as --force_yml asks.

    Args:
        options: The option file.
        entries: `section:key=value`; the key must exist in the option file, or be `train:time_limit`.

    Raises:
        OptionError: If an entry has no '=', or its key does not exist; the line names the nearest key.
    """
    for entry in entries:
        key, equals, value = entry.partition('=')
        if not equals:
            raise OptionError(f'--force_yml takes section:key=value, got {entry!r}')
        *sections, last = key.strip().split(':')
        section: Any = options
        for name in sections:
            section = section.get(name) if isinstance(section, Mapping) else None
        if not isinstance(section, Mapping) or (last not in section and key.strip() not in _ADDED):
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
    """The value that a forced text means: None, a bool, an int, a float (1e-3 too), a list, else the text itself.

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
        return int(text)
    if _FLOAT.fullmatch(number):
        return float(number)
    if text.startswith('[') and text.endswith(']'):
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise OptionError(f'not a list: {text}') from error
        return [parse_value(value) if isinstance(value, str) else value for value in values]
    return text


def is_number(text: str) -> bool:
    """Whether a text reads as a number."""
    return _FLOAT.fullmatch(text.strip()) is not None
