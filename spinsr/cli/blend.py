"""`spinsr blend`: two weights files of one network -> their weighted mean."""

import argparse
from pathlib import Path

from spinsr.cli import arguments, network
from spinsr.training import imports
from spinsr.utils.atomic_write import check_target
from spinsr.utils.text import printable
from spinsr.weights import ENDINGS, require_file

EXAMPLE = """\
examples:
  spinsr blend psnr.pth perceptual.pth between.safetensors               half of each
  spinsr blend psnr.pth perceptual.pth between.safetensors --alpha 0.2   mostly psnr.pth
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'blend',
        help='interpolate between two weights files of one network',
        description='Writes (1 - alpha) * A + alpha * B, parameter by parameter. A and B are weights of the same '
        'network at the same scale, usually one fine-tuned from the other.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('first', metavar='A', type=arguments.path, help='.pth, .pt or .safetensors, in any form')
    parser.add_argument('second', metavar='B', type=arguments.path, help='weights of the same network')
    parser.add_argument('target', metavar='OUT', type=arguments.path, help='.pth, .pt or .safetensors')
    parser.add_argument('--alpha', type=_share, default=0.5, help='share of B, from 0 to 1 (default: 0.5)')
    parser.add_argument('--arch', metavar='NAME', help='the network (default: detected from the names in A and B)')
    imports.add_import(parser)
    parser.add_argument('--overwrite', action='store_true', help='replace OUT if it exists')
    parser.set_defaults(run=run, error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    # Before torch is imported, so that a mistyped argument is reported at once.
    imports.require_modules(args.imports)
    check_target(Path(args.target), args.overwrite, ENDINGS, 'a checkpoint')
    require_file(args.first)
    require_file(args.second)
    network.import_modules(args)
    from spinsr.convert.blend import blend_files

    network.check_arch(args)
    done = blend_files(args.first, args.second, args.target, args.alpha, args.arch, args.overwrite)
    sources = (
        f'{share:g} x {printable(path)}' + (f' ({printable(key)})' if key else '')
        for share, path, key in zip((1 - args.alpha, args.alpha), (args.first, args.second), done.keys, strict=True)
    )
    print(
        f'{printable(args.target)}: {done.arch} x{done.scale}, {" + ".join(sources)}; '
        f'{done.differing} of {done.tensors} tensors differ'
    )
    return 0


def _share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f'must be a number from 0 to 1, got {text!r}')
    return share
