"""The association as the paper prints it, differentiable and with positions: by hand and against the oracle."""

import math

import pytest
import torch

from spinsr.ops import associate, pool, top_n

BACKENDS = pytest.mark.parametrize('backend', ['reference', 'torch'])
KINDS = pytest.mark.parametrize('kind', ['softmax', 'exponential'])
SWITCHES = {
    'softmax': {},
    'softmax-positions': {'position_weight': 2.5},
    'exponential': {'kind': 'exponential'},
    'exponential-positions': {'kind': 'exponential', 'position_weight': 2.5},
}
each_switch = pytest.mark.parametrize('switches', SWITCHES.values(), ids=SWITCHES.keys())
GRADCHECKED = ['one_pixel', 'one_row', 'one_column', 'cells_of_one_pixel', 'non_divisible_batch']


def row(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, 1, -1, 1)


def weights_and_tokens(case, backend, switches, num_iter=3):
    """x -> the weights and what SPCA pools with them, with gradients through the association."""

    def run(x):
        association = associate(x, case.cell, num_iter, backend=backend, differentiable=True, **switches)
        pooled = pool((2 * x).sin(), association, backend=backend)
        return torch.cat([association.dense().flatten(), pooled.flatten()])

    return run


@BACKENDS
def test_exponential_by_hand(backend, assert_close):
    # Three cells of a pixel; the outer two are not neighbours. One round: the centroids are the pixels.
    association = associate(row(0, 1, 3), cell=1, num_iter=1, backend=backend, kind='exponential')
    one, four = math.exp(-1), math.exp(-4)
    expected = torch.tensor([[1, one, 0], [one, 1, four], [0, four, 1]], dtype=torch.float64)
    assert_close(association.dense_log_odds().exp(), expected[None])
    assert_close(association.dense(), (expected / expected.sum(1, keepdim=True))[None])
    means = [(2 + 6 * one) / (1 + one), (2 * one + 6 + 9 * four) / (one + 1 + four), (6 * four + 9) / (four + 1)]
    assert_close(pool(row(2, 6, 9), association), torch.tensor(means, dtype=torch.float64).view(1, 3, 1))


@BACKENDS
def test_exponential_moves_its_centroids_by_equation_4(backend, assert_close):
    association = associate(row(0, 1, 3), cell=1, num_iter=2, backend=backend, kind='exponential')
    one, four = math.exp(-1), math.exp(-4)
    first, last = one / (1 + one), (four + 3) / (four + 1)
    middle = (1 + 3 * four) / (one + 1 + four)
    distances = [[first, first - 1, math.inf], [middle, middle - 1, middle - 3], [math.inf, last - 1, last - 3]]
    assert_close(association.dense_log_odds(), -torch.tensor([distances], dtype=torch.float64).square())


@BACKENDS
def test_positions_by_hand(backend, assert_close):
    # Two cells of two pixels, all alike: only the position counts, in cells, beside the centres at 1/4 and 5/4.
    association = associate(row(7, 7, 7, 7), 2, 1, backend=backend, kind='exponential', position_weight=3.0)
    distances = 3 * torch.tensor([[[-0.25, 0.25, 0.75, 1.25], [-1.25, -0.75, -0.25, 0.25]]]).double()
    assert_close(association.dense_log_odds(), -distances.square())


@BACKENDS
def test_rows_count_as_columns(backend, one_case, assert_close):
    case = one_case('odd')
    x, arguments = case.features(3), {'backend': backend, 'position_weight': 2.5}
    turned = associate(x.transpose(1, 2), case.cell, **arguments).dense()
    rows, cols = case.height // case.cell, case.width // case.cell
    turned = turned.view(1, cols, rows, case.width, case.height).permute(0, 2, 1, 4, 3).reshape(1, rows * cols, -1)
    assert_close(associate(x, case.cell, **arguments).dense(), turned)


@pytest.mark.parametrize('name', GRADCHECKED)
@each_switch
@BACKENDS
def test_gradcheck(backend, switches, name, one_case):
    case = one_case(name)
    x = case.features(2).requires_grad_()
    assert torch.autograd.gradcheck(weights_and_tokens(case, backend, switches), x, fast_mode=True)


@KINDS
@BACKENDS
def test_gradcheck_of_every_entry(backend, kind, one_case):
    case = one_case('one_row')._replace(batch=2)
    x = case.features(2).requires_grad_()
    assert torch.autograd.gradcheck(weights_and_tokens(case, backend, {'kind': kind}), x)


