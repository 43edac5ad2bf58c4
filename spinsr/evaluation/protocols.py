"""The protocols by name; imports neither torch nor numpy."""

from dataclasses import dataclass

# What the metrics of pyiqa are computed on: the images that this protocol compares.
METRIC_PROTOCOL = 'rgb'


@dataclass(frozen=True)
class Protocol:
    """How two images are compared.

    Args:
        y: On Y of BT.601 in studio range, not rounded; else on RGB.
        unrounded: On the network's output clipped to 0 … 255; else on the output rounded to uint8. The mean over a set
            is then rounded up, PSNR to 2 decimals and SSIM to 4, as the authors of SPIN report it.
        extra_border: Pixels that are left out at every edge, beyond the scale.
    """

    y: bool = False
    unrounded: bool = False
    extra_border: int = 0


PROTOCOLS = {
    'y_crop_scale': Protocol(y=True),
    'spin_published': Protocol(y=True, unrounded=True),
    'ntire': Protocol(extra_border=6),
    'rgb': Protocol(),
}
