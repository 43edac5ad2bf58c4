import numpy as np
import pytest
import torch

from spinsr.ops import DenseAssociation, SparseAssociation, associate, superpixel_grid, top_n

BACKENDS = pytest.mark.parametrize('backend', ['reference', 'torch'])
TYPES = pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=['float32', 'float64'])

FEATURES = {
    'random': lambda case, dtype: case.features(4, dtype),
    'constant': lambda case, dtype: torch.full_like(case.features(4, dtype), 0.7),
    'saturated': lambda case, dtype: 50 * case.features(4, dtype),
    'tied': lambda case, dtype: case.features(4, dtype).round(),
}


@pytest.fixture(params=FEATURES.values(), ids=FEATURES.keys())
def features(request):
    return request.param


def dense_twin(association: SparseAssociation) -> DenseAssociation:
    return DenseAssociation(association.grid, association.dense(), association.dense_log_odds())


def ranking(log_odds: torch.Tensor, n: int) -> torch.Tensor:
    """The definition: by falling log-odds, then by rising pixel; NumPy and not torch."""
    values = log_odds.numpy()
    pixels = np.broadcast_to(np.arange(values.shape[-1]), values.shape)
    chosen = np.lexsort((pixels, -values), axis=-1)[..., :n]
    return torch.from_numpy(np.sort(chosen, -1))


def test_selection_by_hand():
    grid = superpixel_grid(1, 4, 2, torch.device('cpu'))
    log_odds = torch.tensor([[[0.5, 2.0, -1.0, 2.0], [0.0, 0.0, 0.0, 0.0]]])
    association = DenseAssociation(grid, log_odds.sigmoid(), log_odds)
    assert top_n(association, 1).tolist() == [[[1], [0]]]
    assert top_n(association, 3).tolist() == [[[0, 1, 3], [0, 1, 2]]]


@BACKENDS
def test_ties_go_to_the_first_pixels(backend):
    association = associate(torch.full((1, 4, 8, 3), 0.7), cell=4, backend=backend)  # two cells, 16 pixels each
    assert top_n(association, 5).tolist() == [[[0, 1, 2, 3, 4]] * 2]


@TYPES
def test_sparse_follows_the_definition(case, features, dtype):
    association = associate(features(case, dtype), case.cell, backend='torch')
    n = min(case.cell**2, association.grid.smallest_neighborhood)
    assert torch.equal(top_n(association), ranking(association.dense_log_odds(), n))


@TYPES
def test_sparse_selects_as_the_reference_from_the_same_log_odds(case, features, dtype):
    association = associate(features(case, dtype), case.cell, backend='torch')
    assert torch.equal(top_n(association), top_n(dense_twin(association)))


@pytest.mark.parametrize('n', [1, 2, 7, 10_000])
def test_sparse_selects_as_the_reference_for_other_numbers(n, one_case):
    association = associate(one_case('non_divisible_batch').features(4), 4, backend='torch')
    assert torch.equal(top_n(association, n), top_n(dense_twin(association), n))


def test_the_two_backends_agree_in_float64(case):
    x = case.features(4)
    selections = [top_n(associate(x, case.cell, backend=backend)) for backend in ('torch', 'reference')]
    assert torch.equal(*selections)


@BACKENDS
def test_pixels_come_from_the_neighbourhood_each_at_most_once(case, features, backend):
    association = associate(features(case, torch.float32), case.cell, backend=backend)
    grid, selected = association.grid, top_n(association)
    cols = grid.shape[1]
    cell, own = grid.labels[selected], torch.arange(grid.num_cells).view(1, -1, 1)
    assert ((cell // cols - own // cols).abs() <= 1).all()
    assert ((cell % cols - own % cols).abs() <= 1).all()
    assert (selected.diff(dim=-1) > 0).all()


@BACKENDS
def test_selection_where_the_association_saturates_follows_the_log_odds(backend):
    # More pixels than n have an association of exactly 1: the association alone cannot tell which to take.
    association = associate(50 * torch.rand(1, 16, 16, 8), cell=8, backend=backend)
    log_odds = association.dense_log_odds()
    assert ((association.dense() == 1).sum(-1) > 4).all()
    assert torch.equal(top_n(association, 4), ranking(log_odds, 4))


@BACKENDS
def test_infinite_log_odds_are_ties_too(backend):
    association = associate(torch.rand(1, 3, 5, 2), cell=5, backend=backend)  # one cell: no rivals
    assert top_n(association, 4).tolist() == [[[0, 1, 2, 3]]]


@BACKENDS
def test_default_is_the_area_of_a_cell(backend):
    assert top_n(associate(torch.rand(2, 9, 13, 3), cell=3, backend=backend)).shape == (2, 12, 9)


@BACKENDS
def test_never_more_than_there_are(backend):
    assert top_n(associate(torch.rand(1, 2, 3, 3), cell=4, backend=backend)).tolist() == [[[0, 1, 2, 3, 4, 5]]]
    assert top_n(associate(torch.rand(1, 1, 16, 3), cell=4, backend=backend)).shape == (1, 4, 8)


@BACKENDS
def test_n_below_one_is_refused(backend):
    with pytest.raises(ValueError, match='n=0'):
        top_n(associate(torch.rand(1, 4, 4, 3), 2, backend=backend), 0)


def test_sparse_stores_nothing_of_pixels_times_superpixels(largest_tensor):
    association = associate(torch.randn(1, 96, 96, 8), cell=4, backend='torch')
    with largest_tensor() as largest:
        top_n(association)
    assert 0 < largest.elements < 96 * 96 * 24 * 24
