"""The two losses of Uncertainty-Driven Loss for Single Image Super-Resolution (Ning et al., NeurIPS 2021).

Upstream: https://github.com/QianNing0/UDL (no licence; nothing is copied). First a network and an estimator of the
scale theta of its error at every pixel are trained together; s = ln theta. Then the estimator stands still and its s
weights the L1 loss of the network, which continues: textures and edges count more than what is easy. `UncertaintyModel`
trains both steps.
"""

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

# The authors' images are in 0..255, which decides what s means.
_LEVELS = 255.0


class _UncertaintyLoss(nn.Module):
    def __init__(self, loss_weight: float, reduction: str):
        super().__init__()
        if reduction not in ('mean', 'sum'):
            raise ValueError(f'reduction must be mean or sum, got {reduction!r}')
        self.loss_weight = loss_weight
        self.reduction = reduction

    def _reduced(self, loss: Tensor) -> Tensor:
        return self.loss_weight * (loss.mean() if self.reduction == 'mean' else loss.sum())


@LOSS_REGISTRY.register()
class UncertaintyEstimationLoss(_UncertaintyLoss):
    """Step 1, the paper's L_ESU: exp(-s) |x - f| + 2 s, a Laplace likelihood with Jeffreys' prior on theta.

    Args:
        loss_weight: Factor.
        reduction: 'mean' or 'sum'.

    Raises:
        ValueError: Any other reduction.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean'):
        super().__init__(loss_weight, reduction)

    def forward(self, pred: Tensor, target: Tensor, log_scale: Tensor) -> Tensor:
        """The loss.

        Args:
            pred: The result f (B, C, H, W), in [0, 1].
            target: The HR image x, of the same shape.
            log_scale: s, of the same shape: the logarithm of the scale of the error in gray levels (1 / 255).

        Returns:
            A number.
        """
        error = _LEVELS * (pred - target).abs()
        return self._reduced(torch.exp(-log_scale) * error + 2 * log_scale)


@LOSS_REGISTRY.register()
class UncertaintyDrivenLoss(_UncertaintyLoss):
    """Step 2, the paper's L_UDL: (s - min s) |x - f|, the minimum over an image and channel; s is a constant.

    Args:
        loss_weight: Factor.
        reduction: 'mean' or 'sum'.
        least_weight: Added to s - min s: 1 in the authors' code, 0 in the paper, where the easiest pixel has no weight.

    Raises:
        ValueError: Any other reduction.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', least_weight: float = 1.0):
        super().__init__(loss_weight, reduction)
        self.least_weight = least_weight

    def forward(self, pred: Tensor, target: Tensor, log_scale: Tensor) -> Tensor:
        """The loss; arguments as for `UncertaintyEstimationLoss`."""
        log_scale = log_scale.detach()
        weight = log_scale - log_scale.amin(dim=(2, 3), keepdim=True) + self.least_weight
        return self._reduced(weight * (pred - target).abs())
