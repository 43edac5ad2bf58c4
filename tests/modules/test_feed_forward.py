import pytest
import torch
import torch.nn.functional as F

from spinsr.modules.spin import FeedForward

SHAPES = {'one_pixel': (1, 1, 1), 'one_row': (1, 1, 7), 'odd': (1, 5, 9), 'batch': (3, 4, 3), 'large': (2, 67, 71)}


def concatenated(net: FeedForward, x: torch.Tensor) -> torch.Tensor:
    """The formula as the authors write it."""
    y = net.norm(x)
    by_channel, by_pixel = net.channel_attention(y.mean((1, 2), keepdim=True)), net.pixel_attention(y)
    return net.fc2(F.gelu(net.fc1(torch.cat([by_channel * y, by_pixel * y], -1))))


def results(function, net, x):
    x = x.detach().requires_grad_()
    out = function(net, x)
    upstream = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype) / 4
    return out, *torch.autograd.grad(out, [x, *net.parameters()], upstream)


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())
def test_equals_the_concatenated_formula(shape, backend, assert_close):
    net, x = FeedForward(16, 24).double(), torch.randn(*shape, 16, dtype=torch.float64)
    assert_close(results(FeedForward.forward, net, x), results(concatenated, net, x))


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())
def test_equals_the_concatenated_formula_without_gradients(shape, backend, assert_close):
    net, x = FeedForward(16, 24).double(), torch.randn(*shape, 16, dtype=torch.float64)
    with torch.no_grad():
        assert_close(net(x), concatenated(net, x))


def test_in_float32(backend, assert_close):
    net, x = FeedForward(16, 24), torch.randn(2, 5, 9, 16)
    out = results(FeedForward.forward, net, x)
    assert_close(out, results(concatenated, net.double(), x.double()), torch.float32)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_in_half_types(dtype):
    net, x = FeedForward(16, 24).to(dtype), torch.randn(2, 9, 13, 16, dtype=dtype)
    split, plain = results(FeedForward.forward, net, x)[:2], results(concatenated, net, x)[:2]
    exact = results(concatenated, net.double(), x.double())[:2]
    errors = [[(one.double() - other).norm() for one, other in zip(r, exact, strict=True)] for r in (split, plain)]
    assert errors[0][0] <= 2 * errors[1][0]
    assert errors[0][1] <= 2 * errors[1][1]


def test_input_stays_as_it_is():
    net, x = FeedForward(16, 24), torch.randn(1, 3, 4, 16)
    before = x.clone()
    net(x)
    assert torch.equal(x, before)


def test_exported_for_any_batch():
    net = FeedForward(16, 24).eval()
    batch = torch.export.Dim('batch', min=1, max=8)
    exported = torch.export.export(net, (torch.randn(2, 5, 7, 16),), dynamic_shapes=({0: batch},))
    x = torch.randn(3, 5, 7, 16)
    torch.testing.assert_close(exported.module()(x), net(x), rtol=0, atol=1e-5)
