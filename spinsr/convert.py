"""Official checkpoints of SPIN, SAN and RCAN -> the state dicts of spinsr.

The names differ; SPIN's 1x1 convolutions are linear layers here, with q, k and v in one matrix; SAN's dead parameters
are dropped; and the trainable MeanShift layers of SAN and RCAN are folded into the first and last convolution and the
buffer `mean`, exactly: with S, s the weight and bias of `sub_mean` and A, a those of `add_mean`,

    mean = -S^-1 s      conv_first.weight = head.weight S      conv_last = A tail + a - mean
"""

import os
import pickle
import re
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

ARCHS = ('SPIN', 'SAN', 'RCAN')

StateDict = dict[str, Tensor]


def convert_state_dict(state_dict: Mapping, arch: str) -> StateDict:
    """Converts an official state dict to ours; one that is ours already comes back as it is.

    Args:
        state_dict: Names to tensors, bare or wrapped in 'model_state_dict', 'params_ema' or 'params' (the first of
            these that is there); with or without `module.` in front of the names.
        arch: 'SPIN', 'SAN' or 'RCAN' ('RCAN_spinsr' is the same).

    Returns:
        A new dict that the arch loads with strict=True. Tensors are the input's where nothing is computed; where a
        drifted MeanShift is folded the folded tensors are float64.

    Raises:
        ValueError: Unknown arch, an empty state dict, a name that belongs to neither form, a MeanShift or a part of
            q, k, v that is missing, or a singular MeanShift. Other missing names are left to load_state_dict.
        TypeError: Not a mapping of names to tensors.
    """
    arch = arch.removesuffix('_spinsr')
    if arch not in ARCHS:
        raise ValueError(f'arch must be one of {", ".join(ARCHS)}, got {arch!r}')
    state_dict = unwrap(state_dict)
    if not state_dict:
        raise ValueError('the state dict must not be empty')
    ours, official = (_OUR_NAMES[arch], _OFFICIAL_MARK[arch])
    if not any(re.match(official, name) for name in state_dict):
        _refuse_unmatched([name for name in state_dict if not re.fullmatch(ours, name)], arch)
        return state_dict
    return _CONVERTERS[arch](state_dict)


