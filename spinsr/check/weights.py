"""The weights and the state that training starts from, compared with the networks of the option file."""

import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from spinsr import convert
from spinsr.check import registries
from spinsr.check.finding import Finding, error, note, section, warning
from spinsr.check.memory import build
from spinsr.training import checkpoints
from spinsr.utils.errors import CheckpointError
from spinsr.utils.validation import is_whole


def weights(options: Mapping[str, Any], *, is_train: bool) -> Iterator[Finding]:
    """Reads the files under path, as far as they are there, and compares names and shapes with the networks.

    Nothing in the files is executed. A network that cannot be built without memory is left out.
    """
    path = section(options, 'path')
    state = path.get('resume_state')
    if is_train and _is_file(state):
        # What is resumed brings its own networks; pretrain_network_* is not read then.
        yield from _state(options, Path(os.path.expanduser(state)))
        return
    for key, network in options.items():
        name = str(key).removeprefix('network_')
        file = path.get(f'pretrain_{key}')
        if name != key and isinstance(network, Mapping) and _is_file(file):
            strict = path.get(f'strict_load_{name}', True)
            wanted = path.get(f'param_key_{name}', 'params')
            yield from _file(options, key, Path(os.path.expanduser(file)), strict, wanted, is_train)


def _is_file(path: Any) -> TypeGuard[str]:
    return isinstance(path, str) and Path(os.path.expanduser(path)).is_file()


def _state(options: Mapping[str, Any], file: Path) -> Iterator[Finding]:
    where, models = 'path:resume_state', file.parent.parent / 'models'
    try:
        state = checkpoints.read_state(file, models)
    except CheckpointError as problem:
        yield error(where, str(problem))
        return
    total = section(options, 'train').get('total_iter')
    if is_whole(total) and state['iter'] >= total:
        yield warning(where, f'is the state of iteration {state["iter"]}, and total_iter is {total}: nothing to train')
    kind = section(options, 'train', 'optim_g').get('type')
    if (groups := _param_groups(state)) and (problem := checkpoints.optimizer_problem(groups, str(kind))):
        yield error('train:optim_g:type', problem)
    kept = section(options, 'path').get('ignore_resume_networks') or ()
    for key in options:
        if str(key).startswith('network_') and key not in kept:
            network = models / f'net_{str(key).removeprefix("network_")}_{state["iter"]}.pth'
            if not network.is_file():
                yield error(where, f'is the state of iteration {state["iter"]}, whose network {network} does not exist')


def _param_groups(state: Mapping[str, Any]) -> Any:
    """Those of the first optimizer, None where a state has none."""
    first = next(iter(state['optimizers']), None)
    return first.get('param_groups') if isinstance(first, Mapping) else None


def _file(
    options: Mapping[str, Any], key: str, file: Path, strict: bool, wanted: str | None, is_train: bool
) -> Iterator[Finding]:
    from basicsr.models.base_model import BaseModel

    where, arch = f'path:pretrain_{key}', registries.find('ARCH', options[key].get('type'))
    model = registries.find('MODEL', options.get('model_type'))
    if arch is None or model is None:
        return
    format = convert.find_format(arch)
    converts = model.__module__.startswith('spinsr.')
    if file.suffix == '.safetensors' and getattr(model, 'load_network', None) is BaseModel.load_network:
        yield error(where, f'{file} cannot be read by {model.__name__}; model_type: SpinsrModel reads .safetensors')
        return
    try:
        checkpoints.verify(file)
        checkpoint = convert.read_checkpoint(file)
        if not isinstance(checkpoint, Mapping):
            raise TypeError(f'{file} is not a checkpoint: it holds a {type(checkpoint).__name__}')
        yield from _param_key(checkpoint, wanted, file, key, is_train)
        state = checkpoint.get(wanted, checkpoint)
        if format is not None and converts:
            state = _converted(state, format.name, strict)
        else:
            state = convert.unwrap(state, lambda names: True)
    except (ValueError, TypeError, OSError, ImportError) as problem:
        # Of another network every name may be wrong, and there are hundreds.
        reason = textwrap.shorten(str(problem), 300, placeholder=' …')
        yield error(where, f'{file} does not fit {arch.__name__}: {reason}')
        return
    try:
        built = build(options[key]).state_dict()
    except Exception:
        # Wrong arguments are said by `types`; an arch of another project may need memory to be built.
        return
    if format is None and converts:
        state = convert.unwrap(state, built.keys().__eq__)
    yield from _compared(built, state, strict, where, f'{file} does not fit {arch.__name__}', is_train)


def _converted(state: Mapping, arch: str, strict: bool) -> Mapping[str, Tensor]:
    try:
        return convert.convert_state_dict(state, arch)
    except ValueError:
        if strict:
            raise
        return convert.unwrap(state)


def _param_key(checkpoint: Mapping, wanted: str | None, file: Path, key: str, is_train: bool) -> Iterator[Finding]:
    where = f'path:param_key_{key.removeprefix("network_")}'
    if wanted not in checkpoint and 'params' in checkpoint:
        yield warning(where, f'{file} has no {wanted}: its params are loaded')
    elif not is_train and wanted == 'params' and 'params_ema' in checkpoint:
        yield warning(where, f'is params, but {file} was trained with EMA: its validation scores are of params_ema')


def _compared(
    built: Mapping[str, Tensor], state: Mapping[str, Tensor], strict: bool, where: str, words: str, is_train: bool
) -> Iterator[Finding]:
    differ = [name for name in built if name in state and built[name].shape != state[name].shape]
    missing = [name for name in built if name not in state]
    if not strict:
        left = len(differ) + len(missing)
        if left == len(built):
            yield error(where, f'{words}: nothing in it has the name and shape of a part of the network')
        elif left:
            message = f'{left} of {len(built)} tensors are not in the file and stay random: {_some(missing + differ)}'
            yield note(where, message) if is_train else warning(where, message)
        return
    strange = [name for name in state if name not in built]
    if differ:
        shapes = f'{differ[0]} is {tuple(state[differ[0]].shape)}, not {tuple(built[differ[0]].shape)}'
        yield error(where, f'{words}, {len(differ)} of {len(built)} tensors have another shape: {shapes}')
    elif missing or strange:
        parts = [f'it lacks {len(missing)} tensors: {_some(missing)}'] if missing else []
        parts += [f'it has {len(strange)} that the network has not: {_some(strange)}'] if strange else []
        yield error(where, f'{words}: {"; ".join(parts)}')


def _some(names: list[str]) -> str:
    return ', '.join(names[:3]) + (', …' if len(names) > 3 else '')
