"""Superpixel aggregation (SPA) of SPIN."""

from torch import Tensor, nn

from spinsr import ops
from spinsr.ops.association import check_association


class SuperpixelAggregation(nn.Module):
    """Associates each pixel with the superpixels around it; see `spinsr.ops.associate`. Has no parameters.

    Args:
        stoken_size: Side of a superpixel cell in LR pixels.
        num_iter: Number of association rounds.
        reach: How many cells away the superpixels of a pixel are; None: any of the image. 0: only its own, a patch.
        differentiable: Whether gradients flow through the association and its centroids.
        association: 'softmax' over the neighbouring superpixels, or 'exponential', Eq. 3.
        position_weight: How much a distance of one cell counts beside the features; 0: features alone.

    Raises:
        ValueError: `association` or `position_weight` is out of its range.
    """

    def __init__(
        self,
        stoken_size: int,
        num_iter: int = 3,
        reach: int | None = 1,
        differentiable: bool = False,
        association: str = 'softmax',
        position_weight: float = 0.0,
    ):
        super().__init__()
        check_association(association, position_weight, differentiable, reach)
        self.stoken_size = stoken_size
        self.num_iter = num_iter
        self.options = {
            'reach': reach,
            'differentiable': differentiable,
            'association': association,
            'position_weight': position_weight,
        }

    def forward(self, x: Tensor) -> ops.Association:
        """(B, H, W, C) -> association, a constant to autograd unless it is differentiable."""
        return ops.associate(x, self.stoken_size, self.num_iter, **self.options)

    def extra_repr(self) -> str:
        options = ', '.join(f'{name}={value}' for name, value in self.options.items())
        return f'stoken_size={self.stoken_size}, num_iter={self.num_iter}, {options}'
