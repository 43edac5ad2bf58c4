"""Checkpoint files: read without executing anything in them, written whole or not at all."""

import io
import os
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spinsr.utils.atomic_write import write_bytes

ENDINGS = ('.pth', '.pt', '.safetensors')

# Where a checkpoint keeps its state dict: the authors' training files of SPIN, BasicSR.
WRAPPERS = ('model_state_dict', 'params_ema', 'params')


def read_checkpoint(path: str | os.PathLike) -> Mapping:
    """Reads a .pth, .pt or .safetensors file onto the CPU without executing anything in it.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: A .safetensors file, and the package safetensors is not installed.
        ValueError: Not a checkpoint, damaged, or it holds more than tensors and plain containers.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no such weights file: {path}')
    read = _safetensors('reading', path).load_file if path.endswith('.safetensors') else _torch_load
    try:
        return read(path)
    except pickle.UnpicklingError as error:
        # Not torch's own words: they advise to load the file without this protection.
        reason = 'damaged, or more than tensors and plain containers, which could run code'
        raise ValueError(f'{path} is no readable checkpoint: {reason}') from error
    except Exception as error:  # whatever else a damaged file makes the readers raise
        raise ValueError(f'{path} is no readable checkpoint: {str(error) or type(error).__name__}') from error


def write_checkpoint(
    path: str | os.PathLike,
    state_dict: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    for_old_torch: bool = False,
) -> None:
    """Writes a checkpoint under a temporary name and renames it: the file is there whole or not at all.

    Args:
        path: A file in a folder that exists, ending in .pth, .pt or .safetensors.
        state_dict: Names to tensors, on any device; in .pth and .pt also inside other mappings, as in BasicSR's files.
        metadata: What a .safetensors file says about itself; other files have no place for it.
        overwrite: Replace a file that is there.
        for_old_torch: Write .pth and .pt as torch did before 1.6; every later torch reads that too.

    Raises:
        ValueError: Another ending.
        TypeError: A .safetensors file of anything but names to tensors.
        FileExistsError: There is such a file, and `overwrite` is not set.
        OSError: The folder is missing, or the file cannot be written.
        ImportError: A .safetensors file, and the package safetensors is not installed.
    """
    path = Path(path)
    check_target(path, overwrite)
    content, buffer = _standing_alone(state_dict), io.BytesIO()
    if path.suffix == '.safetensors':
        for name, value in content.items():
            if not isinstance(value, Tensor):
                raise TypeError(f'a .safetensors file maps names to tensors, got {name!r}: {type(value).__name__}')
        buffer.write(_safetensors('writing', path).save(content, dict(metadata or {})))
    else:
        torch.save(content, buffer, _use_new_zipfile_serialization=not for_old_torch)
    write_bytes(path, buffer.getbuffer())


def check_target(path: Path, overwrite: bool, endings: Sequence[str] = ENDINGS, what: str = 'a checkpoint') -> None:
    """Refuses what `write_checkpoint` will refuse, before the work; also for other kinds of files.

    Raises:
        ValueError: Another ending.
        OSError: There is such a file, and `overwrite` is not set; or the folder is missing.
    """
    if path.suffix not in endings:
        raise ValueError(f'{what} must end in {", ".join(endings)}, got {path}')
    if path.is_dir():
        raise IsADirectoryError(f'{path} is a folder, not a file to write')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'the folder of {path} does not exist')
    if path.exists() and not overwrite:
        raise FileExistsError(f'{path} exists; --overwrite replaces it')


def unwrap(state_dict: Mapping) -> dict[str, Tensor]:
    """Returns the bare state dict inside a checkpoint, without `module.` in front of the names.

    Raises:
        TypeError: Not a mapping of names to tensors.
    """
    for key in wrapped_in(state_dict):
        state_dict = state_dict[key]
        break
    if not isinstance(state_dict, Mapping):
        raise TypeError(f'a state dict must map names to tensors, got {type(state_dict).__name__}')
    strange = [name for name, value in state_dict.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        value = state_dict[strange[0]]
        raise TypeError(f'a state dict must map names to tensors, got {strange[0]!r}: {type(value).__name__}')
    return {name.removeprefix('module.'): value for name, value in state_dict.items()}


def wrapped_in(checkpoint: Any) -> list[str]:
    """The keys of a checkpoint that hold a state dict, the one to take first; none for a bare state dict."""
    if not isinstance(checkpoint, Mapping):
        return []
    return [key for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)]


def _torch_load(path: str) -> Mapping:
    # The training files of SPIN hold their scores as numpy numbers, under the names of NumPy 1 or 2.
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')]
    types = [np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]
    with torch.serialization.safe_globals(names + types), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of a pickle by other hands; what comes of it is an error or a checkpoint
        return torch.load(path, map_location='cpu', weights_only=True)


def _safetensors(doing: str, path: str | os.PathLike) -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f'{doing} {path} needs the package safetensors: pip install safetensors') from error
    return safetensors.torch


def _standing_alone(content: Any) -> Any:
    """A copy in which no tensor is a view of another: safetensors refuses those, torch writes the whole of both."""
    if isinstance(content, Tensor):
        return content.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(content, Mapping):
        return {key: _standing_alone(value) for key, value in content.items()}
    return content
