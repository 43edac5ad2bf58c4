import pytest
import torch
import torch.nn.functional as F

from spinsr.modules.san import RegionNonLocal

BACKENDS = pytest.mark.parametrize('backend', ['reference', 'torch'])
SIZES = {
    'one_pixel': (1, 1),
    'one_row': (1, 7),
    'one_column': (5, 1),
    'quadrants_of_one': (2, 2),
    'quadrants_of_one_and_two': (3, 3),
    'thin': (2, 9),
    'odd': (9, 13),
    'even': (8, 12),
}


def dense(net: RegionNonLocal, x: torch.Tensor) -> torch.Tensor:
    """Quadrant by quadrant, every weight stored."""
    out, (h, w) = x.clone(), x.shape[2:]
    for rows in (slice(0, h // 2), slice(h // 2, h)):
        for columns in (slice(0, w // 2), slice(w // 2, w)):
            quadrant = x[:, :, rows, columns]
            if quadrant.numel() == 0:
                continue
            pooling = [1 if side == 1 else 2 for side in quadrant.shape[2:]]
            theta = net.theta(quadrant).flatten(2)
            phi, g = (F.max_pool2d(conv(quadrant), pooling).flatten(2) for conv in (net.phi, net.g))
            weights = torch.einsum('bcn,bcm->bnm', theta, phi).softmax(-1)
            y = torch.einsum('bnm,bcm->bcn', weights, g).unflatten(2, quadrant.shape[2:])
            out[:, :, rows, columns] += net.out(y)
    return out


@pytest.fixture
def net():
    net = RegionNonLocal(8, 2)
    torch.nn.init.normal_(net.out.weight)
    torch.nn.init.normal_(net.out.bias)
    return net


@BACKENDS
@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES.keys())
def test_equals_the_dense_formula(net, size, backend, monkeypatch, forward_backward, assert_close):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', backend)
    net, x = net.double(), torch.randn(2, 8, *size, dtype=torch.float64)
    assert_close(forward_backward(net, x), forward_backward(lambda x: dense(net, x), x))


@BACKENDS
def test_parameters_get_the_gradients_of_the_dense_formula(net, backend, monkeypatch, assert_close):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', backend)
    net, x = net.double(), torch.randn(2, 8, 5, 7, dtype=torch.float64)
    upstream = torch.randn_like(x)
    ours, expected = (
        torch.autograd.grad(function(x), list(net.parameters()), upstream)
        for function in (net, lambda x: dense(net, x))
    )
    assert_close(ours, expected)


def test_in_float32(net, forward_backward, assert_close):
    x = torch.randn(2, 8, 9, 13)
    ours = forward_backward(net, x)
    net.double()
    assert_close(ours, forward_backward(lambda x: dense(net, x), x.double()), torch.float32)


def test_begins_as_the_identity():
    x = torch.randn(1, 8, 5, 6)
    assert torch.equal(RegionNonLocal(8, 2)(x), x)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_large_features_stay_finite_under_autocast(net, dtype):
    x = (255 * torch.randn(1, 8, 6, 8)).requires_grad_()
    with torch.autocast('cpu', dtype):
        out = net(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


@BACKENDS
def test_input_stays_as_it_is(net, backend, monkeypatch):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', backend)
    x = torch.randn(1, 8, 5, 6)
    before = x.clone()
    net(x)
    assert torch.equal(x, before)
