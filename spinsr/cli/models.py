"""`spinsr models`: the networks with weights that come with spinsr."""

import argparse
import dataclasses
import json
from typing import Any

from spinsr.utils.text import markdown_table
from spinsr.weights.models import MODELS, Model

EXAMPLE = """\
examples:
  spinsr models
  spinsr models --latency          # measures the seconds for one image of 1280x720 pixels, on this machine
  spinsr upscale photo.png --model spin --scale 2

PSNR: dB on Y (y_crop_scale). multiply-adds: for an output of 1280x720 pixels.
"""


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
    rows = [_row(model, args.latency) for model in MODELS]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = [
        {
            'model': row['name'],
            'scale': f'x{row["scale"]}',
            'network': row['arch'],
            'parameters': f'{row["parameters"]:,}',
            'multiply-adds': f'{row["multiply_adds"] / 1e9:.1f} G',
            **{dataset: f'{psnr:.2f}' for dataset, psnr in row['psnr'].items()},
            **({'latency': f'{row["latency"]:.3g} s'} if args.latency else {}),
            'licence of the weights': row['licence'],
        }
        for row in rows
    ]
    print(markdown_table([list(table[0]), *(list(line.values()) for line in table)]), end='')
    return 0


def _row(model: Model, latency: bool) -> dict[str, Any]:
    row = {**dataclasses.asdict(model), 'weights': str(model.path)}
    if latency:
        from spinsr.evaluation import complexity
        from spinsr.inference.load import resolve

        described = resolve(weights=model.path)
        size = (round(720 / model.scale), round(1280 / model.scale))
        measured = complexity.measure(model.arch, model.scale, *size, arch_args=described.arguments)
        row['latency'] = measured['latency']
    return row
