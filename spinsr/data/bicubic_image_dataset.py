"""BicubicImageDataset: pairs of which only HR is stored; LR is made when an image is read, equal to MATLAB's."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from spinsr import compat

compat.install()

from basicsr.data.transforms import augment  # noqa: E402
from basicsr.utils import FileClient  # noqa: E402
from basicsr.utils.registry import DATASET_REGISTRY  # noqa: E402

from spinsr.data import image_file  # noqa: E402
from spinsr.data.bicubic import downsample, downsample_window, mod_crop  # noqa: E402


@DATASET_REGISTRY.register()
class BicubicImageDataset(Dataset):
    """HR images, and the LR images that `spinsr.data.bicubic.downsample` makes of them.

    In the phase train an item is a random crop, its LR equal bit for bit to the crop of the whole image's LR; else it
    is the whole image, cut to multiples of the scale.

    Args:
        opt: BasicSR's dataset options. Needed: `dataroot_gt` (a folder, or an LMDB), `io_backend` (`type: disk` or
            `type: lmdb`), `phase`, `scale`, and in the phase train `gt_size`, `use_hflip` and `use_rot`. Optional:
            `meta_info_file` (a file with one image name a line, its first word; for disk), and `max_images` (the first
            ones, in the order of their names).

    Raises:
        ValueError: An option is missing or has a value that is not allowed; there are no images.
    """

    OPTIONS = ('dataroot_gt', 'meta_info_file', 'max_images', 'gt_size', 'use_hflip', 'use_rot')

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__()
        self.opt = opt
        self.train = _option(opt, 'phase') == 'train'
        self.scale = _option(opt, 'scale')
        self.root = Path(_option(opt, 'dataroot_gt'))
        self.backend = dict(_option(opt, 'io_backend'))
        if self.train:
            self.gt_size = _option(opt, 'gt_size')
            self.use_hflip, self.use_rot = _option(opt, 'use_hflip'), _option(opt, 'use_rot')
            if self.gt_size < 1 or self.gt_size % self.scale:
                raise ValueError(f'gt_size must be a multiple of scale, got gt_size={self.gt_size}, scale={self.scale}')
        if self.backend.get('type') == 'lmdb':
            paths = _lmdb_keys(self.root)
            self.backend |= {'db_paths': [str(self.root)], 'client_keys': ['gt']}
        elif opt.get('meta_info_file'):
            paths = [str(self.root / name) for name in _first_words(Path(opt['meta_info_file']))]
        else:
            paths = [str(path) for path in image_file.list_images(self.root)]
        max_images = opt.get('max_images')
        if max_images is not None and max_images < 1:
            raise ValueError(f'max_images must be at least 1, got {max_images=}')
        self.paths = sorted(paths)[:max_images]
        # Opened by the process that reads: an LMDB must not be carried into another.
        self.file_client = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads a pair.

        Returns:
            `lq` (3, h, w) and `gt` (3, h * scale, w * scale), float32, RGB, [0, 1]; `lq_path` and `gt_path`, both the
            HR image's.

        Raises:
            ValueError: The image is missing, damaged, or smaller than gt_size (train) or the scale; the message names
                it.
        """
        path = self.paths[index]
        image = self._read(path)
        smallest = self.gt_size if self.train else self.scale
        if min(image.shape[:2]) < smallest:
            name = 'gt_size' if self.train else 'scale'
            raise ValueError(
                f'the sides of an image must be at least {name}={smallest}, got {image.shape[0]}x{image.shape[1]} '
                f'(HxW) in {self._where(path)}'
            )
        image = mod_crop(image, self.scale)
        if self.train:
            pair = map(to_float, self._random_crop(image, self.scale))
            gt, lq = augment(list(pair), self.use_hflip, self.use_rot)
        else:
            gt, lq = to_float(image), to_float(self._whole_lr(image, path))
        return {'lq': to_tensor(lq), 'gt': to_tensor(gt), 'lq_path': path, 'gt_path': path}

    def _read(self, path: str) -> np.ndarray:
        if self.file_client is None:
            options = {key: value for key, value in self.backend.items() if key != 'type'}
            self.file_client = FileClient(str(self.backend.get('type')), **options)
        try:
            data = self.file_client.get(path, 'gt')
        except OSError as error:
            raise ValueError(f'{self._where(path)} cannot be read: {error}') from error
        if data is None:
            raise ValueError(f'{self._where(path)} is missing, but meta_info.txt names it')
        return image_file.decode(data, self._where(path))

    def _where(self, path: str) -> str:
        return f'{path} of {self.root}' if self.backend.get('type') == 'lmdb' else path

    def _whole_lr(self, image: np.ndarray, path: str) -> np.ndarray:
        return downsample(image, self.scale)

    def _random_crop(self, image: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
        side = self.gt_size // self.scale
        # Python's generator, which BasicSR seeds in every worker of the loader.
        top = random.randint(0, image.shape[0] // scale - side)
        left = random.randint(0, image.shape[1] // scale - side)
        gt = image[top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        return gt, downsample_window(image, scale, slice(top, top + side), slice(left, left + side))


def _option(opt: Mapping[str, Any], name: str) -> Any:
    if opt.get(name) is None:
        kind = opt.get('type', 'BicubicImageDataset')
        raise ValueError(f'{kind} needs the option {name}, got {sorted(opt)} ({opt.get("name", "no name")})')
    return opt[name]


def _lmdb_keys(root: Path) -> list[str]:
    if root.suffix != '.lmdb':
        raise ValueError(f'the name of an LMDB must end with .lmdb, got dataroot_gt={root}')
    # BasicSR's rule: the key is what stands before the first dot.
    return [name.split('.')[0] for name in _first_words(root / 'meta_info.txt')]


def _first_words(path: Path) -> list[str]:
    try:
        names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    if not names:
        raise ValueError(f'{path} names no images')
    return names


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in [0, 1]."""
    # As BasicSR's imfrombytes computes it, so that the values are the same.
    return image.astype(np.float32) / 255.0


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, C) -> (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
