"""SPIN x4 from nothing to a picture, in some minutes on two CPU cores: prepare, train, validate, test, upscale, look.

Run it from the folder where datasets/, experiments/, results/ and demo/ may be made: `python scripts/demo.py`.
The numbers are those of a few minutes of training on ten photographs; docs/results.md says what to expect of more.
"""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import spinsr
from spinsr import compat
from spinsr.analysis import superpixels
from spinsr.data.bicubic import mod_crop, upsample

compat.install()

from basicsr.metrics import calculate_psnr  # noqa: E402  after compat

SCALE = 4
SAMPLE = Path('datasets/sample')
RESULTS = Path(f'results/test_SPIN_x{SCALE}_sample/visualization/sample_val')
PICTURE = Path('demo/demo.png')
# What the picture shows of each photograph of the validation part: top, left of a square of SIDE HR pixels.
SHOWN = {'chelsea': (64, 120), 'coffee': (90, 200)}
SIDE = 160
ZOOM = 2


def main() -> None:
    run('spinsr.cli', 'prepare', 'sample', '--scale', str(SCALE))
    run('spinsr.train', '-opt', f'train_SPIN_x{SCALE}_sample.yml')
    run('spinsr.test', '-opt', f'test_SPIN_x{SCALE}_sample.yml')
    draw()
    print(f'\nbicubic, SPIN as just trained and as shipped, HR; PSNR on Y of the whole image:\n{PICTURE.resolve()}')


def run(module: str, *args: str) -> None:
    command = [sys.executable, '-m', module, *args]
    print('$ python', *command[1:], flush=True)
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)


def draw() -> None:
    shipped = spinsr.load('SPIN', SCALE)
    rows = [row(name, shipped, *corner) for name, corner in SHOWN.items()]
    PICTURE.parent.mkdir(exist_ok=True)
    part = PICTURE.with_suffix('.part.png')
    Image.fromarray(np.concatenate(rows)).save(part)
    part.replace(PICTURE)


def row(name: str, shipped: nn.Module, top: int, left: int) -> np.ndarray:
    """One photograph side by side: bicubic, SPIN of this demo, SPIN as shipped, HR, each with its caption below."""
    hr = mod_crop(read(SAMPLE / f'val/HR/{name}.png'), SCALE)
    lr = read(SAMPLE / f'val/LR_bicubic/X{SCALE}/{name}x{SCALE}.png')
    sr = read(RESULTS / f'{name}x{SCALE}_test_SPIN_x{SCALE}_sample.png')
    area = (slice(top, top + SIDE), slice(left, left + SIDE))
    upscaled = spinsr.upscale(lr, shipped)
    found = superpixels.find_superpixels(lr, shipped)
    images = {
        'superpixels of a block': superpixels.draw_boundaries(upscaled, found.labels),
        'bicubic': upsample(lr, SCALE),
        'SPIN, this demo': sr,
        'SPIN, shipped': upscaled,
        'HR': hr,
    }
    panels = []
    for title, image in images.items():
        is_result = 'SPIN' in title or title == 'bicubic'
        caption = f'{title}  {psnr_y(image, hr):.2f} dB' if is_result else title
        if is_result:
            print(f'{name}: {caption}')
        panels.append(panel(image[area], caption))
    return np.concatenate(panels, 1)


def psnr_y(image: np.ndarray, hr: np.ndarray) -> float:
    """PSNR on Y with a border of SCALE (the protocol of RCAN and BasicSR); uint8 RGB."""
    return calculate_psnr(image[..., ::-1], hr[..., ::-1], crop_border=SCALE, test_y_channel=True)


def panel(crop: np.ndarray, caption: str) -> np.ndarray:
    side = SIDE * ZOOM
    canvas = Image.new('RGB', (side + 8, side + 36), 'white')
    canvas.paste(Image.fromarray(crop).resize((side, side), Image.Resampling.NEAREST), (4, 4))
    font = ImageFont.load_default(16)
    ImageDraw.Draw(canvas).text((canvas.width / 2, side + 20), caption, fill='black', font=font, anchor='mm')
    return np.asarray(canvas)


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        sys.exit(f'cannot read {path}')
    return image[..., ::-1]


if __name__ == '__main__':
    main()
