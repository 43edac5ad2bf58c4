"""RCAN: Image Super-Resolution Using Very Deep Residual Channel Attention Networks (Zhang et al., ECCV 2018).

Upstream: https://github.com/yulunzhang/RCAN (no licence; nothing is copied). BasicSR already has this network and keeps
the name RCAN in its registry. Ours is BasicSR's (Apache-2.0) with the paper's 20 blocks per group as the default, and
with the image mean as a buffer, so that official weights whose mean drifted in training convert exactly.
"""

from collections.abc import Sequence

import torch
from basicsr.archs import rcan_arch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor

from spinsr.modules.mean_shift import register_mean
from spinsr.modules.upsample import upsample_and_convolve, upscale_factors
from spinsr.utils.validation import between, check, check_equal, check_length


@ARCH_REGISTRY.register(suffix='spinsr')
class RCAN(rcan_arch.RCAN):
    """Residual channel attention network; `type: RCAN_spinsr` in option files.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image; equal to `num_in_ch`.
        num_feat: Channels C.
        num_group: Residual groups.
        num_block: Residual channel attention blocks in each group.
        squeeze_factor: Channel reduction of the attention, 1 to `num_feat`.
        upscale: 3 or a power of two.
        res_scale: Factor of the residual of a block.
        img_range: Scale in which the network works; the input is `x * img_range - mean`.
        rgb_mean: Mean of each channel in [0, 1]; `mean` is `img_range * rgb_mean`.

    Raises:
        ValueError: An argument breaks its rule.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_group: int = 10,
        num_block: int = 20,
        squeeze_factor: int = 16,
        upscale: int = 4,
        res_scale: float = 1,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
    ):
        check_equal(num_in_ch=num_in_ch, num_out_ch=num_out_ch)
        check_length(rgb_mean=rgb_mean, num_in_ch=num_in_ch)
        check(between(1, num_feat), squeeze_factor=squeeze_factor)
        upscale_factors(upscale)  # refuses 0 and 1, which BasicSR accepts
        super().__init__(
            num_in_ch=num_in_ch,
            num_out_ch=num_out_ch,
            num_feat=num_feat,
            num_group=num_group,
            num_block=num_block,
            squeeze_factor=squeeze_factor,
            upscale=upscale,
            res_scale=res_scale,
        )
        del self.mean  # BasicSR's is a plain attribute in the scale of 0..1
        self.img_range = img_range
        register_mean(self, img_range, rgb_mean)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolves (B, num_in_ch, H, W), RGB in [0, 1], H, W >= 1, to (B, num_out_ch, upscale*H, upscale*W)."""
        shallow = self.conv_first((x * self.img_range - self.mean).contiguous(memory_format=torch.channels_last))
        deep = self.conv_after_body(self.body(shallow)) + shallow
        return (upsample_and_convolve(deep, self.upsample, self.conv_last) + self.mean) / self.img_range
