import math
from pathlib import Path

import numpy as np
import pytest
import torch

from spinsr import ops
from spinsr.ops import associate

BACKENDS = pytest.mark.parametrize('backend', ['reference', 'torch'])


@BACKENDS
def test_one_round_by_hand(backend, assert_close):
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 1, 2, 1)
    association = associate(x, cell=1, num_iter=1, backend=backend)
    near, far = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    assert_close(association.dense(), torch.tensor([[[near, far], [far, near]]], dtype=torch.float64))
    assert_close(association.dense_log_odds(), torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]).double())


@BACKENDS
def test_two_rounds_by_hand(backend, assert_close):
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 1, 2, 1)
    association = associate(x, cell=1, num_iter=2, backend=backend)
    first = 1 / (1 + math.exp(1))  # where the left centroid has moved to; the right one is at 1 - first
    gap = (1 - first) ** 2 - first**2
    near, far = 1 / (1 + math.exp(-gap)), 1 / (1 + math.exp(gap))
    assert_close(association.dense(), torch.tensor([[[near, far], [far, near]]], dtype=torch.float64))
    assert_close(association.dense_log_odds(), torch.tensor([[[gap, -gap], [-gap, gap]]], dtype=torch.float64))


@BACKENDS
@pytest.mark.parametrize('number', [0, 1, 2])
def test_equals_the_authors_code(number, backend, assert_close):
    with np.load(Path(__file__).parents[1] / 'parity' / 'spa_official.npz') as file:
        x, cell, expected = (torch.from_numpy(file[f'{letter}{number}']) for letter in 'fsA')
    association = associate(x.double().permute(0, 2, 3, 1), int(cell), backend=backend)
    assert_close(association.dense(), expected)


@pytest.mark.parametrize('num_iter', [1, 2, 3, 5])
def test_sparse_equals_reference(case, num_iter, assert_close):
    x = case.features(5) + 3  # away from 0, so that the centring by the mean matters
    sparse, dense = (associate(x, case.cell, num_iter, backend=backend) for backend in ('torch', 'reference'))
    assert_close(sparse.dense(), dense.dense())
    assert_close(sparse.dense_log_odds(), dense.dense_log_odds())


def test_sparse_in_float32(case, assert_close):
    x = case.features(5, torch.float32)
    sparse, exact = associate(x, case.cell, backend='torch'), associate(x.double(), case.cell, backend='reference')
    assert sparse.dense().dtype == torch.float32
    assert_close(sparse.dense(), exact.dense(), torch.float32)
    assert_close(sparse.dense_log_odds(), exact.dense_log_odds(), torch.float32)


@pytest.mark.parametrize('offset', [100.0, 10_000.0])
def test_sparse_keeps_its_digits_far_from_zero(offset, one_case, assert_close):
    case = one_case('odd')
    x = case.features(5, torch.float32) + offset
    sparse, exact = associate(x, case.cell, backend='torch'), associate(x.double(), case.cell, backend='reference')
    assert_close(sparse.dense(), exact.dense(), torch.float32)


@BACKENDS
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_half_types_and_autocast_compute_in_float32(dtype, backend, one_case):
    case = one_case('odd')
    x = case.features(5, dtype)
    expected = associate(x.float(), case.cell, backend=backend)
    with torch.autocast('cpu', dtype):
        association = associate(x, case.cell, backend=backend)
    assert torch.equal(association.dense(), expected.dense())
    assert torch.equal(association.dense_log_odds(), expected.dense_log_odds())


@BACKENDS
def test_every_pixel_belongs_to_its_neighbourhood(case, backend, assert_close):
    association = associate(case.features(5), case.cell, backend=backend)
    grid, dense = association.grid, association.dense()
    near = torch.zeros(grid.num_pixels, grid.num_cells, dtype=torch.long)
    near = near.scatter_add_(1, grid.neighbors[grid.labels], grid.is_neighbor[grid.labels].long()).bool().t()
    assert_close(dense.sum(1), torch.ones(case.batch, grid.num_pixels), torch.float64)
    assert not dense[:, ~near].any()
    assert torch.equal(association.dense_log_odds().isinf().any(0), ~near | torch.tensor(grid.num_cells == 1))


@BACKENDS
def test_one_cell_holds_everything(backend):
    association = associate(torch.rand(1, 3, 3, 2), cell=3, backend=backend)
    assert torch.equal(association.dense(), torch.ones(1, 1, 9))
    assert (association.dense_log_odds() == math.inf).all()


