"""Attention between and inside superpixels; that the fused forms equal the reference is in test_in_parts.py."""

import functools
import math

import pytest
import torch

from spinsr.ops import associate, intra_superpixel_attention, superpixel_cross_attention, top_n

BACKENDS = pytest.mark.parametrize('backend', ['reference', 'torch'])
HEADS = pytest.mark.parametrize('num_heads', [1, 2], ids=['one_head', 'two_heads'])


def cross_inputs(case, widths, dtype=torch.float64):
    num_cells = max(1, case.height // case.cell) * max(1, case.width // case.cell)
    tokens = torch.randn(case.batch, num_cells, widths[0], dtype=dtype)
    return case.tokens(widths[0], dtype), case.tokens(widths[0], dtype), case.tokens(widths[1], dtype), tokens


def intra_inputs(case, widths, dtype=torch.float64):
    indices = top_n(associate(case.features(3), case.cell))
    qkv = case.tokens(widths[0], dtype), case.tokens(widths[0], dtype), case.tokens(widths[1], dtype)
    return qkv, indices


def cross(backend, num_heads=1):
    return lambda q, k, v, tokens: superpixel_cross_attention(q, k, v, tokens, num_heads, backend=backend)


def intra(indices, backend, num_heads=1):
    return lambda q, k, v: intra_superpixel_attention(q, k, v, indices, num_heads, backend=backend)


def column(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1)


@BACKENDS
def test_cross_by_hand(backend, assert_close):
    # D = 4: token . key / sqrt(4) is 0 for the first pixel and log 3 for the second; so is query . token.
    unit = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    k, q = column(0, 2 * math.log(3)) * unit, column(0, 2 * math.log(3)) * unit
    tokens = column(1, 0) * unit
    out = superpixel_cross_attention(q, k, column(4, 8), tokens, backend=backend)
    first, second = 4 / 4 + 8 * 3 / 4, 6  # what the superpixels gathered: weights 1/4, 3/4 and 1/2, 1/2
    assert_close(out, column(first / 2 + second / 2, first * 3 / 4 + second / 4))


@BACKENDS
def test_intra_by_hand(backend, assert_close):
    q, v = torch.zeros(1, 4, 1).double(), column(0, 4, 10, 5)
    indices = torch.tensor([[[0, 1], [1, 2]]])
    out = intra_superpixel_attention(q, q, v, indices, backend=backend)
    # The superpixels attend to means, 2 and 7; the last pixel is in none and keeps its value.
    assert_close(out, column((0 + 2) / 2, (4 + 2 + 7) / 3, (10 + 7) / 2, 5))


@BACKENDS
def test_intra_where_only_ignored_pixels_keep_their_values(backend, assert_close):
    q, v = torch.zeros(1, 4, 1).double(), column(0, 4, 10, 5)
    indices = torch.tensor([[[0, 1], [1, 2]]])
    out = intra_superpixel_attention(q, q, v, indices, backend=backend, own_values='ignored')
    assert_close(out, column(2, (2 + 7) / 2, 7, 5))


@BACKENDS
def test_intra_refuses_other_own_values(backend):
    q = torch.zeros(1, 4, 1)
    with pytest.raises(ValueError, match="must be one of all, ignored, got own_values='none'"):
        intra_superpixel_attention(q, q, q, torch.tensor([[[0, 1]]]), backend=backend, own_values='none')


@BACKENDS
def test_intra_scales_by_the_width(backend, assert_close):
    unit = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    q, k = column(1, 0) * unit, column(0, 2 * math.log(3)) * unit
    out = intra_superpixel_attention(q, k, column(4, 8), torch.tensor([[[0, 1]]]), backend=backend)
    assert_close(out, column((4 + 7) / 2, (8 + 6) / 2))


@HEADS
def test_cross_reference_gradcheck(num_heads, one_case):
    inputs = cross_inputs(one_case('one_row')._replace(batch=2), (4, 2))
    assert torch.autograd.gradcheck(cross('reference', num_heads), [x.requires_grad_() for x in inputs])


@HEADS
def test_intra_reference_gradcheck(num_heads, one_case):
    inputs, indices = intra_inputs(one_case('one_row')._replace(batch=2, cell=3), (4, 2))
    assert torch.autograd.gradcheck(intra(indices, 'reference', num_heads), [x.requires_grad_() for x in inputs])


def test_intra_reference_gradcheck_with_ignored_pixels(one_case):
    inputs, indices = intra_inputs(one_case('one_row')._replace(batch=2, cell=3), (4, 2))
    attend = functools.partial(intra_superpixel_attention, backend='reference', own_values='ignored')
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend(q, k, v, indices[..., :2]), [x.requires_grad_() for x in inputs]
    )


