import math

import pytest
import torch

from spinsr.ops import associate, pool

BACKENDS = pytest.mark.parametrize('backend', ['reference', 'torch'])


@BACKENDS
def test_pool_by_hand(backend, assert_close):
    association = associate(torch.tensor([0.0, 1.0]).double().view(1, 1, 2, 1), cell=1, num_iter=1, backend=backend)
    near, far = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    pooled = pool(torch.tensor([2.0, 6.0]).double().view(1, 1, 2, 1), association)
    assert_close(pooled, torch.tensor([[[2 * near + 6 * far], [2 * far + 6 * near]]], dtype=torch.float64))


def test_reference_gradcheck(one_case):
    case = one_case('non_divisible_batch')
    association = associate(case.features(3), case.cell, backend='reference')
    assert torch.autograd.gradcheck(lambda x: pool(x, association), case.features(2).requires_grad_())


def test_sparse_equals_reference(case, forward_backward, assert_close):
    features, x = case.features(3), case.features(5)
    sparse, dense = (associate(features, case.cell, backend=backend) for backend in ('torch', 'reference'))
    assert_close(
        forward_backward(lambda x: pool(x, sparse), x),
        forward_backward(lambda x: pool(x, dense), x),
    )


def test_sparse_in_float32(case, forward_backward, assert_close):
    features, x = case.features(3, torch.float32), case.features(5, torch.float32)
    sparse, exact = associate(features, case.cell), associate(features.double(), case.cell, backend='reference')
    assert_close(
        forward_backward(lambda x: pool(x, sparse), x),
        forward_backward(lambda x: pool(x, exact), x.double()),
        torch.float32,
    )


@BACKENDS
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_half_types_and_autocast_average_in_the_type_of_the_association(dtype, backend, one_case):
    case = one_case('odd')
    x = case.features(5, dtype)
    association = associate(x, case.cell, backend=backend)
    with torch.autocast('cpu', dtype):
        pooled = pool(x, association)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, pool(x.float(), association))


@BACKENDS
def test_superpixel_without_pixels_is_zero(backend, assert_close):
    # Two pixels each of 100 and 500 in the middle cell have the mean 300 and prefer the cells beside it.
    x = torch.tensor([100.0, 100, 100, 500, 500, 500]).double().view(1, 1, 6, 1).repeat(1, 2, 1, 1)
    association = associate(x, cell=2, num_iter=1, backend=backend)
    assert association.dense()[0, 1].sum() == 0
    assert_close(pool(x, association).flatten(), torch.tensor([100.0, 0, 500]).double())


@BACKENDS
def test_gradient_does_not_reach_the_association(backend):
    features = torch.rand(1, 8, 8, 3, requires_grad=True)
    pool(torch.rand(1, 8, 8, 2, requires_grad=True), associate(features, 4, backend=backend)).sum().backward()
    assert features.grad is None


def test_sparse_stores_nothing_of_pixels_times_superpixels(largest_tensor):
    x = torch.randn(1, 96, 96, 8, requires_grad=True)
    association = associate(x, cell=4, backend='torch')
    with largest_tensor() as largest:
        pool(x, association).square().sum().backward()
    assert 0 < largest.elements < 96 * 96 * 24 * 24


@BACKENDS
@pytest.mark.parametrize(
    'shape', [(2, 8, 8, 3), (1, 8, 7, 3), (1, 64, 3)], ids=['other_batch', 'other_width', 'three_dimensions']
)
def test_other_sizes_are_refused_with_the_shape(shape, backend):
    association = associate(torch.rand(1, 8, 8, 3), 4, backend=backend)
    with pytest.raises(ValueError, match=str(shape).replace('(', r'\(').replace(')', r'\)')):
        pool(torch.rand(shape), association)
