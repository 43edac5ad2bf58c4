"""What spinsr knows of a network beside its code: one `ArchFormat`, declared in the file of the network.

Conversion, loading, export, evaluation and the commands iterate over the registered formats and name no network. A
network of another project is known to all of them after `register_format(ArchFormat(...))`.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spinsr import compat
from spinsr.convert.names import NameTable, Row
from spinsr.convert.recipe import Recipe
from spinsr.utils.text import nearest, printable

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Where a network comes from.

    Attributes:
        paper: Title, authors and venue.
        year: Of the paper; None if it is not known.
        repository: The authors' code; '' without one.
        code_licence: SPDX name; '' if the repository has no licence.
        weights_licence: Of the authors' weights, or of spinsr's if they have none; '' if none is stated.
        weights: Where to get the authors' weights: 'repository', 'release', 'cloud drive', 'none', or a few
            words; '' if it is not known.
    """

    paper: str
    year: int | None = None
    repository: str = ''
    code_licence: str = ''
    weights_licence: str = ''
    weights: str = ''


@dataclass(frozen=True)
class Sizes:
    """Which images a network works on. A network that `pads` takes any size and crops its output.

    Attributes:
        minimum: Smallest side in LR pixels.
        multiple: Both sides are multiples of it.
        fixed: The only size, (height, width) in LR pixels; None for a network that takes several.
        pads: Whether the network itself extends an image that breaks these rules.
    """

    minimum: int = 1
    multiple: int = 1
    fixed: tuple[int, int] | None = None
    pads: bool = False


@dataclass(frozen=True)
class Onnx:
    """How a network is written as ONNX.

    Attributes:
        sides: Smallest and largest side, in LR pixels, of the images that follow one path through the network, so that
            the file takes all of them (a largest of None: no limit); None if the file takes a single size. A function
            of the network where they depend on its arguments.
        refused: Why the network cannot be exported; '' if it can.
    """

    sides: tuple[int, int | None] | Callable[[Any], tuple[int, int | None]] | None = None
    refused: str = ''


@dataclass(frozen=True)
class Form:
    """A state dict of another implementation of the network.

    Attributes:
        from_ours: Our state dict -> theirs; raises ValueError for weights that theirs cannot hold.
        fits: Whether a state dict that has our names is of this form.
    """

    from_ours: Callable[[StateDict], StateDict]
    fits: Callable[[Mapping[str, Tensor]], bool]


@dataclass(frozen=True)
class PublishedResult:
    """A row of a paper's table.

    Attributes:
        scale: Upscaling factor.
        parameters: As published.
        psnr: dB on Y for Set5, Set14, B100, Urban100, Manga109; '-' where it is not published or not confirmed.
        source: Where the numbers were read.
        name: What the paper calls the network; its public name by default.
        configuration: To which it belongs, a key of `ArchFormat.configurations`. Default: that of the same name, else
            the constructor's defaults.
        protocol: In which it was computed, if not that of the format.
    """

    scale: int
    parameters: int
    psnr: str
    source: str
    name: str = ''
    configuration: str = ''
    protocol: str = ''


def bare(state_dict: StateDict) -> Mapping[str, Any]:
    """The authors' files are the state dict itself."""
    return state_dict


def under(key: str) -> Callable[[StateDict], Mapping[str, Any]]:
    """The authors' files hold the state dict under a key."""
    return lambda state_dict: {key: state_dict}


def renamed(**ours: str | None) -> Callable[[str, Mapping[str, Any]], dict[str, Any]]:
    """Translates arguments by name: authors' name = our name, or None for an argument that we do not have."""

    def translate(variant: str, official: Mapping[str, Any]) -> dict[str, Any]:
        names = {name: ours.get(name, name) for name in official}
        return {name: official[theirs] for theirs, name in names.items() if name is not None}

    return translate