@BACKENDS
def test_images_of_a_batch_do_not_meet(backend, one_case, assert_close):
    case = one_case('non_divisible_batch')
    qkv, indices = intra_inputs(case, (4, 6))
    alone = [
        intra_superpixel_attention(*inputs, backend=backend)
        for inputs in zip(*(x.split(1) for x in (*qkv, indices)), strict=True)
    ]
    assert_close(intra_superpixel_attention(*qkv, indices, backend=backend), torch.cat(alone))


@BACKENDS
def test_many_pixels_and_superpixels(backend, forward_backward, assert_close):
    # Enough of both for any splitting into chunks to happen, with sizes that chunks do not divide.
    q, k, v = torch.randn(1, 9001, 4), torch.randn(1, 9001, 4), torch.randn(1, 9001, 6)
    tokens = torch.randn(1, 301, 4)
    expected = forward_backward(cross('reference'), *(x.double() for x in (q, k, v, tokens)))
    assert_close(forward_backward(cross(backend), q, k, v, tokens), expected, torch.float32)


@BACKENDS
def test_large_logits_stay_finite(backend):
    q, k, v, tokens = (100 * torch.randn(1, n, 8) for n in (60, 60, 60, 6))
    assert superpixel_cross_attention(q, k, v, tokens, backend=backend).isfinite().all()


@BACKENDS
def test_splits_of_one_projection_work_and_stay_as_they_are(backend, one_case):
    case = one_case('non_divisible_batch')
    qkv = case.tokens(4 + 4 + 6)
    before = qkv.clone()
    q, k, v = qkv.split((4, 4, 6), -1)
    _, indices = intra_inputs(case, (4, 6))
    out = intra_superpixel_attention(q, k, v, indices, backend=backend)
    assert torch.equal(qkv, before)
    assert torch.equal(out, intra_superpixel_attention(*(x.contiguous() for x in (q, k, v)), indices, backend=backend))


def test_cross_fused_stores_nothing_of_pixels_times_superpixels(largest_tensor):
    inputs = [torch.randn(1, n, 8, requires_grad=True) for n in (96 * 96, 96 * 96, 96 * 96, 24 * 24)]
    with largest_tensor() as largest:
        superpixel_cross_attention(*inputs, backend='torch').sum().backward()
    assert 0 < largest.elements < 96 * 96 * 24 * 24


def test_cross_inference_stores_nothing_of_pixels_times_superpixels(largest_tensor):
    inputs = [torch.randn(1, n, 8) for n in (96 * 96, 96 * 96, 96 * 96, 24 * 24)]
    with largest_tensor() as largest:
        superpixel_cross_attention(*inputs, backend='torch')
    assert 0 < largest.elements < 96 * 96 * 24 * 24


def test_intra_fused_stores_nothing_of_pixels_times_superpixels(largest_tensor):
    indices = torch.arange(96 * 96).view(1, 24 * 24, 16)
    inputs = [torch.randn(1, 96 * 96, 8, requires_grad=True) for _ in range(3)]
    with largest_tensor() as largest:
        intra_superpixel_attention(*inputs, indices, backend='torch').sum().backward()
    assert 0 < largest.elements < 96 * 96 * 24 * 24
