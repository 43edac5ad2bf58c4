"""`spinsr convert`: a checkpoint of one form -> a file of another."""

import argparse
from pathlib import Path

from spinsr.cli import network
from spinsr.training import imports
from spinsr.utils.atomic_write import check_target
from spinsr.utils.text import printable
from spinsr.weights import ENDINGS, require_file

EXAMPLE = """\
examples:
  spinsr convert RCAN_BIX4.pt rcan_x4.safetensors              the authors' file -> ours
  spinsr convert net_g_latest.pth spin_x4.safetensors          BasicSR's .pth -> .safetensors (params_ema)
  spinsr convert spin_x4.safetensors model_x4_0.pt --to official
  spinsr convert RCAN_BIX4.pt rcan_x4.pth --to basicsr         for `type: RCAN`, BasicSR's own
"""

FORMS = {'spinsr': "spinsr's form", 'official': "the authors' form", 'basicsr': "BasicSR's form"}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'convert',
        help="convert weights: the authors', BasicSR's, ours; .pth, .safetensors",
        description='Converts weights of the networks of spinsr to another form, another container, or both. '
        'Reading executes nothing that a file holds.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('source', metavar='IN', help='.pth, .pt or .safetensors, in any form')
    parser.add_argument('target', metavar='OUT', help='.pth, .pt or .safetensors, in an existing folder')
    parser.add_argument('--arch', metavar='NAME', help='the network (default: told from the names in the file)')
    imports.add_import(parser)
    parser.add_argument(
        '--to',
        choices=tuple(FORMS),
        default='spinsr',
        help="spinsr (the default); official, for the authors' code; basicsr, for BasicSR's own code of the network",
    )
    parser.add_argument(
        '--key',
        choices=('params', 'params_ema'),
        help='which weights of a BasicSR file (default: both if IN has both and OUT can hold both, which .pth and .pt '
        'can except in the official form; else params_ema before params)',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace OUT if it exists')
    parser.set_defaults(run=run, error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    # Before torch is imported, so that a mistyped argument is reported at once.
    imports.require_modules(args.imports)
    check_target(Path(args.target), args.overwrite, ENDINGS, 'a checkpoint')
    require_file(args.source)
    network.import_modules(args)
    from spinsr.convert import convert_file

    network.check_arch(args)
    done = convert_file(args.source, args.target, args.arch, args.to, args.key, args.overwrite)
    keys = f' ({", ".join(done.keys)})' if done.keys else ''
    print(
        f'{printable(args.source)}: {done.arch} x{done.scale}, {FORMS[done.form]}{keys}, {done.parameters:,} parameters'
        f' -> {printable(args.target)}: {FORMS[args.to]}'
    )
    for note in done.notes:
        print(f'note: {printable(note)}')
    if done.left_out:
        print(f'left out: {printable(", ".join(done.left_out))}')
    return 0
