"""Attention in windows; that the fused form equals the reference is in test_in_parts.py."""

import pytest
import torch

from spinsr.ops import window_attention
from spinsr.ops.common.symbolic import windows

BACKENDS = pytest.mark.parametrize('backend', ['reference', 'torch'])
HEADS = pytest.mark.parametrize('num_heads', [1, 2], ids=['one_head', 'two_heads'])


def inputs_of(case, dtype=torch.float64):
    return case.features(4, dtype), case.features(4, dtype), case.features(6, dtype)


def attend(backend, window, overlap=2, num_heads=1):
    return lambda q, k, v: window_attention(q, k, v, window, overlap, num_heads, backend=backend)


@pytest.mark.parametrize(
    ('side', 'window', 'overlap', 'starts'),
    [
        (24, 12, 2, [0, 10, 12]),
        (22, 12, 2, [0, 10]),
        (12, 12, 2, [0]),
        (13, 12, 2, [0, 1]),
        (7, 12, 2, [0]),
        (1, 1, 2, [0]),
        (3, 1, 2, [0, 1, 2]),
        (9, 3, 0, [0, 3, 6]),
    ],
)
def test_starts_by_hand(side, window, overlap, starts):
    places = windows(side, window, overlap)
    assert places[:, 0].tolist() == starts
    assert torch.equal(places - places[:, :1], torch.arange(min(window, side)).expand_as(places))


@BACKENDS
def test_attention_by_hand(backend, assert_close):
    zero, v = torch.zeros(1, 1, 4, 1).double(), torch.tensor([0.0, 3, 6, 9]).double().view(1, 1, 4, 1)
    out = window_attention(zero, zero, v, window=3, overlap=1, backend=backend)
    # Two windows, pixels 0-2 and 1-3, with means 3 and 6; the pixels in both get the mean of these.
    assert_close(out.flatten(), torch.tensor([3, 4.5, 4.5, 6]).double())


@BACKENDS
def test_window_is_square(backend, assert_close):
    zero, v = torch.zeros(1, 4, 4, 1).double(), torch.arange(16.0).double().view(1, 4, 4, 1)
    out = window_attention(zero, zero, v, window=2, overlap=0, backend=backend)
    means = torch.tensor([[2.5, 4.5], [10.5, 12.5]]).double()
    assert_close(out.view(4, 4), means.repeat_interleave(2, 0).repeat_interleave(2, 1))


@HEADS
def test_reference_gradcheck(num_heads):
    inputs = [torch.randn(2, 3, 4, c, dtype=torch.float64, requires_grad=True) for c in (4, 4, 2)]
    assert torch.autograd.gradcheck(attend('reference', 3, 1, num_heads), inputs)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_fused_in_half_types(dtype, one_case, assert_half_close):
    inputs = inputs_of(one_case('non_divisible_batch'), dtype)
    assert_half_close(attend('torch', 4), attend('reference', 4), *inputs)


def test_maps_built_in_inference_mode_serve_autograd():
    q = torch.randn(1, 29, 43, 4)  # a size of this test alone, so that its maps are built in inference mode
    with torch.inference_mode():
        window_attention(q, q, q, window=5, backend='torch')
    q.requires_grad_()
    window_attention(q, q, q, window=5, backend='torch').sum().backward()
    assert q.grad.isfinite().all()


@BACKENDS
def test_inputs_stay_as_they_are(backend, one_case):
    inputs = inputs_of(one_case('odd'))
    before = [x.clone() for x in inputs]
    window_attention(*inputs, window=4, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize(('window', 'overlap'), [(0, 0), (4, -2)], ids=['no-window', 'negative-overlap'])
def test_sizes_out_of_range_are_refused(window, overlap):
    x = torch.rand(1, 5, 5, 4)
    with pytest.raises(ValueError, match=f'window={window}, overlap={overlap}'):
        window_attention(x, x, x, window, overlap)
