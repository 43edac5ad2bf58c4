"""A checkpoint file of one form -> a file of another."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from spinsr._version import __version__
from spinsr.convert import names
from spinsr.convert.checkpoint import check_target, read_checkpoint, unwrap, wrapped_in, write_checkpoint
from spinsr.convert.names import StateDict
from spinsr.convert.state_dicts import convert_state_dict, detect_arch, to_basicsr, to_official, upscale_of

FORMS = ('spinsr', 'official', 'basicsr')

# The test sets of the authors' SPIN, by their names for them.
_SPIN_TEST_SETS = ('set5', 'set14', 'b100', 'u100', 'manga109')


class Conversion(NamedTuple):
    """What `convert_file` did.

    Attributes:
        arch: One of `ARCHS`.
        scale: Upscaling factor.
        parameters: How many numbers the network learns, as our form counts them.
        form: The form that was read, one of `FORMS`.
        keys: Which state dicts of the file were taken, as 'params_ema'; none for a bare state dict.
        left_out: What else the file held.
        notes: What is not the same tensor for tensor, in words.
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
) -> Conversion:
    """Converts a checkpoint file of one of `ARCHS` to another form, another container, or both.

    Tensors keep their type. Only where a drifted MeanShift is folded are tensors computed, in float64; they are rounded
    to the type of the file.

    Args:
        source: A .pth, .pt or .safetensors file: the authors', BasicSR's or ours.
        target: The file to write; its ending chooses the container. In .pth and .pt the forms 'spinsr' and 'basicsr'
            are laid out as BasicSR does, under 'params', with 'params_ema' beside it where the source has both; the
            official RCAN, SAN and RLFN are bare, the official EMT is in 'params' and SPIN in 'model_state_dict'. A
            .safetensors file is bare, and its metadata say arch, scale, form, the key that was taken, and this
            package's version.
        arch: One of `ARCHS`; None to tell it from the names.
        to: 'spinsr', 'official' or 'basicsr' (RCAN only: BasicSR's own network).
        key: 'params' or 'params_ema' to take that one alone; None takes both where there are both and the target can
            hold both, else 'params_ema' before 'params'.
        overwrite: Replace `target` if it exists.

    Returns:
        What was read and written.

    Raises:
        ValueError: No readable checkpoint, or none of this arch; names that are missing or too many; no such key; a
            mean that `to` cannot hold; an unknown form or ending.
        FileExistsError: `target` exists, and `overwrite` is not set.
        OSError: `source` is missing, or `target` cannot be written.
        ImportError: A .safetensors file, and the package safetensors is not installed.
    """
    target = Path(target)
    if to not in FORMS:
        raise ValueError(f'to must be one of {", ".join(FORMS)}, got {to!r}')
    check_target(target, overwrite)
    checkpoint = read_checkpoint(source)
    bare = target.suffix == '.safetensors'
    try:
        read = _take(checkpoint, key, both=to != 'official' and not bare)
        first = next(iter(read.values()))
        arch = detect_arch(first) if arch is None else _checked_arch(first, arch)
        ours = {name: _ours(state_dict, arch, to) for name, state_dict in read.items()}
        converted = {name: _convert(read[name], ours[name], arch, to) for name in read}
    except (ValueError, TypeError) as error:
        raise ValueError(f'{os.fspath(source)}: {error}') from error

    keys = tuple(name for name in read if name)
    conversion = Conversion(
        arch=arch,
        scale=upscale_of(next(iter(ours.values()))),
        parameters=sum(value.numel() for name, value in next(iter(ours.values())).items() if not names.is_buffer(name)),
        form=_form(first, arch),
        keys=keys,
        left_out=tuple(str(name) for name in checkpoint if name not in keys) if keys else (),
        notes=_notes(first, next(iter(ours.values())), arch, to),
    )
    metadata = {'arch': arch, 'scale': str(conversion.scale), 'form': to, 'source_key': ', '.join(keys)}
    content = next(iter(converted.values())) if bare else _layout(converted, arch, to)
    # The code of the authors' RCAN and SAN is of the days before torch 1.6.
    write_checkpoint(target, content, metadata | {'spinsr': __version__}, overwrite, for_old_torch=to == 'official')
    return conversion


