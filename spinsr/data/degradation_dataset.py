"""DegradationDataset: pairs of which only HR is stored; LR is made by a random degradation when an image is read."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spinsr import compat

compat.install()

from basicsr.utils.img_process_util import usm_sharp  # noqa: E402
from basicsr.utils.registry import DATASET_REGISTRY  # noqa: E402

from spinsr.data.bicubic_image_dataset import BicubicImageDataset  # noqa: E402
from spinsr.data.degradation import from_options  # noqa: E402
from spinsr.data.degrade import degrade, seed_of  # noqa: E402

# LR pixels around a crop that are degraded with it, so that blur and ringing reach into it as in the whole image.
_MARGIN = 16
# The side of JPEG's blocks: their grid must not lie at the same place of every crop.
_BLOCK = 8


@DATASET_REGISTRY.register()
class DegradationDataset(BicubicImageDataset):
    """HR images, and LR images that `spinsr.data.degrade` makes of them.

    In the phase train an item is a random crop with a new degradation each time; else it is the whole image, whose
    degradation depends on its name alone. Everything is drawn from Python's generator: with `spinsr.train` a sample
    depends on the seed, the epoch and its position only.

    Args:
        opt: The options of BicubicImageDataset, and `degradation` (see `spinsr.data.degradation.from_options`).
            Optional: `gt_usm: true`, in the phase train only, sharpens HR (unsharp masking, as in Real-ESRGAN) before
            LR is made of it.

    Raises:
        ValueError: An option is missing or has a value that is not allowed; no images are found.
    """

    OPTIONS = (*BicubicImageDataset.OPTIONS, 'degradation', 'gt_usm')

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        self.degradation = from_options(opt.get('degradation'))
        self.gt_usm = opt.get('gt_usm', False)

    def _whole_lr(self, image: np.ndarray, path: str) -> np.ndarray:
        return degrade(image, self.scale, self.degradation, seed_of(Path(path).stem))

    def _random_crop(self, image: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
        side = self.gt_size // self.scale
        (rows, own_rows), (columns, own_columns) = (_window(size // scale, side) for size in image.shape[:2])
        window = image[_times(rows, scale), _times(columns, scale)]
        if self.gt_usm:
            sharp = usm_sharp(window.astype(np.float32) / 255.0)
            window = np.rint(np.clip(sharp, 0, 1) * 255.0).astype(np.uint8)
        lq = degrade(window, scale, self.degradation, random.getrandbits(64))
        return window[_times(own_rows, scale), _times(own_columns, scale)], lq[own_rows, own_columns]


def _window(size: int, side: int) -> tuple[slice, slice]:
    """A random crop along one side of an image, in LR pixels.

    Args:
        size: Of the image.
        side: Of the crop.

    Returns:
        The crop with its margins, which end with the image, and where the crop is in that.
    """
    start = random.randint(0, size - side)
    first = max(start - _MARGIN - random.randrange(_BLOCK), 0)
    last = min(start + side + _MARGIN, size)
    return slice(first, last), slice(start - first, start - first + side)


def _times(part: slice, scale: int) -> slice:
    return slice(part.start * scale, part.stop * scale)
