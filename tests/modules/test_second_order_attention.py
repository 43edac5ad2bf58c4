import pytest
import torch

from spinsr import ops
from spinsr.modules.san import SecondOrderChannelAttention

SHAPES = {'one_row': (1, 8, 1, 7), 'one_column': (2, 8, 5, 1), 'odd': (1, 8, 5, 9), 'batch': (3, 8, 4, 6)}


def by_formula(net, x, seen):
    root = ops.sqrtm_newton_schulz(ops.covariance(seen, backend='reference'))
    return x * net.attention(root.mean(1)[..., None, None])


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())
def test_scales_by_a_gate_of_the_covariance(shape, forward_backward, assert_close):
    net, x = SecondOrderChannelAttention(8, 4).double(), 50 * torch.randn(shape, dtype=torch.float64)
    assert_close(forward_backward(net, x), forward_backward(lambda x: by_formula(net, x, x), x))


@pytest.mark.parametrize(
    ('height', 'width', 'rows', 'columns'),
    [
        (1, 1000, slice(None), slice(None)),
        (1, 1003, slice(None), slice(1, 1001)),
        (1006, 2, slice(3, 1003), slice(None)),
        (1001, 1002, slice(0, 1000), slice(1, 1001)),
    ],
    ids=['1x1000', '1x1003', '1006x2', '1001x1002'],
)
def test_sees_the_central_thousand(height, width, rows, columns, assert_close):
    net, x = SecondOrderChannelAttention(4, 2), torch.randn(1, 4, height, width)
    x[..., :2] += 50  # where a crop of the wrong place would show
    x[:, 0, :3] *= 30
    with torch.no_grad():
        seen = x[:, :, rows, columns]
        root = ops.sqrtm_newton_schulz(ops.covariance(seen, backend='torch'))
        expected = x * net.attention(root.mean(1)[..., None, None])
        assert_close(net(x), expected)


@pytest.mark.parametrize('shape', [(1, 8, 1, 1), (2, 8, 3, 5)], ids=['one_pixel', 'flat'])
def test_trace_zero_gives_a_constant_gate(shape, assert_close):
    net, x = SecondOrderChannelAttention(8, 4), torch.full(shape, 3.0, requires_grad=True)
    out = net(x)
    out.sum().backward()
    gate = net.attention(torch.zeros(1, 8, 1, 1)).expand(shape)
    assert_close(out, 3 * gate)
    assert_close(x.grad, gate)
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_squares_beyond_float16_are_no_problem(dtype):
    net, x = SecondOrderChannelAttention(8, 4), 2000 * torch.randn(1, 8, 6, 6)
    with torch.autocast('cpu', dtype):
        out = net(x.to(dtype))
    assert out.isfinite().all()


def test_input_stays_as_it_is():
    net, x = SecondOrderChannelAttention(8, 4), torch.randn(1, 8, 5, 6)
    before = x.clone()
    net(x)
    assert torch.equal(x, before)
