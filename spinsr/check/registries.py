"""The sections that become the arguments of a class, against its signature; what is cheap is built to see it work."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from spinsr.check.finding import Finding, datasets, error, section
from spinsr.training import freezing
from spinsr.utils.text import closest, nearest
from spinsr.utils.validation import NAMES, is_number, is_whole

# BasicSR's losses that are built without data or downloads.
_PLAIN_LOSSES = ('L1Loss', 'MSELoss', 'CharbonnierLoss', 'WeightedTVLoss', 'GANLoss')
# BasicSR's archs that are built from their arguments alone.
_PLAIN_ARCHS = ('VGGStyleDiscriminator', 'UNetDiscriminatorSN', 'MSRResNet', 'EDSR', 'RCAN', 'RRDBNet')
# UNetDiscriminatorSN halves its input three times, and adds what it enlarges again.
_UNET_STRIDE = 8
_SCHEDULERS = {
    'MultiStepLR': 'MultiStepRestartLR',
    'MultiStepRestartLR': 'MultiStepRestartLR',
    'CosineAnnealingRestartLR': 'CosineAnnealingRestartLR',
}


def find(registry: str, name: Any) -> Any:
    """The class or function of a name in BasicSR's registry ('ARCH', 'DATASET', 'LOSS', 'METRIC', 'MODEL'), or None."""
    known = _known(registry)
    # The suffix is BasicSR's own convention for its classes.
    return known.get(name, known.get(f'{name}_basicsr')) if isinstance(name, str) else None


def _known(registry: str) -> dict[str, Any]:
    from basicsr.utils import registry as module

    # Not Registry.get: it prints before it fails.
    return dict(iter(getattr(module, f'{registry}_REGISTRY')))


