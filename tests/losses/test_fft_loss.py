"""The loss in the frequency domain: the sum that defines it, its gradient, and what it must not do."""

import math

import pytest
import torch

import spinsr.archs  # noqa: F401

# isort: split
from spinsr.losses.fft_loss import FFTLoss


def images(height, width):
    return torch.rand(2, 2, 3, height, width, dtype=torch.float64)


def by_definition(pred, target):
    """sum over y, x of d(y, x) exp(-2 pi i (u y / H + v x / W)), for v <= W / 2."""
    height, width = pred.shape[-2:]
    parts = []
    for u in range(height):
        for v in range(width // 2 + 1):
            rows = torch.arange(height, dtype=torch.float64)[:, None] * u / height
            angle = 2 * math.pi * (rows + torch.arange(width, dtype=torch.float64) * v / width)
            for wave in (angle.cos(), -angle.sin()):
                ours, theirs = ((image * wave).sum((-2, -1)) for image in (pred, target))
                parts.append((ours - theirs).abs())
    return torch.stack(parts)


@pytest.mark.parametrize(('height', 'width'), [(4, 6), (3, 5), (1, 1)], ids=['even', 'odd', 'pixel'])
def test_is_the_sum_that_defines_it(height, width):
    pred, target = images(height, width)
    parts = by_definition(pred, target)
    torch.testing.assert_close(FFTLoss(0.05)(pred, target), 0.05 * parts.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(FFTLoss(2.0, 'sum')(pred, target), 2 * parts.sum(), rtol=1e-12, atol=0)


def test_gradient():
    pred, target = images(4, 5)
    assert torch.autograd.gradcheck(lambda x: FFTLoss(0.5)(x, target), pred.requires_grad_())


def test_half_types_are_computed_in_float32():
    """The lowest frequency of a 256 x 256 image is beyond float16."""
    pred, target = torch.ones(1, 1, 256, 256, dtype=torch.float16), torch.zeros(1, 1, 256, 256, dtype=torch.float16)
    loss = FFTLoss(reduction='sum')(pred, target)
    assert loss.dtype == torch.float32 and loss.item() == 65536


def test_another_reduction_is_refused():
    with pytest.raises(ValueError, match="got 'none'"):
        FFTLoss(reduction='none')
