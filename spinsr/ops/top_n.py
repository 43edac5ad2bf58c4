"""Selection of the pixels that belong most to a superpixel."""

import torch
from torch import Tensor

from spinsr.ops.association.types import Association, DenseAssociation, MixtureAssociation, SparseAssociation
from spinsr.ops.common.grid import gather_incoming, patches


def top_n(association: Association, n: int | None = None) -> Tensor:
    """Selects for each superpixel the pixels with the largest association.

    Ranked by the log-odds l_k - logsumexp over j != k of l_j, which order pixels as the association does but do not
    saturate at 1, then by the pixel index: the same logits select the same pixels on every device. With the kind
    'exponential' by its logarithm -|x_n - c_k|^2, which does not underflow.

    Args:
        association: From `associate`.
        n: Pixels a superpixel, >= 1; None means the area of a cell. Never more than the pixels within reach of the
            superpixel that has the fewest, which cuts the area of a cell only where a side of the image is below the
            cell. Where pixels belong to their cell alone, None means all of the cell; one that is a row or a column
            shorter than the largest takes in the next (`spinsr.ops.common.grid.patches`).

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
    if n is None and grid.reach == 0:
        return patches(*grid.size, grid.cell, grid.labels.device, association.dtype).expand(association.batch, -1, -1)
    n = grid.cell**2 if n is None else n
    if n < 1:
        raise ValueError(f'n must be at least 1, got {n=}')
    n = min(n, grid.num_pixels, grid.smallest_neighborhood)
    if isinstance(association, DenseAssociation):
        return _top_n_reference(association.log_odds, n)
    if isinstance(association, MixtureAssociation):
        return _top_n_mixture(association, n)
    assert isinstance(association, SparseAssociation)
    candidates = association.log_odds  # (B, K, M, P)
    if grid.is_pixel is not None:
        candidates = candidates.masked_fill(~grid.is_pixel[:, None], float('-inf'))
    candidates = gather_incoming(candidates, grid)  # (B, K, M, P)
    candidates = candidates.masked_fill_(~grid.is_neighbor.flip(1).unsqueeze(-1), float('-inf')).flatten(2)
    pixels = grid.pixels[grid.neighbors.flip(1)].flatten(1)  # (K, M P)
    return _best(candidates, pixels, n)[1].sort(-1).values


def _top_n_reference(log_odds: Tensor, n: int) -> Tensor:
    """topk over all pixels, as in the authors' code; it takes any of equals, so where they tie at the end, a sort."""
    top = log_odds.topk(n, -1)
    tied = (log_odds >= top.values[..., -1:]).sum(-1) > n
    indices = top.indices
    if not tied.is_meta and tied.any():
        indices[tied] = log_odds[tied].sort(dim=-1, descending=True, stable=True).indices[..., :n]
    return indices.sort(-1).values


def _top_n_mixture(association: MixtureAssociation, n: int) -> Tensor:
    """The best of the pixels so far and of the next chunk, chunk by chunk."""
    best: tuple[Tensor, Tensor] | None = None  # log-odds and pixels
    for chunk in association.chunks():
        log_odds = association.log_odds_of(chunk).transpose(1, 2)  # (B, K, pixels)
        found = log_odds, torch.arange(chunk.start, chunk.stop, device=log_odds.device).expand_as(log_odds)
        best = _best(*(found if best is None else (torch.cat(pair, -1) for pair in zip(best, found, strict=True))), n)
    assert best is not None
    return best[1].sort(-1).values


# torch 2.6 cannot tell: there compiled graphs sort, too, which is slower and selects the same.
_is_exporting = getattr(torch.compiler, 'is_exporting', torch.compiler.is_compiling)


def _best(log_odds: Tensor, pixels: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n largest of log-odds (B, K, L) and their `pixels`, in any order; of equals the lower pixel is the larger."""
    pixels = pixels.expand_as(log_odds)
    if log_odds.dtype == torch.float64 or _is_exporting():  # two sorts: ONNX cannot read the bits of a number
        order = pixels.argsort(stable=True, dim=-1)
        chosen = log_odds.gather(-1, order).sort(dim=-1, descending=True, stable=True).indices[..., :n]
        chosen = order.gather(-1, chosen)
    else:
        keys = (_ordered_int(log_odds) << 32) | (0xFFFFFFFF - pixels)
        chosen = keys.topk(min(n, keys.shape[-1]), -1, sorted=False).indices
    return log_odds.gather(-1, chosen), pixels.gather(-1, chosen)


def _ordered_int(x: Tensor) -> Tensor:
    """float32 -> int64 in [-2^31, 2^31) with the same order; -0 counts as 0."""
    bits = (x + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
