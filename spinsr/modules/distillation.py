"""Parts of the feature distillation networks, IMDN, RFDN and BSRN; ESRT collects its blocks in the same way."""

from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


class CollectedBlocks(nn.Sequential):
    """Blocks in a row; the result is the outputs of all of them, not of the last alone.

    Args:
        blocks: From C to C channels. They are numbered from 1, as `block_1`.
    """

    def __init__(self, blocks: Iterable[nn.Module]):
        super().__init__(OrderedDict((f'block_{number}', block) for number, block in enumerate(blocks, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, blocks * C, H, W)."""
        outputs = []
        for block in self:
            x = block(x)
            outputs.append(x)
        return torch.cat(outputs, 1)


class FeatureDistillation(nn.Module):
    """Three steps keep half of the channels and refine all of them; a fourth half comes last; all four are fused.

        r_0 = x     d_j = act(distill_j(r_j-1))     r_j = act(refine_j(r_j-1) + r_j-1)     j = 1, 2, 3
        out = fuse([d_1, d_2, d_3, act(refine_4(r_3))])

    `distill_j` (`c1_d`, ...) and `fuse` (`c5`) are 1 x 1 convolutions, `refine_j` (`c1_r`, ..., `c4`) of any kind.

    Args:
        num_feat: Channels C.
        conv: (channels, channels of the result) -> a layer that keeps the size.
        act: Activation.
    """

    def __init__(self, num_feat: int, conv: Callable[[int, int], nn.Module], act: Activation):
        super().__init__()
        half, self.act = num_feat // 2, act
        self.c1_d = nn.Conv2d(num_feat, half, 1)
        self.c1_r = conv(num_feat, num_feat)
        self.c2_d = nn.Conv2d(num_feat, half, 1)
        self.c2_r = conv(num_feat, num_feat)
        self.c3_d = nn.Conv2d(num_feat, half, 1)
        self.c3_r = conv(num_feat, num_feat)
        self.c4 = conv(num_feat, half)
        self.c5 = nn.Conv2d(4 * half, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        distilled = []
        for distill, refine in ((self.c1_d, self.c1_r), (self.c2_d, self.c2_r), (self.c3_d, self.c3_r)):
            distilled.append(self.act(distill(x)))
            x = self.act(refine(x) + x)
        return self.c5(torch.cat([*distilled, self.act(self.c4(x))], 1))
