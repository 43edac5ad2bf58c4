"""State dicts of `ARCHS`: the authors' form -> ours, and back; our RCAN -> BasicSR's.

The names differ (`spinsr.convert.names`). SPIN's 1x1 convolutions are linear layers here, with q, k and v in one
matrix. SAN's dead parameters and EMT's fixed kernels are dropped. The MeanShift layers of SAN, RCAN and EMT are folded
into the first and last convolution and the buffer `mean`, exactly: with S, s the weight and bias of `sub_mean` and A, a
those of `add_mean`,

    mean = -S^-1 s      conv_first.weight = head.weight S      conv_last = A tail + a - mean

On the way back S and A are the identity.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from spinsr.archs import emt_arch
from spinsr.convert import names
from spinsr.convert.checkpoint import unwrap
from spinsr.convert.names import ARCHS, StateDict

# What RCAN and SAN subtract unless told otherwise, and what BasicSR's RCAN keeps outside its state dict.
DIV2K_MEAN = 255.0 * torch.tensor((0.4488, 0.4371, 0.4040), dtype=torch.float32)

# Linear layers in the authors' code too; every other matrix of SPIN is a 1x1 convolution there.
_LINEAR_IN_SPIN = re.compile(r'blocks\.\d+\.(inter_layer\.0\.sp|local_layer\.0\.attn\.to_[qkv])\.weight')


def convert_state_dict(state_dict: Mapping, arch: str) -> StateDict:
    """Converts an official state dict to ours; one that is ours already comes back as it is.

    Args:
        state_dict: Names to tensors, bare or wrapped in 'model_state_dict', 'params_ema' or 'params' (the first of
            these that is there); with or without `module.` in front of the names.
        arch: One of `ARCHS` ('RCAN_spinsr' is 'RCAN').

    Returns:
        A new dict that the arch loads with strict=True. Tensors are the input's where nothing is computed; where a
        drifted MeanShift is folded the folded tensors are float64.

    Raises:
        ValueError: Unknown arch, an empty state dict, a name that belongs to neither form, a MeanShift or a part of
            q, k, v that is missing, a singular MeanShift, or a fixed kernel of EMT that is missing or another. Other
            missing names are left to load_state_dict.
        TypeError: Not a mapping of names to tensors.
    """
    state_dict, arch = _checked(state_dict, arch)
    if not names.is_official(state_dict, arch):
        names.check(state_dict, arch, 'ours')
        return state_dict
    converted = names.to_ours(state_dict, arch)
    if arch == 'SPIN':
        return {name: value.flatten(1) if value.shape[2:] == (1, 1) else value for name, value in converted.items()}
    if arch == 'EMT':
        _check_constants(state_dict, emt_arch.constants_of(converted), arch)
    return converted | _fold_mean(state_dict, converted, arch) if names.has_mean(arch) else converted


def to_official(state_dict: Mapping, arch: str) -> StateDict:
    """Converts our state dict to the authors' form; one that is theirs already comes back as it is.

    The inverse of `convert_state_dict`, tensor for tensor, but for what that does not keep: a drifted MeanShift comes
    back as the identity with the folded convolutions, the same function; the parameters that the authors' SAN has and
    never uses come back as zeros.

    Args:
        state_dict: As for `convert_state_dict`. RCAN and SAN may lack `mean`, as BasicSR's RCAN: it is that of DIV2K.
        arch: One of `ARCHS` ('RCAN_spinsr' is 'RCAN').

    Returns:
        A new dict that the authors' network loads with strict=True. Tensors are the input's, or views of them.

    Raises:
        ValueError: Unknown arch, an empty state dict, a name that belongs to neither form, a SAN that lacks what the
            shapes are taken from, an EMT that lacks `mean`. Other missing names are not looked for.
        TypeError: Not a mapping of names to tensors.
    """
    state_dict, arch = _checked(state_dict, arch)
    if names.is_official(state_dict, arch):
        names.check(state_dict, arch, 'official')
        return state_dict
    converted = names.to_official(state_dict, arch)
    if arch == 'SPIN':
        return {
            name: value[..., None, None] if value.dim() == 2 and not _LINEAR_IN_SPIN.fullmatch(name) else value
            for name, value in converted.items()
        }
    if arch == 'SAN':
        converted |= _dead_parameters(state_dict)
    if arch == 'EMT':
        converted |= emt_arch.constants_of(state_dict)
    if not names.has_mean(arch):
        return converted
    known = 'mean' in state_dict or arch == 'EMT'
    mean = _take(state_dict, 'mean', arch) if known else DIV2K_MEAN.to(next(iter(state_dict.values())))
    identity = torch.eye(mean.numel(), dtype=mean.dtype, device=mean.device)[..., None, None]
    for name, bias in (('sub_mean', -mean.flatten()), ('add_mean', mean.flatten())):
        converted |= {f'{name}.weight': identity, f'{name}.bias': bias}
    return converted


def to_basicsr(state_dict: Mapping) -> StateDict:
    """Converts RCAN, in whichever form, to the state dict of BasicSR's own RCAN: ours without `mean`.

    BasicSR's RCAN has no place for the mean in its files: it subtracts that of DIV2K, in a range of 0..255.

    Raises:
        ValueError: As `convert_state_dict`; or `mean` is another, so that BasicSR's RCAN would be another function.
        TypeError: Not a mapping of names to tensors.
    """
    converted = convert_state_dict(state_dict, 'RCAN')
    mean = converted.pop('mean', DIV2K_MEAN).flatten()
    expected = DIV2K_MEAN.to(mean)
    # As far as float32 holds it; a drift of 1e-6 of the mean is 5e-7 of the range of an image.
    if mean.shape != expected.shape or not torch.allclose(mean, expected, rtol=1e-6, atol=0):
        numbers, theirs = (', '.join(f'{number:.6g}' for number in values.tolist()) for values in (mean, DIV2K_MEAN))
        raise ValueError(
            f"BasicSR's RCAN always subtracts the mean ({theirs}), and this one subtracts ({numbers}): it drifted in "
            'training, or img_range or rgb_mean is another; RCAN_spinsr keeps it'
        )
    return converted


def detect_arch(state_dict: Mapping) -> str:
    """The arch, one of `ARCHS`, that most names of a state dict speak of, in the authors' form or in ours.

    Args:
        state_dict: As for `convert_state_dict`.

    Raises:
        ValueError: Less than half the names are those of one arch, or as many are those of another.
        TypeError: Not a mapping of names to tensors.
    """
    state_dict = unwrap(state_dict)
    fitting = {arch: names.fitting(state_dict, arch) for arch in ARCHS}
    most = max(fitting.values())
    if 2 * most <= len(state_dict):
        shown = ', '.join(sorted(state_dict)[:3]) or 'no names'
        raise ValueError(f'these are not the weights of {", ".join(ARCHS)}, but of a network with {shown}')
    candidates = [arch for arch in ARCHS if fitting[arch] == most]
    if len(candidates) > 1:
        raise ValueError(f'the names fit {" and ".join(candidates)} alike: name the arch')
    return candidates[0]


def upscale_of(state_dict: Mapping[str, Tensor]) -> int:
    """The upscaling factor of a state dict of ours: a stage of factor f has f * f times the channels that it takes.

    The last stage may be `conv_last`: it makes f * f times the channels of the image.
    """
    stages = [value.shape[:2] for name, value in state_dict.items() if re.fullmatch(r'upsample\.\d+\.weight', name)]
    if 'conv_last.weight' in state_dict and 'conv_first.weight' in state_dict:
        stages.append((len(state_dict['conv_last.weight']), state_dict['conv_first.weight'].shape[1]))
    return math.prod(round((after / before) ** 0.5) for after, before in stages)


def _checked(state_dict: Mapping, arch: str) -> tuple[StateDict, str]:
    arch, state_dict = names.canonical(arch), unwrap(state_dict)
    if not state_dict:
        raise ValueError('the state dict must not be empty')
    return state_dict, arch


def _take(state_dict: StateDict, name: str, arch: str) -> Tensor:
    if name not in state_dict:
        raise ValueError(f'the {arch} state dict lacks {name}')
    return state_dict[name]


def _check_constants(official: StateDict, constants: StateDict, arch: str) -> None:
    """Refuses a file whose fixed tensors, which are part of our code, are others."""
    for name, expected in constants.items():
        if not torch.equal(_take(official, name, arch), expected):
            raise ValueError(f'{name} must hold the fixed kernels of {arch}: the code here has no others')


def _fold_mean(official: StateDict, ours: StateDict, arch: str) -> StateDict:
    """The tensors of ours that the MeanShift of the authors determines."""
    sub, sub_bias, add, add_bias = (
        _take(official, f'{name}_mean.{end}', arch) for name in ('sub', 'add') for end in ('weight', 'bias')
    )
    identity = torch.eye(len(sub_bias), dtype=sub.dtype, device=sub.device).view_as(sub)
    if torch.equal(sub, identity) and torch.equal(add, identity) and torch.equal(add_bias, -sub_bias):
        return {'mean': -sub_bias.view(1, -1, 1, 1)}
    sub, sub_bias, add, add_bias = (value.double() for value in (sub.flatten(1), sub_bias, add.flatten(1), add_bias))
    try:
        mean = -torch.linalg.solve(sub, sub_bias)
    except torch.linalg.LinAlgError as error:
        raise ValueError(f'sub_mean.weight must be invertible to be folded, got {sub.tolist()}') from error
    first, last, last_bias = (
        _take(ours, name, arch).double() for name in ('conv_first.weight', 'conv_last.weight', 'conv_last.bias')
    )
    return {
        'mean': mean.view(1, -1, 1, 1),
        'conv_first.weight': torch.einsum('oihw,ij->ojhw', first, sub),
        # A pixel shuffle that follows finds the pixels of a channel side by side.
        'conv_last.weight': torch.einsum('po,okihw->pkihw', add, last.unflatten(0, (len(mean), -1))).flatten(0, 1),
        'conv_last.bias': (add @ last_bias.view(len(mean), -1) + (add_bias - mean)[:, None]).flatten(),
    }


def _dead_parameters(ours: StateDict) -> StateDict:
    """What the authors' SAN has and never uses, as zeros: it loads with strict=True only where these are there."""
    conv, theta = (_take(ours, name, 'SAN') for name in ('groups.0.conv.weight', 'non_local.theta.weight'))
    reduced, channels = theta.shape[:2]  # an eighth of the channels, in the unused attention too
    groups = sum(re.fullmatch(r'groups\.\d+\.conv\.weight', name) is not None for name in ours)
    shapes = {f'RG.{group}.gamma': (1,) for group in range(groups)} | {
        'conv_last.weight': conv.shape,
        'conv_last.bias': (channels,),
        'non_local.soca.conv_du.0.weight': (reduced, channels, 1, 1),
        'non_local.soca.conv_du.0.bias': (reduced,),
        'non_local.soca.conv_du.2.weight': (channels, reduced, 1, 1),
        'non_local.soca.conv_du.2.bias': (channels,),
    }
    return {name: conv.new_zeros(shape) for name, shape in shapes.items()}
