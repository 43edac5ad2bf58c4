"""Channel attention of RCAN (Zhang et al., ECCV 2018, section 3.3)."""

from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """A factor in (0, 1) for every channel, from the means of all channels.

        s   = sigmoid(conv_up(relu(conv_down(mean of x over H and W))))    (1 x 1 convolutions with biases)
        out = x * s

    State-dict names as in BasicSR: `attention.1` is conv_down, `attention.3` conv_up.

    Args:
        num_feat: Channels C.
        squeeze_factor: Channel reduction r, 1 to C; conv_down has C // r channels.
    """

    def __init__(self, num_feat: int, squeeze_factor: int = 16):
        super().__init__()
        squeezed = num_feat // squeeze_factor
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(num_feat, squeezed, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, num_feat, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.attention(x)
