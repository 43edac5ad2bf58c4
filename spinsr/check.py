"""An option file against what it will be used for: its sections, the signatures that it calls, the files that it names.

`structure`, `numbers` and `path_keys` look at the file alone, `types` at the registries, `devices` and `files` at the
machine. Each raises OptionError with one line for the first mistake; all are cheap, so train and test run them before
anything is built.
"""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from spinsr import option_files
from spinsr.option_files import OptionError, nearest

_SECTIONS = {
    True: ('name', 'model_type', 'num_gpu', 'datasets', 'network_g', 'path', 'train', 'logger'),
    False: ('name', 'model_type', 'num_gpu', 'datasets', 'network_g', 'path', 'val'),
}
_KEYS = {
    True: {
        'train': ('total_iter', 'optim_g', 'scheduler'),
        'logger': ('print_freq', 'save_checkpoint_freq', 'use_tb_logger'),
        'val': ('val_freq', 'save_img'),
    },
    False: {'val': ('save_img', 'suffix')},
}
_PHASES = {True: ('train', 'val'), False: ('test', 'val')}
_DATASET_KEYS = {
    'train': ('name', 'type', 'batch_size_per_gpu', 'num_worker_per_gpu'),
    'val': ('name', 'type'),
    'test': ('name', 'type'),
}


def structure(options: Mapping[str, Any], *, is_train: bool) -> None:
    """Checks that every section and key that BasicSR reads without asking is there.

    Args:
        options: The option file.
        is_train: For training, else for testing.

    Raises:
        OptionError: For the first one that is missing, or is not of its kind.
    """
    _require(options, _SECTIONS[is_train], 'the option file')
    for name in ('datasets', 'network_g', 'path', 'train', 'logger', 'val'):
        if options.get(name) is not None and not isinstance(options[name], Mapping):
            raise OptionError(f'{name} must be a section (key: value), got {options[name]!r}')
        if options.get(name) is None and name in _SECTIONS[is_train]:
            raise OptionError(f'the section {name} must not be empty')
    for name, keys in _KEYS[is_train].items():
        if options.get(name) is not None:
            _require(options[name], keys, f'the section {name}')
    for section, dataset in options['datasets'].items():
        phase = str(section).partition('_')[0]
        if phase not in _PHASES[is_train]:
            raise OptionError(f'datasets:{section}: the name must begin with one of {", ".join(_PHASES[is_train])}')
        if not isinstance(dataset, Mapping):
            raise OptionError(f'datasets:{section} must be a section (key: value), got {dataset!r}')
        _require(dataset, _DATASET_KEYS[phase], f'datasets:{section}')
    if is_train:
        if 'train' not in options['datasets']:
            raise OptionError(f'datasets has no key {"train"!r}; {nearest("train", options["datasets"])}')
        for name, value in (
            ('train:total_iter', options['train']['total_iter']),
            ('datasets:train:batch_size_per_gpu', options['datasets']['train']['batch_size_per_gpu']),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f'{name} must be a whole number of at least 1, got {value!r}')


