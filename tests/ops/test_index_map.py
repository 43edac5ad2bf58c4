import pytest
import torch

from spinsr.ops.common.index_map import IndexMap

INDICES = {
    'one': ([0], 1),
    'permutation': ([2, 0, 1], 3),
    'some_rows_twice': ([1, 0, 2, 1, 3, 0], 4),
    'one_row_often': ([0, 0, 1, 0, 0], 2),
}


@pytest.fixture(params=INDICES.values(), ids=INDICES.keys())
def index_map(request):
    index, num_rows = request.param
    return IndexMap.build(torch.tensor(index), num_rows), num_rows


def test_gather_takes_rows(index_map):
    index_map, num_rows = index_map
    x = torch.randn(2, num_rows, 3)
    assert torch.equal(index_map.gather(x), x[:, index_map.index])


def test_add_is_the_transpose_of_gather(index_map, assert_close):
    index_map, num_rows = index_map
    y = torch.randn(2, len(index_map.index), 3, dtype=torch.float64)
    x = torch.zeros(2, num_rows, 3, dtype=torch.float64)
    assert_close(index_map.add(y), x.index_add(1, index_map.index, y))


@pytest.mark.parametrize('check', [torch.autograd.gradcheck, torch.autograd.gradgradcheck], ids=['first', 'second'])
def test_gradients(index_map, check):
    index_map, num_rows = index_map
    x = torch.randn(2, num_rows, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, len(index_map.index), 2, dtype=torch.float64, requires_grad=True)
    assert check(index_map.gather, x)
    assert check(index_map.add, y)


def test_inputs_stay_as_they_are(index_map):
    index_map, _ = index_map
    y = torch.randn(2, len(index_map.index), 3)
    before = y.clone()
    index_map.add(y)
    assert torch.equal(y, before)
