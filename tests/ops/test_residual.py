"""Ops that add their result to another tensor, in one pass."""

import pytest
import torch

from spinsr.ops import gated_feed_forward, intra_superpixel_attention, window_attention

BACKENDS = pytest.mark.parametrize('backend', ['reference', 'torch'])
INDICES = torch.tensor([[[0, 1, 7], [1, 2, 3]], [[4, 5, 9], [9, 2, 3]]])


def windows(backend, add_to=None):
    return lambda q, k, v: window_attention(q, k, v, window=4, add_to=add_to, backend=backend)


def intra(own_values):
    def op(backend, add_to=None):
        return lambda q, k, v: intra_superpixel_attention(
            q, k, v, INDICES, own_values=own_values, add_to=add_to, backend=backend
        )

    return op


OPS = pytest.mark.parametrize(
    ('op', 'shape'),
    [(windows, (2, 5, 9)), (intra('all'), (2, 10)), (intra('ignored'), (2, 10))],
    ids=['windows', 'all_values', 'ignored_values'],
)


@OPS
@BACKENDS
def test_adds_to_a_tensor(op, shape, backend, assert_close):
    inputs = [torch.randn(*shape, width, dtype=torch.float64, requires_grad=True) for width in (4, 4, 6)]
    add_to = torch.randn(*shape, 6, dtype=torch.float64, requires_grad=True)
    out, expected = op(backend, add_to)(*inputs), op(backend)(*inputs) + add_to
    assert_close(out, expected)
    upstream = torch.randn_like(out)
    found, gradients = (torch.autograd.grad(one, [*inputs, add_to], upstream) for one in (out, expected))
    assert_close(found, gradients)


@OPS
@BACKENDS
def test_the_wider_type_is_kept(op, shape, backend):
    inputs = [torch.randn(*shape, width, dtype=torch.bfloat16) for width in (4, 4, 6)]
    add_to = torch.randn(*shape, 6)
    out, alone = op(backend, add_to)(*inputs), op(backend)(*inputs)
    assert (out.dtype, alone.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(out, add_to + alone, rtol=0, atol=0.02)
    assert op(backend, add_to.bfloat16())(*inputs).dtype == torch.bfloat16


@OPS
def test_another_shape_is_refused(op, shape):
    inputs = [torch.randn(*shape, 6) for _ in range(3)]
    with pytest.raises(ValueError, match='add_to must have the shape of v'):
        op('torch', torch.rand(6))(*inputs)


def feed_forward_weights(dtype):
    sizes = ((8,), (8,)), ((2, 8), (2,), (8, 2), (8,)), ((2, 8), (2,), (1, 2), (1,)), ((12, 16), (12,)), ((8, 12), (8,))
    return [tuple(torch.randn(size, dtype=dtype) / 2 for size in group) for group in sizes]


@BACKENDS
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=['float32', 'bfloat16'])
def test_feed_forward(dtype, backend):
    weights = feed_forward_weights(dtype)
    x = torch.randn(2, 30, 8).to(dtype)
    out, added = (gated_feed_forward(x, *weights, 1e-3, residual=r, backend=backend) for r in (False, True))
    assert added.dtype == dtype
    torch.testing.assert_close(added, x + out, rtol=0, atol={torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype])


@BACKENDS
def test_gradient_of_feed_forward(backend, assert_close):
    weights = feed_forward_weights(torch.float64)
    x = torch.randn(2, 30, 8, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    alone, added = (
        torch.autograd.grad(gated_feed_forward(x, *weights, 1e-3, residual=r, backend=backend), x, upstream)[0]
        for r in (False, True)
    )
    assert_close(added, alone + upstream)
