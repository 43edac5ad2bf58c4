"""Intra-superpixel attention (ISPA) of SPIN."""

from torch import Tensor, nn

from spinsr import ops
from spinsr.modules.projection import project
from spinsr.ops.attention import check_own_values


class IntraSuperpixelAttention(nn.Module):
    """Attention among the pixels that belong most to a superpixel.

    Args:
        dim: Channels C.
        num_heads: Number of heads.
        qk_dim: Channels of queries and keys, over all heads.
        num_pixels: Pixels a superpixel (the paper's N); None means the area of its cell.
        own_values: Whose own values enter the result, 'all' pixels' or only those of 'ignored' ones.

    Raises:
        ValueError: `own_values` is neither.
    """

    def __init__(self, dim: int, num_heads: int, qk_dim: int, num_pixels: int | None = None, own_values: str = 'all'):
        super().__init__()
        check_own_values(own_values)
        self.own_values = own_values
        self.split = (qk_dim, qk_dim, dim)
        self.num_heads = num_heads
        self.num_pixels = num_pixels
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.to_qkv = nn.Linear(dim, sum(self.split), bias=False)

    def forward(self, x: Tensor, association: ops.Association) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        q, k, v = project(x, self.norm, self.to_qkv, self.split)
        indices = ops.top_n(association, self.num_pixels)  # (B, K, T)
        out = ops.intra_superpixel_attention(q, k, v, indices, self.num_heads, own_values=self.own_values)
        return out.view(x.shape)
