"""The shapes and chunk sizes that every op is tested on, and a watch on the tensors that it makes."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Case(NamedTuple):
    batch: int
    height: int
    width: int
    cell: int
    contiguous: bool = True

    def features(self, channels: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """(B, H, W, C)"""
        return self._random((self.batch, self.height, self.width, channels), dtype)

    def tokens(self, channels: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """(B, N, C)"""
        return self._random((self.batch, self.height * self.width, channels), dtype)

    def _random(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.contiguous:
            return torch.randn(shape, dtype=dtype)
        return torch.randn(shape[::-1], dtype=dtype).permute(*reversed(range(len(shape))))


CASES = {
    'one_pixel': Case(1, 1, 1, 4),
    'one_row': Case(1, 1, 9, 4),
    'one_column': Case(2, 7, 1, 3),
    'side_below_cell': Case(1, 3, 14, 4),
    'one_cell': Case(2, 4, 4, 4),
    'cells_of_one_pixel': Case(1, 3, 5, 1),
    'divisible': Case(1, 12, 16, 4),
    'odd': Case(1, 13, 17, 4),
    'non_divisible_batch': Case(2, 11, 18, 4),
    'cells_of_many_pixels': Case(1, 31, 49, 24),
    'non_contiguous': Case(2, 10, 13, 4, contiguous=False),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request) -> Case:
    return request.param


@pytest.fixture
def one_case():
    """A case by its name, for tests that need only one."""
    return CASES.__getitem__


class LargestTensor(TorchDispatchMode):
    """Records the most elements that a tensor made inside it has in memory, in the backward pass too."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


@pytest.fixture
def largest_tensor():
    return LargestTensor


# Sizes in place of those that suit a cache: the small cases then have several chunks, and chunks that are not full.
_WEIGHTS = ['attention.by_hand.FORWARD', 'attention.by_hand.BACKWARD']
CHUNK_SIZES = {
    'few': {
        'common.chunking.ROWS': 7,
        'layers.upsampler.PIXELS': 1,
        'layers.upsampler.ROWS': 1,
        'attention.by_hand.ROWS': 1,
        'attention.fused.GATHERED': 1,
        **dict.fromkeys(_WEIGHTS, 40),
    },
    'several': {
        'common.chunking.ROWS': 50,
        'layers.upsampler.PIXELS': 700,
        'layers.upsampler.ROWS': 30,
        'attention.by_hand.ROWS': 1,
        'attention.fused.GATHERED': 20,
        **dict.fromkeys(_WEIGHTS, 600),
    },
    # As on a GPU, where nothing is cut.
    'uncut': {
        'common.chunking.chunk_type': lambda *tensors: None,
        'layers.upsampler.chunk_type': lambda *tensors: None,
        'attention.fused.on_cpu': lambda x: False,
    },
}


def _cut(sizes, monkeypatch):
    for name, value in sizes.items():
        monkeypatch.setattr(f'spinsr.ops.{name}', value)


@pytest.fixture(params=['few', 'uncut'])
def chunk_size(request, monkeypatch):
    """Work on the CPU in the smallest chunks, and in one."""
    _cut(CHUNK_SIZES[request.param], monkeypatch)


@pytest.fixture
def few_at_once(monkeypatch):
    """Work on the CPU in the smallest chunks."""
    _cut(CHUNK_SIZES['few'], monkeypatch)


@pytest.fixture
def cut_by(monkeypatch):
    """Work on the CPU in chunks of a named size."""
    return lambda name: _cut(CHUNK_SIZES[name], monkeypatch)
