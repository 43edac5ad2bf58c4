"""Local attention of SPIN: self-attention in overlapping square windows."""

from torch import Tensor, nn

from spinsr import ops
from spinsr.modules.projection import project


class LocalAttention(nn.Module):
    """Attention inside windows of the cell's size with two pixels of overlap; overlaps are averaged.

    The logits are scaled by qk_dim^-0.5 however many heads there are, as in the authors' code.

    Args:
        dim: Channels C.
        num_heads: Number of heads.
        qk_dim: Channels of queries and keys, over all heads.
        window: Side of a window in LR pixels.
    """

    def __init__(self, dim: int, num_heads: int, qk_dim: int, window: int):
        super().__init__()
        self.split = (qk_dim, qk_dim, dim)
        self.num_heads = num_heads
        self.window = window
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.to_qkv = nn.Linear(dim, sum(self.split), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        q, k, v = (t.unflatten(1, x.shape[1:3]) for t in project(x, self.norm, self.to_qkv, self.split))
        if self.num_heads > 1:
            q = q * self.num_heads**-0.5  # the op scales by (qk_dim / num_heads)^-0.5
        return ops.window_attention(q, k, v, self.window, num_heads=self.num_heads)
