"""A checkpoint file of one form -> a file of another."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from spinsr._version import __version__
from spinsr.convert import mean_shift
from spinsr.convert.checkpoint import ENDINGS, read_checkpoint, unwrap, wrapped_in, write_checkpoint
from spinsr.convert.half import to_half
from spinsr.convert.registry import ArchFormat, StateDict, get_format
from spinsr.convert.shapes import read_arguments
from spinsr.convert.state_dicts import belongs_to, convert_state_dict, detect_arch, form_of, to_form, to_official
from spinsr.utils.atomic_write import check_target
from spinsr.utils.text import printable

FORMS = ('spinsr', 'official', 'basicsr')

# The keys of BasicSR's files, and how else they are written.
_BASICSR = {'params': 'params', 'params_ema': 'params_ema', 'params-ema': 'params_ema'}


class Conversion(NamedTuple):
    """What `convert_file` did.

    Attributes:
        arch: Public name of the network.
        scale: Upscaling factor.
        parameters: How many numbers the network learns, as our form counts them.
        form: The form that was read, one of `FORMS`.
        keys: Which state dicts of the file were taken, as 'params_ema'; empty for a bare state dict.
        left_out: The other keys of the file.
        notes: Which tensors are not the same as before, in words.
    """

    arch: str
    scale: int
    parameters: int
    form: str
    keys: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def convert_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    arch: str | None = None,
    to: str = 'spinsr',
    key: str | None = None,
    overwrite: bool = False,
    dtype: str | None = None,
) -> Conversion:
    """Converts a checkpoint file to another form, another container, or both.

    Tensors keep their type. Only where a drifted MeanShift is folded are tensors computed, in float64; they are rounded
    to the type of the file.

    Args:
        source: A .pth, .pt or .safetensors file: the authors', BasicSR's or ours.
        target: The file to write; its ending chooses the container. In .pth and .pt the forms 'spinsr' and 'basicsr'
            are laid out as BasicSR does, under 'params', with 'params_ema' beside it where the source has both; the
            official form is laid out as the authors' files are (`ArchFormat.layout`). A .safetensors file is bare; its
            metadata have arch, scale, form, the key that was taken, and the version of spinsr.
        arch: A network with an `ArchFormat`; None to detect it.
        to: 'spinsr', 'official' or, for networks that BasicSR has too, 'basicsr'.
        key: The state dict to take, as 'params' or 'params_ema'; None takes both of these where the source has both
            and the target can hold both, else the averaged weights first.
        overwrite: Replace `target` if it exists.
        dtype: 'fp16' or 'bf16' rounds the large tensors to this type (`spinsr.convert.half`); None rounds nothing.

    Returns:
        What was read and written.

    Raises:
        ValueError: The source cannot be read or holds weights of another network; missing or unexpected names, wrong
            shapes, NaN or infinity; no such key; weights that `to` cannot hold; an unknown form or ending.
        FileExistsError: `target` exists, and `overwrite` is not set.
        OSError: `source` is missing, or `target` cannot be written.
        ImportError: A .safetensors file, and the package safetensors is not installed.
    """
    target = Path(target)
    if to not in FORMS:
        raise ValueError(f'to must be one of {", ".join(FORMS)}, got {to!r}')
    check_target(target, overwrite, ENDINGS, 'a checkpoint')
    checkpoint = read_checkpoint(source)
    bare = target.suffix == '.safetensors'
    try:
        read = _take(checkpoint, key, both=to != 'official' and not bare)
        first = next(iter(read.values()))
        format = get_format(detect_arch(first)) if arch is None else _checked_format(first, arch)
        ours = {name: convert_state_dict(state_dict, format.name) for name, state_dict in read.items()}
        arguments, parameters = next(read_arguments(state_dict, format) for state_dict in ours.values())
        converted = {name: _convert(read[name], ours[name], format, to) for name in read}
        if dtype is not None:
            converted = {name: to_half(state_dict, dtype) for name, state_dict in converted.items()}
    except (ValueError, TypeError) as error:
        raise ValueError(f'{printable(os.fspath(source))}: {error}') from error

    keys = tuple(name for name in read if name)
    conversion = Conversion(
        arch=format.name,
        scale=arguments[format.scale_keyword],
        parameters=parameters,
        form=form_of(first, format),
        keys=keys,
        left_out=tuple(str(name) for name in checkpoint if name not in keys) if keys else (),
        notes=_notes(first, next(iter(ours.values())), format, to),
    )
    metadata = {'arch': format.name, 'scale': str(conversion.scale), 'form': to, 'source_key': ', '.join(keys)}
    if dtype is not None:
        metadata['dtype'] = dtype
    content = next(iter(converted.values())) if bare else _layout(converted, format, to)
    # Authors' code may be older than torch 1.6.
    write_checkpoint(target, content, metadata | {'spinsr': __version__}, overwrite, for_old_torch=to == 'official')
    return conversion


def _take(checkpoint: Any, key: str | None, both: bool) -> dict[str, StateDict]:
    """The state dicts to convert, by their keys; a bare one has the key ''."""
    keys = wrapped_in(checkpoint)
    if key is not None and key not in keys:
        raise ValueError(f'the file does not have {key}, but {", ".join(keys) or "a bare state dict"}')
    if not keys:
        return {'': unwrap(checkpoint)}
    chosen = [key] if key else keys[:1]
    if both and not key and chosen[0] in _BASICSR:
        chosen = sorted(name for name in keys if name in _BASICSR)
    return {name: unwrap(checkpoint[name]) for name in chosen}


def _checked_format(state_dict: StateDict, arch: str) -> ArchFormat:
    """The format of the arch that was asked for. One line for weights of another network, not one for each name."""
    format = get_format(arch)
    if not belongs_to(state_dict, format):
        count = format.table.count(state_dict)
        raise ValueError(f'not the weights of {format.name}: it has {count} of the {len(state_dict)} names')
    return format


def _convert(read: StateDict, ours: StateDict, format: ArchFormat, to: str) -> StateDict:
    if to == 'official' and format.layout is None:
        raise ValueError(f'{format.name} does not have an official form: its authors published no files')
    if to == 'spinsr':
        converted = ours
    elif to == 'official':
        # Not from ours: a drifted MeanShift that the authors' form already has must not come back folded.
        converted = to_official(read, format.name)
    else:
        converted = to_form(ours, format.name, to)
    types, dtype = {value.dtype for value in read.values()}, next(iter(read.values())).dtype
    return {name: value if value.dtype in types else value.to(dtype) for name, value in converted.items()}


def _notes(read: StateDict, ours: StateDict, format: ArchFormat, to: str) -> tuple[str, ...]:
    notes = []
    official = form_of(read, format) == 'official'
    if official and to != 'official':
        if format.unused:
            notes.append(f"the parameters that the authors' {format.name} never uses are dropped")
        if mean_shift.has_drifted(read, ours):
            notes.append('the mean has drifted in training: folded into mean, conv_first and conv_last')
    if to == 'official' and not official:
        if format.unused:
            notes.append(f"the parameters that the authors' {format.name} never uses are zeros")
        if (None, 'mean') in format.names and 'mean' not in read:
            notes.append('the file does not have the mean: that of DIV2K in a range of 0..255 is used')
    return tuple(notes)


def _layout(converted: dict[str, StateDict], format: ArchFormat, to: str) -> Mapping[str, Any]:
    """The content of a .pth file of a form."""
    first = next(iter(converted.values()))
    if to == 'official':
        assert format.layout is not None
        return format.layout(first)
    # A single one gets the key that every reader looks for.
    return {_BASICSR[key]: value for key, value in converted.items()} if len(converted) > 1 else {'params': first}
