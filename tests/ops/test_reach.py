"""Associations of another reach than the 3x3 cells: the whole image (a mixture of Gaussians), a patch, 5x5 cells."""

import math

import pytest
import torch

from spinsr.ops import DenseAssociation, MixtureAssociation, SparseAssociation, associate, pool, superpixel_grid, top_n
from spinsr.ops.common.grid import patches

BACKENDS = pytest.mark.parametrize('backend', ['reference', 'torch'])
CPU = torch.device('cpu')


@pytest.fixture(params=[(None, 20), (None, 2**20), (0, None), (2, None)], ids=['all_in_parts', 'all', 'patch', '5x5'])
def reach(request, monkeypatch):
    reach, weights_at_once = request.param
    monkeypatch.setattr('spinsr.ops.association.types.WEIGHTS', weights_at_once)
    return reach


def dense_twin(association):
    return DenseAssociation(association.grid, association.dense(), association.dense_log_odds())


@BACKENDS
def test_mixture_by_hand(backend, assert_close):
    x = torch.tensor([0.0, 1, 3]).double().view(1, 1, 3, 1)
    association = associate(x, cell=1, num_iter=1, backend=backend, reach=None)
    a, b, c = math.exp(-1), math.exp(-9), math.exp(-4)
    likelihoods = torch.tensor([[1, a, b], [a, 1, c], [b, c, 1]], dtype=torch.float64)
    weights = likelihoods / likelihoods.sum(0)
    assert_close(association.dense()[0], weights)
    assert_close(association.dense_log_odds()[0], weights.logit())
    assert_close(pool(x, association)[0, :, 0], weights @ x.flatten() / weights.sum(1))
    second = associate(x, cell=1, num_iter=2, backend=backend, reach=None)
    centroids = weights @ x.flatten() / weights.sum(1)
    assert_close(second.dense()[0], (-(x.flatten() - centroids[:, None]).square()).softmax(0))


