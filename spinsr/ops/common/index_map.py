"""Gathering rows by a fixed index, and its transpose, without scattering.

The transpose of a gather adds rows that went to several places. With the index known beforehand it is a gather as well,
of the first place of every row, plus an addition for the few rows that have more places: several times faster than a
scatter, and deterministic.
"""

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class IndexMap:
    """A fixed index of M rows into N rows, each of which occurs at least once.

    Attributes:
        index: (M,) int64 in [0, N).
        first: (N,) int64, a place in [0, M) of each row.
        more_rows, more_places: the rows that have further places, and those places, both (M - N,).
    """

    index: Tensor
    first: Tensor
    more_rows: Tensor
    more_places: Tensor

    @classmethod
    def build(cls, index: Tensor, num_rows: int) -> 'IndexMap':
        """The map of `index` (M,) into `num_rows` rows; on the CPU, once a size."""
        order = index.argsort(stable=True)
        rows = index[order]
        is_first = torch.cat([rows.new_ones(1, dtype=torch.bool), rows[1:] != rows[:-1]])
        first, more_places = order[is_first], order[~is_first]
        assert len(first) == num_rows, 'every row must occur'
        return cls(index, first, rows[~is_first], more_places)

    def to(self, device: torch.device) -> 'IndexMap':
        return IndexMap(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    def gather(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, M, C), the rows at `index`."""
        return _Move.apply(x, self, False)

    def add(self, y: Tensor) -> Tensor:
        """(B, M, C) -> (B, N, C), the sum of what came to each row; the transpose of `gather`."""
        return _Move.apply(y, self, True)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, index_map: IndexMap, is_add: bool) -> Tensor:
        ctx.arguments = index_map, not is_add
        if not is_add:
            return x.index_select(1, index_map.index)
        out = x.index_select(1, index_map.first)
        if len(index_map.more_rows):
            out.index_add_(1, index_map.more_rows, x.index_select(1, index_map.more_places))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Move.apply(grad, *ctx.arguments), None, None
