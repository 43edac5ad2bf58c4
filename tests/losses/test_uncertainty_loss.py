"""The two losses of an uncertainty-driven training."""

import math

import pytest
import torch

import spinsr.archs  # noqa: F401

# isort: split
from spinsr.losses.uncertainty_loss import UncertaintyDrivenLoss, UncertaintyEstimationLoss

both = pytest.mark.parametrize('loss', [UncertaintyEstimationLoss, UncertaintyDrivenLoss], ids=['estimation', 'driven'])


def pixels(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def test_estimation_by_hand():
    """Errors of 2 and 4 gray levels, s = 0 and ln 2: exp(-s) |e| + 2 s."""
    pred, target, s = pixels(0.5, 0.5), pixels(0.5 + 2 / 255, 0.5 - 4 / 255), pixels(0, math.log(2))
    expected = (2 + (4 / 2 + 2 * math.log(2))) / 2
    assert UncertaintyEstimationLoss()(pred, target, s).item() == pytest.approx(expected)
    assert UncertaintyEstimationLoss(0.5, 'sum')(pred, target, s).item() == pytest.approx(expected)


def test_estimation_is_least_where_the_scale_is_half_the_error():
    target = pixels(6 / 255)
    s = pixels(math.log(3)).requires_grad_()
    UncertaintyEstimationLoss()(torch.zeros_like(target), target, s).backward()
    assert s.grad.abs().max() < 1e-12


@pytest.mark.parametrize(('least', 'weights'), [(1.0, (1, 3)), (0.0, (0, 2))], ids=['code', 'paper'])
def test_driven_by_hand(least, weights):
    """Errors of 0.1 and 0.2, s = -1 and 1."""
    pred, target, s = pixels(0.5, 0.5), pixels(0.6, 0.3), pixels(-1, 1)
    expected = (weights[0] * 0.1 + weights[1] * 0.2) / 2
    assert UncertaintyDrivenLoss(least_weight=least)(pred, target, s).item() == pytest.approx(expected)
    total = UncertaintyDrivenLoss(0.5, 'sum', least_weight=least)(pred, target, s)
    assert total.item() == pytest.approx(expected)


def test_minimum_is_that_of_an_image_and_channel():
    pred, target = torch.zeros(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    s = torch.randn(2, 3, 4, 5)
    shifted = s + torch.tensor([[1.0, -2, 3], [10, 0, -7]])[:, :, None, None]
    loss = UncertaintyDrivenLoss()
    torch.testing.assert_close(loss(pred, target, shifted), loss(pred, target, s))


def test_driven_by_a_constant():
    s = torch.randn(1, 1, 2, 2, requires_grad=True)
    pred = torch.rand(1, 1, 2, 2, requires_grad=True)
    UncertaintyDrivenLoss()(pred, torch.rand(1, 1, 2, 2), s).backward()
    assert s.grad is None
    assert (pred.grad != 0).all()


@both
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_gradients(loss, reduction):
    pred, target, s = (torch.randn(2, 3, 3, 2, dtype=torch.float64) for _ in range(3))
    criterion = loss(0.7, reduction)
    assert torch.autograd.gradcheck(lambda x: criterion(x, target, s), pred.requires_grad_())


def test_gradient_of_the_scale():
    pred, target, s = (torch.randn(2, 3, 3, 2, dtype=torch.float64) for _ in range(3))
    assert torch.autograd.gradcheck(lambda x: UncertaintyEstimationLoss()(pred, target, x), s.requires_grad_())


@both
def test_unknown_reduction_is_refused(loss):
    with pytest.raises(ValueError, match="'none'"):
        loss(reduction='none')
