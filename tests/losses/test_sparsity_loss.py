"""SMSR's loss: its factor grows epoch by epoch."""

import pytest
import torch

import spinsr.archs  # noqa: F401

# isort: split
from spinsr.losses.sparsity_loss import SparsityLoss


@pytest.mark.parametrize(
    ('iteration', 'factor'),
    [(1, 0), (10, 0), (11, 0.05), (20, 0.05), (21, 0.1), (41, 0.2), (51, 0.2)],
)
def test_factor_of_an_iteration(iteration, factor):
    loss = SparsityLoss(loss_weight=0.2, ramp_epochs=4, epoch_iters=10)
    sparsity = torch.tensor([[0.25, 0.5], [0.5, 0.75]], requires_grad=True)
    value = loss(sparsity, iteration)
    value.backward()
    assert value.item() == pytest.approx(factor * 0.5)
    torch.testing.assert_close(sparsity.grad, torch.full((2, 2), factor / 4))


def test_epochs_without_iterations_are_refused():
    with pytest.raises(ValueError, match='epoch_iters=0'):
        SparsityLoss(epoch_iters=0)
