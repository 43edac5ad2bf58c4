"""The protocols by name; imports neither torch nor numpy."""

from dataclasses import dataclass

# What the metrics of pyiqa are computed on: the images that this protocol compares.
METRIC_PROTOCOL = 'rgb'
# That of metrics without a reference: no border is left out.
NO_REFERENCE_PROTOCOL = 'rgb_whole'


@dataclass(frozen=True)
class Protocol:
    """How two images are compared.

    Args:
        y: On Y of BT.601 in studio range, not rounded; else on RGB.
        unrounded: On the network's output clipped to 0 … 255; else on the output rounded to uint8. The mean over a set
            is then rounded up, PSNR to 2 decimals and SSIM to 4, as the authors of SPIN report it.
        extra_border: Pixels that are left out at every edge, beyond the scale.
        multiple: HR is first cropped to sides that it divides, and LR is made from that; 1 takes the benchmark's LR.
            Such a protocol needs outputs of its own, so it is computed only by name.
    """

    y: bool = False
    unrounded: bool = False
    extra_border: int = 0
    multiple: int = 1


PROTOCOLS = {
    'y_crop_scale': Protocol(y=True),
    'spin_published': Protocol(y=True, unrounded=True),
    'ntire': Protocol(extra_border=6),
    'rgb': Protocol(),
    'y_mod12': Protocol(y=True, multiple=12),
}
# The protocols that are computed by default.
DEFAULT = tuple(name for name, rules in PROTOCOLS.items() if rules.multiple == 1)
