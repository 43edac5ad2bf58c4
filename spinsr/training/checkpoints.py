"""Checkpoints: pairs of network files and a training state, written completely or not at all, and checked before use.

A checkpoint of iteration N is `models/net_g_N.pth` and `training_states/N.state`. The state is written last and holds
the SHA-256 of the network files that belong to it, so a pair is told from two files that only share their number. Each
file ends with the SHA-256 of itself, as the comment of its ZIP archive, which torch.load and other readers skip. The
checksums of the archive cover its records only, not its directory: with one bit of the directory flipped, torch reads
uninitialized memory in place of a tensor.
"""

import hashlib
import io
import os
import sys
import zipfile
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from spinsr.utils.atomic_write import write_bytes
from spinsr.utils.errors import CheckpointError

# Key of a state: file name in models/ -> SHA-256.
NETWORKS = 'networks'
# The end of a ZIP archive: a record of 22 bytes, whose last two are the length of the comment that follows.
_END, _END_SIZE = b'PK\5\6', 22
_SEAL = b'sha256:'
_SEAL_SIZE = len(_SEAL) + 2 * hashlib.sha256().digest_size
_FOLDER = 0x10  # of a record's attributes
_BLOCK = 1 << 20  # bytes that are read at once


def write(path: str | os.PathLike, content: Any) -> str:
    """Writes a file with torch.save and its digest: under a temporary name, flushed to the disk, then renamed.

    Args:
        path: The file; an existing one is replaced.
        content: Anything that torch.save accepts.

    Returns:
        The SHA-256 of the file, in hexadecimal.

    Raises:
        CheckpointError: The disk is full, or the file cannot be written; an existing file stays unchanged.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    _seal(buffer)
    try:
        write_bytes(Path(path), buffer.getbuffer(), sync=True)
    except OSError as error:
        raise CheckpointError(f'{error}; earlier checkpoints are unchanged') from error
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def read_state(path: str | os.PathLike, models: str | os.PathLike) -> MutableMapping[str, Any]:
    """Reads a training state onto the CPU, if it and the network files that belong to it are undamaged.

    Args:
        path: `<iteration>.state`.
        models: The folder of the network files.

    Raises:
        CheckpointError: One of them is missing or damaged, or they are from different iterations.
    """
    path, models = Path(path), Path(models)
    state = _load(path)
    if problem := state_problem(state):
        raise CheckpointError(f'{path} is not a training state: {problem}')
    if path.stem.isdecimal() and int(path.stem) != state['iter']:
        raise CheckpointError(f'{path} is the state of iteration {state["iter"]}')
    digests = state.get(NETWORKS)
    if digests is None:  # one that BasicSR wrote
        _load(models / f'net_g_{state["iter"]}.pth')
        return state
    for name, digest in digests.items():
        try:
            actual = _digest(models / name)
        except OSError as error:
            raise CheckpointError(f'{models / name} cannot be read: {error.strerror}') from error
        if actual != digest:
            raise CheckpointError(f'{models / name} is damaged, or not the file that {path} was saved with')
    return state


def state_problem(state: Mapping[str, Any]) -> str:
    """Why the content of a file is not a training state; '' where it is one.

    Args:
        state: The content, as torch.load returns it.
    """
    wanted = {'iter': int, 'epoch': int, 'optimizers': Sequence, 'schedulers': Sequence}
    missing = [key for key in wanted if key not in state]
    if missing:
        return f'it has no {", ".join(missing)}'
    for key, kind in wanted.items():
        value = state[key]
        # bool is an int, and text a sequence.
        if not isinstance(value, kind) or isinstance(value, bool | str | bytes):
            return f'{key} is a {type(value).__name__}'
    if state['iter'] < 0 or state['epoch'] < 0:
        return 'iter and epoch must be at least 0'
    for key in ('optimizers', 'schedulers'):
        if not all(isinstance(part, Mapping) for part in state[key]):
            return f'{key} must hold mappings'
    for optimizer in state['optimizers']:
        groups = optimizer.get('param_groups')
        if not isinstance(groups, list) or not all(isinstance(g, Mapping) and 'params' in g for g in groups):
            return 'an optimizer has no param_groups'
    digests = state.get(NETWORKS)
    if digests is None:
        return ''
    if not isinstance(digests, Mapping) or not digests:
        return f'{NETWORKS} must name the network files and their SHA-256'
    for name, digest in digests.items():
        if not isinstance(name, str) or not isinstance(digest, str) or Path(name).name != name:
            return f'{NETWORKS} must name the network files and their SHA-256, got {name!r}'
    return ''


def verify(path: str | os.PathLike) -> None:
    """Checks a file of torch.save before it is read: its digest, or, without one, the checksums of its records.

    Files that torch.save did not write as a ZIP archive (.safetensors, torch before 1.6) have neither.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is damaged.
        OSError: It cannot be read.
    """
    path = Path(path)
    if _is_sealed(path):
        with open(path, 'rb') as file:
            file.seek(-2 * hashlib.sha256().digest_size, os.SEEK_END)
            length, expected = file.tell(), file.read()
        if _digest(path, length).encode() != expected:
            raise CheckpointError(f'{path} is damaged: its content does not match its SHA-256')
        return
    try:
        if not zipfile.is_zipfile(path):  # raises too, where the end of the archive is damaged
            return
        # torch reads the tensors of a damaged file without comparing their checksums.
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
            # torch stores plain records, and leaves the tensor of anything else uninitialized.
            odd = [r.filename for r in archive.infolist() if r.is_dir() or r.external_attr & _FOLDER or r.compress_type]
    except OSError:
        raise
    except Exception as error:  # zipfile raises errors of many types for damaged archives
        raise CheckpointError(
            f'{path} is damaged: {next(iter(str(error).splitlines()), type(error).__name__)}'
        ) from error
    if record or odd:
        raise CheckpointError(f'{path} is damaged: record {record or odd[0]} is not as torch.save wrote it')


def _seal(buffer: io.BytesIO) -> None:
    """Appends the SHA-256 of a ZIP archive to it, as its comment."""
    view = buffer.getbuffer()
    assert view[-_END_SIZE:][:4] == _END and bytes(view[-2:]) == bytes(2)
    view[-2:] = _SEAL_SIZE.to_bytes(2, 'little')
    del view  # a buffer in use cannot grow
    buffer.seek(0, os.SEEK_END)
    buffer.write(_SEAL)
    buffer.write(hashlib.sha256(buffer.getbuffer()).hexdigest().encode())


def _is_sealed(path: Path) -> bool:
    """Whether a file has a digest, or the remains of one."""
    tail_size = _END_SIZE + _SEAL_SIZE
    with open(path, 'rb') as file:
        start = file.read(4)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - tail_size, 0))
        tail = file.read()
    if start != b'PK\3\4' and not tail.startswith(_END):
        return False
    # One damaged byte must not turn a file with a digest into one without.
    comment = tail[_END_SIZE:]
    return tail.startswith(_END) or comment.startswith(_SEAL)


def _digest(path: Path, length: int = sys.maxsize) -> str:
    """The SHA-256 of a file, or of its first bytes."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while length > 0 and (block := file.read(min(length, _BLOCK))):
            digest.update(block)
            length -= len(block)
    return digest.hexdigest()


