"""Models on JPEGs of several qualities: the picture and the table of docs/photographs.md.

    python scripts/photo_comparison.py [--models spin photo] [--quality 30 60 90] -o photo.png --markdown photo.md

Photographs that come with scikit-image (no download) are reduced bicubically by 4, saved as JPEG, and enlarged by
bicubic and by each model. A model is a name of `spinsr models`, or NAME=FILE for other weights, such as those of a
training that still runs. PSNR is on Y, with a border of 4. NIQE (lower is better) is BasicSR's, whose parameters come
with it; it is left out where BasicSR is not installed.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import spinsr
from spinsr import compat
from spinsr.cli.arguments import check_outputs
from spinsr.data import image_file
from spinsr.data.bicubic import downsample, mod_crop, upsample
from spinsr.data.sample import photograph_folder
from spinsr.evaluation.benchmark import score
from spinsr.utils.atomic_write import write_bytes
from spinsr.utils.text import markdown_table

SCALE = 4
PHOTOGRAPHS = ('astronaut.png', 'chelsea.png', 'coffee.png', 'rocket.jpg')
PROTOCOL = 'y_crop_scale'


class Crop(NamedTuple):
    """A row of the picture: photograph, JPEG quality, and the top left corner of its square in HR pixels."""

    name: str
    quality: int
    top: int
    left: int


SHOWN = (Crop('chelsea', 30, 64, 130), Crop('chelsea', 60, 64, 130), Crop('chelsea', 90, 64, 130))
SHOWN += (Crop('astronaut', 30, 60, 170),)
SIDE, ZOOM, BORDER, CAPTION = 86, 2, 4, 24  # in pixels

Upscaler = Callable[[np.ndarray], np.ndarray]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', metavar='NAME[=FILE]', default=['spin', 'photo'])
    parser.add_argument('--quality', nargs='+', type=int, default=[30, 60, 90], help='of JPEG (default: 30 60 90)')
    parser.add_argument('-o', '--out', type=Path, help='write the picture, a PNG')
    parser.add_argument('--markdown', type=Path, help='write the table to a file')
    parser.add_argument('--json', type=Path, help='write the numbers of every image to a file')
    parser.add_argument('--overwrite', action='store_true', help='replace existing files')
    args = parser.parse_args(argv)
    shown = {crop.quality for crop in SHOWN}
    if not all(1 <= quality <= 100 for quality in args.quality):
        parser.error(f'argument --quality: must be from 1 to 100, got {args.quality}')
    if args.out and not shown & set(args.quality):
        parser.error(f'argument -o: the picture needs --quality with one of {", ".join(map(str, sorted(shown)))}')
    try:
        check_outputs([path for path in (args.out, args.markdown, args.json) if path], args.overwrite)
        rows, panels = compare(photographs(), upscalers(args.models), args.quality, niqe())
    except (OSError, ValueError, ImportError) as error:
        print(f'photo_comparison: error: {error}', file=sys.stderr)
        return 1
    text = table(rows)
    print(text, end='')
    if args.markdown:
        write_bytes(args.markdown, text.encode())
    if args.json:
        write_bytes(args.json, json.dumps({'scale': SCALE, 'protocol': PROTOCOL, 'rows': rows}, indent=1).encode())
    if args.out:
        write_bytes(args.out, png(picture(panels)))
    return 0


def photographs() -> dict[str, np.ndarray]:
    """HR images by name: (H, W, 3), uint8, RGB, their sides divisible by SCALE."""
    folder = photograph_folder()
    return {Path(name).stem: mod_crop(image_file.read(folder / name), SCALE) for name in PHOTOGRAPHS}


def upscalers(models: Sequence[str]) -> dict[str, Upscaler]:
    """Bicubic and each model, by name."""
    found: dict[str, Upscaler] = {'bicubic': lambda lr: upsample(lr, SCALE)}
    for model in models:
        name, _, file = model.partition('=')
        net = spinsr.load(scale=SCALE, weights=file) if file else spinsr.load(model=name, scale=SCALE)
        found[name] = lambda lr, net=net: spinsr.upscale(lr, net)
    return found


def niqe() -> Callable[[np.ndarray], float] | None:
    """NIQE of an image (H, W, 3), uint8, RGB; None without BasicSR."""
    if not compat.is_installed():
        return None
    compat.install()
    from basicsr.metrics import calculate_niqe

    return lambda image: calculate_niqe(image[..., ::-1], crop_border=0)


def compare(
    images: Mapping[str, np.ndarray],
    methods: Mapping[str, Upscaler],
    qualities: Sequence[int],
    quality_of: Callable[[np.ndarray], float] | None,
) -> tuple[list[dict[str, Any]], list[list[tuple[str, np.ndarray]]]]:
    """The numbers of every image, quality and method, and the crops of SHOWN with their captions.

    Args:
        images: HR images by name.
        methods: From a decoded JPEG to the enlarged image, by name.
        qualities: Of JPEG.
        quality_of: A no-reference metric; None leaves it out.
    """
    rows, panels = [], {}
    for name, hr in images.items():
        small = downsample(hr, SCALE)
        for quality in qualities:
            lr = compressed(small, quality)
            results = {method: upscale(lr) for method, upscale in methods.items()}
            scores = {method: score(image, hr, SCALE, PROTOCOL)['psnr'] for method, image in results.items()}
            for method, image in results.items():
                row = {'image': name, 'quality': quality, 'method': method, 'psnr': scores[method]}
                rows.append(row | ({'niqe': quality_of(image)} if quality_of else {}))
            captions = {f'{method}  {scores[method]:.2f} dB': image for method, image in results.items()}
            nearest = np.kron(lr, np.ones((SCALE, SCALE, 1), np.uint8))
            captions = {f'JPEG, quality {quality}': nearest, **captions, 'original': hr}
            for crop in SHOWN:
                if (crop.name, crop.quality) == (name, quality):
                    area = slice(crop.top, crop.top + SIDE), slice(crop.left, crop.left + SIDE)
                    panels[crop] = [(caption, image[area]) for caption, image in captions.items()]
    return rows, [panels[crop] for crop in SHOWN if crop in panels]


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """An image (H, W, 3), uint8, RGB, after JPEG with halved chrominance (4:2:0)."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=quality, subsampling='4:2:0')
    return image_file.decode(file.getvalue(), 'JPEG')


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: means over the images, a row for each quality and a column for each method."""
    methods = list(dict.fromkeys(row['method'] for row in rows))
    measures = [key for key in ('psnr', 'niqe') if key in rows[0]]
    lines = [['JPEG quality', *(f'{key.upper()}, {method}' for key in measures for method in methods)]]
    for quality in dict.fromkeys(row['quality'] for row in rows):
        means = []
        for key in measures:
            for method in methods:
                values = [row[key] for row in rows if (row['quality'], row['method']) == (quality, method)]
                means.append(f'{sum(values) / len(values):.2f}')
        lines.append([quality, *means])
    return markdown_table(lines)


def picture(panels: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
    """The crops side by side, a row for each of SHOWN; (H, W, 3), uint8, RGB."""
    return np.concatenate([np.concatenate([panel(*one) for one in row], 1) for row in panels])


def panel(caption: str, crop: np.ndarray) -> np.ndarray:
    side = SIDE * ZOOM
    canvas = Image.new('RGB', (side + 2 * BORDER, side + BORDER + CAPTION), 'white')
    enlarged = Image.fromarray(np.ascontiguousarray(crop)).resize((side, side), Image.Resampling.NEAREST)
    canvas.paste(enlarged, (BORDER, BORDER))
    place = canvas.width / 2, BORDER + side + CAPTION / 2
    ImageDraw.Draw(canvas).text(place, caption, fill='black', font=ImageFont.load_default(15), anchor='mm')
    return np.asarray(canvas)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG', optimize=True)
    return file.getvalue()


if __name__ == '__main__':
    sys.exit(main())
