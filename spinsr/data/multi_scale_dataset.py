"""MultiScaleDataset: pairs at several scales of the same HR images, for networks that are trained for all of them."""

from collections.abc import Mapping
from typing import Any

from spinsr import compat

compat.install()

from basicsr.data.transforms import augment  # noqa: E402
from basicsr.utils.registry import DATASET_REGISTRY  # noqa: E402

from spinsr.data.bicubic import mod_crop  # noqa: E402
from spinsr.data.bicubic_image_dataset import BicubicImageDataset, to_float, to_tensor  # noqa: E402
from spinsr.utils.validation import each, whole  # noqa: E402

SCALES = each(whole(1))


@DATASET_REGISTRY.register()
class MultiScaleDataset(BicubicImageDataset):
    """Random crops of an HR image for every scale, whose LR patches are of one size; for `MultiScaleModel`.

    Args:
        opt: As for BicubicImageDataset in the phase train, and `scales`, a list of the scales. `scale` is among them;
            `gt_size` is that of `scale`.

    Raises:
        ValueError: As BicubicImageDataset; the phase is not train; `scales` is not a list of whole numbers of at least
            1 with `scale` among them.
    """

    OPTIONS = (*BicubicImageDataset.OPTIONS, 'scales')

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        if not self.train:
            raise ValueError(f'MultiScaleDataset is for the phase train, got {opt["phase"]}')
        scales = opt.get('scales')
        if scales is None or not SCALES.holds(scales) or self.scale not in scales:
            raise ValueError(f'scales must be {SCALES.wanted}, with scale={self.scale} among them, got {scales!r}')
        self.scales = tuple(scales)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads an image and crops it for every scale, at a place of its own each; all are flipped alike.

        Returns:
            As BicubicImageDataset at `scale`; `lq_x<s>` (3, h, w) and `gt_x<s>` (3, h * s, w * s) at every other scale.

        Raises:
            ValueError: As BicubicImageDataset.
        """
        path = self.paths[index]
        image = self._read(path)
        largest = self.gt_size // self.scale * max(self.scales)
        if min(image.shape[:2]) < largest:
            height, width = image.shape[:2]
            raise ValueError(
                f'the sides of an image must be at least {largest}, the HR patch at x{max(self.scales)}, '
                f'got {height}x{width} (HxW) in {self._where(path)}'
            )
        parts = [part for scale in self.scales for part in self._random_crop(mod_crop(image, scale), scale)]
        parts = [to_tensor(part) for part in augment(list(map(to_float, parts)), self.use_hflip, self.use_rot)]
        item: dict[str, Any] = {'lq_path': path, 'gt_path': path}
        for scale, gt, lq in zip(self.scales, parts[::2], parts[1::2], strict=True):
            suffix = '' if scale == self.scale else f'_x{scale}'
            item |= {f'lq{suffix}': lq, f'gt{suffix}': gt}
        return item
