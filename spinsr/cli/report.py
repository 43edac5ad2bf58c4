"""`spinsr report`: one HTML page about a network, with pictures, scores and training curves."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from spinsr.cli import arguments, network
from spinsr.utils.text import printable

ENDINGS = ('.html', '.htm')
EXAMPLE = """\
examples:
  spinsr report datasets/benchmark/Set5 -o set5.html --weights net_g_latest.pth
  spinsr report datasets/benchmark/Set5 -o set5.html --weights net_g_latest.pth --log tb_logger/train_SPIN_x4
  spinsr report photos -o photos.html --scale 2 --weights SPIN_x2.pth

A folder that has one called HR is a benchmark (HR/NAME.png, LR_bicubic/X4/NAMEx4.png), and is scored; any other holds
low-resolution images. The page is one file that needs no network.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'report',
        help='one HTML page: before and after, crops, errors, superpixels, scores, training curves',
        description='Writes an HTML page about what a network makes of a folder of images.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('folder', metavar='DIR', type=arguments.path, help='a benchmark, or a folder of images')
    parser.add_argument('-o', '--out', metavar='FILE', type=arguments.path, required=True, help='the page, .html')
    parser.add_argument(
        '--scale',
        metavar='S',
        type=arguments.positive,
        help='upscaling factor (default: that of the weights; without --weights 4)',
    )
    parser.add_argument(
        '--log',
        metavar='DIR',
        type=arguments.path,
        help="an experiment's TensorBoard log, tb_logger/NAME: draw its curves",
    )
    parser.add_argument(
        '--images',
        metavar='N',
        type=arguments.positive,
        default=12,
        help='pictures of the first N images by name (default: 12); scores are of all',
    )
    parser.add_argument(
        '--block', metavar='B', type=arguments.index, default=0, help='superpixels of this block (default: 0)'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace the page where it exists')
    network.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ValueError, TypeError, OSError, ImportError: As `spinsr.report.make_report` and `spinsr.load`; or the page
            exists or cannot be written, which shows before the work.
    """
    # Before torch is imported, so that a mistyped argument is reported at once.
    for folder in (args.folder, args.log):
        if folder is not None and not folder.is_dir():
            raise ValueError(f'not a directory: {folder}')
    if args.out.suffix.lower() not in ENDINGS:
        raise ValueError(f'a page must end in {", ".join(ENDINGS)}, got {printable(args.out)}')
    network.check_files(args, args.scale)
    arguments.check_outputs([args.out], args.overwrite)
    from spinsr.report import make_report
    from spinsr.utils.atomic_write import write_bytes

    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    described = network.resolve(args, args.scale)
    net = described.build(network.device(args.device))
    failures = []

    def failed(line: str) -> None:
        failures.append(line)
        print(f'spinsr report: error: {printable(line)}', file=sys.stderr)

    with network.limited_memory(args):
        html = make_report(
            args.folder,
            net,
            log=args.log,
            weights=_weights(args, described),
            arch_args=dict(args.arch_args),
            block=args.block,
            shown=args.images,
            failed=failed,
            network=described,
        )
    data = html.encode()
    write_bytes(args.out, data)
    print(f'{printable(args.out)}: {len(data) / 1e6:.1f} MB, {len(failures)} failed')
    return int(bool(failures))


def _weights(args: argparse.Namespace, described: Any) -> str:
    if (shipped := network.shipped_file(args, described.arch, described.scale)) is not None:
        return f'{shipped.name}, shipped with spinsr'
    return Path(args.weights).name
