"""Checkpoints: pairs of network files and a training state, written whole or not at all, and checked before use.

A checkpoint of iteration N is `models/net_g_N.pth` and `training_states/N.state`. The state is written last and holds
the SHA-256 of the network files that belong to it, so a pair is told from two files that only bear the same number.
"""

import contextlib
import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spinsr.utils.atomic_write import write_bytes
from spinsr.utils.errors import CheckpointError

# Key of a state: file name in models/ -> SHA-256.
NETWORKS = 'networks'


def write(path: str | os.PathLike, content: Any) -> str:
    """Writes a file with torch.save: under a temporary name, flushed to the disk, then renamed.

    Args:
        path: The file; one that is there is replaced.
        content: What torch.save takes.

    Returns:
        The SHA-256 of the file, in hexadecimal.

    Raises:
        CheckpointError: The file cannot be written, for lack of space for example; an existing one is unchanged.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        write_bytes(Path(path), buffer.getbuffer(), sync=True)
    except OSError as error:
        raise CheckpointError(f'{error}; earlier checkpoints are unchanged') from error
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def read_state(path: str | os.PathLike, models: str | os.PathLike) -> dict[str, Any]:
    """Reads a training state onto the CPU, if it and the network files that belong to it are whole.

    Args:
        path: `<iteration>.state`.
        models: The folder of the network files.

    Raises:
        CheckpointError: One of them is missing or damaged, or they are of different iterations.
    """
    path, models = Path(path), Path(models)
    state = _load(path)
    missing = [key for key in ('iter', 'epoch', 'optimizers', 'schedulers') if key not in state]
    if missing:
        raise CheckpointError(f'{path} is no training state: it has no {", ".join(missing)}')
    if path.stem.isdecimal() and int(path.stem) != state['iter']:
        raise CheckpointError(f'{path} is the state of iteration {state["iter"]}')
    digests = state.get(NETWORKS)
    if digests is None:  # one that BasicSR wrote
        _load(models / f'net_g_{state["iter"]}.pth')
        return state
    for name, digest in digests.items():
        try:
            content = (models / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f'{models / name} cannot be read: {error.strerror}') from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise CheckpointError(f'{models / name} is damaged, or not the file that {path} was saved with')
    return state


def newest(states: str | os.PathLike, models: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """The newest state that can be used, and what is wrong with those that are newer.

    Args:
        states: The folder of the training states.
        models: The folder of the network files.

    Returns:
        The state's path, or None where there is none, and one line for each newer one that is damaged.
    """
    damaged = []
    for _, path in reversed(_numbered(states)):
        try:
            read_state(path, models)
        except CheckpointError as error:
            damaged.append(str(error))
        else:
            return path, damaged
    return None, damaged


def prune(
    states: str | os.PathLike, models: str | os.PathLike, keep_last: int, labels: Sequence[str], iteration: int
) -> None:
    """Deletes old checkpoints, the state of each first.

    Args:
        states: The folder of the training states.
        models: The folder of the network files.
        keep_last: How many stay, the one of `iteration` included; at least 1.
        labels: What the network files begin with, as `net_g`.
        iteration: That of the checkpoint written last. Later ones are of a course of training that was given up, for
            they are damaged or it went on from an older one: they stay, and do not count.
    """
    for number, path in [entry for entry in _numbered(states) if entry[0] <= iteration][:-keep_last]:
        path.unlink(missing_ok=True)
        for label in labels:
            (Path(models) / f'{label}_{number}.pth').unlink(missing_ok=True)


def optimizer_problem(groups: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Why an optimizer cannot go on from the param groups of a state, '' where it can, or where that is not known.

    Args:
        groups: The state's, as an optimizer's state_dict has them; at least one.
        kind: 'Adam', 'AdamW' or 'Muon'; nothing is known of others.
    """
    group = groups[0]
    if 'use_muon' in group:
        saved = ['Muon']
    elif 'betas' not in group:
        saved = []
    elif 'decoupled_weight_decay' in group:
        saved = ['AdamW' if group['decoupled_weight_decay'] else 'Adam']
    else:  # written under torch < 2.7
        saved = ['Adam', 'AdamW']
    if kind in ('Adam', 'AdamW', 'Muon') and saved and kind not in saved:
        return f'must be that of the state to resume, {" or ".join(saved)}, got {kind}'
    return ''


def remove_parts(*folders: str | os.PathLike) -> None:
    """Deletes the files that a killed training had begun to write."""
    for folder in folders:
        for part in Path(folder).glob('.*.part'):
            part.unlink(missing_ok=True)


def _numbered(states: str | os.PathLike) -> list[tuple[int, Path]]:
    paths = Path(states).glob('*.state')
    return sorted((int(path.stem), path) for path in paths if path.stem.isdecimal())


def _load(path: Path) -> Mapping[str, Any]:
    try:
        # torch reads the tensors of a damaged file without comparing their checksums.
        with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else contextlib.nullcontext() as archive:
            record = archive.testzip() if archive else None
        if record:
            raise CheckpointError(f'{path} is damaged: {record} has another checksum')
        content = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f'{path} is missing') from error
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # Not torch's own words: they advise to load the file without this protection.
        raise CheckpointError(f'{path} is damaged, or holds more than tensors and plain values') from error
    except Exception as error:  # whatever else a damaged file makes torch raise
        raise CheckpointError(f'{path} is damaged: {_first_line(error)}') from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, not a mapping')
    return content


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
