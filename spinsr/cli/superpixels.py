"""`spinsr superpixels`: pictures of what a block of SPIN does with an image."""

import argparse
from typing import Any

from spinsr.cli import arguments, network
from spinsr.utils.text import printable

EXAMPLE = """\
examples:
  spinsr superpixels butterfly_x4.png -o look --weights net_g_latest.pth
  spinsr superpixels butterfly_x4.png -o look --weights net_g_latest.pth --block 0 3 7 --pixel 20 31 --superpixel 5

The image is what SPIN enlarges, so a small one. Blocks, pixels and superpixels are counted from 0; superpixels row by
row. Writes <stem>_block<B>_boundaries.png and so on; existing files are skipped.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'superpixels',
        help='pictures of the superpixels of SPIN',
        description='Draws the superpixels of an image: boundaries and mean colours, and for a pixel or a superpixel '
        'what it belongs to and what it attends to.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('image', metavar='IMAGE', type=arguments.path, help='image file')
    parser.add_argument('-o', '--out', metavar='DIR', type=arguments.path, required=True, help='folder of the pictures')
    parser.add_argument(
        '--scale',
        metavar='S',
        type=arguments.positive,
        help='upscaling factor (default: that of the weights; without --weights 4)',
    )
    parser.add_argument(
        '--block', metavar='B', type=arguments.index, nargs='+', default=[0], help='blocks, from 0 (default: 0)'
    )
    parser.add_argument(
        '--pixel',
        metavar=('Y', 'X'),
        type=arguments.index,
        nargs=2,
        help='draw to which superpixels this pixel belongs, and to which it attends',
    )
    parser.add_argument(
        '--superpixel', metavar='K', type=arguments.index, help='draw its pixels, and to which pixels it attends'
    )
    parser.add_argument(
        '--top',
        metavar='N',
        type=arguments.positive,
        help='how many of its pixels (default: the area of a cell, as in the network)',
    )
    parser.add_argument(
        '--enlarge',
        metavar='F',
        type=arguments.positive,
        help="side of an image's pixel in the pictures (default: for about 1000)",
    )
    parser.add_argument('--overwrite', action='store_true', help='replace existing pictures')
    network.add_arguments(parser)
    parser.set_defaults(run=run, error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.top is not None and args.superpixel is None:
        args.error('--top goes with --superpixel')
    from spinsr.data import photograph

    # Before torch is imported, so that a mistyped argument is reported at once.
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f'output path is not a directory: {args.out}')
    network.check_files(args, args.scale)
    image = photograph.read(args.image).pixels
    net = network.load(args, args.scale)
    from spinsr.analysis.superpixels import draw, find_superpixels, write_pictures

    pictures = {}
    # All is drawn before anything is written: a superpixel may exist in one block and not in another.
    with network.limited_memory(args):
        for block in args.block:
            found = find_superpixels(image, net, block)
            for name, picture in draw(found, args.enlarge, args.pixel, args.superpixel, args.top).items():
                pictures[args.out / f'{args.image.stem}_block{found.block}_{name}.png'] = picture
            print(_summary(found, args.pixel))
    done, kept = write_pictures(pictures, args.overwrite)
    skipped = f'{len(kept)} skipped{" (--overwrite replaces them)" if kept else ""}'
    print(f'{printable(args.out)}: {len(done)} done, {skipped}')
    return 0


def _summary(found: Any, pixel: tuple[int, int] | None) -> str:
    """What there is to see, in words: the grid, and the superpixels of the pixel."""
    rows, columns = found.shape
    line = f'block {found.block}: {rows}x{columns} superpixels of about {found.association.grid.cell} pixels a side'
    if pixel is not None:
        weights = found.association_of(*pixel).reshape(-1)
        shares = (f'{k} by {weights[k]:.2f}' for k in weights.argsort()[::-1][:9] if weights[k] >= 0.005)
        line += f'; pixel {pixel[0]} {pixel[1]} belongs to superpixel {", ".join(shares)}'
    return line
