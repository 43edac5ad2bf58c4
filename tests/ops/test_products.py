"""Products of float32 by oneDNN against torch's own, on any processor: which one is used there is tested by itself."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from spinsr.archs.spin_arch import SPIN
from spinsr.ops import gated_feed_forward, upsampling_tail
from spinsr.ops.attention import by_hand
from spinsr.ops.common import chunking, products
from spinsr.ops.layers import upsampler

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='needs a torch with oneDNN')


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN for every product of float32, however small."""
    monkeypatch.setattr(products, 'uses_onednn', lambda: True)
    monkeypatch.setattr(products, 'WORTH_A_CALL', 0)
    monkeypatch.setattr(products, 'WORTH_A_CONVOLUTION', 0)


@pytest.fixture
def convolutions(monkeypatch):
    """The shapes of what torch's oneDNN convolves."""
    shapes, convolve = [], torch.mkldnn_convolution
    monkeypatch.setattr(torch, 'mkldnn_convolution', lambda x, *rest: shapes.append(x.shape) or convolve(x, *rest))
    return shapes


def results(function, inputs):
    """The result, and the gradients of all inputs for one upstream gradient."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    upstream = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype) / 4
    return out, *torch.autograd.grad(out, leaves, upstream)


def in_float64(function, inputs):
    return results(function, [x.double() for x in inputs])


ROWS = pytest.mark.parametrize('shape', [(1, 1), (7, 5), (2, 3, 40), (1, 300, 16), (3, 2, 5, 24)], ids=str)


@ROWS
@pytest.mark.parametrize('bias', [False, True], ids=['plain', 'bias'])
def test_linear(shape, bias, onednn, convolutions, assert_close):
    inputs = [torch.randn(shape), torch.randn(9, shape[-1]), *([torch.randn(9)] if bias else [])]
    out = results(products.linear, inputs)
    assert_close(out, in_float64(F.linear, inputs), torch.float32)
    assert out[0].is_contiguous()
    assert len(convolutions) == 1


def test_linear_of_a_slice(onednn, assert_close):
    x, weight = torch.randn(4, 6, 11).transpose(0, 1)[..., 2:9], torch.randn(5, 7)
    assert_close(products.linear(x, weight), F.linear(x.double(), weight.double()), torch.float32)


def test_linear_of_no_rows(onednn):
    assert products.linear(torch.rand(2, 0, 4), torch.rand(3, 4), torch.rand(3)).shape == (2, 0, 3)


def test_linear_of_no_images(onednn):
    out = products.linear_by_image(torch.rand(0, 9, 4), torch.rand(0, 3, 4), torch.rand(0, 3))
    assert out.shape == (0, 9, 3)


def test_small_products_stay_with_torch(onednn, convolutions, monkeypatch):
    monkeypatch.setattr(products, 'WORTH_A_CONVOLUTION', 1000 / torch.get_num_threads())
    x, weight = torch.rand(2, 50, 4), torch.rand(2, 5, 4)
    products.linear(x[0, :49], weight[0])
    products.linear_by_image(x[:, :49], weight, torch.rand(2, 5))
    assert not convolutions
    products.linear(x[0], weight[0])
    products.linear_by_image(x, weight, torch.rand(2, 5))
    assert len(convolutions) == 3


@pytest.mark.parametrize('batch', [1, 3])
def test_linear_by_image(batch, onednn, convolutions, assert_close):
    inputs = [torch.randn(batch, 20, 6), torch.randn(batch, 16, 6), torch.randn(batch, 16)]
    expected = in_float64(lambda x, w, b: x @ w.mT + b.unsqueeze(1), inputs)
    assert_close(results(products.linear_by_image, inputs), expected, torch.float32)
    assert len(convolutions) == batch


@pytest.mark.parametrize('right_is_view', [False, True], ids=['b', 'b_view'])
@pytest.mark.parametrize('left_is_view', [False, True], ids=['a', 'a_view'])
@pytest.mark.parametrize('groups', [1, 2])
def test_matmul(groups, left_is_view, right_is_view, onednn, assert_close):
    a, b = torch.randn(groups, 30, 24), torch.randn(groups, 24, 50)
    a = a.mT.contiguous().mT if left_is_view else a
    b = b.mT.contiguous().mT if right_is_view else b
    expected = a.double() @ b.double()
    assert_close(products.matmul(a, b), expected, torch.float32)
    assert_close(products.matmul(a, b, torch.empty(groups, 30, 50)), expected, torch.float32)


def test_matmul_of_overlapping_rows(onednn, assert_close):
    a, b = torch.randn(40).unfold(0, 24, 1)[None], torch.randn(60).unfold(0, 37, 1)[None]
    assert_close(products.matmul(a, b), a.double() @ b.double(), torch.float32)
    assert_close(products.matmul(b.mT, a.mT), b.double().mT @ a.double().mT, torch.float32)


@pytest.mark.parametrize('large', [False, True], ids=['bounded', 'softmax'])
@pytest.mark.parametrize('cut', [2**19, 90], ids=['whole', 'cut'])
def test_attention(large, cut, onednn, monkeypatch, assert_close):
    monkeypatch.setattr(by_hand, 'FORWARD', cut)
    monkeypatch.setattr(by_hand, 'BACKWARD', cut)
    factor = 30.0 if large else 0.5
    inputs = [torch.randn(2, 17, 4), torch.randn(2, 21, 4), torch.randn(2, 21, 5)]
    run = results(lambda q, k, v: by_hand.attention(q, k, v, factor), inputs)
    exact = in_float64(lambda q, k, v: ((q * factor) @ k.mT).softmax(-1) @ v, inputs)
    for one, other in zip(run, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-4 * other.abs().max().item())


def feed(*inputs):
    x, *weights = inputs
    norm, channel, pixel, first, second = weights[:2], weights[2:6], weights[6:10], weights[10:12], weights[12:]
    return gated_feed_forward(x, norm, channel, pixel, first, second, 1e-3)


@pytest.mark.parametrize('shape', [(1, 30), (3, 30), (5, 9), (2, 90)], ids=str)  # (5, 9): three images in a chunk
def test_feed_forward(shape, onednn, monkeypatch, assert_close):
    monkeypatch.setattr(chunking, 'ROWS', 64)
    sizes = [(8,), (8,), (2, 8), (2,), (8, 2), (8,), (2, 8), (2,), (1, 2), (1,), (12, 16), (12,), (8, 12), (8,)]
    inputs = [torch.randn(*shape, 8), *(torch.randn(size) / size[-1] ** 0.5 for size in sizes)]
    assert_close(results(feed, inputs), in_float64(feed, inputs), torch.float32)


@pytest.mark.parametrize('by_onednn', [False, True], ids=['products', 'onednn'])
def test_gradients_of_the_tail(by_onednn, monkeypatch, assert_close):
    monkeypatch.setattr(upsampler, 'uses_onednn', lambda: by_onednn)
    calls, gradient = [], upsampler._weight_gradient
    monkeypatch.setattr(upsampler, '_weight_gradient', lambda *inputs: calls.append(1) or gradient(*inputs))
    inputs = [torch.randn(2, 6, 9, 7), torch.randn(24, 6, 3, 3) / 8, torch.randn(24), torch.randn(3, 6, 3, 3) / 8]

    def tail(x, weight, bias, last):
        return upsampling_tail(x, [(weight, bias)], (last, bias[:3]), 0.1)

    run = results(tail, inputs)
    assert bool(calls) is not by_onednn
    assert_close(run, in_float64(tail, inputs), torch.float32)


def test_the_network_is_the_same(monkeypatch):
    torch.manual_seed(0)
    net, x = SPIN(num_block=2, stoken_size=(12, 24)).eval(), torch.rand(1, 3, 50, 60)
    with torch.inference_mode():
        monkeypatch.setattr(products, 'uses_onednn', lambda: False)
        expected = net(x)
        monkeypatch.setattr(products, 'uses_onednn', lambda: True)
        monkeypatch.setattr(products, 'WORTH_A_CALL', 0)
        monkeypatch.setattr(products, 'WORTH_A_CONVOLUTION', 0)
        assert (net(x) - expected).abs().mean() < 1e-6


def test_other_types_stay_with_torch(onednn, monkeypatch):
    monkeypatch.setattr(torch, 'mkldnn_convolution', None)
    x, weight = torch.rand(5, 4), torch.rand(3, 4)
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(products.linear(x.to(dtype), weight.to(dtype)), F.linear(x.to(dtype), weight.to(dtype)))


@pytest.mark.parametrize('lacks', [None, 'vendor', 'avx512', 'mkl', 'mkldnn'])
def test_where_onednn_is_used(lacks, monkeypatch):
    monkeypatch.setattr(products, '_is_by_amd', lambda: lacks != 'vendor')
    monkeypatch.setattr(torch.cpu, '_is_avx512_supported', lambda: lacks != 'avx512', raising=False)
    for name in ('mkl', 'mkldnn'):
        monkeypatch.setattr(getattr(torch.backends, name), 'is_available', lambda name=name: lacks != name)
    assert products.uses_onednn.__wrapped__() is (lacks is None)


@pytest.mark.parametrize(
    ('system', 'processor', 'cpuinfo', 'expected'),
    [
        ('Linux', '', 'vendor_id\t: AuthenticAMD', True),
        ('Linux', '', 'vendor_id\t: GenuineIntel', False),
        ('Darwin', 'i386', None, False),
        ('Windows', 'AMD64 Family 26 Model 2 Stepping 1, AuthenticAMD', None, True),
        ('Windows', 'Intel64 Family 6 Model 85 Stepping 4, GenuineIntel', None, False),
    ],
)
def test_who_made_the_processor(system, processor, cpuinfo, expected, monkeypatch):
    def read_text(*args, **kwargs):
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.setattr(products.platform, 'system', lambda: system)
    monkeypatch.setattr(products.platform, 'processor', lambda: processor)
    monkeypatch.setattr(products.Path, 'read_text', read_text)
    assert products._is_by_amd() is expected


def test_a_torch_without_the_op(monkeypatch, onednn):
    monkeypatch.setattr(products, '_product', lambda: None)
    a, b = torch.rand(1, 5, 4), torch.rand(1, 4, 6)
    assert not products.is_worth_a_call(torch.float32, 10**6, 10**6, 10**6)
    assert torch.equal(products.matmul(a, b), a @ b)


def test_multiply_adds_are_counted(onednn):
    from spinsr.evaluation.complexity import OpCounter

    with OpCounter() as counter, torch.no_grad():
        products.matmul(torch.rand(1, 5, 4), torch.rand(1, 4, 6))
        products.linear(torch.rand(7, 4), torch.rand(3, 4))
    assert counter.multiply_adds == 5 * 4 * 6 + 7 * 4 * 3
    assert not counter.unknown


def test_fake_tensors(onednn):
    with FakeTensorMode():
        x, weight = torch.rand(2, 30, 8, requires_grad=True), torch.rand(16, 8)
        out = products.linear(x, weight, torch.rand(16))
        out.sum().backward()
        assert x.grad is not None
        assert (out.shape, x.grad.shape) == ((2, 30, 16), x.shape)
        assert products.matmul(torch.rand(1, 5, 4), torch.rand(1, 4, 6)).shape == (1, 5, 6)
