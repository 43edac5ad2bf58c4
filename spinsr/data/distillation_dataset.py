"""DistillationDataset: pairs with a teacher's output for each."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

from spinsr import compat

compat.install()

from basicsr.data.paired_image_dataset import PairedImageDataset  # noqa: E402
from basicsr.data.transforms import augment, paired_random_crop  # noqa: E402
from basicsr.utils import FileClient, bgr2ycbcr, img2tensor  # noqa: E402
from basicsr.utils.registry import DATASET_REGISTRY  # noqa: E402
from torchvision.transforms.functional import normalize  # noqa: E402

from spinsr.data.teacher_outputs import read_sizes, teacher_file  # noqa: E402
from spinsr.utils.errors import DataError  # noqa: E402

SIDES = ('lq', 'gt', 'teacher')


@DATASET_REGISTRY.register()
class DistillationDataset(PairedImageDataset):
    """HR, LR and the teacher's SR of the same images, with one crop, flip and rotation for all three.

    HR and LR are those of PairedImageDataset bit for bit; only the crop is converted to floating point, which takes
    less time.

    Args:
        opt: The options of PairedImageDataset, and `dataroot_teacher`: an LMDB as `spinsr prepare teacher` makes it,
            with the keys of HR, or, with `io_backend: type: disk`, a folder of PNG files named as the HR images. PNG
            files of 16 and 8 bits are read at their full depth. `read_gt: false` leaves HR out, where no loss needs
            it: decoding it takes half the time of a sample.

    Raises:
        DataError: `dataroot_teacher` is missing, or has no output for an HR image.
    """

    OPTIONS = ('dataroot_gt', 'dataroot_lq', 'dataroot_teacher', 'meta_info_file', 'filename_tmpl', 'gt_size')
    OPTIONS += ('use_hflip', 'use_rot', 'mean', 'std', 'color', 'read_gt')

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__(opt)
        root = opt.get('dataroot_teacher')
        if not root:
            raise DataError(f'DistillationDataset needs the option dataroot_teacher, got {sorted(opt)}')
        self.read_gt = opt.get('read_gt', True)
        is_lmdb = self.io_backend_opt['type'] == 'lmdb'
        if is_lmdb:
            self.io_backend_opt['db_paths'] = [self.lq_folder, self.gt_folder, root]
            self.io_backend_opt['client_keys'] = list(SIDES)
            keys = _keys(Path(root))
        for path in self.paths:
            gt = path['gt_path']
            path['teacher_path'] = gt if is_lmdb else teacher_file(root, os.path.relpath(gt, self.gt_folder))
            if not (path['teacher_path'] in keys if is_lmdb else os.path.exists(path['teacher_path'])):
                raise DataError(f'{gt} has no output of the teacher in {root}; make it with: spinsr prepare teacher')

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads a sample.

        Returns:
            `lq` (3, h, w), `gt` and `teacher` (3, h * scale, w * scale), float32, RGB, [0, 1]; and `lq_path`,
            `gt_path` and `teacher_path`; no `gt` with `read_gt: false`. In the phase train h * scale and w * scale are
            gt_size.

        Raises:
            ValueError: The images do not fit each other or the crop.
        """
        if self.file_client is None:
            options = {key: value for key, value in self.io_backend_opt.items() if key != 'type'}
            self.file_client = FileClient(self.io_backend_opt['type'], **options)
        scale, path = self.opt['scale'], self.paths[index]
        sides = [side for side in ('gt', 'teacher', 'lq') if side != 'gt' or self.read_gt]
        *targets, lq = (self._read(path[f'{side}_path'], side) for side in sides)
        height, width = (side * scale for side in lq.shape[:2])
        if targets[-1].shape[:2] != (height, width):
            raise ValueError(
                f'the output of the teacher must be {height}x{width} (HxW), which is x{scale} of LR, '
                f'got {targets[-1].shape[0]}x{targets[-1].shape[1]}'
            )
        if self.opt['phase'] == 'train':
            targets, lq = paired_random_crop(targets, [lq], self.opt['gt_size'], scale, path['gt_path'])
            images = [_float(image) for image in (*(targets if self.read_gt else [targets]), lq)]
            images = augment(images, self.opt['use_hflip'], self.opt['use_rot'])
        else:
            images = [_float(image) for image in (*(target[:height, :width] for target in targets), lq)]
        if self.opt.get('color') == 'y':
            images = [bgr2ycbcr(image, y_only=True)[..., None] for image in images]
        tensors: Any = img2tensor(images, bgr2rgb=True, float32=True)
        if self.mean is not None or self.std is not None:
            for tensor in tensors:
                normalize(tensor, cast(Any, self.mean), cast(Any, self.std), inplace=True)
        return {**dict(zip(sides, tensors, strict=True)), **path}

    def _read(self, path: str, side: str) -> np.ndarray:
        """(H, W, 3), BGR, uint8; of the teacher uint16, too."""
        depth = cv2.IMREAD_ANYDEPTH if side == 'teacher' else 0
        data = np.frombuffer(self.file_client.get(path, side), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | depth)
        if image is None:
            raise ValueError(f'not an image: {path} ({side})')
        return image


def _keys(path: Path) -> set[str]:
    try:
        return set(read_sizes(path))
    except ValueError as error:
        raise DataError(str(error)) from error


def _float(image: np.ndarray) -> np.ndarray:
    # As BasicSR's imfrombytes computes it, so that the values are the same.
    return image.astype(np.float32) / (65535.0 if image.dtype == np.uint16 else 255.0)
