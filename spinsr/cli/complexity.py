"""`spinsr complexity`: what networks cost, as a table, and PSNR against parameters as a picture."""

import argparse
import dataclasses
import json
import os
import sys
from typing import Any

from spinsr.cli import arguments, network
from spinsr.evaluation import counts
from spinsr.evaluation.cost_table import to_markdown
from spinsr.training import imports
from spinsr.utils.atomic_write import write_bytes
from spinsr.utils.text import printable
from spinsr.weights import DEFAULT_ARCH, DEFAULT_SCALE, require_file

EXAMPLE = """\
examples:
  spinsr complexity
  spinsr complexity --arch SPIN SAN RCAN --scale 2 --no-latency --markdown table.md
  spinsr complexity --weights net_g_latest.pth RCAN_BIX4.pt
  spinsr complexity --arch SPIN RCAN --no-latency --plot figure.png --scores spin.json rcan.json --dataset Set5
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'complexity',
        help='parameters, multiply-adds, activations, latency and memory of networks',
        description='Prints a table of what networks cost for an output of 1280x720 pixels, or another size.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_argument_group('network')
    group.add_argument(
        '--arch',
        metavar='NAME',
        nargs='+',
        help="networks of spinsr, or any other names in BasicSR's ARCH_REGISTRY (default: SPIN)",
    )
    group.add_argument(
        '--weights',
        metavar='FILE',
        type=arguments.path,
        nargs='+',
        default=[],
        help='the networks that these files belong to, instead of --arch',
    )
    network.add_build_arguments(group)
    parser.add_argument(
        '--scale', metavar='S', type=arguments.positive, help='upscaling factor (default: that of the weights, else 4)'
    )
    parser.add_argument(
        '--size',
        metavar='HxW',
        type=arguments.size,
        help='pixels of the input (default: 720x1280 divided by the scale, rounded)',
    )
    parser.add_argument('--no-latency', action='store_true', help='only count; measure neither time nor memory')
    arguments.add_table_arguments(parser)
    parser.add_argument('--json', metavar='FILE', type=arguments.path, help='write every number')
    parser.add_argument('--plot', metavar='FILE', type=arguments.path, help='draw PSNR against parameters, a .png')
    parser.add_argument(
        '--scores',
        metavar='FILE',
        type=arguments.path,
        nargs='+',
        default=[],
        help='for --plot: files of `spinsr evaluate --json`, drawn beside the published networks',
    )
    parser.set_defaults(run=run, error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ValueError, OSError, ImportError: Before the work starts: a file exists or cannot be written, a module of
            --import fails, the device does not exist, or --plot or --scores has nothing to draw.
    """
    _check_usage(args)
    # Before torch is imported, so that a mistyped argument is reported at once.
    imports.require_modules(args.imports)
    if args.weights and not any(path.is_file() for path in args.weights):
        require_file(args.weights[0])
    for path in args.scores:
        if not path.is_file():
            raise ValueError(f'{path} is missing')
    outputs = [path for path in (args.markdown, args.json, args.plot) if path]
    arguments.check_outputs(outputs, args.overwrite)
    rows = _kept(args)
    if rows is not None:
        _output(args, rows)
        return 0
    network.import_modules(args)

    from spinsr.evaluation import complexity

    device = str(network.device(args.device))
    networks, failed = _networks(args)
    args.scale = args.scale or next((described.scale for described in networks.values()), DEFAULT_SCALE)
    scores = _read_scores(args)
    if args.plot and not (scores or _published(args)):
        raise ValueError(
            f'--plot has nothing to draw: no results for {args.dataset} x{args.scale} are published or given'
        )
    rows = []
    for name, described in networks.items():
        try:
            scale = described.scale
            about = f'{described.arch} x{scale}'
            height, width = _size(args, scale)
            row = {'arch': described.arch, 'scale': scale, 'size': [height, width]}
            counted = counts.find(described, height, width)
            if counted is None:
                arguments.say('complexity', f'counting {about} for an input of {height}x{width} pixels (HxW)')
                with network.errors_only():
                    counted = complexity.recount(described, height, width)
            row |= counted
            if not args.no_latency:
                arguments.say('complexity', f'timing {about} on {device}')
                row |= complexity.measure(
                    described.arch,
                    scale,
                    height,
                    width,
                    runs=args.runs,
                    device=device,
                    arch_args=described.arguments,
                    imports=args.imports,
                )
            rows.append(row)
        except (ValueError, TypeError) as error:
            failed.append(name)
            print(f'spinsr complexity: error: {printable(name)}: {printable(error)}', file=sys.stderr)
    if not rows:
        return 1
    _output(args, rows)
    if args.plot:
        write_bytes(args.plot, _picture(args, scores))
    return int(bool(failed))


