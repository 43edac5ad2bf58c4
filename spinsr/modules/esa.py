"""Enhanced spatial attention (ESA), in the forms of RLFN, RFDN, BSRN and Omni-SR."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Pixels of a side that the stride of 2 and the window of 7 need.
MIN_SIDE = 15


class EnhancedSpatialAttention(nn.Module):
    """A factor in (0, 1) for every pixel and channel, from a wide, coarse view.

        fine   = conv_in(x)                                              (num_mid channels)
        coarse = conv_coarse(max over 7 x 7, every 3 pixels, of conv_stride(fine))
        out    = x * sigmoid(conv_out(bilinear(coarse) + conv_skip(fine)))

    The coarse view needs `MIN_SIDE` pixels. A shorter side has the maximum over all that `conv_stride` leaves of it, so
    one factor along that side; below 3 pixels it is framed with zeros for `conv_stride`.

    The networks differ in two layers:

    - RLFN, Omni-SR: the defaults.
    - RFDN: `conv_coarse` is three convolutions with ReLU between them.
    - BSRN: both are blueprint separable convolutions, `conv_coarse` three with GELU between them. In BSRN-S
      `conv_stride` is the default.

    Args:
        num_feat: Channels C.
        num_mid: Channels of the coarse view.
        conv_stride: num_mid to num_mid channels, 3 x 3, stride 2, no padding.
        conv_coarse: num_mid to num_mid channels, same size.
    """

    def __init__(
        self,
        num_feat: int,
        num_mid: int,
        conv_stride: nn.Module | None = None,
        conv_coarse: nn.Module | None = None,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(num_feat, num_mid, 1)
        self.conv_skip = nn.Conv2d(num_mid, num_mid, 1)
        self.conv_stride = conv_stride or nn.Conv2d(num_mid, num_mid, 3, stride=2)
        self.conv_coarse = conv_coarse or nn.Conv2d(num_mid, num_mid, 3, 1, 1)
        self.conv_out = nn.Conv2d(num_mid, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        height, width = x.shape[2:]
        fine = self.conv_in(x)
        tall, wide = int(height < 3), int(width < 3)
        coarse = self.conv_stride(F.pad(fine, (wide, wide, tall, tall)))
        coarse = F.max_pool2d(coarse, (min(7, coarse.shape[2]), min(7, coarse.shape[3])), stride=3)
        coarse = F.interpolate(self.conv_coarse(coarse), (height, width), mode='bilinear', align_corners=False)
        return x * torch.sigmoid(self.conv_out(coarse + self.conv_skip(fine)))
