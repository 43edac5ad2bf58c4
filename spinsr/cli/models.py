"""`spinsr models`: the networks with weights that come with spinsr."""

import argparse
import json
import sys

from spinsr.weights.models import MODELS

EXAMPLE = """\
examples:
  spinsr models
  spinsr models --latency          # measures the seconds for one image of 1280x720 pixels, on this machine
  spinsr upscale photo.png --model spin --scale 2

PSNR: dB on Y (y_crop_scale). multiply-adds: for an output of 1280x720 pixels.
"""
HEADER = ('model', 'scale', 'network', 'parameters', 'multiply-adds', 'Set5', 'Set14', 'licence of the weights')
RIGHT = ('parameters', 'multiply-adds', 'Set5', 'Set14', 'latency')


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'models',
        help='the networks with weights that come with spinsr',
        description='Lists the networks with weights that come with spinsr; --model of the other commands takes them.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--latency', action='store_true', help='also measure the time for an output of 1280x720 pixels')
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    seconds = [_seconds(model.arch, model.scale) if args.latency else None for model in MODELS]
    if args.json:
        rows = [
            {
                **{key: getattr(model, key) for key in ('name', 'arch', 'scale', 'parameters', 'multiply_adds')},
                'psnr': dict(model.psnr),
                'licence': model.licence,
                'weights': str(model.path),
                **({'latency': latency} if args.latency else {}),
            }
            for model, latency in zip(MODELS, seconds, strict=True)
        ]
        json.dump(rows, sys.stdout, indent=2)
        print()
        return 0
    header = [*HEADER, *(['latency'] if args.latency else [])]
    rows = [
        [
            model.name,
            f'x{model.scale}',
            model.arch,
            f'{model.parameters:,}',
            f'{model.multiply_adds / 1e9:.1f} G',
            *(f'{model.psnr[name]:.2f}' for name in ('Set5', 'Set14')),
            model.licence,
            *([f'{latency:.2f} s'] if latency is not None else []),
        ]
        for model, latency in zip(MODELS, seconds, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if name in RIGHT else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ]
        print('  '.join(cells).rstrip())
    return 0


def _seconds(arch: str, scale: int) -> float:
    """The median time of three passes, for an input that gives 1280x720 pixels."""
    import statistics
    import time

    import torch

    import spinsr

    net = spinsr.load(arch, scale)
    image = torch.rand(1, 3, 720 // scale, round(1280 / scale))
    times = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            net(image)
            times.append(time.perf_counter() - start)
    return statistics.median(times)
