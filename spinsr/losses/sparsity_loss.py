"""Sparsity regularization of SMSR (Wang et al., CVPR 2021): the share of positions that a network computes.

Upstream: https://github.com/The-Learning-And-Vision-Atelier-LAVA/SMSR (no licence; nothing is copied).
"""

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn


@LOSS_REGISTRY.register()
class SparsityLoss(nn.Module):
    """weight * min(epoch / ramp_epochs, 1) * mean(sparsity), with epochs counted from 0.

    Args:
        loss_weight: Factor at the end of the ramp.
        ramp_epochs: Epochs in which the factor grows from 0, in steps of an epoch.
        epoch_iters: Iterations of an epoch.

    Raises:
        ValueError: ramp_epochs or epoch_iters is below 1.

    Example:
        >>> import torch
        >>> SparsityLoss(ramp_epochs=50)(torch.tensor([0.5]), 25_001)
        tensor(0.0250)
    """

    def __init__(self, loss_weight: float = 0.1, ramp_epochs: int = 50, epoch_iters: int = 1000):
        super().__init__()
        if min(ramp_epochs, epoch_iters) < 1:
            raise ValueError(f'ramp_epochs and epoch_iters must be at least 1, got {ramp_epochs=}, {epoch_iters=}')
        self.loss_weight = loss_weight
        self.ramp_epochs = ramp_epochs
        self.epoch_iters = epoch_iters

    def forward(self, sparsity: Tensor, iteration: int) -> Tensor:
        """The loss.

        Args:
            sparsity: Shares in [0, 1], of any shape.
            iteration: The iteration, counted from 1.

        Returns:
            A number.
        """
        epoch = (iteration - 1) // self.epoch_iters
        return self.loss_weight * min(epoch / self.ramp_epochs, 1) * sparsity.mean()
