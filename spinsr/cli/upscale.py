"""`spinsr upscale`: images of files and folders through a network."""

import argparse
import logging
from typing import Any

from spinsr.cli import arguments, network

EXAMPLE = """\
examples:
  spinsr upscale photo.jpg
  spinsr upscale photo.jpg holidays/ -o large --weights net_g_latest.pth
  spinsr upscale scans -o large --weights SPIN_x2.pth --tile 256 --device cuda --precision fp16
  spinsr upscale scans -o large --arch SwinIR --weights SwinIR_x4.pth --arch-args window_size=8 upsampler=pixelshuffle

Writes <stem>_x<scale>.<same ending>; without --weights by the weights that spinsr ships. A run that was interrupted
is continued by the same command; outputs that are there are skipped.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'upscale',
        help='super-resolve images',
        description='Super-resolves PNG, JPEG, WebP, TIFF and BMP images; grey, transparent and 16-bit ones stay such.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'inputs',
        metavar='INPUT',
        type=arguments.path,
        nargs='+',
        help='image files, and folders, of which the images are taken',
    )
    parser.add_argument(
        '-o', '--out', metavar='DIR', type=arguments.path, default='.', help='folder of the outputs (default: this one)'
    )
    parser.add_argument(
        '--scale', metavar='S', type=int, help='upscaling factor (default: that of the weights; without --weights 4)'
    )
    parser.add_argument(
        '--tile',
        metavar='N',
        type=int,
        help='work in overlapping tiles of N x N pixels of the input, at least 32 (default: the whole image; when '
        'memory runs out, tiles of half its side, and so on)',
    )
    parser.add_argument(
        '--self-ensemble', action='store_true', help='mean over 8 flipped and turned copies; takes 8 times as long'
    )
    parser.add_argument(
        '--precision',
        choices=('fp32', 'bf16', 'fp16'),
        default='fp32',
        help='fp32 (the default), or bf16 or fp16 where that does no harm (autocast)',
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile; pays for many images')
    parser.add_argument('--overwrite', action='store_true', help='make outputs anew that are there')
    network.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from spinsr.inference.image_files import name_outputs, upscale_files
    from spinsr.inference.upscale import check_options

    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    # Before the network is built: what is mistyped shows at once.
    check_options(args.tile, args.precision)
    described = network.resolve(args, args.scale)
    outputs = name_outputs(args.inputs, args.out, described.scale)
    net = described.build(network.device(args.device))
    if args.compile:
        net = _compiled(net, args.precision)
    with logging_redirect_tqdm(), network.limited_memory(args):
        report = upscale_files(
            outputs,
            net,
            tile=args.tile,
            self_ensemble=args.self_ensemble,
            precision=args.precision,
            overwrite=args.overwrite,
        )
    skipped = f'{len(report.skipped)} skipped{" (--overwrite makes them anew)" if report.skipped else ""}'
    print(f'{args.out}: {len(report.done)} done, {skipped}, {len(report.failed)} failed')
    return 1 if report.failed else 0


def _compiled(net: Any, precision: str) -> Any:
    """The network after torch.compile, or as it is where that fails: there may be no C++ compiler."""
    import torch

    from spinsr.inference.upscale import super_resolve

    # Sizes differ from image to image; without `dynamic` the second one would be compiled anew.
    compiled = torch.compile(net, dynamic=True)
    try:
        super_resolve(torch.zeros(1, 3, 8, 8), compiled, precision=precision)
    except RuntimeError as error:
        logging.warning('--compile failed, going on without: %s', str(error).strip().splitlines()[0])
        return net
    return compiled