def newest(states: str | os.PathLike, models: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """Finds the newest usable state, and says what is wrong with newer ones.

    Args:
        states: The folder of the training states.
        models: The folder of the network files.

    Returns:
        The state's path, or None if no state is usable, and one line for each newer one that is damaged.
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
        keep_last: How many to keep, that of `iteration` included; at least 1.
        labels: The beginnings of the names of the network files, such as `net_g`.
        iteration: That of the checkpoint written last. Later checkpoints belong to an abandoned run: they are damaged,
            or training resumed from an older one. They are kept and not counted.
    """
    for number, path in [entry for entry in _numbered(states) if entry[0] <= iteration][:-keep_last]:
        path.unlink(missing_ok=True)
        for label in labels:
            (Path(models) / f'{label}_{number}.pth').unlink(missing_ok=True)


def optimizer_problem(groups: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Why an optimizer cannot resume from the param groups of a state; '' if it can, or if that is not known.

    Args:
        groups: The param groups of the state, at least one.
        kind: 'Adam', 'AdamW' or 'Muon'; others are not checked.
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
    """Deletes the unfinished files of a killed training."""
    for folder in folders:
        for part in Path(folder).glob('.*.part'):
            part.unlink(missing_ok=True)


def _numbered(states: str | os.PathLike) -> list[tuple[int, Path]]:
    paths = Path(states).glob('*.state')
    return sorted((int(path.stem), path) for path in paths if path.stem.isdecimal())


def _load(path: Path) -> MutableMapping[str, Any]:
    from spinsr.convert.checkpoint import read_torch_file

    try:
        verify(path)
        content = read_torch_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f'{path} is missing') from error
    except CheckpointError:
        raise
    except (ValueError, OSError) as error:
        raise CheckpointError(f'{path} is damaged: {error}') from error
    if not isinstance(content, MutableMapping):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, not a mapping')
    return content
