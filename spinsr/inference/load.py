"""A network by name or from its weights."""

import inspect
import logging
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spinsr.inference.precision import set_loss
from spinsr.utils.text import SIMILAR_NAME, nearest, printable
from spinsr.weights import DEFAULT_ARCH, DEFAULT_SCALE, default_weights
from spinsr.weights.models import MODELS, find_model

logger = logging.getLogger('spinsr')


@dataclass(frozen=True)
class Network:
    """A network to build, with everything that its weights file tells.

    Attributes:
        arch: Its name; the public name where the arch was not given.
        cls: The class.
        scale: Upscaling factor.
        arguments: Further arguments: those given, and those read from the weights.
        state_dict: The weights in our form; None leaves the random initialisation.
        source: Where the weights are from, for errors.
    """

    arch: str
    cls: type[nn.Module]
    scale: int
    arguments: dict[str, Any]
    state_dict: dict[str, Tensor] | None
    source: str = ''

    def build(self, device: str | torch.device = 'cpu') -> nn.Module:
        """The network in eval mode.

        Raises:
            ValueError, TypeError: The arguments do not fit together, or not the weights.
        """
        from spinsr.convert.registry import find_format, scale_keyword, valueless

        arguments = {scale_keyword(self.cls): self.scale, **self.arguments}
        try:
            net = valueless(self.cls, arguments) if torch.device(device).type == 'meta' else self.cls(**arguments)
        except (ValueError, TypeError) as error:
            format = find_format(self.cls)
            unknown = ', '.join(key for key in format.untold if key not in self.arguments) if format else ''
            if not self.source or not unknown:
                raise
            raise ValueError(f'{error}; {self.source} does not tell {unknown}: give them') from error
        except Exception as error:  # archs of others do not check their arguments
            raise ValueError(f'{self.arch} x{self.scale} cannot be built: {_reason(error)}') from error
        if self.state_dict is None:
            if torch.device(device).type != 'meta':  # where nothing has values
                logger.warning('%s has no weights: the network is untrained', self.arch)
        else:
            from spinsr.convert.checkpoint import without_outer_prefix

            names = net.state_dict().keys()
            try:
                net.load_state_dict(without_outer_prefix(self.state_dict, names.__eq__))
            except RuntimeError as error:
                reason, advice = _reason(error), _rrdbnet(self.state_dict)
                # If they are those of the network, only the reason helps.
                if advice and advice != _rrdbnet(net.state_dict()):
                    reason = f'{advice} ({reason})'
                raise ValueError(f'{self.source} does not fit {self.arch} x{self.scale}: {reason}') from error
        net = net.to(device).eval()
        for shipped in MODELS:
            if (self.arch, os.path.realpath(self.source)) == (shipped.arch, os.path.realpath(shipped.path)):
                set_loss(net, shipped.bf16_loss)
        return net


def load(
    arch: str | os.PathLike | None = None,
    scale: int | None = None,
    weights: str | os.PathLike | Mapping | None = 'default',
    device: str | torch.device = 'cpu',
    *,
    model: str | None = None,
    **arch_args: Any,
) -> nn.Module:
    """Builds a network, with weights, ready for `upscale`.

    Args:
        arch: A network of spinsr ('SPIN', 'SAN', 'RCAN', ...), one of its published configurations ('RLFN-S', ...), or
            any other name in BasicSR's ARCH_REGISTRY, with or without the suffix `_basicsr`. None detects a network of
            spinsr from the weights; without a file it is SPIN. `num_in_ch` and `num_out_ch` are 3 where the arch has no
            default of its own. 'SPIN' with a switch of `SPINVariant` builds that, and logs a warning. Also a folder of
            `save_pretrained`, which has weights and arguments of its own.
        scale: Upscaling factor, the arch's `upscale` (or `scale`). None takes that of the weights, else 4.
        weights: A .pth, .pt or .safetensors file, or a state dict: spinsr's or BasicSR's (`params_ema` before `params`)
            or the authors' own, which is converted. 'default' takes those that spinsr ships; None leaves the random
            initialisation.
        device: Where the network goes.
        model: A network with weights that spinsr ships, as `spinsr models` lists them, instead of `weights`.
        **arch_args: Further arguments of the arch. For a network of spinsr only those that the shapes in the weights do
            not tell are needed.

    Returns:
        The network in eval mode.

    Raises:
        ValueError: Unknown arch, scale or model, weights that do not fit, or no default weights for this arch and
            scale.
        TypeError: The arch does not have an argument of this name.
        FileNotFoundError: The weights file does not exist.

    Example:
        >>> net = load('SPIN', scale=2, weights=None, num_block=1, stoken_size=(12,))
        >>> net.upscale
        2
        >>> load(weights=net.state_dict()).upscale
        2
    """
    if model is not None:
        if not (isinstance(weights, str) and weights == 'default'):
            raise ValueError(f'the model {model} has weights of its own; leave weights out')
        weights = find_model(model, scale).path
    return resolve(arch, scale, weights, **arch_args).build(device)


