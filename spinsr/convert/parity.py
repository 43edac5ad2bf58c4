"""Files that hold a small network of the authors with outputs of their code, to which our networks are compared.

`[hidden_]<network>[_<variant>]_x<scale>.npz` has the authors' state dict as `w/<name>`, images `x0`, `x1`, ... of shape
(B, 3, H, W) in [0, 1], what the authors' network computes from them in float64 as `y0`, `y1`, ..., and their
constructor arguments as the text of a dict, `cfg`.
"""

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spinsr.convert.registry import ArchFormat, formats
from spinsr.convert.state_dicts import convert_state_dict
from spinsr.utils.text import printable


class Official(NamedTuple):
    """A network of the authors.

    Attributes:
        format: Of our network.
        arguments: The constructor's, in our words, the scale included.
        weights: The authors' state dict.
        images: (B, 3, H, W) in [0, 1], float32.
        results: What the authors' network computes from them, (B, 3, scale*H, scale*W), float64.
    """

    format: ArchFormat
    arguments: dict[str, Any]
    weights: dict[str, Tensor]
    images: list[Tensor]
    results: list[Tensor]

    @property
    def arch(self) -> str:
        """Its name in ARCH_REGISTRY."""
        return self.format.registered

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Our network with these weights, in eval mode.

        Raises:
            ValueError: The arguments or the weights do not fit.
        """
        net = self.format.cls(**self.arguments).to(dtype).eval()
        net.load_state_dict(convert_state_dict(self.weights, self.format.name))
        return net


def network_of(file: str | Path) -> tuple[ArchFormat, str]:
    """The format of the network in a file, and its variant, from the file's name.

    Raises:
        ValueError: No format has such files.
    """
    stem = Path(file).stem.removeprefix('hidden_')
    name = re.sub(r'_x\d+$', '', stem)
    found = [
        (prefix, format)
        for format in formats()
        for prefix in format.parity
        if name == prefix or name.startswith(f'{prefix}_')
    ]
    if not found:
        raise ValueError(f'a parity file must begin with the name of a network, got {printable(Path(file).name)}')
    prefix, format = max(found, key=lambda one: len(one[0]))
    first = format.parity[0]
    return format, name.removeprefix(first if prefix.startswith(first) else prefix).removeprefix('_')


def read_official(file: str | Path) -> Official:
    """Reads a file of this kind.

    Raises:
        ValueError: It is of no network that we have, or lacks weights, images, results or arguments.
        OSError: It cannot be read.
    """
    format, variant = network_of(file)
    with np.load(file, allow_pickle=False) as archive:
        arrays = dict(archive)
    if 'cfg' not in arrays:
        raise ValueError(f'{Path(file).name} has no constructor arguments (cfg)')
    official = ast.literal_eval(str(arrays.pop('cfg')))
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    numbered = {kind: sorted(key for key in tensors if re.fullmatch(rf'{kind}\d+', key)) for kind in 'xy'}
    weights = {key[2:]: value for key, value in tensors.items() if key.startswith('w/')}
    if not weights or not numbered['x'] or len(numbered['x']) != len(numbered['y']):
        raise ValueError(f'{Path(file).name} must have weights, and a result for each of its images')
    return Official(
        format=format,
        arguments=format.official_arguments(variant, official) if format.official_arguments else official,
        weights=weights,
        images=[tensors[key] for key in numbered['x']],
        results=[tensors[key] for key in numbered['y']],
    )
