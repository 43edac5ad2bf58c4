"""Shifts of channels by one pixel, in place of 3 x 3 convolutions, as in ELAN and EMT."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The tap of each fixed kernel in the authors' files: the neighbour on the right, left, below, above, the pixel itself.
_TAPS = ((1, 2), (1, 0), (2, 1), (0, 1), (1, 1))


def shift(x: Tensor) -> Tensor:
    """Moves four fifths of the channels by one pixel, each to another side; zeros come in at the border.

    Args:
        x: (B, C, H, W).

    Returns:
        (B, C, H, W): in C // 5 channels each the neighbour on the right, on the left, below, above; in the others the
        pixel itself.
    """
    fifth = x.shape[1] // 5
    right, left, below, above, same = x.split([fifth, fifth, fifth, fifth, x.shape[1] - 4 * fifth], 1)
    return torch.cat(
        [
            F.pad(right[..., 1:], (0, 1)),
            F.pad(left[..., :-1], (1, 0)),
            F.pad(below[..., 1:, :], (0, 0, 0, 1)),
            F.pad(above[..., :-1, :], (0, 0, 1, 0)),
            same,
        ],
        1,
    )


def fixed_kernels(channels: int) -> Tensor:
    """`shift` as the kernels of a depthwise convolution, which the authors' files hold: (channels, 1, 3, 3)."""
    kernels, fifth = torch.zeros(channels, 1, 3, 3), channels // 5
    for group, (row, column) in enumerate(_TAPS):
        kernels[group * fifth : (group + 1) * fifth if group < 4 else None, 0, row, column] = 1
    return kernels


class ShiftedMLP(nn.Module):
    """shift, 1 x 1 convolution, activation, shift, 1 x 1 convolution.

    Args:
        num_feat: Channels C.
        hidden: Channels between the convolutions.
        activation: A function of a tensor, such as `F.relu`.
    """

    def __init__(self, num_feat: int, hidden: int, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.fc1 = nn.Conv2d(num_feat, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, num_feat, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.fc2(shift(self.activation(self.fc1(shift(x)))))