def resolve(
    arch: str | os.PathLike | None = None,
    scale: int | None = None,
    weights: str | os.PathLike | Mapping | None = 'default',
    **arch_args: Any,
) -> Network:
    """Finds out which network `load` builds, without building it; the arguments are those of `load`.

    Raises:
        ValueError, TypeError, FileNotFoundError: As `load`.
    """
    from spinsr import convert
    from spinsr.archs import pretrained

    if arch is not None and pretrained.is_folder(arch) and (not isinstance(arch, str) or not convert.find_format(arch)):
        if not (isinstance(weights, str) and weights == 'default'):
            raise ValueError(f'{printable(os.fspath(arch))} has weights of its own; leave weights out')
        folder, config = arch, pretrained.read_config(arch)
        arch, weights = config.pop('arch', None), pretrained.weights_in(folder)
        format = convert.find_format(arch) if isinstance(arch, str) else None
        if format is None:
            raise ValueError(
                f'{printable(os.path.join(folder, pretrained.CONFIG))}: arch must be the name of a network of spinsr, '
                f'got {printable(repr(arch))}'
            )
        # The file tells the scale; another one that is asked for is compared with it.
        config.pop(format.scale_keyword, None)
        arch_args = config | arch_args
    arch = os.fspath(arch) if isinstance(arch, os.PathLike) else arch
    if weights is None or (isinstance(weights, str) and weights == 'default'):
        arch, scale = arch or DEFAULT_ARCH, scale or DEFAULT_SCALE
        network = _named(arch, scale, arch_args, weighted=weights is not None)
        if weights is None:
            return network
        # The weights of SPIN serve its variants, too.
        format = convert.find_format(network.cls.__base__ or nn.Module) or convert.find_format(network.cls)
        weights = default_weights(format.name if format else arch, scale)
    source = 'the state dict' if isinstance(weights, Mapping) else printable(os.fspath(weights))
    if arch is not None:
        _named(arch, scale or DEFAULT_SCALE, arch_args)  # a misspelt name or argument shows before the file is read
    checkpoint = weights if isinstance(weights, Mapping) else convert.read_checkpoint(weights)
    try:
        found = convert.detect_arch(checkpoint) if arch is None else arch
        network = replace(_named(found, scale or DEFAULT_SCALE, arch_args), source=source)
        return _with_weights(network, checkpoint, scale)
    except (ValueError, TypeError) as error:
        wanted = '' if arch is None else f' does not fit {arch}' + f' x{scale}' * (scale is not None)
        raise ValueError(f'{source}{wanted}: {_rrdbnet(checkpoint) or _reason(error)}') from error