@KINDS
@BACKENDS
def test_gradcheck_where_all_distances_tie(backend, kind, one_case):
    case = one_case('one_row')
    x = torch.full((1, 1, 9, 2), 0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(weights_and_tokens(case, backend, {'kind': kind}), x)


@each_switch
def test_sparse_equals_reference(case, switches, forward_backward, assert_close):
    x = case.features(4) + 3
    results = [forward_backward(weights_and_tokens(case, backend, switches), x) for backend in ('torch', 'reference')]
    assert_close(*results)


@pytest.mark.parametrize('num_iter', [1, 2, 5])
@KINDS
def test_sparse_equals_reference_after_other_rounds(kind, num_iter, one_case, forward_backward, assert_close):
    case, switches = one_case('non_divisible_batch'), {'kind': kind}
    x = case.features(4)
    results = [
        forward_backward(weights_and_tokens(case, backend, switches, num_iter), x) for backend in ('torch', 'reference')
    ]
    assert_close(*results)


@each_switch
def test_sparse_in_float32(switches, one_case, forward_backward, assert_close):
    case = one_case('odd')
    x = case.features(4, torch.float32)
    sparse = forward_backward(weights_and_tokens(case, 'torch', switches), x)
    exact = forward_backward(weights_and_tokens(case, 'reference', switches), x.double())
    assert_close(sparse[:2], exact[:2], torch.float32)
    assert (sparse[2] - exact[2]).norm() < 1e-5 * exact[2].norm()


@each_switch
def test_order_and_shares_of_the_pixels_equal_the_reference(case, switches, assert_close):
    x = case.features(4)
    sparse, dense = (associate(x, case.cell, backend=backend, **switches) for backend in ('torch', 'reference'))
    assert_close(sparse.dense_log_odds(), dense.dense_log_odds())
    assert torch.equal(top_n(sparse), top_n(dense))
    assert_close(sparse.by_pixel(), dense.by_pixel())
    assert_close(sparse.by_pixel().sum(-1), torch.ones(case.batch, case.height * case.width), torch.float64)


@BACKENDS
def test_exponential_ranks_by_distance_and_then_by_pixel(backend):
    association = associate(row(0, 2, 2, 2, 9, 5), 3, 1, backend=backend, kind='exponential')
    # The centroids are 4/3 and 16/3: |x - c| is 4/3, 2/3 three times, ..., and 16/3, 10/3 three times, 11/3, 1/3.
    assert top_n(association, 2).tolist() == [[[1, 2], [1, 5]]]
    assert top_n(association, 4).tolist() == [[[0, 1, 2, 3], [1, 2, 3, 5]]]


@KINDS
@BACKENDS
def test_gradients_do_not_change_the_result(backend, kind, one_case):
    case = one_case('odd')
    x = case.features(4).requires_grad_()
    constant, with_gradient = (
        associate(x, case.cell, backend=backend, kind=kind, differentiable=differentiable)
        for differentiable in (False, True)
    )
    assert torch.equal(with_gradient.dense(), constant.dense())
    assert torch.equal(with_gradient.dense_log_odds(), constant.dense_log_odds())
    assert with_gradient.weights.requires_grad
    assert not with_gradient.log_odds.requires_grad
    assert not constant.weights.requires_grad


@BACKENDS
def test_no_gradient_where_none_is_recorded(backend):
    x = torch.rand(1, 4, 6, 3, requires_grad=True)
    with torch.no_grad():
        association = associate(x, 2, backend=backend, differentiable=True)
    assert not association.weights.requires_grad


@BACKENDS
def test_gradients_flow_through_the_centroids_of_earlier_rounds(backend, one_case):
    # The centroids of the last round come from other pixels through the weights of the first one.
    case = one_case('one_row')
    x = case.features(2).requires_grad_()

    def gradient(num_iter):
        association = associate(x, case.cell, num_iter, backend=backend, differentiable=True)
        (gradient,) = torch.autograd.grad(association.dense()[0, 0, 0], x)
        return gradient

    assert gradient(3).abs().amax(-1).count_nonzero() == 9
    assert not torch.allclose(gradient(3), gradient(2))


@BACKENDS
def test_a_superpixel_whose_every_association_underflows_keeps_its_mean(backend, assert_close):
    # Each cell has half of its pixels far on either side of its mean: exp(-d^2) is 0 everywhere, in float64 too.
    x = row(0, 200, 1000, 1200).requires_grad_()
    association = associate(x, 2, 2, backend=backend, kind='exponential', differentiable=True)
    assert not association.dense_log_odds().exp().any()
    pooled = pool(x, association, backend=backend)
    assert pooled.isfinite().all()
    assert_close(association.dense().sum(-1), torch.ones(1, 2), torch.float64)
    (gradient,) = torch.autograd.grad(pooled.sum(), x)
    assert gradient.isfinite().all()


@BACKENDS
def test_a_pixel_far_from_all_superpixels_has_no_weight_and_no_gradient(backend):
    x = torch.cat([torch.rand(8), torch.tensor([1e4]), torch.rand(3)]).view(1, 1, 12, 1).repeat(1, 3, 1, 1)
    x[:, :2, 8] = 0.5
    x.requires_grad_()
    association = associate(x, 3, 4, backend=backend, kind='exponential', differentiable=True)
    weights = association.dense()
    assert not weights[..., 2 * 12 + 8].any()
    (gradient,) = torch.autograd.grad((weights * torch.rand_like(weights)).sum(), x)
    assert gradient.isfinite().all()
    assert not gradient[0, 2, 8].any()
    assert gradient.any()


@pytest.mark.parametrize('scale', [50.0, 1e4])
@each_switch
@BACKENDS
def test_saturated_associations_have_finite_gradients(backend, switches, scale, one_case):
    case = one_case('odd')
    x = (scale * case.features(4, torch.float32)).requires_grad_()
    out = weights_and_tokens(case, backend, switches)(x)
    (gradient,) = torch.autograd.grad(out, x, torch.randn_like(out))
    assert out.isfinite().all()
    assert gradient.isfinite().all()


@BACKENDS
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_half_types_and_autocast_compute_in_float32(dtype, backend, one_case):
    case, switches = one_case('odd'), {'kind': 'exponential', 'position_weight': 2.5, 'differentiable': True}
    x = case.features(5, dtype).requires_grad_()
    expected = associate(x.float(), case.cell, backend=backend, **switches)
    with torch.autocast('cpu', dtype):
        association = associate(x, case.cell, backend=backend, **switches)
    assert torch.equal(association.dense(), expected.dense())
    (gradient,) = torch.autograd.grad(association.dense().square().sum(), x)
    assert gradient.dtype == dtype


def bytes_kept(side, switches):
    """Bytes of the memory that a step keeps between the passes, for an image of side x side pixels, cells of 4."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(1, side, side, 8).requires_grad_()
    tables = associate(x.detach(), 4).grid  # built and held beforehand: they are no part of a step
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        association = associate(x, 4, differentiable=True, backend='torch', **switches)
        out = pool(x, association, backend='torch')
    indices = {t.untyped_storage().data_ptr() for t in vars(tables).values() if isinstance(t, torch.Tensor)}
    assert out.requires_grad
    return sum(size for place, size in kept.items() if place not in indices)


@each_switch
def test_what_is_kept_is_linear_in_the_pixels(switches):
    one, four = bytes_kept(40, switches), bytes_kept(80, switches)
    assert four < 4.05 * one
    # Three rounds with two tensors of 9 N at most, the features and what is as small.
    assert four < 4 * 80**2 * (3 * 18 + 60)


@each_switch
def test_sparse_stores_nothing_of_pixels_times_superpixels(switches, largest_tensor):
    x = torch.randn(1, 96, 96, 8, requires_grad=True)
    with largest_tensor() as largest:
        association = associate(x, cell=4, differentiable=True, backend='torch', **switches)
        pool(x, association, backend='torch').sum().backward()
    assert 0 < largest.elements < 96 * 96 * 24 * 24 / 4


@KINDS
def test_gradients_repeat_on_several_threads(kind):
    x = torch.randn(2, 33, 37, 8, requires_grad=True)

    def gradient():
        shares = associate(x, 4, backend='torch', kind=kind, differentiable=True)
        return torch.autograd.grad(pool(x, shares, backend='torch').square().sum(), x)[0]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = gradient(), gradient()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first, second)


@BACKENDS
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'kind': 'exp'}, "must be one of softmax, exponential, got kind='exp'"),
        ({'position_weight': -1.0}, 'position_weight=-1.0'),
        ({'position_weight': math.nan}, 'position_weight=nan'),
        ({'position_weight': math.inf}, 'position_weight=inf'),
    ],
    ids=['unknown', 'negative', 'nan', 'infinite'],
)
def test_bad_arguments_are_refused_with_the_value(arguments, message, backend):
    with pytest.raises(ValueError, match=message):
        associate(torch.rand(1, 4, 4, 3), 2, backend=backend, **arguments)