@BACKENDS
def test_patches_by_hand(backend):
    association = associate(torch.rand(1, 1, 5, 2), cell=2, backend=backend, reach=0)  # cells of 3 and 2 pixels
    assert association.dense().tolist() == [[[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]]
    assert pool(torch.arange(5.0).view(1, 1, 5, 1), association).flatten().tolist() == [1, 3.5]
    assert top_n(association).tolist() == [[[0, 1, 2], [2, 3, 4]]]


def test_fast_equals_reference(case, reach, forward_backward, assert_close):
    x, y = case.features(5) + 3, case.features(4)
    fast, dense = (associate(x, case.cell, 3, reach, backend=backend) for backend in ('torch', 'reference'))
    assert isinstance(fast, MixtureAssociation if reach is None else SparseAssociation)
    assert isinstance(dense, DenseAssociation)
    assert_close(fast.dense(), dense.dense())
    assert_close(fast.dense_log_odds(), dense.dense_log_odds())
    assert_close(fast.by_pixel(), dense.by_pixel())
    assert_close(forward_backward(lambda x: pool(x, fast), y), forward_backward(lambda x: pool(x, dense), y))
    assert torch.equal(top_n(fast), top_n(dense))


def test_float32_and_autocast(case, reach, forward_backward, assert_close):
    x, y = case.features(5, torch.float32), case.features(4, torch.float32)
    exact = associate(x.double(), case.cell, backend='reference', reach=reach)
    fast = associate(x, case.cell, reach=reach)
    assert_close(fast.dense(), exact.dense(), torch.float32)
    assert_close(fast.dense_log_odds(), exact.dense_log_odds(), torch.float32)
    pooled = forward_backward(lambda x: pool(x, fast), y)
    assert_close(pooled, forward_backward(lambda x: pool(x, exact), y.double()), torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        half = associate(x, case.cell, reach=reach)
        assert torch.equal(half.dense(), fast.dense())
        assert torch.equal(pool(y, half), pooled[0])
        assert torch.equal(top_n(half), top_n(fast))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=['float32', 'float64'])
@pytest.mark.parametrize('n', [7, 10_000])
@pytest.mark.parametrize('levels', [None, 1], ids=['random', 'tied'])
def test_top_n_selects_as_the_reference_from_the_same_log_odds(n, reach, dtype, levels, one_case):
    x = one_case('non_divisible_batch').features(4, dtype)
    association = associate(x if levels is None else x.round(), 4, reach=reach)
    selected = top_n(association, n)
    assert torch.equal(selected, top_n(dense_twin(association), n))
    assert selected.shape[2] == min(n, association.grid.smallest_neighborhood)


@BACKENDS
def test_mixture_reaches_the_whole_image(backend):
    x = torch.zeros(1, 4, 16, 1)
    x[:, :, :4] = x[:, :, 12:] = 1  # the first and the last cell of four are alike
    association = associate(3 * x, cell=4, backend=backend, reach=None)
    assert association.dense()[0, 0].view(4, 16)[:, 12:].min() > 0.49
    assert top_n(association, 32)[0, 0].tolist() == (x.flatten() == 1).nonzero().flatten().tolist()
    assert association.grid.smallest_neighborhood == 64


@BACKENDS
def test_no_gradient_reaches_what_was_associated(backend, reach):
    x = torch.rand(1, 8, 8, 3, requires_grad=True)
    y = torch.rand(1, 8, 8, 2, requires_grad=True)
    pool(y, associate(x, cell=4, backend=backend, reach=reach)).sum().backward()
    assert x.grad is None
    assert y.grad is not None


def test_mixture_stores_nothing_of_pixels_times_superpixels(largest_tensor, monkeypatch):
    monkeypatch.setattr('spinsr.ops.association.types.WEIGHTS', 2**14)
    x, y = torch.randn(1, 64, 64, 8), torch.randn(1, 64, 64, 8, requires_grad=True)
    with largest_tensor() as largest:
        association = associate(x, cell=4, reach=None)
        pool(y, association).square().sum().backward()
    assert 0 < largest.elements < 64 * 64 * 16 * 16 / 8
    with largest_tensor() as largest:
        top_n(association)
    assert 0 < largest.elements < 64 * 64 * 16 * 16 / 8


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (23, 7), (48, 62)], ids=str)
@pytest.mark.parametrize('cell', [1, 4, 12])
def test_patches_are_rectangles_of_one_size_that_cover_their_cells(size, cell):
    grid = superpixel_grid(*size, cell, CPU, reach=0)
    found = patches(*size, cell, CPU, torch.float32)
    rows, columns = found // size[1], found % size[1]
    height, width = (int((x.amax(1) - x.amin(1)).max()) + 1 for x in (rows, columns))
    largest = int(torch.bincount(grid.labels).max())
    assert found.shape == (grid.num_cells, height * width)
    assert height * width == largest
    assert (found.diff(dim=1) > 0).all()
    assert torch.equal(rows.amax(1) - rows.amin(1), torch.full((len(found),), height - 1))
    held = torch.zeros(grid.num_cells, grid.num_pixels, dtype=torch.bool).scatter_(1, found, True)
    assert held[grid.labels, torch.arange(grid.num_pixels)].all()


@pytest.mark.parametrize('reach', [-1, -3])
def test_reach_below_zero_is_refused(reach):
    with pytest.raises(ValueError, match=f'reach={reach}'):
        associate(torch.rand(1, 4, 4, 3), 2, reach=reach)


@pytest.mark.parametrize('options', [{'differentiable': True}, {'kind': 'exponential'}], ids=['gradient', 'exp'])
@BACKENDS
def test_mixture_is_the_constant_softmax(options, backend):
    with pytest.raises(ValueError, match="a mixture .* must be a constant 'softmax'"):
        associate(torch.rand(1, 4, 4, 3), 2, backend=backend, reach=None, **options)


@BACKENDS
@pytest.mark.parametrize('reach', [0, 2])
def test_other_reaches_take_the_equations_as_printed(reach, backend, one_case, assert_close):
    x, y = one_case('non_divisible_batch').features(3), one_case('non_divisible_batch').features(2)
    options = {'differentiable': True, 'kind': 'exponential', 'position_weight': 1.5}

    def pooled(x, backend):
        return pool(y, associate(x, 4, backend=backend, reach=reach, **options))

    assert_close(pooled(x, backend), pooled(x, 'reference'))
    small = torch.rand(1, 5, 4, 2, dtype=torch.float64, requires_grad=True)
    y = torch.rand(1, 5, 4, 2, dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: pool(y, associate(x, 2, backend=backend, reach=reach, **options)), small)
