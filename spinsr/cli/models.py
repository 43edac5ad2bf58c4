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
  spinsr upscale photo.png --model rcan-light
  spinsr upscale photo.jpg --model photo

PSNR: dB on Y (y_crop_scale), from LR that was reduced bicubically. A network that was trained for photographs also
removes JPEG artefacts and noise, which such LR does not have, so its PSNR is lower there: docs/photographs.md.
multiply-adds: for an output of 1280x720 pixels.
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
    datasets = list(dict.fromkeys(dataset for model in MODELS for dataset in model.psnr))
    table = [
        {
            'model': row['name'],
            'scale': f'x{row["scale"]}',
            'network': row['arch'],
            'parameters': f'{row["parameters"]:,}',
            'multiply-adds': f'{row["multiply_adds"] / 1e9:.1f} G',
            **{dataset: f'{row["psnr"][dataset]:.2f}' if dataset in row['psnr'] else '-' for dataset in datasets},
            **({'latency': f'{row["latency"]:.3g} s'} if args.latency else {}),
            'trained for': row['trained_for'],
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
