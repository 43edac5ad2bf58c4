"""Products of float32 by oneDNN against torch's own, on any processor: which one is used there is tested by itself."""

import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from spinsr.archs.spin_arch import SPIN
from spinsr.ops import gated_feed_forward, upsampling_tail
from spinsr.ops.attention import by_hand
from spinsr.ops.common import chunking, products
from spinsr.ops.layers import upsampler

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='needs a torch with oneDNN')


needs_setting = pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, 'matmul'), reason='needs torch 2.9 or newer, which has the setting'
)


@pytest.fixture
def onednn(monkeypatch):
    """oneDNN for every product of float32, however small."""
    monkeypatch.setattr(products, 'uses_onednn', lambda: hasattr(torch.backends.mkldnn, 'matmul'))
    monkeypatch.setattr(products, 'WORTH_A_CALL', 0)


@pytest.fixture(params=[0, float('inf')], ids=['bias_by_onednn', 'bias_by_addmm'])
def either(request, onednn, monkeypatch):
    """Products with a bias by the op of torch's compiler, or by torch's own."""
    monkeypatch.setattr(products, 'WORTH_A_CALL', request.param)


def results(function, inputs):
    """The result, and the gradients of all inputs for one upstream gradient."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    upstream = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype) / 4
    return out, *torch.autograd.grad(out, leaves, upstream)


def in_float64(function, inputs):
    return results(function, [x.double() for x in inputs])


def setting():
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.mark.parametrize('shape', [(1, 1), (7, 5), (2, 3, 40), (1, 300, 16), (3, 2, 5, 24)], ids=str)
def test_linear(shape, either, assert_close):
    x, weight, bias = torch.randn(shape), torch.randn(9, shape[-1]), torch.randn(9)
    with products.cpu_products():
        out = products.linear(x, weight, bias)
    assert_close(out, F.linear(x.double(), weight.double(), bias.double()), torch.float32)
    assert out.is_contiguous()


def test_linear_of_a_slice(either, assert_close):
    x, weight, bias = torch.randn(4, 6, 11).transpose(0, 1)[..., 2:9], torch.randn(5, 7), torch.randn(5)
    with products.cpu_products():
        out = products.linear(x, weight, bias)
    assert_close(out, F.linear(x.double(), weight.double(), bias.double()), torch.float32)


def test_linear_of_no_rows(onednn):
    assert products.linear(torch.rand(2, 0, 4), torch.rand(3, 4), torch.rand(3)).shape == (2, 0, 3)


@pytest.mark.parametrize('batch', [0, 1, 3])
def test_linear_by_image(batch, either, assert_close):
    x, weight, bias = (torch.randn(batch, *shape) for shape in ((20, 6), (16, 6), (16,)))
    upstream = torch.randn(batch, 20, 16)
    with products.cpu_products():
        out = products.linear_by_image(x, weight, bias)
        found = products.linear_by_image_gradients(x, weight, upstream)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected = leaves[0] @ leaves[1].mT + leaves[2].unsqueeze(1)
    assert_close(out, expected, torch.float32)
    assert_close(found, torch.autograd.grad(expected, leaves, upstream.double()), torch.float32)


@needs_setting
def test_small_products_stay_with_torch(monkeypatch):
    calls, call = [], products._product()
    monkeypatch.setattr(products, 'uses_onednn', lambda: True)
    monkeypatch.setattr(products, '_product', lambda: lambda *inputs: calls.append(1) or call(*inputs))
    monkeypatch.setattr(products, 'WORTH_A_CALL', 1000 / torch.get_num_threads())
    weight, bias = torch.rand(5, 4), torch.rand(5)
    products.linear(torch.rand(49, 4), weight, bias)
    assert not calls
    products.linear(torch.rand(50, 4), weight, bias)
    assert len(calls) == 1


@needs_setting
@pytest.mark.parametrize('before', ['ieee', 'bf16'])
def test_the_setting_is_that_of_the_caller_again(before, monkeypatch):
    monkeypatch.setattr(products, 'uses_onednn', lambda: True)
    holder = types.SimpleNamespace(fp32_precision=before)
    monkeypatch.setattr(products, '_setting', lambda: holder)
    with products.cpu_products():
        with products.cpu_products():
            assert holder.fp32_precision == 'bf16'
        assert holder.fp32_precision == 'bf16'
    assert holder.fp32_precision == before
    with pytest.raises(KeyError), products.cpu_products():
        raise KeyError
    assert holder.fp32_precision == before


@needs_setting
def test_the_setting_is_kept_while_another_thread_needs_it(monkeypatch):
    monkeypatch.setattr(products, 'uses_onednn', lambda: True)
    before, is_inside, may_leave = setting(), threading.Event(), threading.Event()

    def other():
        with products.cpu_products():
            is_inside.set()
            may_leave.wait(10)

    thread = threading.Thread(target=other, daemon=True)
    with products.cpu_products():
        thread.start()
        assert is_inside.wait(10)
    assert setting() == 'bf16'
    may_leave.set()
    thread.join()
    assert setting() == before


@needs_setting
def test_the_setting_is_left_alone_elsewhere(monkeypatch):
    monkeypatch.setattr(products, 'uses_onednn', lambda: False)
    before = setting()
    with products.cpu_products():
        assert setting() == before


def rounded_matmul(a, b):
    return torch.matmul(a if a.dtype == torch.float64 else a.bfloat16().to(a.dtype), b)


@needs_setting
def test_products_by_way_of_bf16_are_noticed(monkeypatch):
    before = setting()
    monkeypatch.setattr(Tensor, '__matmul__', rounded_matmul)
    assert not products._is_exact()
    assert setting() == before


@needs_setting
@pytest.mark.skipif(not products.has_slow_mkl(), reason='needs a processor by AMD with AVX-512')
def test_products_are_exact_here():
    assert products._is_exact()


def in_threads(check):
    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        return [one.result() for one in [pool.submit(lambda: (barrier.wait(10), check())[1]) for _ in range(4)]]


def with_default_type(check):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return [check()]
    finally:
        torch.set_default_dtype(before)


def inside(context):
    def run(check):
        with context():
            return [check()]

    return run


PLACES = {
    'threads': in_threads,
    'fake': inside(FakeTensorMode),
    'meta': inside(lambda: torch.device('meta')),
    'counter': inside(lambda: FlopCounterMode(display=False)),
    'inference': inside(torch.inference_mode),
    'float64': with_default_type,
    'vmap': lambda check: torch.func.vmap(lambda x: torch.full_like(x, check()))(torch.zeros(3)).bool().tolist(),
    'trace': lambda check: [bool(make_fx(lambda x: x + check())(torch.zeros(1))(torch.zeros(1)))],
}


@needs_setting
@pytest.mark.parametrize('rounds', [False, True], ids=['exact', 'rounds'])
@pytest.mark.parametrize('place', PLACES.values(), ids=PLACES.keys())
def test_the_check_may_be_made_anywhere(place, rounds, monkeypatch):
    before, expected = setting(), products._is_exact()
    if rounds:
        expected = False
        monkeypatch.setattr(Tensor, '__matmul__', rounded_matmul)
    assert set(place(products._is_exact)) == {expected}
    assert setting() == before


@needs_setting
def test_the_check_is_not_counted():
    with FlopCounterMode(display=False) as counter:
        products._is_exact()
    assert counter.get_total_flops() == 0


@needs_setting
def test_a_setting_that_follows_another_still_does(monkeypatch):
    monkeypatch.setattr(products, 'uses_onednn', lambda: True)
    of_all = torch.backends.mkldnn.fp32_precision
    try:
        with products.cpu_products():
            pass
        torch.backends.mkldnn.fp32_precision = 'tf32'
        assert setting() == 'tf32'
    finally:
        torch.backends.mkldnn.fp32_precision = of_all


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
def test_feed_forward(shape, either, monkeypatch, assert_close):
    monkeypatch.setattr(chunking, 'ROWS', 64)
    sizes = [(8,), (8,), (2, 8), (2,), (8, 2), (8,), (2, 8), (2,), (1, 2), (1,), (12, 16), (12,), (8, 12), (8,)]
    inputs = [torch.randn(*shape, 8), *(torch.randn(size) / size[-1] ** 0.5 for size in sizes)]
    assert_close(results(feed, inputs), in_float64(feed, inputs), torch.float32)


@pytest.mark.parametrize('by_onednn', [False, True], ids=['products', 'onednn'])
def test_gradients_of_the_tail(by_onednn, monkeypatch, assert_close):
    monkeypatch.setattr(upsampler, 'has_slow_mkl', lambda: by_onednn)
    calls, gradient = [], upsampler._weight_gradient
    monkeypatch.setattr(upsampler, '_weight_gradient', lambda *inputs: calls.append(1) or gradient(*inputs))
    inputs = [torch.randn(2, 6, 9, 7), torch.randn(24, 6, 3, 3) / 8, torch.randn(24), torch.randn(3, 6, 3, 3) / 8]

    def tail(x, weight, bias, last):
        return upsampling_tail(x, [(weight, bias)], (last, bias[:3]), 0.1)

    run = results(tail, inputs)
    assert bool(calls) is not by_onednn
    assert_close(run, in_float64(tail, inputs), torch.float32)


def test_gradients_of_the_tail_where_only_the_backward_pass_has_autocast(monkeypatch, assert_close):
    monkeypatch.setattr(upsampler, 'has_slow_mkl', lambda: False)
    x, weight, last = torch.randn(1, 6, 9, 7), torch.randn(24, 6, 3, 3) / 8, torch.randn(3, 6, 3, 3) / 8
    found = []
    for enabled in (False, True):
        weight.requires_grad_().grad = None
        out = upsampling_tail(x, [(weight, torch.zeros(24))], (last, torch.zeros(3)))
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            out.sum().backward()
        found.append(weight.grad)
    assert_close(*found, torch.float32)


def test_the_network_is_the_same(onednn, monkeypatch):
    torch.manual_seed(0)
    net, x = SPIN(num_block=2, stoken_size=(12, 24)).eval(), torch.rand(1, 3, 50, 60)
    with torch.inference_mode():
        found = net(x)
        monkeypatch.setattr(products, 'uses_onednn', lambda: False)
        assert (found - net(x)).abs().mean() < 1e-6


def test_other_types_stay_with_torch(onednn, monkeypatch):
    monkeypatch.setattr(products, '_product', lambda: lambda *inputs: None)
    x, weight, bias = torch.rand(5, 4), torch.rand(3, 4), torch.rand(3)
    for dtype in (torch.float64, torch.bfloat16):
        inputs = [t.to(dtype) for t in (x, weight, bias)]
        assert torch.equal(products.linear(*inputs), F.linear(*inputs))


@needs_setting
@pytest.mark.parametrize('lacks', [None, 'vendor', 'avx512', 'mkl', 'mkldnn', 'exact', 'setting'])
def test_where_onednn_is_used(lacks, monkeypatch):
    monkeypatch.setattr(products, '_is_by_amd', lambda: lacks != 'vendor')
    monkeypatch.setattr(products, 'has_slow_mkl', products.has_slow_mkl.__wrapped__)
    monkeypatch.setattr(products, '_is_exact', lambda: lacks != 'exact')
    if lacks == 'setting':
        monkeypatch.setattr(products, '_setting', lambda: None)
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
    x, weight, bias = torch.rand(5, 4), torch.rand(3, 4), torch.rand(3)
    assert torch.equal(products.linear(x, weight, bias), F.linear(x, weight, bias))


def test_multiply_adds_are_counted(either):
    from spinsr.evaluation.complexity import OpCounter

    with OpCounter() as counter, torch.no_grad(), products.cpu_products():
        products.linear(torch.rand(7, 4), torch.rand(3, 4), torch.rand(3))
        products.linear_by_image(torch.rand(2, 7, 4), torch.rand(2, 3, 4), torch.rand(2, 3))
    assert counter.multiply_adds == 3 * 7 * 4 * 3
    assert not counter.unknown


def test_fake_tensors(onednn):
    with FakeTensorMode():
        assert products.linear(torch.rand(2, 30, 8), torch.rand(16, 8), torch.rand(16)).shape == (2, 30, 16)
