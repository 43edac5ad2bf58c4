"""Superpixel cross-attention (SPCA) of SPIN."""

from torch import Tensor, nn

from spinsr import ops
from spinsr.modules.projection import project


class SuperpixelCrossAttention(nn.Module):
    """Superpixels gather from all pixels, then every pixel gathers from all superpixels.

    Args:
        dim: Channels C.
        num_heads: Number of heads.
        qk_dim: Channels of queries and keys, over all heads.
    """

    def __init__(self, dim: int, num_heads: int, qk_dim: int):
        super().__init__()
        self.split = (qk_dim, qk_dim, dim)
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.to_qkv = nn.Linear(dim, sum(self.split), bias=False)
        self.to_token = nn.Linear(dim, qk_dim, bias=False)

    def inputs(self, x: Tensor, association: ops.Association) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values of the pixels (B, N, D), and the superpixels' tokens (B, K, qk_dim)."""
        q, k, v = project(x, self.norm, self.to_qkv, self.split)
        return q, k, v, self.to_token(ops.pool(self.norm(x), association).to(q.dtype))

    def forward(self, x: Tensor, association: ops.Association) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return ops.superpixel_cross_attention(*self.inputs(x, association), self.num_heads).view(x.shape)
