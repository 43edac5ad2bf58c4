"""Biases of attention that depend on where two pixels of a window are to each other."""

import torch
from torch import Tensor, nn


def relative_position_index(size: int) -> Tensor:
    """Numbers the offsets (query - key) of pixels in a window, row by row.

    Args:
        size: Side of the window.

    Returns:
        (size^2, size^2) int64 in [0, (2 size - 1)^2): of query and key.

    Example:
        >>> relative_position_index(2).tolist()
        [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    """
    along = torch.arange(size)
    offset = along[:, None] - along + size - 1  # (size, size), of the query's row or column and the key's
    return (offset[:, None, :, None] * (2 * size - 1) + offset[:, None]).reshape(size**2, size**2)


def gather_bias(table: Tensor, index: Tensor) -> Tensor:
    """A number of each head for each offset, (offsets, heads) -> the bias of all pairs of pixels, (heads, P, P)."""
    return table.index_select(0, index.flatten()).view(*index.shape, -1).permute(2, 0, 1)


class RelativePositionBias(nn.Module):
    """A learned number for each offset in a window and each head.

    Args:
        size: Side of the window.
        num_heads: Heads.
        std: Standard deviation of the numbers at the start.
    """

    index: Tensor

    def __init__(self, size: int, num_heads: int, std: float = 0.02):
        super().__init__()
        self.table = nn.Parameter(torch.empty((2 * size - 1) ** 2, num_heads))
        nn.init.normal_(self.table, std=std)
        self.register_buffer('index', relative_position_index(size), persistent=False)

    def forward(self) -> Tensor:
        """The bias of the logits, (num_heads, size^2, size^2)."""
        return gather_bias(self.table, self.index)
