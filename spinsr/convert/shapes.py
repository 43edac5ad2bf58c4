"""The arguments of a network, from the shapes in its state dict."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from spinsr.convert import names
from spinsr.convert.state_dicts import upscale_of


def arch_args_of(state_dict: Mapping[str, Tensor], arch: str) -> dict[str, Any]:
    """The arguments with which an arch takes a state dict of ours with strict=True.

    What no shape tells is left to the arch's defaults: SPIN's `stoken_size`, `num_heads`, `num_iter`, and what makes a
    variant of it; `img_range` of the others; `res_scale` of RCAN; EMT's `num_heads`, `window_size` and `shift_size`.

    Args:
        state_dict: In our form, from `convert_state_dict`.
        arch: One of `ARCHS` ('RCAN_spinsr' is 'RCAN').

    Raises:
        ValueError: Unknown arch, or tensors are missing; the first ones are named.
    """
    arch = names.canonical(arch)
    if missing := names.missing(state_dict, arch):
        raise ValueError(f'the {arch} state dict lacks {len(missing)} tensors: {", ".join(missing[:3])}')
    if arch in names.MODULES:
        return names.MODULES[arch].arguments_of(state_dict)
    num_feat, channels = state_dict['conv_first.weight'].shape[:2]
    args = {'num_in_ch': channels, 'num_out_ch': channels, 'num_feat': num_feat, 'upscale': upscale_of(state_dict)}
    if arch == 'SPIN':
        return args | {
            'num_block': _count(state_dict, r'blocks\.(\d+)\.'),
            'qk_dim': len(state_dict['blocks.0.cross_attention.to_token.weight']),
            'mlp_dim': len(state_dict['blocks.0.cross_feed_forward.fc1.weight']),
        }
    group, block, squeeze = {
        'SAN': (r'groups\.(\d+)\.', r'groups\.0\.blocks\.(\d+)\.', 'groups.0.attention.attention.0.weight'),
        'RCAN': (
            r'body\.(\d+)\.',
            r'body\.0\.residual_group\.(\d+)\.',
            'body.0.residual_group.0.rcab.3.attention.1.weight',
        ),
    }[arch]
    args |= {
        'num_group': _count(state_dict, group),
        'num_block': _count(state_dict, block),
        'squeeze_factor': num_feat // len(state_dict[squeeze]),
    }
    # The numbers are in the state dict, but the default is for three channels.
    return args if channels == 3 else args | {'rgb_mean': (0.0,) * channels}


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(match[1]) for name in state_dict if (match := re.match(pattern, name)))
