"""Counts that are kept in counts.json: of all published configurations, and of the models that come with spinsr.

To count a network takes seconds of processor time, most of them for imports. A kept count is only returned for exactly
the network that was counted: the same class, the same value of every argument, the same scale and input size, and for a
network of BasicSR the same version of it. Networks of other packages have none.

`scripts/keep_counts.py` writes the file, and a test counts every entry again. This module imports without torch.
"""

import functools
import importlib.metadata
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spinsr.inference.load import Network

FILE = Path(__file__).with_name('counts.json')
COUNTED = ('parameters', 'multiply_adds', 'convolution_multiply_adds', 'activations')


def find(network: 'Network', height: int, width: int) -> dict[str, int] | None:
    """The kept counts of a network, as `spinsr.evaluation.complexity.count` returns them; None where none are kept.

    Args:
        network: From `spinsr.inference.load.resolve`; its weights do not matter.
        height: H of the input, in LR pixels.
        width: W of the input, in LR pixels.
    """
    try:
        return _kept(describe(network, height, width))
    except TypeError:  # arguments that the constructor refuses, or that JSON cannot hold
        return None


def find_outside(arch: str, arguments: Mapping[str, Any], scale: int, height: int, width: int) -> dict[str, int] | None:
    """As `find`, for a network of BasicSR, without importing BasicSR, which takes seconds.

    Args:
        arch: 'module:name' of the class, as in `spinsr.convert.registry.ArchFormat`.
        arguments: All that differ from the constructor's defaults, the scale not among them.
        scale, height, width: As in `find`.
    """
    return _kept(_outside(arch.replace(':', '.'), arguments, scale, height, width))


def find_published(name: str, scale: int, height: int, width: int) -> dict[str, int] | None:
    """The kept counts of a published configuration of spinsr's own networks, by its name alone, without torch.

    Only for a process that has imported no plugin: one could give the name to another network.
    """
    found = _by_name().get((name, scale, height, width))
    return None if found is None else dict(found)


def usual_size(scale: int) -> tuple[int, int]:
    """(H, W) of the input for an output of 1280x720, rounded."""
    return round(720 / scale), round(1280 / scale)


def describe(network: 'Network', height: int, width: int) -> dict[str, Any] | None:
    """Everything that determines the counts of a network; None for a network of another package.

    Raises:
        TypeError: The constructor refuses the arguments.
    """
    arch = f'{network.cls.__module__}.{network.cls.__qualname__}'
    if not arch.startswith('spinsr.'):
        return _outside(arch, network.arguments, network.scale, height, width)
    from spinsr.convert.registry import scale_keyword

    bound = inspect.signature(network.cls).bind(**{scale_keyword(network.cls): network.scale, **network.arguments})
    bound.apply_defaults()
    return _described(arch, '', bound.arguments, network.scale, height, width)


def _outside(arch: str, arguments: Mapping[str, Any], scale: int, height: int, width: int) -> dict[str, Any] | None:
    # The constructor's defaults are those of the version.
    version = _basicsr() if arch.startswith('basicsr.') else ''
    return _described(arch, f'BasicSR {version}', arguments, scale, height, width) if version else None


def _described(
    arch: str, version: str, arguments: Mapping[str, Any], scale: int, height: int, width: int
) -> dict[str, Any]:
    return {
        'class': arch,
        'of': version or 'spinsr',
        'arguments': dict(sorted(arguments.items())),
        'scale': scale,
        'size': [height, width],
    }


@functools.cache
def _basicsr() -> str:
    """The version of BasicSR that is installed, '' without it."""
    from spinsr import compat

    try:
        return importlib.metadata.version('basicsr') if compat.is_installed() else ''
    except importlib.metadata.PackageNotFoundError:  # a folder on the path
        return ''


def _kept(described: Mapping[str, Any] | None) -> dict[str, int] | None:
    found = _by_network().get(key(described)) if described else None
    return None if found is None else dict(found)


def key(entry: Mapping[str, Any]) -> str:
    """What `describe` returned, or an entry, as text, in which 1, 1.0 and True differ.

    Raises:
        TypeError: An argument that JSON cannot hold.
    """
    return json.dumps([entry[name] for name in ('class', 'of', 'arguments', 'scale', 'size')], sort_keys=True)


def read() -> list[dict[str, Any]]:
    """The entries: what `describe` returns, the counts, and 'name' or 'model', which say whose they are."""
    return json.loads(FILE.read_text(encoding='utf-8'))


def to_json(entries: Iterable[Mapping[str, Any]]) -> str:
    """The content of the file: sorted, a line for each entry."""
    lines = sorted(json.dumps(entry) for entry in entries)
    return '[\n' + ',\n'.join(lines) + '\n]\n'


@functools.cache
def _by_network() -> dict[str, dict[str, int]]:
    return {key(entry): _counts(entry) for entry in read()}


@functools.cache
def _by_name() -> dict[tuple[str, int, int, int], dict[str, int]]:
    named = (entry for entry in read() if 'name' in entry and entry['of'] == 'spinsr')
    return {(entry['name'], entry['scale'], *entry['size']): _counts(entry) for entry in named}


def _counts(entry: Mapping[str, Any]) -> dict[str, int]:
    return {name: entry[name] for name in COUNTED}
