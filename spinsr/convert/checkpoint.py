"""Checkpoint files: read without executing anything in them and checked for damage, written whole or not at all."""

import contextlib
import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spinsr.utils import memory
from spinsr.utils.atomic_write import check_target, write_bytes
from spinsr.utils.text import printable
from spinsr.weights import ENDINGS, require_file

# Under which keys training programs keep a state dict, the averaged weights first.
WRAPPERS = (
    *('model_state_dict', 'params_ema', 'params-ema', 'g_ema', 'params', 'state_dict', 'model', 'net', 'net_g', 'netG'),
    *('generator', 'generator_state_dict', 'netG_state_dict'),
)
# What DataParallel, torch.compile and GAN trainers put in front of the names.
PREFIXES = ('module.', '_orig_mod.', 'netG.')
# In front of the names of the other half of a GAN, in files that hold both halves.
DISCRIMINATORS = ('net_d.', 'net_D.', 'netD.', 'discriminator.', 'D.')
# torch does not compress. Content may be this many times the file's size, so that a small file cannot fill the memory.
_LARGEST_RATIO = 10
_FOLDER = 0x10  # of the attributes of a ZIP archive's record


def read_checkpoint(path: str | os.PathLike) -> Mapping:
    """Reads a .pth, .pt or .safetensors file onto the CPU without executing anything in it.

    Raises:
        FileNotFoundError: The file does not exist.
        ImportError: A .safetensors file, and the package safetensors is not installed.
        ValueError: Not a checkpoint, damaged, or it holds more than tensors and plain containers.
    """
    path = os.fspath(path)
    require_file(path)
    try:
        if not path.endswith('.safetensors'):
            return read_torch_file(path)
        with _plain_errors('a .safetensors file'):
            return _safetensors('reading', path).load_file(path)
    except ValueError as error:
        raise ValueError(f'cannot read checkpoint {printable(path)}: {error}') from error


def read_torch_file(path: str | os.PathLike) -> Any:
    """Reads a file of torch.save onto the CPU without executing anything in it; its checksums are compared first.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: Damaged, or it holds more than tensors and plain containers, or it would fill the memory. The
            message does not name the file.
    """
    with _plain_errors('written by torch.save'):
        _check_records(path)
        content = _torch_load(path)
        _check_claims(content, _LARGEST_RATIO * os.path.getsize(path))
        return content


class _RefusedError(ValueError):
    """Our own finding; the message says what it is."""


@contextlib.contextmanager
def _plain_errors(sound: str) -> Iterator[None]:
    """Turns whatever a damaged file makes its reader raise into a ValueError in plain words; `from` keeps the reader's.

    Args:
        sound: What the file should be.
    """
    try:
        yield
    except (FileNotFoundError, ImportError, _RefusedError):
        raise
    except pickle.UnpicklingError as error:
        # torch's own words advise to load the file without this protection.
        raise ValueError('damaged, or more than tensors and plain containers, which could run code') from error
    except Exception as error:
        if memory.ran_out(error):
            raise ValueError('memory does not hold it') from error
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            raise ValueError(error.strerror) from error
        raise ValueError(f'damaged, or not {sound}') from error


def _check_records(path: str | os.PathLike) -> None:
    """Refuses a ZIP file, as torch writes since 1.6, with damaged records: torch reads tensors without checksums."""
    with open(path, 'rb') as file:
        if file.read(4) != b'PK\x03\x04':
            return
        with zipfile.ZipFile(file) as archive:
            declared, size = sum(record.file_size for record in archive.infolist()), os.path.getsize(path)
            if declared > _LARGEST_RATIO * size:
                raise _RefusedError(f'its records claim {declared:,} bytes, the file has {size:,}')
            if record := archive.testzip():
                raise _RefusedError(f'damaged: {printable(record)} has another checksum')
            # torch stores plain records, and leaves the tensor of anything else uninitialized.
            for record in archive.infolist():
                if record.is_dir() or record.external_attr & _FOLDER or record.compress_type:
                    raise _RefusedError(f'damaged: {printable(record.filename)} is not as torch.save wrote it')


def _check_claims(content: Any, limit: int) -> None:
    """Refuses tensors without data, and those that repeat a little memory until they exceed the limit in bytes."""
    for value in _tensors(content):
        if value.is_meta:
            raise _RefusedError(
                f'a tensor of shape {tuple(value.shape)} is on the meta device: the file lacks its data'
            )
        if (claimed := value.numel() * value.element_size()) > max(limit, 2**20):
            raise _RefusedError(
                f'a tensor of shape {tuple(value.shape)} claims {claimed:,} bytes, more than the file holds'
            )


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _tensors(value)


def write_checkpoint(
    path: str | os.PathLike,
    state_dict: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    for_old_torch: bool = False,
) -> None:
    """Writes a checkpoint under a temporary name and renames it, so that a partial file is never seen.

    Args:
        path: A file in a folder that exists, ending in .pth, .pt or .safetensors.
        state_dict: Names to tensors, on any device; in .pth and .pt also inside other mappings, as in BasicSR's files.
        metadata: What a .safetensors file says about itself; other files have no place for it.
        overwrite: Replace an existing file.
        for_old_torch: Write .pth and .pt as torch did before 1.6; every later torch reads that too.

    Raises:
        ValueError: Another ending.
        TypeError: A .safetensors file of anything but names to tensors.
        FileExistsError: The file exists, and `overwrite` is not set.
        OSError: The folder is missing, or the file cannot be written.
        ImportError: A .safetensors file, and the package safetensors is not installed.
    """
    path = Path(path)
    check_target(path, overwrite, ENDINGS, 'a checkpoint')
    content, buffer = _standing_alone(state_dict), io.BytesIO()
    if path.suffix == '.safetensors':
        for name, value in content.items():
            if not isinstance(value, Tensor):
                raise TypeError(f'a .safetensors file maps names to tensors, got {name!r}: {type(value).__name__}')
        buffer.write(_safetensors('writing', path).save(content, dict(metadata or {})))
    else:
        torch.save(content, buffer, _use_new_zipfile_serialization=not for_old_torch)
    write_bytes(path, buffer.getbuffer())


