"""`spinsr upscale`: images of files and folders through a network."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from spinsr.cli import arguments, network
from spinsr.utils.text import printable

EXAMPLE = """\
examples:
  spinsr upscale photo.jpg
  spinsr upscale photo.jpg holidays/ -o large --weights net_g_latest.pth
  spinsr upscale scans -o large --weights SPIN_x2.pth --tile 256 --device cuda --precision fp16
  spinsr upscale scans -o large --arch SwinIR --weights SwinIR_x4.pth --arch-args window_size=8 upsampler=pixelshuffle

Writes <stem>_x<scale>.<same ending>; without --weights it uses the weights that spinsr ships. The same command
continues an interrupted run: existing outputs are skipped.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'upscale',
        help='super-resolve images',
        description='Super-resolves PNG, JPEG, WebP, TIFF and BMP images; grey, alpha and 16 bits are kept.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'inputs',
        metavar='INPUT',
        type=arguments.path,
        nargs='+',
        help='image files, and folders of images',
    )
    parser.add_argument(
        '-o',
        '--out',
        metavar='DIR',
        type=arguments.path,
        default='.',
        help='output folder (default: the working directory)',
    )
    parser.add_argument(
        '--scale',
        metavar='S',
        type=arguments.positive,
        help='upscaling factor (default: that of the weights; without --weights 4)',
    )
    parser.add_argument(
        '--tile',
        metavar='N',
        type=int,
        help='work in overlapping tiles of N x N pixels of the input, at least 32 (default: the whole image; if memory '
        'runs out, tiles of half its side, and so on)',
    )
    parser.add_argument(
        '--self-ensemble', action='store_true', help='mean over 8 flipped and rotated copies; takes 8 times as long'
    )
    parser.add_argument(
        '--precision',
        choices=('fp32', 'bf16', 'fp16'),
        default='fp32',
        help='fp32 (the default), or bf16 or fp16 by autocast',
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile; pays for many images')
    parser.add_argument('--overwrite', action='store_true', help='overwrite existing outputs')
    parser.add_argument(
        '--max-pixels',
        metavar='N',
        type=arguments.positive,
        default=2**28,
        help='refuse images with more pixels (default: %(default)s, 268 megapixels)',
    )
    network.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from spinsr.inference.image_files import find_images, name_outputs, upscale_files
    from spinsr.inference.options import check_options

    arguments.log_to_stderr(logging.WARNING)
    # Before torch is imported, so that a mistyped argument is reported at once.
    check_options(args.tile, args.precision)
    found = find_images(args.inputs, args.out)
    network.check_files(args, args.scale)
    described = network.resolve(args, args.scale)
    outputs = name_outputs(found, args.out, described.scale)
    net = described.build(network.device(args.device))
    if args.compile:
        net = _compiled(net, args.precision)

    def written(path: Path, height: int, width: int) -> None:
        tqdm.write(f'{printable(path)}: {width}x{height}', file=sys.stdout)

    with logging_redirect_tqdm(), network.limited_memory(args):
        report = upscale_files(
            outputs,
            net,
            tile=args.tile,
            self_ensemble=args.self_ensemble,
            precision=args.precision,
            overwrite=args.overwrite,
            max_pixels=args.max_pixels,
            written=written,
        )
    if len(outputs) == 1 and report.skipped:
        print(f'{printable(report.skipped[0])} exists; --overwrite replaces it')
    elif len(outputs) > 1:
        skipped = f'{len(report.skipped)} skipped{" (--overwrite replaces them)" if report.skipped else ""}'
        print(f'{printable(args.out)}: {len(report.done)} done, {skipped}, {len(report.failed)} failed')
    return 1 if report.failed else 0


def _compiled(net: Any, precision: str) -> Any:
    """The compiled network, or the network itself if compiling fails: there may be no C++ compiler."""
    import torch

    from spinsr.inference.upscale import super_resolve

    # Sizes differ from image to image; without `dynamic` the second one would be compiled again.
    compiled = torch.compile(net, dynamic=True)
    try:
        super_resolve(torch.zeros(1, 3, 8, 8), compiled, precision=precision)
    except RuntimeError as error:
        logging.warning('--compile failed, continuing without it: %s', str(error).strip().splitlines()[0])
        return net
    return compiled