def types(options: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds what is wrong with every `type`: not registered, keys that its signature does not have, wrong values.

    The archs, models and datasets must have been registered.
    """
    yield from _registered('MODEL', options.get('model_type'), 'model_type') if 'model_type' in options else ()
    for key, _, dataset in datasets(options):
        if 'type' in dataset:
            yield from _registered('DATASET', dataset['type'], f'{key}:type')
    for key, network in options.items():
        if str(key).startswith('network_') and isinstance(network, Mapping):
            yield from _typed('ARCH', network, key)
            arch = find('ARCH', network.get('type'))
            if arch is not None:
                found = list(signature(arch, network, key)) or list(values(arch, network, key))
                yield from found or _discriminated_size(arch, network, key, options)
    yield from _losses(options)
    yield from _optimizer_and_scheduler(options)
    yield from parameter_names(options)
    for name, metric in section(options, 'val', 'metrics').items():
        yield from _metric(metric, f'val:metrics:{name}')


def _registered(registry: str, name: Any, where: str) -> Iterator[Finding]:
    if find(registry, name) is None:
        known = _known(registry)
        hint = '--import MODULE registers that of another package'
        if close := closest(name, known):
            hint = f'did you mean {close!r}? {hint}'
        else:
            hint = f'{hint}; known: {", ".join(sorted(known))}'
        yield error(where, f'{name!r} is not registered; {hint}')


def _typed(registry: str, part: Mapping[str, Any], where: str) -> Iterator[Finding]:
    if 'type' not in part:
        yield error(where, "there is no key 'type'")
    else:
        yield from _registered(registry, part['type'], f'{where}:type')


def signature(
    target: Callable,
    part: Mapping[str, Any],
    where: str,
    given: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
) -> Iterator[Finding]:
    """Compares the keys of a section, and the kinds of their values, with a signature.

    Args:
        target: The class or function.
        part: The section; its key `type` is left out.
        where: What the section is called.
        given: Arguments that come from elsewhere.
        extra: Keys that are read by somebody else.
    """
    name = target.__name__
    parameters = [p for p in inspect.signature(target).parameters.values() if p.name not in given]
    named = {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    # Where BasicSR's classes take **kwargs, they drop them without a word.
    if _is_known(target) or not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in part:
            if key != 'type' and key not in named and key not in extra:
                yield error(f'{where}:{key}', f'{name} has no keyword {key!r}; {nearest(key, named)}')
    for key, default in named.items():
        if key not in part:
            if default is inspect.Parameter.empty:
                yield error(where, f'{name} needs the keyword {key!r}')
        elif wanted := _other_kind(default, part[key]):
            yield error(f'{where}:{key}', f'must be {wanted}, got {part[key]!r}')


def _is_known(target: Any) -> bool:
    return target.__module__.partition('.')[0] in ('basicsr', 'spinsr', 'torch')


def _other_kind(default: Any, value: Any) -> str:
    """What a value should be, by the default that it replaces, where it is plainly something else."""
    if isinstance(default, bool):
        return '' if isinstance(value, bool) else 'true or false'
    if is_number(default):
        return 'a number' if isinstance(value, str | bool) or value is None else ''
    if isinstance(default, str):
        return '' if isinstance(value, str) else 'text'
    if isinstance(default, tuple | list):
        return '' if isinstance(value, tuple | list) else 'a list'
    return ''


def values(arch: type, network: Mapping[str, Any], where: str = 'network_g') -> Iterator[Finding]:
    """Finds values of a network section that do not fit, by building it without memory.

    Only archs of spinsr and the simple ones of BasicSR are built: others may read files, or need memory.

    Args:
        arch: The class.
        network: The section, with keys that fit its signature.
        where: What the section is called.
    """
    if not arch.__module__.startswith('spinsr.') and arch.__name__ not in _PLAIN_ARCHS:
        return
    import torch

    try:
        with torch.device('meta'):
            arch(**_arguments(network))
    # RuntimeError: torch's, for negative or enormous sizes. BasicSR asserts, and divides.
    except (ValueError, TypeError, RuntimeError, AssertionError, ArithmeticError, LookupError) as problem:
        reason = next(iter(str(problem).splitlines()), '') or type(problem).__name__
        yield error(where, reason if arch.__module__.startswith('spinsr.') else f'{arch.__name__} fails: {reason}')


def _discriminated_size(
    arch: type, network: Mapping[str, Any], where: str, options: Mapping[str, Any]
) -> Iterator[Finding]:
    """Finds a discriminator of BasicSR that does not take patches of this size."""
    if not arch.__module__.startswith('basicsr.'):
        return
    train = section(options, 'datasets', 'train')
    gt_size = options.get('gt_size', train.get('gt_size'))
    if arch.__name__ == 'UNetDiscriminatorSN':
        grown = train.get('gt_sizes')
        grown = grown if isinstance(grown, list) else []
        for key, size in [('gt_size', gt_size), *(('gt_sizes', size) for size in grown)]:
            if is_whole(size) and size % _UNET_STRIDE:
                rule = f'must be a multiple of {_UNET_STRIDE} for {arch.__name__}'
                yield error(f'datasets:train:{key}', f'{rule}, got {size}')
        return
    if arch.__name__ != 'VGGStyleDiscriminator':
        return
    wanted = network.get('input_size', inspect.signature(arch).parameters['input_size'].default)
    if is_whole(gt_size) and gt_size != wanted:
        yield error(f'{where}:input_size', f'must be gt_size, {gt_size}, got {wanted}')


def _arguments(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != 'type'}


def _losses(options: Mapping[str, Any]) -> Iterator[Finding]:
    from spinsr.models.spinsr_model import loss_problem

    train = section(options, 'train')
    model = find('MODEL', options.get('model_type'))
    network = find('ARCH', section(options, 'network_g').get('type'))
    for name, part in train.items():
        if not str(name).endswith('_opt') or not part:
            continue
        where = f'train:{name}'
        if not isinstance(part, Mapping):
            yield error(where, f'must be a section (key: value), got {part!r}')
            continue
        yield from _typed('LOSS', part, where)
        loss = find('LOSS', part.get('type'))
        if loss is not None:
            found = list(signature(loss, part, where))
            if model is not None and (problem := loss_problem(model, name, loss, network)):
                found.append(error(where, problem))
            yield from found
            if not found and (part['type'] in _PLAIN_LOSSES or loss.__module__.startswith('spinsr.')):
                yield from _tried(loss, where, **_arguments(part))
    if train and model is not None and model.__name__ in ('SRModel', 'SpinsrModel'):
        enough = ('pixel_opt', 'perceptual_opt', *(('distill_opt',) if model.__name__ == 'SpinsrModel' else ()))
        if not any(train.get(name) for name in enough):
            yield error('train', f'there is no loss: none of {", ".join(enough)}')


def _tried(build: Callable, where: str, *args: Any, **kwargs: Any) -> Iterator[Finding]:
    try:
        build(*args, **kwargs)
    except (ValueError, TypeError, AssertionError, NotImplementedError) as problem:
        yield error(where, str(problem) or f'{build.__name__} refuses the values')


def _optimizer_and_scheduler(options: Mapping[str, Any]) -> Iterator[Finding]:
    import torch
    from basicsr.models import lr_scheduler
    from basicsr.models.base_model import BaseModel

    model = find('MODEL', options.get('model_type'))
    if model is None or not issubclass(model, BaseModel):
        return
    train = section(options, 'train')
    for name, part in train.items():
        if str(name).startswith('optim_') and isinstance(part, Mapping) and 'type' in part:
            yield from _optimizer(model, part, f'train:{name}')
    part = section(train, 'scheduler')
    if 'type' not in part:
        return
    if str(part['type']) not in _SCHEDULERS:
        if model.setup_schedulers is BaseModel.setup_schedulers:
            hint = nearest(part['type'], _SCHEDULERS)
            yield error('train:scheduler:type', f'BasicSR has no scheduler {part["type"]!r}; {hint}')
        return
    scheduler = getattr(lr_scheduler, _SCHEDULERS[part['type']])
    found = list(signature(scheduler, part, 'train:scheduler', given=('optimizer', 'last_epoch')))
    yield from found
    if not found:
        optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        yield from _tried(scheduler, 'train:scheduler', optimizer, **_arguments(part))


def _optimizer(model: type, part: Mapping[str, Any], where: str) -> Iterator[Finding]:
    import torch
    from basicsr.models.base_model import BaseModel

    kind = part['type']
    own = _own_optimizer(model, part)
    if own is not None and where == 'train:optim_g':
        yield from (error(f'{where}:{key}' if key else where, problem) for key, problem in own.problems(part))
        return
    ours = find('MODEL', 'SpinsrModel')
    if model.get_optimizer is BaseModel.get_optimizer and _own_optimizer(ours, part) is not None:
        yield error(f'{where}:type', f'{model.__name__} has no optimizer {kind!r}; model_type: SpinsrModel has')
        return
    optimizer = getattr(torch.optim, str(kind), None)
    if inspect.isclass(optimizer):
        needs = () if 'lr' in part else (error(where, f"{kind} needs the keyword 'lr'"),)
        found = [*needs, *signature(optimizer, part, where, given=('params',))]
        if found:
            yield from found
            return
    try:
        # Which types there are only the model knows: its get_optimizer is asked, on one parameter and without a model.
        model.get_optimizer(object.__new__(model), kind, [torch.zeros(1, requires_grad=True)], **_arguments(part))
    except NotImplementedError:
        yield error(f'{where}:type', f'{model.__name__} has no optimizer {kind!r}; BasicSR has Adam only')
    except (ValueError, TypeError, IndexError) as problem:
        yield error(where, str(problem))
    except AttributeError:
        # It wants a whole model, so nothing can be said.
        return


def _own_optimizer(model: Any, part: Mapping[str, Any]) -> Any:
    """The module of the optimizer of a section, where the model declares it."""
    return getattr(model, 'OPTIMIZERS', {}).get(str(part.get('type')))


def parameter_names(options: Mapping[str, Any], *, of_others: bool = False) -> Iterator[Finding]:
    """Finds names in `optim_g` and `freeze_params` that no parameter has, where networks can be built without memory.

    Args:
        options: The option file.
        of_others: Build networks of other packages too, which may take seconds.
    """
    model, train = find('MODEL', options.get('model_type')), section(options, 'train')
    freezes = 'freeze_params' in getattr(model, 'OPTIONS', {}).get('train', {})
    if freezes and NAMES.holds(train.get('freeze_params')):
        found = freezing.problem(train)
        if found is None and train.get('freeze_params'):
            named = _named_parameters(options, ['network_g'], of_others)
            found = freezing.problem(train, [name for name, _ in named]) if named else None
        if found:
            yield error(f'train:{found[0]}', found[1])
    part = section(train, 'optim_g')
    own = _own_optimizer(model, part)
    # What is wrong without the names is said by `types`.
    if own is not None and not any(own.problems(part)):
        if named := _named_parameters(options, [key for key in options if str(key).startswith('network_')], of_others):
            yield from (error(f'train:optim_g:{key}', problem) for key, problem in own.problems(part, named))


def _named_parameters(options: Mapping[str, Any], networks: Iterable[str], of_others: bool) -> list[tuple[str, Any]]:
    """The parameters of networks, on the device meta; [] where one of them cannot be built."""
    import torch

    named: list[tuple[str, Any]] = []
    for network in filter(None, (section(options, key) for key in networks)):
        arch = find('ARCH', network.get('type'))
        if arch is None or not (of_others or arch.__module__.startswith('spinsr.')):
            return []
        try:
            with torch.device('meta'):
                named += arch(**_arguments(network)).named_parameters()
        # Wrong arguments are said by `types`; an arch of another project may need memory to be built.
        except Exception:
            return []
    return named


def _metric(part: Any, where: str) -> Iterator[Finding]:
    if not isinstance(part, Mapping):
        yield error(where, f'must be a section (key: value), got {part!r}')
        return
    yield from _typed('METRIC', part, where)
    metric = find('METRIC', part.get('type'))
    if metric is not None:
        yield from signature(metric, part, where, given=('img', 'img2'), extra=('better',))
    if part.get('better', 'higher') not in ('higher', 'lower'):
        yield error(f'{where}:better', f'must be higher or lower, got {part["better"]!r}')
