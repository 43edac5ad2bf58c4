"""The image mean that RCAN and SAN subtract, as a buffer."""

from collections.abc import Sequence

import torch
from torch import nn


def register_mean(module: nn.Module, img_range: float, rgb_mean: Sequence[float]) -> None:
    """Gives `module` the persistent buffer `mean`, (1, C, 1, 1) float32: `img_range * rgb_mean`.

    Bit for bit what the authors of RCAN and SAN subtract. A state dict without it, such as BasicSR's RCAN, loads with
    strict=True and leaves it as it is.
    """
    module.register_buffer('mean', (img_range * torch.tensor(rgb_mean, dtype=torch.float32)).view(1, -1, 1, 1))
    module.register_load_state_dict_pre_hook(_keep_mean)


def _keep_mean(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    state_dict.setdefault(prefix + 'mean', module.mean)
