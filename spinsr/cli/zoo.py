"""`spinsr zoo`: one table of all networks, their published results, and what they cost here."""

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from spinsr.cli import arguments, network
from spinsr.training import imports
from spinsr.utils.text import printable
from spinsr.weights import DEFAULT_SCALE

if TYPE_CHECKING:
    from spinsr.evaluation.zoo import Row

EXAMPLE = """\
examples:
  spinsr zoo
  spinsr zoo --arch RLFN RFDN SAFMN --scale 2,3,4 --csv zoo.csv
  spinsr zoo --latency --markdown zoo.md --plot psnr_latency.png

multiply-adds, latency and memory: for an output of 1280x720 pixels.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'zoo',
        help='all networks: size, published PSNR, licences, where to get weights',
        description='Prints a table of all networks in their published configurations.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--arch', metavar='NAME', nargs='+', default=[], help='some networks or configurations (default: all)'
    )
    parser.add_argument(
        '--scale',
        metavar='S',
        type=arguments.scales,
        default=(DEFAULT_SCALE,),
        help='upscaling factors, as 2,4 (default: 4)',
    )
    parser.add_argument(
        '--latency', action='store_true', help='measure time and memory too: seconds to minutes for each network'
    )
    parser.add_argument(
        '--device',
        metavar='DEVICE',
        default='auto',
        help='for --latency; auto (the default): cuda, mps or xpu if available',
    )
    imports.add_import(parser)
    arguments.add_table_arguments(parser)
    parser.add_argument('--csv', metavar='FILE', type=arguments.path, help='write every number')
    parser.add_argument(
        '--plot', metavar='FILE', type=arguments.path, help='draw published PSNR against latency, a .png'
    )
    parser.set_defaults(run=run, error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ValueError, OSError, ImportError: Before the work starts: an unknown network, a file exists or cannot be
            written, a module of --import fails, or the device does not exist.
    """
    _check_usage(args)
    imports.require_modules(args.imports)
    arguments.check_outputs([path for path in (args.markdown, args.csv, args.plot) if path], args.overwrite)
    network.import_modules(args)

    from tqdm import tqdm

    from spinsr.evaluation import plot, zoo

    if args.plot:
        plot.new_figure(1, 1)  # what is missing shows before the work
    measure: dict[str, Any] | None = None
    if args.latency:
        measure = {'runs': args.runs, 'device': str(network.device(args.device)), 'imports': args.imports}
    variants = zoo.variants(args.arch)
    if args.plot and not any(
        args.dataset in row.psnr for variant in variants if variant.format for row in variant.published(*args.scale)
    ):
        raise ValueError(f'--plot has nothing to draw: no results for {args.dataset} x{args.scale[0]} are published')
    table: list[Row] = []
    failed = False
    wanted = [(variant, scale) for variant in variants for scale in args.scale]
    try:
        with tqdm(wanted, unit='network', disable=None, leave=False) as progress:
            for variant, scale in progress:
                name = f'{variant.name} x{scale}'
                progress.set_description(name)
                try:
                    with network.errors_only():
                        table += zoo.rows(variant, scale, measure=measure)
                except (ValueError, TypeError) as error:
                    failed = True
                    progress.write(f'spinsr zoo: error: {printable(f"{name}: {error}")}', file=sys.stderr)
    finally:  # after Ctrl-C too: measuring takes long
        if table:
            _output(args, table)
    return int(failed or not table)


def _output(args: argparse.Namespace, table: list['Row']) -> None:
    """Prints the table and writes the files."""
    from spinsr.evaluation import plot, zoo
    from spinsr.utils.atomic_write import write_bytes

    markdown = zoo.to_markdown(table)
    print(markdown, end='')
    if args.markdown:
        write_bytes(args.markdown, markdown.encode())
    if args.csv:
        write_bytes(args.csv, zoo.to_csv(table).encode())
    if args.plot:
        (scale,) = args.scale
        names = Counter(row.name for row in table if args.dataset in row.psnr)
        points = [
            # Two forms of one network, such as ETDS before and after conversion, have the same results.
            plot.Point(row.name if names[row.name] == 1 else row.variant, row.latency, row.psnr[args.dataset])
            for row in table
            if row.latency is not None and args.dataset in row.psnr
        ]
        title = f'{args.dataset} x{scale}: published PSNR on Y against latency for 1280x720 pixels'
        if points:  # after Ctrl-C there may be none
            write_bytes(args.plot, plot.draw(points, title, 'latency (s)'))


def _check_usage(args: argparse.Namespace) -> None:
    if not args.scale or min(args.scale) < 1:
        args.error(f'argument --scale: must be integers of at least 1, got {args.scale}')
    if args.plot and not args.latency:
        args.error('argument --plot: needs --latency')
    if args.plot and len(args.scale) > 1:
        args.error('argument --plot: is for one scale')
    if args.plot and args.plot.suffix.lower() != '.png':
        args.error(f'argument --plot: must end in .png, got {str(args.plot)!r}')
    files = [path.resolve() for path in (args.markdown, args.csv, args.plot) if path]
    if len(set(files)) < len(files):
        args.error('arguments --markdown, --csv, --plot: must be different files')
