"""Superpixel aggregation (SPA) of SPIN."""

from torch import Tensor, nn

from spinsr import ops


class SuperpixelAggregation(nn.Module):
    """Associates each pixel with the superpixels around it; see `spinsr.ops.associate`. Has no parameters.

    Args:
        stoken_size: Side of a superpixel cell in LR pixels.
        num_iter: Number of association rounds.
        reach: How many cells away the superpixels of a pixel are; None: any of the image. 0: only its own, a patch.
    """

    def __init__(self, stoken_size: int, num_iter: int = 3, reach: int | None = 1):
        super().__init__()
        self.stoken_size = stoken_size
        self.num_iter = num_iter
        self.reach = reach

    def forward(self, x: Tensor) -> ops.Association:
        """(B, H, W, C) -> association, a constant to autograd."""
        return ops.associate(x, self.stoken_size, self.num_iter, reach=self.reach)

    def extra_repr(self) -> str:
        return f'stoken_size={self.stoken_size}, num_iter={self.num_iter}, reach={self.reach}'
