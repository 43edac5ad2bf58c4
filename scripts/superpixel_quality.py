"""SPIN's superpixels beside SLIC's and a regular grid with as many regions: the table of docs/experiments.md.

    python scripts/superpixel_quality.py BENCHMARK_FOLDER --weights FILE [--scale 4] [--input LR|HR]

BENCHMARK_FOLDER holds HR/<name>.png and LR_bicubic/X<s>/<name>x<s>.png, as Set14. The images that are divided are those
that the network sees when it upscales, LR; `--input HR` divides the HR images. The measures are those of
spinsr.analysis.superpixel_metrics, the means over the images. A region holds the pixels whose largest association is to
one superpixel.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spinsr.cli.arguments import check_outputs
from spinsr.utils.text import markdown_table

COLUMNS = ('block', 'cell', 'method', 'regions', 'parts')
MEASURES = ('explained_variation', 'boundary_contrast', 'contour_recall', 'boundary_density')


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the mean over the images of each block and method."""
    titles = [*COLUMNS, *(measure.replace('_', ' ') for measure in MEASURES)]
    lines = [titles]
    for block, cell, method in dict.fromkeys((row['block'], row['cell'], row['method']) for row in rows):
        own = [row for row in rows if (row['block'], row['method']) == (block, method)]
        means = {key: sum(row[key] for row in own) / len(own) for key in ('regions', 'parts', *MEASURES)}
        numbers = [f'{means["regions"]:.1f}', f'{means["parts"]:.1f}', *(f'{means[key]:.3f}' for key in MEASURES)]
        lines.append([block, cell, method, *numbers])
    return markdown_table(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='a benchmark folder, such as Set14')
    parser.add_argument('--weights', required=True, help='of SPIN')
    parser.add_argument('--scale', type=int, choices=(2, 3, 4), default=4, help='of the weights (default: 4)')
    parser.add_argument('--input', choices=('LR', 'HR'), default='LR', help='which images are divided (default: LR)')
    parser.add_argument('--markdown', type=Path, help='write the table to a file')
    parser.add_argument('--json', type=Path, help='write the numbers of every image to a file')
    parser.add_argument('--overwrite', action='store_true', help='replace existing files')
    args = parser.parse_args(argv)
    images = args.folder / ('HR' if args.input == 'HR' else f'LR_bicubic/X{args.scale}')
    paths = sorted(images.glob('*.png'))
    if not paths:
        parser.error(f'no images found: {images}/*.png')
    outputs = [path for path in (args.markdown, args.json) if path]
    try:
        check_outputs(outputs, args.overwrite)
        rows = measured(paths, args.weights, args.scale)
    except (OSError, ValueError) as error:
        print(f'superpixel_quality: error: {error}', file=sys.stderr)
        return 1
    from spinsr.utils.atomic_write import write_bytes

    text = table(rows)
    print(text, end='')
    if args.markdown:
        write_bytes(args.markdown, text.encode())
    if args.json:
        content = {'folder': args.folder.name, 'input': args.input, 'scale': args.scale, 'rows': rows}
        write_bytes(args.json, json.dumps(content, indent=1).encode())
    return 0


def measured(paths: Sequence[Path], weights: str, scale: int) -> list[dict[str, Any]]:
    """The rows of `superpixel_metrics.compare` for each image, with its name."""
    from tqdm import tqdm

    import spinsr
    from spinsr.analysis.superpixel_metrics import compare
    from spinsr.data import image_file

    net = spinsr.load('SPIN', scale, weights)
    return [{'image': path.stem, **row} for path in tqdm(paths) for row in compare(image_file.read(path), net)]


if __name__ == '__main__':
    sys.exit(main())
