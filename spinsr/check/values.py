"""The values of an option file: each of its kind, and all of them in agreement."""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from spinsr.check import registries
from spinsr.check.finding import Finding, datasets, error, section, warning
from spinsr.data import degradation
from spinsr.training import distillation, progressive_learning
from spinsr.training.experiment import NAME, NAME_INSIDE, SUFFIX
from spinsr.training.time_limit import TIME_LIMIT
from spinsr.utils.text import nearest
from spinsr.utils.validation import ABOVE_0, FLAG, SECTION, Rule, as_whole, each, is_number, is_whole, whole

# What each io_backend accepts beside type; those of lmdb go to lmdb.open.
_BACKENDS = {
    'disk': (),
    'lmdb': ('db_paths', 'client_keys', 'readonly', 'lock', 'readahead', 'map_size', 'subdir', 'metasync', 'sync')
    + ('map_async', 'mode', 'create', 'writemap', 'meminit', 'max_readers', 'max_dbs', 'max_spare_txns'),
    'memcached': ('server_list_cfg', 'client_cfg', 'sys_path'),
}
# Lists of whole numbers.
_SCHEDULE = ('milestones', 'periods', 'restarts')
_GROWTH = ('gt_sizes', 'iters', 'mini_batch_sizes')
# The packages whose classes read what is known here.
_OURS = ('basicsr', 'spinsr')
_AT_A_SCALE = (
    'PairedImageDataset',
    'BicubicImageDataset',
    'DegradationDataset',
    'MultiScaleDataset',
    'DistillationDataset',
)
# The data sets that have no HR images.
_WITHOUT_GT = ('SingleImageDataset',)
_METRICS_WITH_A_BORDER = ('calculate_psnr', 'calculate_ssim', 'calculate_psnr_pt', 'calculate_ssim_pt')
# Its update has singular values of about 1, so at this rate every step moves a weight matrix by a tenth.
_LARGEST_OF_MUON = 0.1

# NumPy takes no larger seed.
_SEED = Rule(
    lambda value: value is None or (is_whole(value) and 0 <= value < 2**32),
    f'a whole number from 0 to {2**32 - 1}, or ~',
    is_whole=True,
)
_TEXT = Rule(lambda value: isinstance(value, str) and value != '', 'text')
_TEXT_OR_NONE = Rule(lambda value: value is None or isinstance(value, str), 'text, or ~')
_SECTION_RULES = {
    '': {'name': NAME, 'scale': whole(1), 'manual_seed': _SEED, 'dist_params': SECTION},
    'train': {
        'total_iter': whole(1),
        'warmup_iter': whole(-1),
        'ema_decay': Rule(lambda value: is_number(value) and 0 <= value < 1, 'a number from 0 to below 1'),
        'time_limit': TIME_LIMIT,
    },
    'val': {
        'val_freq': whole(1),
        'save_img': FLAG,
        'suffix': SUFFIX,
        'pbar': FLAG,
        'metrics': SECTION,
    },
    'logger': {
        'print_freq': whole(1),
        'save_checkpoint_freq': whole(1),
        'use_tb_logger': FLAG,
        'wandb': SECTION,
    },
}
_DATASET_RULES = {
    'name': _TEXT,
    'dataroot_gt': _TEXT,
    'dataroot_lq': _TEXT,
    'dataroot_teacher': _TEXT,
    'meta_info_file': _TEXT_OR_NONE,
    'scale': whole(1),
    'scales': each(whole(1)),
    'gt_size': whole(1),
    'use_hflip': FLAG,
    'use_rot': FLAG,
    'read_gt': FLAG,
    'gt_usm': FLAG,
    'batch_size_per_gpu': whole(1),
    'num_worker_per_gpu': whole(0),
    'dataset_enlarge_ratio': ABOVE_0,
    'prefetch_mode': Rule(lambda value: value in (None, 'cpu', 'cuda'), 'cpu, cuda or ~'),
    'num_prefetch_queue': whole(1),
    'pin_memory': FLAG,
    'persistent_workers': FLAG,
    'max_images': whole(1, None),
    'filename_tmpl': Rule(lambda value: is_template(value), "text with {} in it, such as '{}x4'"),
}


