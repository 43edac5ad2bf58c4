"""Region-level non-local module (RL-NL) of SAN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spinsr.ops.attention import attention, attention_reference
from spinsr.ops.backend import resolve_backend
from spinsr.ops.parts import no_autocast


class RegionNonLocal(nn.Module):
    """Embedded-Gaussian non-local attention within each quadrant of the image: x + W softmax(theta phi^T) g.

    Keys and values are max-pooled 2 x 2, as in the authors' code. Empty quadrants (a side of 1) are skipped, and a
    quadrant's side of 1 is not pooled.

    Args:
        num_feat: Channels C.
        inter_channels: Channels of the embeddings.
    """

    def __init__(self, num_feat: int, inter_channels: int):
        super().__init__()
        self.theta = nn.Conv2d(num_feat, inter_channels, 1)
        self.phi = nn.Conv2d(num_feat, inter_channels, 1)
        self.g = nn.Conv2d(num_feat, inter_channels, 1)
        self.out = nn.Conv2d(inter_channels, num_feat, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q, k, v = self.theta(x), self.phi(x), self.g(x)
        rows = [
            torch.cat([_attend(q[..., r, c], k[..., r, c], v[..., r, c]) for c in _halves(x.shape[3])], 3)
            for r in _halves(x.shape[2])
        ]
        return x + self.out(torch.cat(rows, 2).to(x.dtype))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    window = [min(2, side) for side in q.shape[2:]]
    k, v = F.max_pool2d(k, window), F.max_pool2d(v, window)
    # The logits are not scaled in this network; in half types those of features in the scale of 0..255 would overflow.
    full = torch.float64 if q.dtype == torch.float64 else torch.float32
    tokens = (t.flatten(2).transpose(1, 2).unsqueeze(1).to(full) for t in (q, k, v))  # (B, 1, N, C)
    attend = attention_reference if resolve_backend(device=q.device) == 'reference' else attention
    with no_autocast(q.device.type):
        return attend(*tokens, scale=1.0).squeeze(1).transpose(1, 2).reshape(q.shape)


def _halves(side: int) -> list[slice]:
    middle = side // 2
    return [slice(0, middle), slice(middle, None)] if middle else [slice(None)]