def _named(arch: str, scale: int, arch_args: Mapping[str, Any], weighted: bool = True) -> Network:
    """A network without weights; `weighted` says whether it will get some."""
    from spinsr import compat
    from spinsr.archs import ARCH_REGISTRY
    from spinsr.archs.registry import find
    from spinsr.convert.registry import find_configuration, formats, scale_keyword
    from spinsr.training.option_files import current_arch

    arch = current_arch(arch, arch_args)
    format, configuration = find_configuration(arch)
    if weighted and format:
        configuration = format.configurations.get(arch, {})  # the weights tell the rest
    name = format.registered if format and arch in (format.name, *format.configurations) else arch
    if format and name not in ARCH_REGISTRY:  # one of BasicSR's, or of a project that does not register there
        try:
            cls = format.cls
        except ImportError as error:
            raise ValueError(f'{printable(repr(arch))} cannot be built: {error}') from error
    elif (cls := find(name)) is None:
        ours = [name for format in formats() for name in (format.name, *format.configurations)]
        hint = nearest(arch, [*ours, *(other for other, _ in ARCH_REGISTRY)], SIMILAR_NAME)
        hint += '; to use one of another package, import it first (in a command: --import MODULE)'
        if not compat.is_installed():
            hint += f"; BasicSR's own networks need BasicSR: {compat.INSTALL}"
        raise ValueError(f'arch must be a network of spinsr or a name in ARCH_REGISTRY, got {arch!r}; {hint}')
    scale_keyword(cls)
    _check_keywords(cls, arch, arch_args)
    parameters = inspect.signature(cls).parameters
    asked = [
        key
        for key in ('num_in_ch', 'num_out_ch')
        if key in parameters and parameters[key].default is inspect.Parameter.empty
    ]
    asked = [] if weighted and format else asked
    return Network(arch, cls, scale, dict.fromkeys(asked, 3) | dict(configuration) | dict(arch_args), None)


def _with_weights(network: Network, checkpoint: Mapping, scale: int | None) -> Network:
    """The network with the state dict in a checkpoint, and with the scale and the arguments that it tells."""
    from spinsr import convert
    from spinsr.convert.shapes import arch_args_of

    format = convert.find_format(network.cls)
    if format is None:
        # All names stay: `Network.build` knows those of the network.
        state_dict = convert.unwrap(checkpoint, lambda names: True)
        convert.check_finite(state_dict)
        return replace(network, state_dict=state_dict)
    try:
        converted = convert.convert_state_dict(checkpoint, format.name)
        told = arch_args_of(converted, format.name, network.cls, network.arguments)
    except ValueError as error:
        raise ValueError(_other_network(checkpoint, format.name) or str(error)) from error
    found = told.pop(format.scale_keyword)
    if scale is not None and scale != found:
        try:  # a network for several scales takes its weights at each of them
            arch_args_of(
                converted, format.name, network.cls, {**network.arguments, **told, format.scale_keyword: scale}
            )
        except (ValueError, ArithmeticError, RuntimeError):
            raise ValueError(f'the file holds {format.name} x{found} weights') from None
    return replace(network, scale=scale or found, arguments=told | network.arguments, state_dict=converted)


def _other_network(checkpoint: Mapping, arch: str) -> str:
    """What a checkpoint holds, if it is another network than was asked for."""
    from spinsr import convert
    from spinsr.convert.shapes import arch_args_of

    try:
        if (found := convert.detect_arch(checkpoint)) == arch:
            return ''
        told = arch_args_of(convert.convert_state_dict(checkpoint, found), found)
    except ValueError:
        return ''
    return f'the file holds {found} x{told[convert.get_format(found).scale_keyword]} weights'


def _rrdbnet(checkpoint: Mapping) -> str:
    """With which arguments BasicSR's RRDBNet takes weights, '' for those of another network.

    It has no `ArchFormat`; of its scales only 1 and 2 show in the shapes, the others all enlarge 4 times.
    """
    from spinsr import convert
    from spinsr.convert import shapes

    try:
        weights = convert.unwrap(checkpoint)
    except (ValueError, TypeError):
        return ''
    first, growth = (weights.get(f'{name}.weight') for name in ('conv_first', 'body.0.rdb1.conv1'))
    if first is None or growth is None or 'conv_last.weight' not in weights:
        return ''
    channels = len(weights['conv_last.weight'])
    scale = {4 * channels: 2, 16 * channels: 1}.get(first.shape[1], 4)
    sizes = {'num_feat': len(first), 'num_block': shapes.count(weights, 'body.{}.'), 'num_grow_ch': len(growth)}
    sizes |= {} if channels == 3 else {'num_in_ch': channels, 'num_out_ch': channels}
    arguments = ' '.join(f'{key}={value}' for key, value in sizes.items())
    return f'the file holds RRDBNet x{scale} weights; pass --arch RRDBNet --scale {scale} --arch-args {arguments}'


def _check_keywords(cls: type, arch: str, arch_args: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in arch_args:
        if key not in parameters:
            raise TypeError(f'{arch} has no keyword {key!r}; {nearest(key, parameters)}')


def _reason(error: Exception) -> str:
    # For weights of another network every name may be wrong, and there are hundreds.
    return printable(textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=' …'))
