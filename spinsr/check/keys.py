"""The keys of an option file: those that must be there, and those that nothing reads.

Which keys BasicSR 1.4.2 reads is a table here. A model or dataset lists further keys in its OPTIONS;
the keys of classes without OPTIONS are not checked.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from spinsr.check import registries
from spinsr.check.finding import Finding, datasets, error, section, warning
from spinsr.training import network_hooks, option_files, progressive_learning
from spinsr.utils.text import nearest

_SECTIONS = {
    True: ('name', 'model_type', 'num_gpu', 'datasets', 'network_g', 'path', 'train', 'logger'),
    False: ('name', 'model_type', 'num_gpu', 'datasets', 'network_g', 'path', 'val'),
}
# What BasicSR reads without asking whether it is there.
_NEEDED = {
    True: {
        'train': ('total_iter', 'optim_g', 'scheduler'),
        'logger': ('print_freq', 'save_checkpoint_freq', 'use_tb_logger'),
        'val': ('val_freq', 'save_img'),
    },
    False: {'val': ('save_img',)},
}
_PHASES = {True: ('train', 'val'), False: ('test', 'val')}
_DATASET_NEEDS = {
    'train': ('name', 'type', 'batch_size_per_gpu', 'num_worker_per_gpu'),
    'val': ('name', 'type'),
    'test': ('name', 'type'),
}
_CLASS_NEEDS = {
    'PairedImageDataset': ('dataroot_gt', 'dataroot_lq', 'io_backend'),
    'SingleImageDataset': ('dataroot_lq', 'io_backend'),
    'BicubicImageDataset': ('dataroot_gt', 'io_backend'),
    'DegradationDataset': ('dataroot_gt', 'io_backend', 'degradation'),
    'MultiScaleDataset': ('dataroot_gt', 'io_backend', 'scales'),
    'DistillationDataset': ('dataroot_gt', 'dataroot_lq', 'dataroot_teacher', 'io_backend'),
}
_CROPS = (
    'PairedImageDataset',
    'BicubicImageDataset',
    'DegradationDataset',
    'MultiScaleDataset',
    'DistillationDataset',
)
_CROP_NEEDS = ('gt_size', 'use_hflip', 'use_rot')

_TOP = ('name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'find_unused_parameters')
_TOP += ('datasets', 'path', 'train', 'val', 'logger', 'dist_params')
_READ = {
    'train': ('total_iter', 'warmup_iter', 'ema_decay', 'optim_g', 'scheduler', 'pixel_opt', 'perceptual_opt')
    + ('time_limit',),
    'val': ('val_freq', 'save_img', 'suffix', 'pbar', 'metrics'),
    'logger': ('print_freq', 'save_checkpoint_freq', 'use_tb_logger', 'wandb'),
    'dist_params': ('backend', 'port'),
}
_LOADER = ('name', 'type', 'scale', 'io_backend', 'num_worker_per_gpu', 'batch_size_per_gpu', 'dataset_enlarge_ratio')
_LOADER += ('prefetch_mode', 'num_prefetch_queue', 'pin_memory', 'persistent_workers')
_DATASET_READS = {
    'PairedImageDataset': ('dataroot_gt', 'dataroot_lq', 'meta_info_file', 'filename_tmpl', 'gt_size', 'use_hflip')
    + ('use_rot', 'mean', 'std', 'color'),
    'SingleImageDataset': ('dataroot_lq', 'meta_info_file', 'mean', 'std', 'color'),
}


def is_training(options: Mapping[str, Any]) -> bool:
    """Whether an option file is for training: it has a section train or logger, or a data set for training."""
    return _has_data(options, 'train') or 'train' in options or 'logger' in options


def _has_data(options: Mapping[str, Any], phase: str) -> bool:
    return any(str(name).startswith(phase) for name in section(options, 'datasets'))


def structure(options: Mapping[str, Any], *, is_train: bool) -> Iterator[Finding]:
    """Finds the sections and keys that BasicSR reads without asking and that are missing, or not of their kind.

    Args:
        options: The option file.
        is_train: For training, else for testing.
    """
    if is_train and not is_training(options) and _has_data(options, 'test'):
        yield error('', 'this is an option file for testing: python -m spinsr.test')
        return
    if not is_train and is_training(options) and not _has_data(options, 'test'):
        yield error('', 'this is an option file for training: python -m spinsr.train')
        return
    yield from _missing(options, _SECTIONS[is_train])
    for name in ('datasets', 'network_g', 'path', 'train', 'logger', 'val'):
        if options.get(name) is not None and not isinstance(options[name], Mapping):
            yield error(name, f'must be a section (key: value), got {options[name]!r}')
        if name in options and options[name] is None and name in _SECTIONS[is_train]:
            yield error(name, 'the section must not be empty')
    for name, keys in _NEEDED[is_train].items():
        if isinstance(options.get(name), Mapping):
            yield from _missing(options[name], keys, name)
    # BasicSR reads it only for the names of the images that it saves.
    if not is_train and section(options, 'val').get('save_img') not in (None, False):
        yield from _missing(options['val'], ('suffix',), 'val')
    for name in ('optim_g', 'scheduler'):
        if is_train and name in section(options, 'train'):
            part = options['train'][name]
            if not isinstance(part, Mapping):
                yield error(f'train:{name}', f'must be a section (key: value), got {part!r}')
            else:
                yield from _missing(part, ('type',), f'train:{name}')
    for name, dataset in section(options, 'datasets').items():
        key, phase = f'datasets:{name}', str(name).partition('_')[0]
        if phase not in _PHASES[is_train]:
            yield error(key, f'the name must begin with one of {", ".join(_PHASES[is_train])}')
        elif not isinstance(dataset, Mapping):
            yield error(key, f'must be a section (key: value), got {dataset!r}')
        else:
            needs = _DATASET_NEEDS[phase] + _CLASS_NEEDS.get(str(dataset.get('type')), ())
            if phase == 'train' and dataset.get('type') in _CROPS:
                needs += _CROP_NEEDS
            yield from _missing(dataset, needs, key)
            if 'io_backend' in dataset and not isinstance(dataset['io_backend'], Mapping):
                yield error(f'{key}:io_backend', f'must be a section (key: value), got {dataset["io_backend"]!r}')
    if isinstance(options.get('datasets'), Mapping):
        if is_train:
            yield from _missing(options['datasets'], ('train',), 'datasets')
        elif not options['datasets']:
            yield error('datasets', 'there is no data set (datasets:test_1)')


def _missing(part: Mapping[str, Any], keys: tuple[str, ...], where: str = '') -> Iterator[Finding]:
    for key in keys:
        if key not in part:
            others = [other for other in part if other not in keys]
            hint = f'; {nearest(key, others)}' if others else ''
            yield error(where, f'{"there is" if where else "the option file has"} no key {key!r}{hint}')


def unknown(options: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds the keys that nothing reads; an error under path, where BasicSR makes a folder of each, else a warning.

    The archs, models and datasets must have been registered.
    """
    model = registries.find('MODEL', options.get('model_type'))
    # Its own: a subclass in another package reads keys that nobody has declared.
    own = vars(model).get('OPTIONS') if model is not None else None
    known_model = model is not None and (model.__name__ == 'SRModel' or own is not None)
    yield from _path(options, known_model)
    if known_model:
        ours = getattr(registries.find('MODEL', 'SpinsrModel'), 'OPTIONS', {})
        networks = [key for key in options if str(key).startswith('network_')]
        yield from _unread(options, (*_TOP, *networks, 'network_g'), '')
        network = registries.find('ARCH', section(options, 'network_g').get('type'))
        of_network = tuple(network_hooks.losses(network)) if own is not None else ()
        for name, known in _READ.items():
            read = (*known, *(own or {}).get(name, ()), *(of_network if name == 'train' else ()))
            yield from _unread(section(options, name), read, name, ours.get(name, ()))
        yield from _unread(section(options, 'logger', 'wandb'), ('project', 'resume_id'), 'logger:wandb')
    for key, _, dataset in datasets(options):
        cls = registries.find('DATASET', dataset.get('type'))
        reads = (vars(cls).get('OPTIONS') if cls else None) or _DATASET_READS.get(getattr(cls, '__name__', ''))
        if reads is not None:
            more = progressive_learning.KEYS if key == 'datasets:train' and 'gt_sizes' in dataset else ()
            read = not known_model or hasattr(model, 'OF_TRAINING_SET')
            yield from _unread(dataset, (*_LOADER, *reads, *(more if read else ())), key, more)