def is_template(value: Any) -> bool:
    """Whether a value can be `filename_tmpl`: text that str.format fills with the name of an image."""
    try:
        return isinstance(value, str) and '\0' in value.format('\0')
    except (ValueError, IndexError, KeyError, AttributeError):
        return False


def with_whole_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the options in which whole floats are integers where an integer is wanted: 5e3 is 5000.

    BasicSR's own option files write `val_freq: !!float 5e3`. The models and data sets must have been registered.
    """
    copied = _copied(options)
    rules: dict[str, dict[str, Rule]] = {name: dict(part) for name, part in _SECTION_RULES.items()}
    for name, part in _own_rules(copied).items():
        rules.setdefault(name, {}).update(part)
    for name, part in rules.items():
        _make_whole(section(copied, name) if name else copied, [key for key, rule in part.items() if rule.is_whole])
    _make_whole(copied, ['num_gpu'])
    _make_whole(section(copied, 'dist_params'), ['port'])
    _make_whole(section(copied, 'train'), ['net_d_iters', 'net_d_init_iters'])
    _make_whole(section(copied, 'train', 'scheduler'), _SCHEDULE)
    for _, _, dataset in datasets(copied):
        _make_whole(dataset, [*(key for key, rule in _DATASET_RULES.items() if rule.is_whole), *_GROWTH])
    for metric in section(copied, 'val', 'metrics').values():
        _make_whole(metric, ['crop_border'])
    for key, network in copied.items():
        if str(key).startswith('network_') and isinstance(network, Mapping):
            arch = registries.find('ARCH', network.get('type'))
            parameters = inspect.signature(arch).parameters.values() if arch is not None else ()
            _make_whole(network, [p.name for p in parameters if _wants_whole(p, network.get(p.name))])
    return copied


def _wants_whole(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether an argument of a network is a whole number, or a list of them, by its default, else by its type."""
    default, hint = parameter.default, str(parameter.annotation)
    if isinstance(default, list | tuple):
        return _all_whole(default)
    if default is None or default is parameter.empty:
        # BasicSR's networks have no types: of what they require, no number is changed by becoming an int.
        is_untyped = default is parameter.empty and parameter.annotation is parameter.empty
        return ('int' in hint and 'float' not in hint) or (is_untyped and not isinstance(value, list))
    return is_whole(default)


def _all_whole(values: Any) -> bool:
    return all(_all_whole(item) if isinstance(item, list | tuple) else is_whole(item) for item in values)


