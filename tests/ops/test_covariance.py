import math

import pytest
import torch

from spinsr.ops import covariance, sqrtm_newton_schulz

BACKENDS = pytest.mark.parametrize('backend', ['reference', 'torch'])

SHAPES = {
    'one_pixel': (1, 4, 1, 1),
    'one_row': (1, 4, 1, 9),
    'one_channel': (2, 1, 3, 5),
    'odd': (1, 4, 5, 7),
    'batch': (3, 6, 4, 3),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def x(request):
    return 20 * torch.randn(request.param, dtype=torch.float64) + 100


@BACKENDS
def test_covariance_by_hand(backend, assert_close):
    x = torch.tensor([[0.0, 2.0], [1.0, 5.0]]).double().view(1, 2, 1, 2)
    assert_close(covariance(x, backend=backend), torch.tensor([[[1.0, 2.0], [2.0, 4.0]]]).double())


def test_reference_gradcheck():
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: covariance(x, backend='reference'), x)


def test_centred_equals_reference(x, forward_backward, assert_close):
    assert_close(
        forward_backward(lambda x: covariance(x, backend='torch'), x),
        forward_backward(lambda x: covariance(x, backend='reference'), x),
    )


def test_centred_takes_channels_last(x, forward_backward, assert_close):
    assert_close(
        forward_backward(lambda x: covariance(x, backend='torch'), x.to(memory_format=torch.channels_last)),
        forward_backward(lambda x: covariance(x, backend='reference'), x),
    )


def test_centred_in_float32(x, forward_backward, assert_close):
    assert_close(
        forward_backward(lambda x: covariance(x, backend='torch'), x.float()),
        forward_backward(lambda x: covariance(x, backend='reference'), x.float().double()),
        torch.float32,
    )


def test_centred_stores_nothing_of_pixels_times_pixels(largest_tensor):
    x = torch.randn(1, 4, 48, 48, requires_grad=True)
    with largest_tensor() as largest:
        covariance(x, backend='torch').sum().backward()
    assert 0 < largest.elements < 48**4


def test_watch_sees_the_centring_matrix(largest_tensor):
    with largest_tensor() as largest:
        covariance(torch.randn(1, 2, 16, 16), 'reference')
    assert largest.elements >= 16**4


def test_two_iterations_by_hand(assert_close):
    # On the identity everything is a multiple of it: y = 1/2, 5/8, 71/64 * 5/8.
    root = sqrtm_newton_schulz(torch.eye(2, dtype=torch.float64).unsqueeze(0), num_iter=2)
    assert_close(root[0], math.sqrt(2) * 5 / 8 * 71 / 64 * torch.eye(2).double())


def test_root_squared_is_the_matrix_once_converged(assert_close):
    a = covariance(torch.randn(2, 5, 8, 8, dtype=torch.float64))
    root = sqrtm_newton_schulz(a, num_iter=30)
    assert_close(root @ root, a)


def test_root_gradcheck():
    factor = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: sqrtm_newton_schulz(f @ f.transpose(1, 2)), factor)


def test_trace_zero_gives_zero_and_a_zero_gradient(forward_backward, assert_close):
    a = covariance(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    a[0] = 0
    _, root, gradient = forward_backward(sqrtm_newton_schulz, a)
    assert not root[0].any()
    assert not gradient[0].any()
    assert_close(root[1:], sqrtm_newton_schulz(a[1:]))
    assert gradient[1].isfinite().all() and gradient[1].any()


@pytest.mark.parametrize('value', [0.0, 0.1, 255.0])
def test_flat_image_has_a_finite_root_and_gradient(value, forward_backward):
    x = torch.full((1, 4, 5, 7), value)
    _, root, gradient = forward_backward(lambda x: sqrtm_newton_schulz(covariance(x)), x)
    assert root.isfinite().all() and gradient.isfinite().all()


def test_no_iterations_are_refused():
    with pytest.raises(ValueError, match='num_iter=0'):
        sqrtm_newton_schulz(torch.eye(2).unsqueeze(0), num_iter=0)