def of_edsr(official: Mapping[str, Any], **ours: str) -> dict[str, Any]:
    """Our arguments from those of code that is built on EDSR's.

    Args:
        official: `n_colors`, 3 where it is missing, and `scale`, a number or a list that begins with it; `n_feats`
            where it is given.
        **ours: Further ones, as authors' name = our name; others are left out.
    """
    names = {'n_feats': 'num_feat', **ours}
    channels, scale = official.get('n_colors', 3), official['scale']
    return {
        'num_in_ch': channels,
        'num_out_ch': channels,
        **{name: official[theirs] for theirs, name in names.items() if theirs in official},
        'upscale': scale if isinstance(scale, int) else scale[0],
    }


@dataclass(frozen=True, kw_only=True)
class ArchFormat:
    """All that conversion, loading, export and the commands must know about a network.

    Attributes:
        arch: The class; 'module:name' for a class of another package, whose module is imported at the first use of
            `cls`.
        names: The tensors: a template of names for each, or a pair (authors' name, ours) where they differ, None on the
            side that has no such tensor. See `spinsr.convert.names.NameTable` for the fields in a template.
        arguments: Reads the constructor's arguments, the scale included, from the shapes of our state dict. A KeyError
            is reported as a missing tensor. `spinsr.convert.shapes` has helpers.
        source: Paper, repository, licences.
        implied: All arguments, those that were given and those read from the shapes -> arguments that follow from them
            and replace the ones that were read.
        defaults: Arguments of the network of the public name where they differ from the constructor's defaults, as for
            a class of another package.
        name: Public name, by which the commands and `spinsr.load` know the network; the class's name by default.
        registered: Name in BasicSR's ARCH_REGISTRY; the public name by default.
        configurations: The published configurations beside the constructor's defaults, by public name: the arguments
            that differ, as {'RLFN-S': {'num_feat': 48}}.
        official_arguments: (variant, the authors' constructor arguments) -> ours, for files of `spinsr.convert.parity`;
            the variant is what follows the network in the file's name. `renamed` makes one; None for equal names.
        parity: How the names of such files begin; the public name in lower case by default. A second beginning that
            continues the first belongs to the variant: ('awsrn', 'awsrnd') makes 'awsrnd_x2' the variant 'd'.
        untold: Arguments that no shape tells, with values that fit weights of every size. These values serve to list
            the tensors; a network is built with the constructor's defaults.
        from_official: (renamed, the authors' state dict) -> our state dict, for what a table cannot say.
        to_official: (renamed, our state dict) -> the authors' state dict, its inverse.
        unused: Templates of tensors that the authors' network has and never uses. They are dropped; `to_official`
            makes them again.
        detect: Replaces the detection by names and shapes: whether an unwrapped state dict is of this network.
        layout: Authors' state dict -> content of the authors' file (`bare`, `under('params')`, ...); None for a network
            without files of its authors.
        forms: Further forms by name, as 'basicsr'.
        sizes: Which images the network takes.
        tiling: 'discouraged' for a network that looks at the whole image, so that tiles change the result.
        half: Half types, 'bf16' and 'fp16', in which the whole network can run without visible harm.
        onnx: How the network is exported.
        published: What the paper reports.
        protocol: In which it was computed: a name in `spinsr.evaluation.protocols.PROTOCOLS`.
        recipe: How the network is trained, from which its option files are written; None for a network without one.
    """

    arch: type[nn.Module] | str
    names: tuple[Row, ...]
    arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    source: Source
    implied: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    name: str = ''
    registered: str = ''
    configurations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    official_arguments: Callable[[str, Mapping[str, Any]], dict[str, Any]] | None = None
    parity: tuple[str, ...] = ()
    untold: Mapping[str, Any] = field(default_factory=dict)
    from_official: Callable[[StateDict, Mapping[str, Tensor]], StateDict] | None = None
    to_official: Callable[[StateDict, Mapping[str, Tensor]], StateDict] | None = None
    unused: tuple[str, ...] = ()
    detect: Callable[[Mapping[str, Tensor]], bool] | None = None
    layout: Callable[[StateDict], Mapping[str, Any]] | None = None
    forms: Mapping[str, Form] = field(default_factory=dict)
    sizes: Sizes = Sizes()
    tiling: Literal['supported', 'discouraged'] = 'supported'
    half: tuple[str, ...] = ()
    onnx: Onnx = Onnx()
    published: tuple[PublishedResult, ...] = ()
    protocol: str = 'y_crop_scale'
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'name', self.name or _path(self.arch).rpartition('.')[2])
        object.__setattr__(self, 'registered', self.registered or self.name)
        object.__setattr__(self, 'parity', self.parity or (self.name.lower(),))

    @cached_property
    def cls(self) -> type[nn.Module]:
        """The class.

        Raises:
            ImportError: Its module cannot be imported, as where BasicSR is not installed.
        """
        if not isinstance(self.arch, str):
            return self.arch
        module, _, name = self.arch.partition(':')
        if module.partition('.')[0] == 'basicsr':
            compat.require_basicsr()
        return getattr(importlib.import_module(module), name)

    @cached_property
    def table(self) -> NameTable:
        """The names, compiled at the first use."""
        return NameTable((*self.names, *((template, None) for template in self.unused)), self.name)

    @cached_property
    def scale_keyword(self) -> str:
        """What the constructor calls the upscaling factor."""
        return scale_keyword(self.cls)


