"""Loss in the frequency domain, used with L1 to train ShuffleMixer, SAFMN and SMFANet.

Cho et al., 'Rethinking Coarse-to-Fine Approach in Single Image Deblurring' (ICCV 2021).
"""

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn


@LOSS_REGISTRY.register()
class FFTLoss(nn.Module):
    """mean |Δ| over the real and imaginary parts of the 2-D Fourier transforms of result and target.

    The transforms are those of real images (rfft2): about half of the frequencies, without a factor 1 / (H W).

    Args:
        loss_weight: Factor.
        reduction: 'mean' or 'sum'.

    Raises:
        ValueError: Any other reduction.

    Example:
        >>> FFTLoss()(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))  # one part is 16, the other 23 are 0
        tensor(0.6667)
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean'):
        super().__init__()
        if reduction not in ('mean', 'sum'):
            raise ValueError(f'reduction must be mean or sum, got {reduction!r}')
        self.loss_weight = loss_weight
        self.reduction = reduction

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss.

        Args:
            pred: The result (B, C, H, W); half types are transformed in float32.
            target: The HR image, of the same shape.

        Returns:
            A number.
        """
        # The transform is linear: one of the difference is enough.
        difference = pred - target
        if difference.dtype in (torch.float16, torch.bfloat16):
            difference = difference.float()
        parts = torch.view_as_real(torch.fft.rfft2(difference)).abs()  # (B, C, H, W // 2 + 1, 2)
        return self.loss_weight * (parts.mean() if self.reduction == 'mean' else parts.sum())
