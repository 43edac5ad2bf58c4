"""Compares our bicubic with published benchmark folders: LR bit by bit, and the PSNR of bicubic upscaling.

python scripts/bicubic.py PATH/TO/Set5 PATH/TO/Set14   (each with HR/ and LR_bicubic/X2, X3, X4)
"""

import sys
from pathlib import Path

import numpy as np

from spinsr import compat
from spinsr.data import image_file
from spinsr.data.bicubic import downsample, mod_crop, upsample

compat.install()

from basicsr.metrics import calculate_psnr  # noqa: E402  after compat


def main() -> int:
    folders = [Path(name) for name in sys.argv[1:]]
    for folder in folders:
        if not all((folder / name).is_dir() for name in ('HR', 'LR_bicubic')):
            sys.stderr.write(f'bicubic.py: error: {folder} must be a folder with HR and LR_bicubic\n')
            return 1
    print('| set | scale | images | LR values that differ | bicubic, PSNR on Y (y_crop_scale) |\n' + '| --- ' * 5 + '|')
    for folder in folders:
        for scale in (2, 3, 4):
            pairs = [read_pair(path, folder, scale) for path in image_file.list_images(folder / 'HR')]
            differ = sum(int((downsample(hr, scale) != lr).sum()) for hr, lr in pairs)
            values = sum(lr.size for _, lr in pairs)
            psnr = np.mean([psnr_y(upsample(lr, scale), hr, scale) for hr, lr in pairs])
            print(f'| {folder.name} | x{scale} | {len(pairs)} | {differ} of {values:,} | {psnr:.3f} |')
    return 0


def read_pair(path: Path, folder: Path, scale: int) -> tuple[np.ndarray, np.ndarray]:
    lr = image_file.read(folder / f'LR_bicubic/X{scale}/{path.stem}x{scale}.png')
    return mod_crop(image_file.read(path), scale), lr


def psnr_y(image: np.ndarray, hr: np.ndarray, scale: int) -> float:
    return calculate_psnr(image[..., ::-1], hr[..., ::-1], crop_border=scale, test_y_channel=True)


if __name__ == '__main__':
    sys.exit(main())