def scale_keyword(arch: type[nn.Module]) -> str:
    """What a network calls its upscaling factor; BasicSR's archs do not agree on a name.

    Raises:
        ValueError: The constructor takes none.
    """
    keywords = inspect.signature(arch).parameters
    for name in ('upscale', 'scale'):
        if name in keywords:
            return name
    raise ValueError(f'{arch.__name__} takes neither upscale nor scale, so it is not a super-resolution network')


def valueless(arch: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """Builds a network on the meta device: in milliseconds, without values.

    A constructor that needs values, as that of BasicSR's SwinIR, runs on the CPU first.

    Raises:
        Exception: Whatever the constructor raises.
    """
    try:
        with torch.device('meta'):
            return arch(**arguments)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        if 'meta' not in str(error):
            raise
    return arch(**arguments).to('meta')


_FORMATS: dict[str, ArchFormat] = {}


def register_format(format: ArchFormat) -> ArchFormat:
    """Makes a network known to conversion, loading, export and the commands.

    Raises:
        ValueError: Another network has this public or registered name.
    """
    for other in _FORMATS.values():
        same_class = _path(other.arch) == _path(format.arch)  # a module may be imported again
        if not same_class and {other.name, other.registered} & {format.name, format.registered}:
            raise ValueError(f'the name {format.name} is taken by the format of {_path(other.arch)}')
    _FORMATS[format.name] = format
    return format


def formats() -> tuple[ArchFormat, ...]:
    """All registered formats, those of spinsr first."""
    # Not at the top: the networks import this module.
    importlib.import_module('spinsr.archs')
    return tuple(_FORMATS.values())


def find_format(arch: str | type[nn.Module]) -> ArchFormat | None:
    """The format of a network, None for a network without one.

    Args:
        arch: Public name, registered name, or a class; a subclass has the format of its base.
    """
    if isinstance(arch, str):
        return next((format for format in formats() if arch in (format.name, format.registered)), None)
    by_class = {_path(format.arch): format for format in formats()}
    return next((by_class[_path(cls)] for cls in arch.__mro__ if _path(cls) in by_class), None)


def find_configuration(name: str) -> tuple[ArchFormat | None, Mapping[str, Any]]:
    """The format that has this name, with its defaults, or a published configuration with its arguments.

    (None, {}) if no network has this name.
    """
    if (found := find_format(name)) is not None:
        return found, found.defaults
    for format in formats():
        if name in format.configurations:
            return format, {**format.defaults, **format.configurations[name]}
    return None, {}


def get_format(arch: str | type[nn.Module]) -> ArchFormat:
    """As `find_format`.

    Raises:
        ValueError: No network of this name has a format.
    """
    if (found := find_format(arch)) is None:
        known, name = [format.name for format in formats()], arch if isinstance(arch, str) else arch.__name__
        raise ValueError(
            f'arch must be a network with an ArchFormat, got {printable(repr(name))}; {nearest(name, known)}'
        )
    return found


def _path(cls: type | str) -> str:
    return cls.replace(':', '.') if isinstance(cls, str) else f'{cls.__module__}.{cls.__qualname__}'