@BACKENDS
def test_superpixel_that_nothing_belongs_to_moves_to_zero(backend, assert_close):
    # Two pixels each of 100 and 500 in the middle cell have the mean 300 and prefer the cells beside it.
    x = torch.tensor([100.0, 100, 100, 500, 500, 500]).double().view(1, 1, 6, 1).repeat(1, 2, 1, 1)
    log_odds = associate(x, cell=2, num_iter=2, backend=backend).dense_log_odds()
    left = torch.tensor([-(100.0**2)] * 3).double()  # -|x - 0|^2 + |x - 100|^2 for the pixels of 100
    assert_close(log_odds[0, 1, :3], left)
    assert_close(log_odds[0, 1, 3:6], -torch.tensor([500.0**2] * 3).double())


@BACKENDS
def test_log_odds_do_not_saturate_where_the_softmax_does(backend):
    association = associate(50 * torch.rand(1, 16, 16, 8), cell=8, backend=backend)
    saturated = association.dense() == 1
    log_odds = association.dense_log_odds()[saturated]
    assert saturated.sum() > 100
    assert log_odds.isfinite().all()
    assert log_odds.unique().numel() > 100


@BACKENDS
def test_log_odds_order_pixels_as_the_association(backend, one_case):
    case = one_case('odd')
    association = associate(0.3 * case.features(5), case.cell, backend=backend)
    weights, log_odds = association.dense(), association.dense_log_odds()
    inside = weights > 0
    assert ((weights.logit() - log_odds)[inside].abs() < 1e-9).all()


@BACKENDS
def test_no_gradient_flows_through_the_association(backend):
    x = torch.rand(1, 8, 8, 3, requires_grad=True)
    association = associate(x, cell=4, backend=backend)
    assert not association.dense().requires_grad
    assert not association.dense_log_odds().requires_grad


@BACKENDS
def test_input_stays_as_it_is(backend, one_case):
    x = one_case('odd').features(5)
    before = x.clone()
    associate(x, cell=4, backend=backend)
    assert torch.equal(x, before)


@BACKENDS
@pytest.mark.parametrize('value', [0.0, 0.7, 255.0])
def test_constant_image_shares_pixels_evenly(value, backend, assert_close):
    association = associate(torch.full((1, 12, 12, 4), value), cell=4, backend=backend)
    neighbors = association.grid.is_neighbor[association.grid.labels].sum(1)
    assert_close(association.dense().amax(1), 1 / neighbors[None].double())


def test_sparse_stores_nothing_of_pixels_times_superpixels(largest_tensor):
    x = torch.randn(1, 96, 96, 8)
    with largest_tensor() as largest:
        associate(x, cell=4, backend='torch')
    assert 0 < largest.elements < 96 * 96 * 24 * 24


def test_watch_sees_the_dense_association(largest_tensor):
    with largest_tensor() as largest:
        associate(torch.randn(1, 32, 32, 4), cell=4, backend='reference')
    assert largest.elements >= 32 * 32 * 8 * 8


@BACKENDS
@pytest.mark.parametrize(
    ('shape', 'arguments', 'message'),
    [
        ((4, 4, 3), {'cell': 2}, r'got \(4, 4, 3\)'),
        ((1, 4, 4, 3), {'cell': 0}, 'cell=0'),
        ((1, 4, 4, 3), {'cell': 2, 'num_iter': 0}, 'num_iter=0'),
    ],
    ids=['three_dimensions', 'no_cell', 'no_round'],
)
def test_bad_arguments_are_refused_with_the_value(shape, arguments, message, backend):
    with pytest.raises(ValueError, match=message):
        associate(torch.rand(shape), **arguments, backend=backend)


def test_associations_name_their_kind():
    x = torch.rand(1, 4, 4, 3)
    assert isinstance(associate(x, 2, backend='torch'), ops.SparseAssociation)
    assert isinstance(associate(x, 2, backend='reference'), ops.DenseAssociation)


def test_associations_show_themselves_in_one_line():
    x = torch.rand(2, 4, 6, 3)
    shown = repr(associate(x, 2, backend='torch'))
    assert shown == (
        "SparseAssociation(batch=2, 4x6 pixels, 2x3 superpixels, reach=1, kind='softmax', torch.float32, cpu)"
    )
    assert 'DenseAssociation(batch=2' in repr(associate(x, 2, backend='reference'))
    whole = repr(associate(x, 2, reach=None))
    assert whole == 'MixtureAssociation(batch=2, 4x6 pixels, 2x3 superpixels, reach=None, torch.float32, cpu)'
