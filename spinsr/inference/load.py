"""A network by name, with its weights."""

import inspect
import logging
import os
import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spinsr.utils.text import nearest
from spinsr.weights import default_weights

logger = logging.getLogger('spinsr')


def load(
    arch: str = 'SPIN',
    scale: int = 4,
    weights: str | os.PathLike | Mapping | None = 'default',
    device: str | torch.device = 'cpu',
    **arch_args,
) -> nn.Module:
    """Builds a network, with weights, ready for `upscale`.

    Args:
        arch: 'SPIN', 'SAN', 'RCAN' (the one of spinsr), or any other name in BasicSR's ARCH_REGISTRY, with or without
            the suffix `_basicsr`. `num_in_ch` and `num_out_ch` are 3 where the arch has no default of its own. 'SPIN'
            with a switch of `SPINVariant` builds that, and logs a warning.
        scale: Upscaling factor, the arch's `upscale` (or `scale`).
        weights: A .pth, .pt or .safetensors file, or a state dict: spinsr's or BasicSR's (`params_ema` before `params`)
            or the authors' own, which is converted. 'default' takes those that spinsr ships; None leaves the random
            initialisation.
        device: Where the network goes.
        **arch_args: Further arguments of the arch; an unknown one is a TypeError.

    Returns:
        The network in eval mode.

    Raises:
        ValueError: Unknown arch or scale, weights that do not fit, or no default weights for this arch and scale.
        FileNotFoundError: No such weights file.

    Example:
        >>> net = load('SPIN', scale=2, weights=None, num_block=1, stoken_size=(12,))
        >>> net.upscale
        2
    """
    from spinsr import convert
    from spinsr.archs import ARCH_REGISTRY
    from spinsr.training.option_files import current_arch

    arch = current_arch(arch, arch_args)
    name = 'RCAN_spinsr' if arch == 'RCAN' else arch
    if name not in ARCH_REGISTRY and f'{name}_basicsr' in ARCH_REGISTRY:
        name += '_basicsr'
    if name not in ARCH_REGISTRY:
        names = ['RCAN', *(known for known, _ in ARCH_REGISTRY)]
        hint = nearest(arch, names)
        raise ValueError(f'arch must be SPIN, SAN, RCAN or a name in ARCH_REGISTRY, got {arch!r}; {hint}')
    if isinstance(weights, str) and weights == 'default':
        weights = default_weights(convert.names.public(arch), scale)
    cls = ARCH_REGISTRY.get(name)
    keyword = _scale_keyword(cls)
    _check_keywords(cls, arch, arch_args)
    parameters = inspect.signature(cls).parameters
    asked = [
        key
        for key in ('num_in_ch', 'num_out_ch')
        if key in parameters and parameters[key].default is inspect.Parameter.empty
    ]
    try:
        net = cls(**{keyword: scale}, **(dict.fromkeys(asked, 3) | arch_args))
    except (ValueError, TypeError):
        raise
    except Exception as error:  # archs of others do not check their arguments
        raise ValueError(f'{arch} x{scale} cannot be built: {_reason(error)}') from error
    if weights is None:
        logger.warning('%s has no weights: the network is untrained', arch)
    else:
        state_dict = weights if isinstance(weights, Mapping) else convert.read_checkpoint(weights)
        own = convert.names.is_known(name)
        try:
            net.load_state_dict(convert.convert_state_dict(state_dict, name) if own else convert.unwrap(state_dict))
        except (ValueError, TypeError, RuntimeError) as error:
            source = 'the state dict' if isinstance(weights, Mapping) else os.fspath(weights)
            raise ValueError(
                f'{source} does not fit {arch} x{scale}: {_content(state_dict, arch, scale) or _reason(error)}'
            ) from error
    return net.to(device).eval()


def _check_keywords(cls: type, arch: str, arch_args: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in arch_args:
        if key not in parameters:
            raise TypeError(f'{arch} has no keyword {key!r}; {nearest(key, parameters)}')


def _content(state_dict: Mapping, arch: str, scale: int) -> str:
    """What a state dict is of, if it is of another network or scale than was asked for."""
    from spinsr import convert
    from spinsr.convert.state_dicts import upscale_of

    try:
        state_dict = convert.unwrap(state_dict)
        name = convert.detect_arch(state_dict)
        found = name, upscale_of(convert.convert_state_dict(state_dict, name))
    except (ValueError, TypeError):
        return ''
    wanted = convert.names.public(arch), scale
    return f'it is of {found[0]} x{found[1]}' if found != wanted else ''


def _reason(error: Exception) -> str:
    # Of another network every name may be wrong, and there are hundreds.
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=' …')


def _scale_keyword(arch: type[nn.Module]) -> str:
    """What the arch calls its upscaling factor; BasicSR's archs do not agree on a name."""
    keywords = inspect.signature(arch).parameters
    for name in ('upscale', 'scale'):
        if name in keywords:
            return name
    raise ValueError(f'{arch.__name__} takes neither upscale nor scale, so it is no network for super-resolution')
