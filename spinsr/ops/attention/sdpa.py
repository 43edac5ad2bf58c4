"""torch's fused attention, for queries and keys of another width than the values."""

import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, factor: float) -> Tensor:
    """softmax(factor q k^T) v of (..., L, D), (..., S, D), (..., S, E)."""
    channels = v.shape[-1]
    # The kernels take one width for q, k and v; zeros appended to the narrower change nothing.
    width = max(q.shape[-1], channels)
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=factor)[..., :channels]