def unwrap(checkpoint: Mapping, fits: Callable[[Collection[str]], bool] | None = None) -> dict[str, Tensor]:
    """Returns the bare state dict inside a checkpoint.

    Args:
        checkpoint: A state dict, or a mapping that holds one under a key of `WRAPPERS` (the first of them that is
            there, and so on inside), or as its only mapping from names to tensors. `PREFIXES` in front of the names, in
            any order, are removed; so is what else stands in front of every name, and a discriminator, if `fits` holds
            for the rest.
        fits: Whether names are those of the network; None: of any network of spinsr. A network of another project may
            contain one of spinsr, and then needs the prefix.

    Raises:
        TypeError: Not a mapping of names to dense tensors.
        ValueError: Without the prefixes two names are the same.
    """
    while keys := wrapped_in(checkpoint):
        checkpoint = checkpoint[keys[0]]
    if not isinstance(checkpoint, Mapping):
        raise TypeError(f'a state dict must map names to tensors, got {type(checkpoint).__name__}')
    origins: dict[str, str] = {}
    for name, value in checkpoint.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            shown = printable(repr(name))
            raise TypeError(f'a state dict must map names to tensors, got {shown}: {type(value).__name__}')
        if value.layout is not torch.strided or value.is_quantized:
            raise TypeError(f'tensors must be dense and not quantized, got {printable(name)}: {value.layout}')
        short = _without_prefixes(name)
        if short in origins:
            raise ValueError(f'{printable(origins[short])} and {printable(name)} are both {printable(short)}')
        origins[short] = name
    return without_outer_prefix({short: checkpoint[name] for short, name in origins.items()}, fits or _are_known)


def without_outer_prefix(state_dict: dict[str, Tensor], fits: Callable[[Collection[str]], bool]) -> dict[str, Tensor]:
    """Removes what a program that trains the network as a part of another module adds.

    That is the name of the part ('model.', 'net_g.', 'generator.', ...) in front of every name, as often as needed, and
    the tensors of a discriminator (`DISCRIMINATORS`) beside the network.

    Args:
        state_dict: Names to tensors, without `PREFIXES` in front.
        fits: Whether names are those of the network. If that is never so, nothing is removed.
    """
    network = {name: value for name, value in state_dict.items() if not name.startswith(DISCRIMINATORS)}
    for shorter in (state_dict, network):
        while shorter and not fits(shorter.keys()):
            prefix, point, _ = next(iter(shorter)).partition('.')
            cut = {_without_prefixes(name.removeprefix(prefix + point)): value for name, value in shorter.items()}
            if not point or len(cut) < len(shorter) or not all(name.startswith(prefix + point) for name in shorter):
                break
            shorter = cut
        else:
            return shorter or state_dict
    return state_dict


def _are_known(names: Collection[str]) -> bool:
    from spinsr.convert.registry import formats

    return any(format.table.count(names) == len(names) for format in formats())


def _without_prefixes(name: str) -> str:
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def wrapped_in(checkpoint: Any) -> list[str]:
    """The keys of a checkpoint that hold a state dict, the one to take first; [] for a bare state dict."""
    if not isinstance(checkpoint, Mapping):
        return []
    if known := [key for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)]:
        return known
    if any(isinstance(value, Tensor) for value in checkpoint.values()):
        return []
    # Under another key, if no other can be meant.
    held = {key: value for key, value in checkpoint.items() if isinstance(key, str)}
    found = [key for key, value in held.items() if _maps_names_to_tensors(value) or wrapped_in(value)]
    return found if len(found) == 1 else []


def _maps_names_to_tensors(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def check_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Refuses weights that are not numbers in float32, in which networks are built.

    Raises:
        ValueError: A tensor holds NaN, infinity or a number beyond float32; it is named.
    """
    for name, value in state_dict.items():
        # float() also because torch cannot test 8-bit types.
        if value.is_floating_point() and not value.is_meta and not value.float().isfinite().all():
            beyond = value.dtype == torch.float64 and value.isfinite().all()
            held = 'a number that float32 cannot hold' if beyond else 'NaN or infinity'
            raise ValueError(f'{printable(name)} holds {held}: the file is damaged, or its training diverged')


def _torch_load(path: str | os.PathLike) -> Any:
    # Some authors' training files hold scores as NumPy numbers, under the names of NumPy 1 or 2.
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')]
    types = [np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]
    safe: list[Any] = [*names, *types]
    with torch.serialization.safe_globals(safe), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about pickles of another kind; the result is an error or a checkpoint
        return torch.load(path, map_location='cpu', weights_only=True)


def _safetensors(doing: str, path: str | os.PathLike) -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f'{doing} {printable(os.fspath(path))} needs the package safetensors: pip install safetensors'
        ) from error
    return safetensors.torch


def _standing_alone(content: Any) -> Any:
    """A copy without views: safetensors refuses them, and torch writes the whole base of each."""
    if isinstance(content, Tensor):
        return content.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(content, Mapping):
        return {key: _standing_alone(value) for key, value in content.items()}
    return content