def _kept(args: argparse.Namespace) -> list[dict[str, Any]] | None:
    """The rows, without torch, whose import takes longer than all else; None if there is more to do than to look up."""
    more = args.weights or args.arch_args or args.imports or args.plot or args.device != 'auto'
    # Whoever has imported the networks may have imported a plugin, too.
    if more or not args.no_latency or 'spinsr.archs' in sys.modules:
        return None
    scale, rows = args.scale or DEFAULT_SCALE, []
    height, width = _size(args, scale)
    for arch in dict.fromkeys(args.arch or [DEFAULT_ARCH]):
        found = counts.find_published(arch, scale, height, width)
        if found is None or os.path.isdir(arch):  # perhaps a network in a folder, which `resolve` knows
            return None
        rows.append({'arch': arch, 'scale': scale, 'size': [height, width], **found})
    return rows


def _size(args: argparse.Namespace, scale: int) -> tuple[int, int]:
    return args.size or counts.usual_size(scale)


def _output(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Prints the table and writes it and the numbers."""
    table = to_markdown(rows)
    print(table, end='')
    if args.markdown:
        write_bytes(args.markdown, table.encode())
    if args.json:
        write_bytes(args.json, (json.dumps(rows, indent=2) + '\n').encode())


def _networks(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The networks to count, by what the person called them, and the names of those that cannot be built."""
    from spinsr.inference.load import resolve

    files = {str(path): (None, path) for path in args.weights}
    wanted = files or {arch: (arch, None) for arch in args.arch or [DEFAULT_ARCH]}
    networks, failed = {}, []
    for name, (arch, path) in wanted.items():
        try:
            described = resolve(arch, args.scale, path, **dict(args.arch_args))
            networks[name] = dataclasses.replace(described, state_dict=None)  # the weights do not matter here
        except (ValueError, TypeError, OSError) as error:
            failed.append(name)
            print(f'spinsr complexity: error: {printable(name)}: {printable(error)}', file=sys.stderr)
    return networks, failed


def _check_usage(args: argparse.Namespace) -> None:
    if args.arch and args.weights:
        args.error('argument --weights: cannot be combined with --arch, the files tell their networks')
    if args.arch_args and len(set(args.arch or args.weights)) > 1:
        args.error(f'argument --arch-args: is for one network, got {" ".join(map(str, args.arch or args.weights))}')
    if args.scores and not args.plot:
        args.error('argument --scores: needs --plot')
    if args.plot and args.plot.suffix.lower() != '.png':
        args.error(f'argument --plot: must end in .png, got {str(args.plot)!r}')
    files = [path.resolve() for path in (args.markdown, args.json, args.plot) if path]
    if len(set(files)) < len(files):
        args.error('arguments --markdown, --json, --plot: must be different files')


def _read_scores(args: argparse.Namespace) -> list[tuple[str, int, float]]:
    """(name, parameters, PSNR) of each result that belongs to the picture."""
    scores = []
    for path in args.scores:
        try:
            results = json.loads(path.read_text(encoding='utf-8'))
            found = [
                (
                    path.stem,
                    result['method'],
                    int(result['parameters']),
                    float(result['protocols']['y_crop_scale']['psnr']),
                )
                for result in results
                if (result['dataset'], result['scale']) == (args.dataset, args.scale)
            ]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f'{path} must be of spinsr evaluate --json, of a network, with the protocol y_crop_scale'
            ) from error
        if not found:
            raise ValueError(f'{path} has no results for {args.dataset} x{args.scale}')
        scores += found
    methods = [method for _, method, *_ in scores]
    # Results of one network are distinguished by their files.
    return [
        (f'{method} ({"here" if methods.count(method) == 1 else stem})', parameters, psnr)
        for stem, method, parameters, psnr in scores
    ]


def _published(args: argparse.Namespace) -> list[Any]:
    """The published rows that belong to the picture."""
    from spinsr.evaluation.published_results import PUBLISHED

    return [row for row in PUBLISHED if row.scale == args.scale and args.dataset in row.psnr]


def _picture(args: argparse.Namespace, scores: list[tuple[str, int, float]]) -> bytes:
    from spinsr.evaluation import plot

    points = [plot.Point(row.name, row.parameters, row.psnr[args.dataset]) for row in _published(args)]
    points += [plot.Point(*score, ours=True) for score in scores]
    return plot.draw(points, f'{args.dataset} x{args.scale}: PSNR on Y against parameters')