def _require(section: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in keys:
        if key not in section:
            others = [name for name in section if name not in keys]
            hint = f'; {nearest(key, others)}' if others else ''
            raise OptionError(f'{where} has no key {key!r}{hint}')


def numbers(options: Mapping[str, Any]) -> None:
    """Checks that no number was read as text: YAML takes 2e-4 for text and 2.0e-4 for a number.

    Raises:
        OptionError: For the first such value.
    """
    for key, value in _leaves(options):
        if isinstance(value, str) and key != 'name' and 'e' in value.lower() and option_files.is_number(value):
            raise OptionError(f'{key}: {value} is text to YAML, not a number; write {_as_yaml(float(value))}')


def _as_yaml(number: float) -> str:
    return yaml.safe_dump(number).split('\n')[0]


def _leaves(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f'{key}:{name}' if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value


def path_keys(options: Mapping[str, Any]) -> None:
    """Checks the keys of the section path: BasicSR makes a folder of every one it does not know.

    Raises:
        OptionError: For the first unknown key; the line names the nearest right one.
    """
    networks = [key.removeprefix('network_') for key in options if str(key).startswith('network_')]
    known = ['resume_state', 'ignore_resume_networks']
    for network in networks:
        known += [f'pretrain_network_{network}', f'strict_load_{network}', f'param_key_{network}']
    for key in options['path']:
        # BasicSR's own rule for what is no folder; another plugin's model may have keys of its own there.
        if not any(part in str(key) for part in ('strict_load', 'pretrain_network', 'resume', 'param_key')):
            raise OptionError(f'path has no key {key!r}; {nearest(key, known)}')


def types(options: Mapping[str, Any]) -> None:
    """Checks every `type` against BasicSR's registries, and every network's keys against its signature.

    The archs, models and datasets must have been registered.

    Raises:
        OptionError: For the first name that is not registered, for the first key that the network does not have or that
            it needs (the line names the nearest right one), and for values that do not fit together.
    """
    from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

    _registered(MODEL_REGISTRY, options['model_type'], 'model_type')
    for key, dataset in options['datasets'].items():
        _registered(DATASET_REGISTRY, dataset['type'], f'datasets:{key}:type')
    for key, network in options.items():
        if str(key).startswith('network_') and isinstance(network, Mapping):
            _require(network, ('type',), key)
            arch = _registered(ARCH_REGISTRY, network['type'], f'{key}:type')
            signature(arch, network, key)
            values(arch, network, key)
    for key, metric in ((options.get('val') or {}).get('metrics') or {}).items():
        where = f'val:metrics:{key}'
        if not isinstance(metric, Mapping):
            raise OptionError(f'{where} must be a section (key: value), got {metric!r}')
        _require(metric, ('type',), where)
        _registered(METRIC_REGISTRY, metric['type'], f'{where}:type')


def _registered(registry: Any, name: str, where: str) -> Any:
    # Not Registry.get: it prints before it fails. The suffix is its own convention for BasicSR's classes.
    known = dict(iter(registry))
    for candidate in (name, f'{name}_basicsr'):
        if candidate in known:
            return known[candidate]
    raise OptionError(f'{where}: {name!r} is not registered; {nearest(name, known)}')


def signature(arch: type, network: Mapping[str, Any], where: str = 'network_g') -> None:
    """Checks the keys of a network section against the arch's constructor.

    Args:
        arch: The class.
        network: The section; its key `type` is left out.
        where: What the section is called.

    Raises:
        OptionError: For the first unknown key, with the nearest right one, and for the first that is missing.
    """
    parameters = inspect.signature(arch).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in network:
            if key != 'type' and key not in names:
                raise OptionError(f'{where}: {arch.__name__} has no keyword {key!r}; {nearest(key, names)}')
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in network:
            raise OptionError(f'{where}: {arch.__name__} needs the keyword {parameter.name!r}')


def values(arch: type, network: Mapping[str, Any], where: str = 'network_g') -> None:
    """Checks the values of a network section: an arch of spinsr is built without memory. Others are not tried.

    Args:
        arch: The class.
        network: The section, with keys that fit its signature.
        where: What the section is called.

    Raises:
        OptionError: What the arch says of its arguments.
    """
    if not arch.__module__.startswith('spinsr.'):
        return
    import torch

    try:
        with torch.device('meta'):
            arch(**{key: value for key, value in network.items() if key != 'type'})
    except (ValueError, TypeError) as error:
        raise OptionError(f'{where}: {error}') from error


def devices(options: Mapping[str, Any], launcher: str = 'none') -> None:
    """Checks num_gpu and the launcher against the machine.

    Raises:
        OptionError: If num_gpu is neither 'auto' nor a whole number, or GPUs are asked for and there is none.
    """
    import torch

    count = options['num_gpu']
    if count != 'auto' and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
        raise OptionError(f"num_gpu must be 'auto' or a whole number of at least 0, got {count!r}")
    if torch.cuda.is_available():
        return
    if launcher == 'slurm':
        raise OptionError(f'--launcher {launcher} needs CUDA devices, and there is none; use torchrun on the CPU')
    if count not in ('auto', 0):
        raise OptionError(f'num_gpu is {count}, but torch finds no CUDA device; use num_gpu: auto or 0 for the CPU')


def files(options: Mapping[str, Any], *, resumes: bool = False) -> None:
    """Checks that the data, the weights and the state that the options name are there.

    Args:
        options: The option file; its relative paths are relative to the working directory.
        resumes: A state will be resumed, so `pretrain_network_*` is not read.

    Raises:
        OptionError: For the first that is missing; the line says which command makes it.
    """
    for section, dataset in options['datasets'].items():
        for key, value in dataset.items():
            if key.startswith('dataroot') or key.startswith('meta_info'):
                for path in value if isinstance(value, list) else [value]:
                    if isinstance(path, str):
                        _data(path, f'datasets:{section}:{key}')
    for key, path in options['path'].items():
        if not path or Path(str(path)).expanduser().is_file():
            continue
        # --auto_resume takes the place of resume_state.
        if key == 'resume_state' and not options.get('auto_resume'):
            raise OptionError(f'path:{key}: {path} does not exist')
        if key.startswith('pretrain_network') and not resumes:
            raise OptionError(f'path:{key}: {path} does not exist{_maker(path)}')


def _data(path: str, where: str) -> None:
    full = Path(path).expanduser()
    if full.is_file():
        return
    if not full.exists():
        raise OptionError(f'{where}: {path} does not exist{_preparation(path)}')
    # prepare writes the meta_info last, and BasicSR reads it first.
    if full.suffix == '.lmdb' and not (full / 'meta_info.txt').is_file():
        raise OptionError(f'{where}: {path} is not complete (no meta_info.txt){_preparation(path)}')


def _preparation(path: str) -> str:
    parts = PurePosixPath(Path(path).as_posix()).parts
    if parts[:2] == ('datasets', 'div2k'):
        return '; make it with: spinsr prepare div2k PATH_TO_DIV2K'
    if parts[:2] == ('datasets', 'sample'):
        return '; make it with: spinsr prepare sample'
    if parts[:2] == ('datasets', 'benchmark') and len(parts) > 2:
        return f'; make it with: spinsr prepare benchmark PATH_TO/{parts[2]}'
    return ''


def _maker(path: str) -> str:
    """Which shipped option file trains the network that experiments/<name>/models/… belongs to."""
    parts = PurePosixPath(Path(path).as_posix()).parts
    if len(parts) < 4 or parts[0] != 'experiments' or parts[2] != 'models':
        return ''
    for name, file in option_files.shipped().items():
        if option_files.read(file).get('name') == parts[1] and not Path(name).name.startswith('test'):
            return f'; train it first: python -m spinsr.train -opt {name}'
    return f'; train the experiment {parts[1]} first'
