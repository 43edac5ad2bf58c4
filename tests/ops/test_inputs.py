"""Unusual inputs, for every op: no images, no channels, meta tensors, integers."""

from collections.abc import Callable

import pytest
import torch

from spinsr import ops
from spinsr.ops.attention import attention

BACKENDS = pytest.mark.parametrize('backend', ['reference', 'torch'])


class Call:
    """An op on features of some batch, channels, type and device; the weights are float32."""

    def __init__(self, batch: int = 2, channels: int = 4, dtype: torch.dtype = torch.float32, device: str = 'cpu'):
        self.batch, self.channels, self.dtype, self.device = batch, channels, dtype, device

    def features(self, *shape: int) -> torch.Tensor:
        return torch.rand(self.batch, *shape, device=self.device).to(self.dtype)

    def weights(self, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
        return [torch.rand(shape, device=self.device) for shape in shapes]

    def association(self, backend: str, **options) -> ops.Association:
        return ops.associate(torch.rand(self.batch, 6, 8, 3, device=self.device), 4, backend=backend, **options)


def associate(call, backend):
    return ops.associate(call.features(6, 8, call.channels), 4, backend=backend).dense()


def pool(call, backend):
    return ops.pool(call.features(6, 8, call.channels), call.association(backend))


def pool_mixture(call, backend):
    return ops.pool(call.features(6, 8, call.channels), call.association(backend, reach=None))


def top_n(call, backend):
    return ops.top_n(call.association(backend))


def cross(call, backend):
    tokens = call.features(48, call.channels)
    return ops.superpixel_cross_attention(tokens, tokens, tokens, call.features(2, call.channels), backend=backend)


def intra(call, backend):
    tokens = call.features(48, call.channels)
    indices = torch.arange(48, device=call.device).view(1, 2, 24).expand(call.batch, -1, -1)
    return ops.intra_superpixel_attention(tokens, tokens, tokens, indices, backend=backend)


def window(call, backend):
    x = call.features(6, 8, call.channels)
    return ops.window_attention(x, x, x, 4, backend=backend)


def dense(call, backend):
    x = call.features(1, 5, call.channels)
    return attention(x, x, x, backend=backend)


def project(call, backend):
    *norm, weight = call.weights((call.channels,), (call.channels,), (5, call.channels))
    return torch.cat(ops.norm_project(call.features(48, call.channels), norm, weight, (2, 3), 1e-6, backend=backend), 2)


def feed(call, backend):
    c = call.channels
    norm, channel = call.weights((c,), (c,)), call.weights((2, c), (2,), (c, 2), (c,))
    pixel, first = call.weights((2, c), (2,), (1, 2), (1,)), call.weights((5, 2 * c), (5,))
    second = call.weights((c, 5), (c,))
    return ops.gated_feed_forward(call.features(48, c), norm, channel, pixel, first, second, 1e-6, backend=backend)


def tail(call, backend):
    c = call.channels
    stage, last = call.weights((4 * c, c, 3, 3), (4 * c,)), call.weights((3, c, 3, 3), (3,))
    return ops.upsampling_tail(call.features(c, 5, 7), [stage], last, 0.1, backend=backend)


def covariance(call, backend):
    return ops.covariance(call.features(call.channels, 5, 7), backend=backend)


OPS = [associate, pool, pool_mixture, top_n, cross, intra, window, project, feed, tail, covariance]
WITH_FEATURES = [op for op in OPS if op is not top_n]
NEEDS_CHANNELS = [op for op in WITH_FEATURES if op not in (pool, pool_mixture)]


def each(ops: list[Callable]):
    return pytest.mark.parametrize('op', ops, ids=lambda op: op.__name__)


@BACKENDS
@each(OPS)
def test_no_images_give_no_results(op, backend):
    expected = op(Call(), backend)
    out = op(Call(batch=0), backend)
    assert (out.shape, out.dtype) == ((0, *expected.shape[1:]), expected.dtype)


@pytest.mark.parametrize('op', [project, feed, tail, cross, intra], ids=lambda op: op.__name__)
def test_no_images_have_gradients_of_zero(op):
    call, made = Call(batch=0), []
    random = call.weights

    def weights(*shapes):
        made.extend(tensors := [x.requires_grad_() for x in random(*shapes)])
        return tensors

    call.weights = weights
    features = call.features
    call.features = lambda *shape: features(*shape).requires_grad_()
    op(call, 'torch').sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in made)


@BACKENDS
@each(OPS)
def test_meta_tensors_give_meta_results(op, backend):
    expected, out = op(Call(), backend), op(Call(device='meta'), backend)
    assert (out.device.type, out.shape, out.dtype) == ('meta', expected.shape, expected.dtype)


@BACKENDS
@each(WITH_FEATURES)
def test_integers_are_refused_with_the_type(op, backend):
    with pytest.raises(TypeError, match='must be a floating-point tensor, got torch.int64'):
        op(Call(dtype=torch.int64), backend)


@BACKENDS
@each(NEEDS_CHANNELS)
def test_no_channels_are_refused(op, backend):
    with pytest.raises(ValueError, match='at least one channel|positive multiple'):
        op(Call(channels=0), backend)


def test_square_roots_of_integers_are_refused():
    with pytest.raises(TypeError, match=r'a must be a floating-point tensor, got torch\.int64'):
        ops.sqrtm_newton_schulz(torch.eye(3, dtype=torch.int64)[None])


@BACKENDS
def test_attention_refuses_integers(backend):
    with pytest.raises(TypeError, match='got torch.int64'):
        dense(Call(dtype=torch.int64), backend)


@pytest.mark.parametrize('op', [cross, dense, project, feed, tail, covariance], ids=lambda op: op.__name__)
def test_an_op_without_kernels_refuses_triton_by_name(op, monkeypatch):
    monkeypatch.setattr('spinsr.ops.common.backend._triton', lambda: (None, True))
    with pytest.raises(RuntimeError, match="'triton' cannot run: .+ has no Triton kernels; use 'torch'"):
        op(Call(), 'triton')


def test_attention_of_large_features_rounds_as_the_reference():
    # Logits of 10^7: their last digits, which decide, depend on where the scale is multiplied.
    q, k, v = torch.randn(1, 36, 6), torch.randn(1, 36, 6), torch.randn(1, 36, 5)
    q[..., 1] = k[..., 1] = 1e4
    indices = torch.arange(36).view(1, 4, 9)

    def run(backend):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = ops.intra_superpixel_attention(*leaves, indices, backend=backend)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    # Another place would move the results by 0.1 and more; gradients are differences of numbers of 10^4.
    torch.testing.assert_close(run('torch'), run('reference'), rtol=1e-5, atol=1e-2)