def _take(checkpoint: Any, key: str | None, both: bool) -> dict[str, StateDict]:
    """The state dicts to convert, by their keys; a bare one has none and goes by ''."""
    there = wrapped_in(checkpoint)
    if key is not None and key not in there:
        raise ValueError(f'there is no {key}, but {", ".join(there) or "a bare state dict"}')
    if not there:
        return {'': unwrap(checkpoint)}
    chosen = [key] if key else sorted(there) if both and 'model_state_dict' not in there else there[:1]
    return {name: unwrap(checkpoint[name]) for name in chosen}


def _checked_arch(state_dict: StateDict, arch: str) -> str:
    """The arch as asked for. One line for a file of another network, where the conversion would name every name."""
    arch = names.canonical(arch)
    if 2 * (fitting := names.fitting(state_dict, arch)) <= len(state_dict):
        raise ValueError(f'these are not the weights of {arch}: {fitting} of {len(state_dict)} names are its own')
    return arch


def _ours(state_dict: StateDict, arch: str, to: str) -> StateDict:
    ours = convert_state_dict(state_dict, arch)
    missing = names.missing(ours, arch)
    # Of SPIN's variants; the authors' network has both attentions.
    if arch == 'SPIN' and to == 'spinsr':
        missing = [name for name in missing if not names.without_an_attention(name, ours)]
    if missing:
        shown = ', '.join(missing[:3]) + (', ...' if len(missing) > 3 else '')
        raise ValueError(f'the {arch} state dict lacks {len(missing)} tensors: {shown}')
    return ours


def _convert(read: StateDict, ours: StateDict, arch: str, to: str) -> StateDict:
    if to == 'basicsr' and arch != 'RCAN':
        raise ValueError(f'BasicSR has a network of its own for RCAN alone, and these are the weights of {arch}')
    # A drifted MeanShift that the authors' form already has must not come back folded.
    converted = {
        'spinsr': lambda: ours,
        'official': lambda: to_official(read, arch),
        'basicsr': lambda: to_basicsr(ours),
    }
    types, dtype = {value.dtype for value in read.values()}, next(iter(read.values())).dtype
    return {name: value if value.dtype in types else value.to(dtype) for name, value in converted[to]().items()}


def _form(state_dict: StateDict, arch: str) -> str:
    if names.is_official(state_dict, arch):
        return 'official'
    return 'basicsr' if arch == 'RCAN' and 'mean' not in state_dict else 'spinsr'


def _notes(read: StateDict, ours: StateDict, arch: str, to: str) -> tuple[str, ...]:
    notes = []
    official = _form(read, arch) == 'official'
    if official and to != 'official':
        if arch == 'SAN':
            notes.append("the parameters that the authors' SAN never uses are dropped")
        if names.has_mean(arch) and not any(ours['conv_last.bias'] is value for value in read.values()):
            notes.append('the mean has drifted in training: folded into mean, conv_first and conv_last')
    if to == 'official' and not official:
        if arch == 'SAN':
            notes.append("the parameters that the authors' SAN never uses are zeros")
        if names.has_mean(arch) and 'mean' not in read:
            notes.append('the mean, which is not in the file, is that of DIV2K in a range of 0..255')
    return tuple(notes)


def _layout(converted: dict[str, StateDict], arch: str, to: str) -> Mapping[str, Any]:
    """What a .pth file of a form holds."""
    first = next(iter(converted.values()))
    if to != 'official':
        # One alone goes by the key that every reader looks for.
        return converted if len(converted) > 1 else {'params': first}
    if arch != 'SPIN':
        official_key = names.MODULES[arch].OFFICIAL_KEY if arch in names.MODULES else None
        return {official_key: first} if official_key else first
    # What the authors' test.py asks for: the names that DataParallel gives, and where to put the scores.
    return {
        'epoch': 0,
        'model_state_dict': {f'module.{name}': value for name, value in first.items()},
        'stat_dict': {'epochs': 0, 'losses': [], 'ema_loss': 0.0} | {name: _no_scores() for name in _SPIN_TEST_SETS},
    }


def _no_scores() -> dict[str, Any]:
    best = {f'best_{metric}': {'value': 0.0, 'epoch': 0} for metric in ('psnr', 'ssim')}
    return {'psnrs': [], 'ssims': []} | best