def _make_whole(part: Any, keys: Iterable[str]) -> None:
    if isinstance(part, dict):
        part.update((key, as_whole(part[key])) for key in keys if key in part)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def kinds(options: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds the values that are not of their kind, or out of range."""
    for name, rules in (*_SECTION_RULES.items(), *_own_rules(options).items()):
        yield from _apply(rules, section(options, name) if name else options, f'{name}:' if name else '')
    for key, phase, dataset in datasets(options):
        cls = registries.find('DATASET', dataset.get('type'))
        if cls is None or cls.__module__.partition('.')[0] in _OURS:
            yield from _apply(_DATASET_RULES, dataset, f'{key}:')
        if dataset.get('type') == 'DegradationDataset' and 'degradation' in dataset:
            for name, problem in degradation.problems(dataset['degradation']):
                yield error(f'{key}:degradation{f":{name}" if name else ""}', problem)
        if phase != 'train' and 'name' in dataset and _TEXT.holds(dataset['name']):
            yield from _apply({'name': NAME_INSIDE}, dataset, f'{key}:')
    for key, value in section(options, 'path').items():
        if str(key).startswith('strict_load') and not isinstance(value, bool):
            yield error(f'path:{key}', f'must be true or false, got {value!r}')
        elif str(key).startswith(('pretrain_network', 'resume_state', 'param_key')):
            yield from _apply({key: _TEXT_OR_NONE}, {key: value}, 'path:')


def _apply(rules: Mapping[str, Rule], part: Mapping[str, Any], where: str) -> Iterator[Finding]:
    for key, rule in rules.items():
        if key in part and not rule.holds(part[key]):
            yield error(f'{where}{key}', f'must be {rule.wanted}, got {part[key]!r}')


def agreement(options: Mapping[str, Any], *, is_train: bool, launcher: str) -> Iterator[Finding]:
    """Finds the values that do not go together.

    Args:
        options: The option file; values that are not of their kind are left to `kinds`.
        is_train: For training, else for testing.
        launcher: 'none', 'pytorch' or 'slurm'.
    """
    if is_train:
        yield from _iterations(options)
        yield from _learning_rate(options)
        yield from _logging(options)
        yield from _stages(options)
        yield from _accumulation(options, launcher)
        yield from _distillation(options)
    if options.get('manual_seed') is None:
        yield warning('manual_seed', 'is not set: BasicSR draws one, so no two runs are the same')
    if is_train and 'debug' in str(options.get('name')):
        yield warning('name', "has 'debug' in it: BasicSR then validates and saves every 8 iterations")
    yield from _scale(options)
    yield from _datasets(options, is_train)
    yield from _without_targets(options)
    if is_train:
        yield from _adversarial(options)
    yield from _protocol(options)


def _own_rules(options: Mapping[str, Any]) -> Mapping[str, Mapping[str, Rule]]:
    """Of the options that the model adds to BasicSR's, by section."""
    return getattr(registries.find('MODEL', options.get('model_type')), 'OPTIONS', {})


def _whole_of(part: Mapping[str, Any], key: str) -> int | None:
    return part[key] if is_whole(part.get(key)) else None


def _iterations(options: Mapping[str, Any]) -> Iterator[Finding]:
    train = section(options, 'train')
    total = _whole_of(train, 'total_iter')
    if total is None:
        return
    late = {
        'train:warmup_iter': 'the warm up never ends',
        'val:val_freq': 'nothing is validated before the end',
        'logger:save_checkpoint_freq': 'no state is saved to resume from',
        'logger:print_freq': 'the log shows no loss',
    }
    for where, effect in late.items():
        name, key = where.split(':')
        value = _whole_of(section(options, name), key)
        if value is not None and value > total:
            yield warning(where, f'is {value}, but training ends at total_iter={total}: {effect}')
    yield from _scheduler(section(train, 'scheduler'), total, _whole_of(train, 'warmup_iter') or 0)


def _scheduler(scheduler: Mapping[str, Any], total: int, warmup: int) -> Iterator[Finding]:
    for key in _SCHEDULE:
        value = scheduler.get(key)
        if isinstance(value, list) and not all(is_whole(item) for item in value):
            yield error(f'train:scheduler:{key}', f'must be a list of whole numbers, got {value}')
            return
    kind = scheduler.get('type')
    milestones, periods = scheduler.get('milestones'), scheduler.get('periods')
    if kind in ('MultiStepLR', 'MultiStepRestartLR') and isinstance(milestones, list):
        key = 'train:scheduler:milestones'
        if past := [step for step in milestones if step >= total]:
            yield warning(key, f'{past} are never reached: training ends at total_iter={total}')
        if early := [step for step in milestones if step < warmup]:
            yield warning(key, f'{early} have no effect: the warm up to warmup_iter={warmup} sets the lr itself')
    elif kind == 'CosineAnnealingRestartLR' and isinstance(periods, list):
        key, end = 'train:scheduler:periods', sum(periods)
        # The scheduler steps from the second iteration on, so it may be one behind.
        if total - 1 > end:
            yield error(key, f'end at {end}, where BasicSR fails, before total_iter={total}')
        elif total < end:
            yield warning(key, f'end at {end}, but training at total_iter={total}: the lr does not fall to its end')


def _learning_rate(options: Mapping[str, Any]) -> Iterator[Finding]:
    for name, part in section(options, 'train').items():
        if not str(name).startswith('optim_') or not isinstance(part, Mapping):
            continue
        kind, where, lr = part.get('type'), f'train:{name}:lr', part.get('lr')
        if kind == 'Muon':
            # What is not above 0 is said by its own rules.
            if is_number(lr) and lr > _LARGEST_OF_MUON:
                yield warning(where, f'is {lr}: networks are trained by Muon with 0.001 to 0.05')
            kind, where, lr = 'Adam', f'train:{name}:adam:lr', section(part, 'adam').get('lr')
        elif is_number(lr) and not 0 < lr < math.inf:
            yield error(where, f'must be a finite number above 0, got {lr}')
        if kind in ('Adam', 'AdamW') and is_number(lr) and lr > 0.01:
            yield warning(where, f'is {lr}: networks for super-resolution are trained with 0.0001 to 0.001')


def _logging(options: Mapping[str, Any]) -> Iterator[Finding]:
    import importlib.util

    logger = section(options, 'logger')
    wants_board = logger.get('use_tb_logger') is True
    if wants_board and importlib.util.find_spec('tensorboard') is None:
        yield error('logger:use_tb_logger', 'needs the package tensorboard: pip install tensorboard, or false')
    if section(logger, 'wandb').get('project') is not None:
        if not wants_board:
            yield error('logger:wandb:project', 'needs use_tb_logger: true')
        if importlib.util.find_spec('wandb') is None:
            yield error('logger:wandb:project', 'needs the package wandb: pip install wandb, or ~')


def network_scale(network: Mapping[str, Any]) -> tuple[str, Any]:
    """What a network section upscales by: the keyword and its value, or '' and None if it has none."""
    arch = registries.find('ARCH', network.get('type'))
    parameters = inspect.signature(arch).parameters if arch is not None else {}
    for name in ('upscale', 'scale'):
        if name in parameters:
            return name, network.get(name, parameters[name].default)
    return '', None


def _scale(options: Mapping[str, Any]) -> Iterator[Finding]:
    scale = options.get('scale')
    for name in ('network_g', 'network_s'):
        network = section(options, name)
        keyword, own = network_scale(network)
        if is_whole(scale) and is_whole(own) and scale != own:
            default = '' if keyword in network else ', its default'
            yield error('scale', f'is {scale}, but {name}:{keyword} is {own}{default}')
    for key, phase, dataset in datasets(options):
        if dataset.get('type') in _AT_A_SCALE:
            # The one of the file replaces the data set's own.
            actual = scale if 'scale' in options else dataset.get('scale')
            if actual is None:
                yield error('scale', f'is not set, and {key} needs it')
            gt_size = _whole_of(dataset, 'gt_size')
            if phase == 'train' and gt_size and is_whole(actual) and actual > 0 and gt_size % actual:
                yield error(f'{key}:gt_size', f'must be a multiple of the scale, got {gt_size} for scale {actual}')
            scales = dataset.get('scales')
            if dataset['type'] == 'MultiScaleDataset' and isinstance(scales, list) and actual not in scales:
                yield error(f'{key}:scales', f'must contain the scale, got {scales} for scale {actual}')


def _stages(options: Mapping[str, Any]) -> Iterator[Finding]:
    if not _grows(options):
        return
    dataset, total = options['datasets']['train'], section(options, 'train').get('total_iter')
    if problem := _problem(options):
        yield error(f'datasets:train:{problem[0]}', problem[1])
    elif late := [
        stage.gt_size for stage in progressive_learning.stages(dataset) if is_whole(total) and stage.first > total
    ]:
        yield warning('datasets:train:iters', f'{late} of gt_sizes are never reached: total_iter={total}')


def _accumulation(options: Mapping[str, Any], launcher: str) -> Iterator[Finding]:
    import torch

    parts = section(options, 'train').get('accumulate')
    if not is_whole(parts) or parts < 1 or 'accumulate' not in _own_rules(options).get('train', {}) or _grows(options):
        return
    batch, devices = section(options, 'datasets', 'train').get('batch_size_per_gpu'), options.get('num_gpu', 'auto')
    if launcher != 'none':
        devices = 1  # a process each
    elif devices == 'auto':
        devices = torch.cuda.device_count()
    if is_whole(batch) and is_whole(devices) and (images := batch * max(devices, 1)) % parts:
        yield error('train:accumulate', f'must divide the batch, got {parts} for {images} images')


def _distillation(options: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds losses of what the training set does not give, and a schedule that leaves iterations without a loss."""
    calls = getattr(registries.find('MODEL', options.get('model_type')), 'CALLS', {})
    if 'distill_opt' not in calls:
        return
    train, dataset = section(options, 'train'), section(options, 'datasets', 'train')
    if all(train.get(key) is None or is_whole(train[key]) for key in ('distill_iters', 'pixel_after')):
        if problem := distillation.problem(train):
            yield error(f'train:{problem[0]}', problem[1])
    cls = registries.find('DATASET', dataset.get('type'))
    if cls is None or cls.__module__.partition('.')[0] not in _OURS:
        return
    distills = cls.__name__ == 'DistillationDataset'
    if train.get('distill_opt') and not distills:
        reason = f'datasets:train:type is {cls.__name__}, which has none: use DistillationDataset'
        yield error('train:distill_opt', f'needs the outputs of a teacher; {reason}')
    elif distills and not train.get('distill_opt'):
        yield warning('datasets:train', 'the outputs of the teacher are not used: train:distill_opt is missing')
    if distills and dataset.get('read_gt') is False:
        for name, needs in {**calls, 'perceptual_opt': ('gt',)}.items():
            if train.get(name) and 'gt' in needs:
                yield error('datasets:train:read_gt', f'must be true: train:{name} needs HR')


def _grows(options: Mapping[str, Any]) -> bool:
    model = registries.find('MODEL', options.get('model_type'))
    return hasattr(model, 'OF_TRAINING_SET') and progressive_learning.grows(section(options, 'datasets', 'train'))


def _problem(options: Mapping[str, Any]) -> tuple[str, str] | None:
    dataset = section(options, 'datasets', 'train')
    numbers = options.get('scale') or dataset.get('scale'), section(options, 'train').get('accumulate')
    # Values that are not numbers are reported elsewhere.
    scale, accumulate = (number if is_whole(number) and number > 0 else 1 for number in numbers)
    return progressive_learning.problem(dataset, scale, accumulate)


def largest_step(options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Images on a device and side of the HR patches, of the training's largest iteration; their kinds are unchecked."""
    dataset, total = section(options, 'datasets', 'train'), section(options, 'train').get('total_iter')
    if _grows(options) and not _problem(options):
        reached = [
            stage for stage in progressive_learning.stages(dataset) if not is_whole(total) or stage.first <= total
        ]
        stage = max(reached, key=lambda stage: stage.batch * stage.gt_size**2, default=None)
        if stage is not None:
            return stage.batch, stage.gt_size
    return dataset.get('batch_size_per_gpu'), dataset.get('gt_size')


def _datasets(options: Mapping[str, Any], is_train: bool) -> Iterator[Finding]:
    seen: dict[tuple, str] = {}
    for key, phase, dataset in datasets(options):
        roots = [str(dataset[name]) for name in ('dataroot_gt', 'dataroot_lq') if dataset.get(name)]
        if roots and (first := seen.setdefault(('data', *roots), key)) != key:
            yield warning(key, f'has the images of {first}')
        # The training set's name is in the log only.
        if phase != 'train' and (first := seen.setdefault(('name', str(dataset.get('name'))), key)) != key:
            yield warning(f'{key}:name', f'is that of {first}: their scores and pictures overwrite each other')
        yield from _loading(options, key, dataset)
    validated = [key for key, phase, _ in datasets(options) if phase == 'val']
    if is_train and section(options, 'val') and not validated:
        yield warning('val', 'no data set to validate on: datasets:val is missing')
    if is_train and validated and options.get('val') is None:
        yield warning(validated[0], 'is never used: the section val is missing')


def reference_metrics(options: Mapping[str, Any]) -> list[str]:
    """The metrics of the validation that compare with HR images, by the names that the option file gives them."""
    found = []
    for name, part in section(options, 'val', 'metrics').items():
        metric = registries.find('METRIC', part.get('type')) if isinstance(part, Mapping) else None
        if metric is not None:
            target = inspect.signature(metric).parameters.get('img2')
            if target is not None and target.default is target.empty:
                found.append(str(name))
    return found


def missing_targets(where: str, metrics: list[str]) -> str:
    """What is said of a data set without HR images for metrics that compare with them.

    Args:
        where: The data set.
        metrics: The names of the metrics.
    """
    return (
        f'{where} has no HR images to compare with, which val:metrics ({", ".join(metrics)}) needs: '
        'use PairedImageDataset with dataroot_gt, or remove val:metrics'
    )


def _without_targets(options: Mapping[str, Any]) -> Iterator[Finding]:
    metrics = reference_metrics(options)
    for key, phase, dataset in datasets(options) if metrics else ():
        if phase != 'train' and dataset.get('type') in _WITHOUT_GT:
            yield error(f'{key}:type', missing_targets(str(dataset['type']), metrics))


def _adversarial(options: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds the missing sections of BasicSR's and our models with a discriminator."""
    from basicsr.models.srgan_model import SRGANModel

    model = registries.find('MODEL', options.get('model_type'))
    if model is None or not issubclass(model, SRGANModel) or model.__module__.partition('.')[0] not in _OURS:
        return
    if not section(options, 'network_d'):
        yield error('', f"{model.__name__} needs the section 'network_d'")
    for name in ('optim_d', 'gan_opt'):
        if not section(options, 'train', name):
            yield error('train', f'{model.__name__} needs the section {name!r}')


def _loading(options: Mapping[str, Any], key: str, dataset: Mapping[str, Any]) -> Iterator[Finding]:
    import torch

    if dataset.get('persistent_workers') is True and (
        dataset.get('num_worker_per_gpu') == 0 or key.partition(':')[2].partition('_')[0] != 'train'
    ):
        yield error(f'{key}:persistent_workers', 'needs num_worker_per_gpu above 0 and a training set')
    on_gpu = options.get('num_gpu') != 0 and torch.cuda.is_available()
    if dataset.get('prefetch_mode') == 'cuda' and on_gpu and dataset.get('pin_memory') is not True:
        yield error(f'{key}:prefetch_mode', 'cuda needs pin_memory: true')
    backend = section(dataset, 'io_backend')
    kind = backend.get('type')
    if not isinstance(kind, str) or kind not in _BACKENDS:
        if 'io_backend' in dataset:
            yield error(f'{key}:io_backend:type', f'must be disk, lmdb or memcached, got {kind!r}')
        return
    for name in backend:
        if name != 'type' and name not in _BACKENDS[kind]:
            hint = nearest(name, _BACKENDS[kind]) if _BACKENDS[kind] else 'only type'
            yield error(f'{key}:io_backend:{name}', f'{kind} has no key {name!r}; {hint}')
    for name in ('dataroot_gt', 'dataroot_lq', 'dataroot_teacher'):
        root = dataset.get(name)
        if (
            isinstance(root, str)
            and kind in ('disk', 'lmdb')
            and root.rstrip('/').endswith('.lmdb') != (kind == 'lmdb')
        ):
            ending = 'end with .lmdb' if kind == 'lmdb' else 'be a folder, no .lmdb'
            yield error(f'{key}:{name}', f'must {ending}, as io_backend:type is {kind}; got {root}')


def _protocol(options: Mapping[str, Any]) -> Iterator[Finding]:
    scale = options.get('scale')
    for name, metric in section(options, 'val', 'metrics').items():
        where = f'val:metrics:{name}'
        if not isinstance(metric, Mapping) or metric.get('type') not in _METRICS_WITH_A_BORDER:
            continue
        border = metric.get('crop_border')
        if 'crop_border' in metric and not (is_whole(border) and border >= 0):
            yield error(f'{where}:crop_border', f'must be a whole number of at least 0, got {border!r}')
        elif border is not None and is_whole(scale) and border != scale:
            reason = f'papers leave out a border of {scale} pixels at x{scale} (protocol y_crop_scale)'
            yield warning(f'{where}:crop_border', f'is {border}: {reason}')
        if metric.get('test_y_channel', False) is False:
            reason = 'papers measure on Y (protocol y_crop_scale); on RGB the scores are lower by some dB'
            yield warning(f'{where}:test_y_channel', f'is not true: {reason}')
