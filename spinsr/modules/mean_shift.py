"""The image mean that a network subtracts, as a buffer."""

from collections.abc import Sequence

import torch
from torch import nn

# Of the training images of DIV2K.
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


def register_mean(module: nn.Module, img_range: float, rgb_mean: Sequence[float]) -> None:
    """Gives `module` the persistent buffer `mean`, (1, C, 1, 1) float32: `img_range * rgb_mean`.

    Bit for bit what the authors subtract. A state dict without it, such as BasicSR's RCAN, loads with
    strict=True and leaves it as it is.
    """
    module.register_buffer('mean', (img_range * torch.tensor(rgb_mean, dtype=torch.float32)).view(1, -1, 1, 1))
    module.register_load_state_dict_pre_hook(_keep_mean)


def register_constant_mean(module: nn.Module, num_in_ch: int, num_out_ch: int) -> None:
    """Gives `module` the buffer `mean`, not in the state dict: that of DIV2K for three channels in and out, else 0."""
    mean = DIV2K_MEAN if num_in_ch == num_out_ch == 3 else (0.0,)
    module.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)


def _keep_mean(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    state_dict.setdefault(prefix + 'mean', module.mean)