def _unread(
    part: Mapping[str, Any], known: Iterable[str], where: str, of_spinsr: Iterable[str] = ()
) -> Iterator[Finding]:
    known = tuple(known)
    for key in part:
        if key not in known:
            at = f'{where}:{key}' if where else str(key)
            hint = 'model_type: SpinsrModel would' if key in of_spinsr else nearest(key, known)
            yield warning(at, f'nothing reads the key {str(key)!r}; {hint}')


def _path(options: Mapping[str, Any], known_model: bool) -> Iterator[Finding]:
    networks = [str(key).removeprefix('network_') for key in options if str(key).startswith('network_')]
    known = ['resume_state', 'ignore_resume_networks']
    for network in networks:
        known += [f'pretrain_network_{network}', f'strict_load_{network}', f'param_key_{network}']
    for key in section(options, 'path'):
        # BasicSR's own rule for keys that are not folders; the models of other plugins may have keys of their own here.
        if not any(part in str(key) for part in ('strict_load', 'pretrain_network', 'resume', 'param_key')):
            yield error(f'path:{key}', f'path has no key {key!r}; {nearest(key, known)}')
        elif known_model:
            yield from _unread({key: None}, known, 'path')


def numbers(options: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds the numbers that were read as text: YAML takes 2e-4 for text and 2.0e-4 for a number."""
    for key, value in _leaves(options):
        if _is_text_number(key, value):
            yield error(key, f'{value} is text to YAML, not a number; write {_as_yaml(float(value))}')


def with_numbers(options: Any, key: str = '') -> Any:
    """A copy of the options in which what `numbers` finds is a number, so that it is said once."""
    if isinstance(options, Mapping):
        return {name: with_numbers(value, f'{key}:{name}' if key else str(name)) for name, value in options.items()}
    if isinstance(options, list):
        return [with_numbers(value, key) for value in options]
    return float(options) if _is_text_number(key, options) else options


def _is_text_number(key: str, value: Any) -> bool:
    return isinstance(value, str) and key != 'name' and 'e' in value.lower() and option_files.is_number(value)


def _as_yaml(number: float) -> str:
    import yaml

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