def read_checkpoint(path: str | os.PathLike) -> Mapping:
    """Reads a .pth, .pt or .safetensors file onto the CPU without executing anything in it.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: A .safetensors file, and the package safetensors is not installed.
        ValueError: Not a checkpoint, damaged, or it holds more than tensors and plain containers.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no such weights file: {path}')
    if path.endswith('.safetensors'):
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(f'reading {path} needs the package safetensors: pip install safetensors') from error
        read = load_file
    else:
        read = _torch_load
    try:
        return read(path)
    except pickle.UnpicklingError as error:
        # Not torch's own words: they advise to load the file without this protection.
        reason = 'damaged, or more than tensors and plain containers, which could run code'
        raise ValueError(f'{path} is no readable checkpoint: {reason}') from error
    except Exception as error:  # whatever else a damaged file makes the readers raise
        raise ValueError(f'{path} is no readable checkpoint: {str(error) or type(error).__name__}') from error


def _torch_load(path: str) -> Mapping:
    # The training files of SPIN hold their scores as numpy numbers, under the names of NumPy 1 or 2.
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')]
    types = [np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]
    with torch.serialization.safe_globals(names + types):
        return torch.load(path, map_location='cpu', weights_only=True)


def unwrap(state_dict: Mapping) -> StateDict:
    """Returns the bare state dict inside a checkpoint, without `module.` in front of the names.

    Raises:
        TypeError: Not a mapping of names to tensors.
    """
    for key in ('model_state_dict', 'params_ema', 'params'):
        if isinstance(state_dict, Mapping) and isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
            break
    if not isinstance(state_dict, Mapping):
        raise TypeError(f'a state dict must map names to tensors, got {type(state_dict).__name__}')
    strange = [name for name, value in state_dict.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        value = state_dict[strange[0]]
        raise TypeError(f'a state dict must map names to tensors, got {strange[0]!r}: {type(value).__name__}')
    return {name.removeprefix('module.'): value for name, value in state_dict.items()}


def _refuse_unmatched(names: list[str], arch: str) -> None:
    if names:
        raise ValueError(f'{len(names)} names belong to no {arch}: {", ".join(sorted(names))}')


def _rename(state_dict: StateDict, rules: Mapping[str, str], arch: str) -> StateDict:
    """Renames by regular expressions (full match, template); an empty template drops the tensor."""
    renamed, unmatched = {}, []
    for name, value in state_dict.items():
        for pattern, template in rules.items():
            if match := re.fullmatch(pattern, name):
                if template:
                    renamed[match.expand(template)] = value
                break
        else:
            unmatched.append(name)
    _refuse_unmatched(unmatched, arch)
    return renamed


def _take(state_dict: StateDict, name: str, arch: str) -> Tensor:
    if name not in state_dict:
        raise ValueError(f'the {arch} state dict lacks {name}')
    return state_dict.pop(name)


_SPIN_RULES = {
    r'first_conv\.(weight|bias)': r'conv_first.\1',
    r'last_conv\.(weight|bias)': r'conv_last.\1',
    r'mid_convs\.(\d+)\.(weight|bias)': r'convs.\1.\2',
    r'upconv1?\.(weight|bias)': r'upsample.0.\1',
    r'upconv2\.(weight|bias)': r'upsample.1.\1',
    r'(blocks\.\d+)\.inter_layer\.0\.sp\.weight': r'\1.cross_attention.to_token.weight',
    r'(blocks\.\d+)\.inter_layer\.0\.norm\.norm\.(weight|bias)': r'\1.cross_attention.norm.\2',
    r'(blocks\.\d+)\.inter_layer\.0\.([qkv])\.weight': r'\1.cross_attention.\2',
    r'(blocks\.\d+)\.intra_layer\.0\.norm\.norm\.(weight|bias)': r'\1.intra_attention.norm.\2',
    r'(blocks\.\d+)\.intra_layer\.0\.([qkv])\.weight': r'\1.intra_attention.\2',
    r'(blocks\.\d+)\.local_layer\.0\.norm\.(weight|bias)': r'\1.local_attention.norm.\2',
    r'(blocks\.\d+)\.local_layer\.0\.attn\.to_([qkv])\.weight': r'\1.local_attention.\2',
} | {
    rf'(blocks\.\d+)\.{theirs}_layer\.1\.{part}\.(weight|bias)': rf'\1.{ours}_feed_forward.{our_part}.\2'
    for theirs, ours in (('inter', 'cross'), ('intra', 'intra'), ('local', 'local'))
    for part, our_part in (
        (r'norm\.norm', 'norm'),
        (r'ca\.1', 'channel_attention.0'),
        (r'ca\.3', 'channel_attention.2'),
        (r'pa\.0', 'pixel_attention.0'),
        (r'pa\.2', 'pixel_attention.2'),
        ('fc1', 'fc1'),
        ('fc2', 'fc2'),
    )
}


def _convert_spin(state_dict: StateDict) -> StateDict:
    converted = _rename(state_dict, _SPIN_RULES, 'SPIN')
    for stem in {name[:-2] for name in converted if re.search(r'_attention\.[qkv]$', name)}:
        qkv = [_take(converted, f'{stem}.{letter}', 'SPIN') for letter in 'qkv']
        converted[f'{stem}.to_qkv.weight'] = torch.cat([weight.flatten(1) for weight in qkv])
    return {
        name: value.flatten(1) if value.shape[2:] == (1, 1) else value for name, value in converted.items()
    }  # 1x1 convolutions are linear layers


_SAN_RULES = {
    r'(sub|add)_mean\.(weight|bias)': r'\1_mean.\2',
    r'gamma': 'gamma',
    r'head\.0\.(weight|bias)': r'conv_first.\1',
    r'RG\.(\d+)\.rcab\.(\d+)\.conv_first\.0\.(weight|bias)': r'groups.\1.blocks.\2.conv1.\3',
    r'RG\.(\d+)\.rcab\.(\d+)\.conv_first\.2\.(weight|bias)': r'groups.\1.blocks.\2.conv2.\3',
    r'RG\.(\d+)\.soca\.conv_du\.([02])\.(weight|bias)': r'groups.\1.attention.attention.\2.\3',
    r'RG\.(\d+)\.conv_last\.(weight|bias)': r'groups.\1.conv.\2',
    r'non_local\.non_local\.(theta|phi|g)(?:\.0)?\.(weight|bias)': r'non_local.\1.\2',
    r'non_local\.non_local\.W\.(weight|bias)': r'non_local.out.\1',
    r'tail\.0\.(\d+)\.(weight|bias)': r'upsample.\1.\2',
    r'tail\.1\.(weight|bias)': r'conv_last.\1',
    # Never used by the authors' forward pass.
    r'RG\.\d+\.gamma|conv_last\.(?:weight|bias)|non_local\.soca\..*': '',
}

_RCAN_RULES = {
    r'(sub|add)_mean\.(weight|bias)': r'\1_mean.\2',
    r'head\.0\.(weight|bias)': r'conv_first.\1',
    r'body\.(\d+)\.body\.(\d+)\.body\.([02])\.(weight|bias)': r'body.\1.residual_group.\2.rcab.\3.\4',
    r'body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.0\.(weight|bias)': r'body.\1.residual_group.\2.rcab.3.attention.1.\3',
    r'body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.2\.(weight|bias)': r'body.\1.residual_group.\2.rcab.3.attention.3.\3',
    r'body\.(\d+)\.body\.\d+\.(weight|bias)': r'body.\1.conv.\2',
    r'body\.\d+\.(weight|bias)': r'conv_after_body.\1',
    r'tail\.0\.(\d+)\.(weight|bias)': r'upsample.\1.\2',
    r'tail\.1\.(weight|bias)': r'conv_last.\1',
}


def _convert_san(state_dict: StateDict) -> StateDict:
    return _fold_mean(_rename(state_dict, _SAN_RULES, 'SAN'), 'SAN')


def _convert_rcan(state_dict: StateDict) -> StateDict:
    return _fold_mean(_rename(state_dict, _RCAN_RULES, 'RCAN'), 'RCAN')


def _fold_mean(state_dict: StateDict, arch: str) -> StateDict:
    sub, sub_bias, add, add_bias = (
        _take(state_dict, f'{name}_mean.{part}', arch) for name in ('sub', 'add') for part in ('weight', 'bias')
    )
    identity = torch.eye(len(sub_bias), dtype=sub.dtype, device=sub.device).view_as(sub)
    if torch.equal(sub, identity) and torch.equal(add, identity) and torch.equal(add_bias, -sub_bias):
        state_dict['mean'] = -sub_bias.view(1, -1, 1, 1)
        return state_dict
    sub, sub_bias, add, add_bias = (value.double() for value in (sub.flatten(1), sub_bias, add.flatten(1), add_bias))
    try:
        mean = -torch.linalg.solve(sub, sub_bias)
    except torch.linalg.LinAlgError as error:
        raise ValueError(f'sub_mean.weight must be invertible to be folded, got {sub.tolist()}') from error
    first, last, last_bias = (
        _take(state_dict, name, arch).double() for name in ('conv_first.weight', 'conv_last.weight', 'conv_last.bias')
    )
    state_dict['mean'] = mean.view(1, -1, 1, 1)
    state_dict['conv_first.weight'] = torch.einsum('oihw,ij->ojhw', first, sub)
    state_dict['conv_last.weight'] = torch.einsum('po,oihw->pihw', add, last)
    state_dict['conv_last.bias'] = add @ last_bias + add_bias - mean
    return state_dict


_CONVERTERS: Mapping[str, Callable[[StateDict], StateDict]] = {
    'SPIN': _convert_spin,
    'SAN': _convert_san,
    'RCAN': _convert_rcan,
}

# A name that only the official form has, and what ours look like.
_OFFICIAL_MARK = {
    'SPIN': r'first_conv\.|last_conv\.|mid_convs\.|upconv|blocks\.\d+\.(inter|intra|local)_layer\.',
    'SAN': r'head\.|RG\.|tail\.|(sub|add)_mean\.|non_local\.non_local\.',
    'RCAN': r'head\.|tail\.|(sub|add)_mean\.|body\.\d+\.body\.',
}
_ATTENTION = r'(cross|intra|local)_attention\.(norm\.(weight|bias)|(to_qkv|to_token)\.weight)'
_FEED_FORWARD = (
    r'(cross|intra|local)_feed_forward\.(norm|fc1|fc2|channel_attention\.[02]|pixel_attention\.[02])\.(weight|bias)'
)
_OUR_NAMES = {
    'SPIN': r'(conv_first|conv_last|convs\.\d+|upsample\.\d+)\.(weight|bias)'
    rf'|blocks\.\d+\.({_ATTENTION}|{_FEED_FORWARD})',
    'SAN': r'mean|gamma|((conv_first|conv_last|upsample\.\d+|non_local\.(theta|phi|g|out)'
    r'|groups\.\d+\.(conv|blocks\.\d+\.conv[12]|attention\.attention\.[02])))\.(weight|bias)',
    'RCAN': r'mean|(conv_first|conv_last|conv_after_body|upsample\.\d+|body\.\d+\.conv'
    r'|body\.\d+\.residual_group\.\d+\.rcab\.([02]|3\.attention\.[13]))\.(weight|bias)',
}
