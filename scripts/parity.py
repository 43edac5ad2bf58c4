"""Prints how far our networks are from the authors' own outputs, and exits with status 1 above the tolerance.

python scripts/parity.py [FOLDER ...]

FOLDER holds files as described in spinsr/convert/parity.py (default: tests/parity and tests/parity/zoo). Files with
trained mean-shift weights, which are folded into float32, may differ by 1e-6, all others by 1e-9, in float64.
"""

import argparse
import sys
from pathlib import Path

import torch

from spinsr.convert.parity import network_of, read_official

PARITY = Path(__file__).parents[1] / 'tests/parity'
TOLERANCE, FOLDED = 1e-9, 1e-6


def main() -> int:
    parser = argparse.ArgumentParser(description='Compares our networks with outputs of the authors.')
    parser.add_argument('folder', type=Path, nargs='*', default=[PARITY, PARITY / 'zoo'])
    parser.add_argument('--float32', action='store_true', help='also compute in float32, for comparison')
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    files = [path for folder in args.folder for path in sorted(folder.glob('*_x[0-9]*.npz'))]
    if not files:
        parser.error(f'no *_x<scale>.npz in {", ".join(map(str, args.folder))}')
    failed, worst, unknown = [], {}, []
    print('| file | network | float64 |' + ' float32 |' * args.float32)
    print('| --- | --- | --- |' + ' --- |' * args.float32)
    for path in files:
        try:
            format, _ = network_of(path)
        except ValueError:
            unknown.append(path.name)
            continue
        try:
            error = largest_error(path, torch.float64)
            cells = [f'{error:.1e}'] + ([f'{largest_error(path, torch.float32):.1e}'] if args.float32 else [])
        except Exception as problem:
            # The table continues, whatever is wrong with one file.
            error, cells = float('inf'), [f'{type(problem).__name__}: {problem}'.replace('\n', ' ')]
        print(f'| {path.stem} | {format.name} | {" | ".join(cells)} |', flush=True)
        worst[format.name] = max(worst.get(format.name, 0), error)
        if not error <= (FOLDED if 'drift' in path.stem else TOLERANCE):
            failed.append(path.name)
    largest = max(worst.values(), default=0)
    print(f'\n{len(files) - len(unknown)} files, {len(worst)} networks; largest error {largest:.1e}')
    if unknown:
        print(f'Not compared, because no network has this name: {", ".join(unknown)}')
    if failed:
        print(f'Above the tolerance: {", ".join(failed)}')
    return 1 if failed or unknown else 0


def largest_error(path: Path, dtype: torch.dtype) -> float:
    """Largest absolute difference from the authors' output, over all images of a file; infinity for another size."""
    official = read_official(path)
    net = official.build(dtype)
    errors = []
    with torch.no_grad():
        for image, expected in zip(official.images, official.results, strict=True):
            output = net(image.to(dtype))
            errors.append((output - expected).abs().max().item() if output.shape == expected.shape else float('inf'))
    return max(errors)


if __name__ == '__main__':
    sys.exit(main())
