"""Contrastive loss of RLFN: Residual Local Feature Network (Kong et al., CVPRW 2022); no training code is public.

The paper replaces VGG by two random convolutions with a Tanh between. It leaves open what we decided: 64 channels,
PyTorch's default initialisation, biases, zero padding, L1 distances, and a ratio for every image, averaged over the
batch, so that accumulated parts and several processes give the loss of the whole batch.
"""

import math

import torch
import torch.nn.functional as F
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

# Keeps the ratio finite where the result is the bicubic image.
_EPS = 1e-7


@LOSS_REGISTRY.register()
class ContrastiveLoss(nn.Module):
    """d(phi(SR), phi(HR)) / d(phi(SR), phi(bicubic LR)): towards the sharp image, away from the upscaled one.

    phi is conv3x3 - Tanh - conv3x3 with random weights that are never trained. They depend on `seed` alone: they are
    the same on every machine and after a resume, and drawing them leaves torch's random numbers as they are.

    Args:
        loss_weight: Factor.
        num_feat: Channels of both convolutions.
        seed: Of the weights.

    Raises:
        ValueError: num_feat is below 1.
    """

    first_weight: Tensor
    first_bias: Tensor
    second_weight: Tensor
    second_bias: Tensor

    def __init__(self, loss_weight: float = 1.0, num_feat: int = 64, seed: int = 0):
        super().__init__()
        if num_feat < 1:
            raise ValueError(f'num_feat must be at least 1, got {num_feat=}')
        self.loss_weight = loss_weight
        generator = torch.Generator().manual_seed(seed)
        for name, channels in (('first', 3), ('second', num_feat)):
            bound = 1 / math.sqrt(9 * channels)
            for part, shape in (('weight', (num_feat, channels, 3, 3)), ('bias', (num_feat,))):
                # On the CPU also under torch.device, whose generators give other numbers.
                uniform = torch.rand(shape, generator=generator, device='cpu')
                self.register_buffer(f'{name}_{part}', (2 * uniform - 1) * bound)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_feat, H, W)."""
        x = torch.tanh(F.conv2d(x, self.first_weight, self.first_bias, padding=1))
        return F.conv2d(x, self.second_weight, self.second_bias, padding=1)

    def forward(self, pred: Tensor, target: Tensor, lq: Tensor) -> Tensor:
        """The loss.

        Args:
            pred: The result (B, 3, rH, rW), RGB in [0, 1].
            target: The HR image, of the same shape.
            lq: The LR image (B, 3, H, W).

        Returns:
            A number.
        """
        with torch.no_grad():
            # With antialias torch takes the kernel of MATLAB and PIL (a = -0.5), else another one (a = -0.75).
            blurred = F.interpolate(lq, target.shape[2:], mode='bicubic', align_corners=False, antialias=True)
            positive, negative = self.features(target), self.features(blurred)
        anchor = self.features(pred)
        near, far = ((anchor - other).abs().mean(dim=(1, 2, 3)) for other in (positive, negative))  # (B,)
        return self.loss_weight * (near / (far + _EPS)).mean()
