"""Selection of the pixels that belong most to a superpixel."""

import torch
from torch import Tensor

from spinsr.ops.association import Association, DenseAssociation
from spinsr.ops.grid import gather_incoming


def top_n(association: Association, n: int | None = None) -> Tensor:
    """Selects for each superpixel the pixels with the largest association.

    Ranked by the log-odds l_k - logsumexp over j != k of l_j, which order pixels as the association does but do not
    saturate at 1, then by the pixel index: the same logits select the same pixels on every device. With the association
    'exponential' by its logarithm -|x_n - c_k|^2, which does not underflow.

    Args:
        association: From `associate`.
        n: Pixels a superpixel, >= 1; None means the area of a cell. Never more than the pixels of the smallest 3x3
            neighbourhood of the grid, which cuts the area of a cell only where a side of the image is below the cell.

    Returns:
        (B, K, T) int64, pixel indices in [0, H*W), ascending.

    Raises:
        ValueError: `n` is below 1.

    Example:
        >>> from spinsr.ops import associate
        >>> top_n(associate(torch.rand(1, 16, 24, 8), cell=8)).shape
        torch.Size([1, 6, 64])
    """
    grid = association.grid
    n = grid.cell**2 if n is None else n
    if n < 1:
        raise ValueError(f'n must be at least 1, got {n=}')
    n = min(n, grid.num_pixels, grid.smallest_neighborhood)
    if isinstance(association, DenseAssociation):
        return _top_n_reference(association.log_odds, n)
    candidates = association.log_odds  # (B, K, 9, P)
    if grid.is_pixel is not None:
        candidates = candidates.masked_fill(~grid.is_pixel[:, None], float('-inf'))
    candidates = gather_incoming(candidates, grid)  # (B, K, 9, P)
    candidates = candidates.masked_fill_(~grid.is_neighbor.flip(1).unsqueeze(-1), float('-inf')).flatten(2)
    pixels = grid.pixels[grid.neighbors.flip(1)].flatten(1)  # (K, 9 P)
    if candidates.dtype == torch.float64:
        order = pixels.argsort(stable=True, dim=-1)
        ranked = candidates.gather(-1, order.expand_as(candidates)).sort(dim=-1, descending=True, stable=True).indices
        selected = order.expand_as(candidates).gather(-1, ranked[..., :n])
        return pixels.expand_as(candidates).gather(-1, selected).sort(-1).values
    keys = (_ordered_int(candidates) << 32) | (_LOW - pixels)
    return (_LOW - (keys.topk(n, -1, sorted=False).values & _LOW)).sort(-1).values


def _top_n_reference(log_odds: Tensor, n: int) -> Tensor:
    """topk over all pixels, as in the authors' code; it takes any of equals, so where they tie at the end, a sort."""
    top = log_odds.topk(n, -1)
    tied = (log_odds >= top.values[..., -1:]).sum(-1) > n
    indices = top.indices
    if tied.any():
        indices[tied] = log_odds[tied].sort(dim=-1, descending=True, stable=True).indices[..., :n]
    return indices.sort(-1).values


_LOW = 0xFFFFFFFF


def _ordered_int(x: Tensor) -> Tensor:
    """float32 -> int64 in [-2^31, 2^31) with the same order; -0 counts as 0."""
    bits = (x + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
