"""`spinsr upscale`: images of files and folders through a network."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any, cast

from spinsr.cli import arguments, network
from spinsr.utils.text import printable
from spinsr.weights import DEFAULT_ARCH
from spinsr.weights.models import MODELS, PHOTO

EXAMPLE = """\
examples:
  spinsr upscale photo.jpg
  spinsr upscale old.jpg --model photo
  spinsr upscale photo.jpg holidays/ -o large --weights net_g_latest.pth
  spinsr upscale scans -o large --weights SPIN_x2.pth --tile 256 --device cuda --precision fp16
  spinsr upscale scans -o large --arch SwinIR --weights SwinIR_x4.pth --arch-args window_size=8 upsampler=pixelshuffle

  spinsr upscale photo.jpg -o large.png --outscale 2.5
  spinsr upscale holidays -o large --recursive --max-side 4096

Writes <stem>_x<scale>.<same ending>; without --weights it uses the weights that spinsr ships. The same command
continues an interrupted run: existing outputs are skipped.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'upscale',
        help='super-resolve images',
        description='Super-resolves PNG, JPEG, WebP, TIFF, BMP and GIF images; with plugins AVIF, HEIC and JPEG XL. '
        'Grey, alpha, 16 bits, frames, pages and metadata are kept.',
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
        metavar='DIR|FILE',
        type=arguments.path,
        default='.',
        help='output folder (default: the working directory); for a single image also a file, such as large.png',
    )
    parser.add_argument(
        '-r', '--recursive', action='store_true', help='search sub-folders too; the output folder gets the same ones'
    )
    parser.add_argument(
        '--name',
        metavar='TEMPLATE',
        help='names of the outputs, with {stem}, {size}, {scale} and {ext} (default: {stem}_{size}{ext})',
    )
    parser.add_argument(
        '--scale',
        metavar='S',
        type=arguments.positive,
        help='upscaling factor of the network (default: that of the weights; without --weights 4, or the smallest that '
        'reaches --outscale)',
    )
    size = parser.add_argument_group(
        'size', 'The output of the network is resampled to this size (Lanczos); the aspect ratio stays.'
    )
    size.add_argument('--outscale', metavar='F', type=_factor, help='factor of both sides, such as 1.5')
    size.add_argument('--width', metavar='N', type=arguments.positive, help='width in pixels')
    size.add_argument('--height', metavar='N', type=arguments.positive, help='height; with --width: fit into both')
    size.add_argument('--max-side', metavar='N', type=arguments.positive, help='limit of the longer side in pixels')
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
        choices=('auto', 'fp32', 'bf16', 'fp16'),
        help='fp32, bf16 or fp16 (the latter two by autocast), or auto (the default): bf16 on a CPU with instructions '
        'for it, for 8-bit images and the networks that spinsr ships; else fp32',
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile; pays for many images')
    parser.add_argument(
        '--engine',
        choices=('torch', 'onnx'),
        default='torch',
        help='what runs the network: torch (the default), or onnx: ONNX Runtime on the CPU; exports the network once',
    )
    parser.add_argument('--overwrite', action='store_true', help='overwrite existing outputs')
    parser.add_argument(
        '--strip', action='store_true', help='leave out EXIF, XMP, resolution and texts (colour profiles stay)'
    )
    parser.add_argument(
        '--max-pixels',
        metavar='N',
        type=arguments.positive,
        default=2**28,
        help='refuse images with more pixels (default: %(default)s, 268 megapixels)',
    )
    network.add_arguments(parser)
    parser.set_defaults(run=run, error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from spinsr.inference import devices
    from spinsr.inference.image_files import (
        NAME_TEMPLATE,
        check_template,
        find_images,
        is_file_name,
        name_outputs,
        upscale_files,
    )
    from spinsr.inference.options import AUTO, check_options
    from spinsr.inference.output_size import OutputSize

    arguments.log_to_stderr(logging.WARNING)
    # Before torch is imported, so that a mistyped argument is reported at once.
    precision = args.precision or AUTO
    check_options(args.tile, precision, args.engine)
    if args.compile and args.engine != 'torch':
        args.error('--compile is for --engine torch: leave out one of them')
    try:
        size = OutputSize(outscale=args.outscale, width=args.width, height=args.height, max_side=args.max_side)
    except ValueError as error:
        args.error(str(error))
    if args.name is not None:
        if is_file_name(args.out):
            args.error(f'--name is for a folder of outputs, -o {args.out} names a file: leave out one of them')
        check_template(args.name)
    found = find_images(args.inputs, args.out, recursive=args.recursive)
    scale = _shipped_scale(args) if _uses_default_weights(args) else args.scale
    network.check_files(args, scale)
    described = network.resolve(args, scale)
    from spinsr.inference import upscale as upscaling

    outputs = name_outputs(found, args.out, described.scale, size=size, template=args.name or NAME_TEMPLATE)
    if args.engine == 'onnx' and args.device == 'auto':
        args.device = 'cpu'
    device = network.device(args.device)
    net = described.build(device)
    _check_scale(described, net)
    if args.compile:
        net = _compiled(net, precision)
    net = upscaling.by_engine(net, args.engine)
    if precision == AUTO:
        _say_precision(net, is_asked=args.precision is not None)

    def written(path: Path, height: int, width: int) -> None:
        tqdm.write(f'{printable(path)}: {width}x{height}', file=sys.stdout)

    with logging_redirect_tqdm(), devices.said_once(device), network.limited_memory(args):
        report = upscale_files(
            outputs,
            net,
            tile=args.tile,
            self_ensemble=args.self_ensemble,
            precision=precision,
            overwrite=args.overwrite,
            max_pixels=args.max_pixels,
            size=size,
            strip=args.strip,
            jpeg_advice=_advice(args),
            written=written,
        )
    if len(outputs) == 1 and report.skipped:
        print(f'{printable(report.skipped[0])} exists; --overwrite replaces it')
    elif len(outputs) > 1:
        skipped = f'{len(report.skipped)} skipped{" (--overwrite replaces them)" if report.skipped else ""}'
        where = '' if args.out == Path() else f'{printable(args.out)}: '
        print(f'{where}{len(report.done)} done, {skipped}, {len(report.failed)} failed')
    return 1 if report.failed else 0


def _check_scale(described: Any, net: Any) -> None:
    """Refuses a scale that a network takes and does not have, as BasicSR's RRDBNet does with 3 and 8."""
    from spinsr.convert import find_format
    from spinsr.inference.upscale import scale_of

    if find_format(described.cls) is None and (actual := scale_of(net)) != described.scale:
        raise ValueError(f'{described.arch} x{described.scale} enlarges {actual} times: pass --scale {actual}')


def _factor(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'must be a positive number, got {text!r}')
    return value


def _advice(args: argparse.Namespace) -> str | None:
    """What to say about JPEGs of low quality; None if the user chose weights, or the model for such JPEGs."""
    if args.weights != 'default' or args.model == PHOTO.name:
        return None
    scale = '' if args.scale in (None, PHOTO.scale) else f' --outscale {args.scale} instead of --scale'
    return f'--model {PHOTO.name}{scale} may do better'


def _uses_default_weights(args: argparse.Namespace) -> bool:
    return args.weights == 'default' and args.model is None and args.arch in (None, DEFAULT_ARCH)


def _shipped_scale(args: argparse.Namespace) -> int | None:
    """The scale of the default weights: --scale, or the smallest that reaches --outscale.

    Raises:
        ValueError: spinsr ships no weights of this scale.
    """
    scales = sorted({model.scale for model in MODELS if model.arch == DEFAULT_ARCH})
    if args.scale is None:
        return next((scale for scale in scales if args.outscale and args.outscale <= scale), None)
    if args.scale not in scales:
        known = ', '.join(f'x{scale}' for scale in scales)
        raise ValueError(
            f'{DEFAULT_ARCH} has no x{args.scale}: spinsr ships weights for {known}. '
            f'Use one of these, with --outscale for another size, or give --weights of a network for x{args.scale}'
        )
    return args.scale


def _say_precision(net: Any, is_asked: bool) -> None:
    """Says what --precision auto chooses for 8-bit images; fp32, the rule, only if the user asked."""
    from spinsr.inference.precision import choose

    precision, reason = choose(net)
    if is_asked or precision != 'fp32':
        images = 'for 8-bit images ' if precision != 'fp32' else ''
        print(f'precision: {precision} {images}({reason})', file=sys.stderr)


def _compiled(net: Any, precision: str) -> Any:
    """The compiled network, or the network itself if compiling fails: there may be no C++ compiler."""
    import torch

    from spinsr.inference.upscale import super_resolve

    # Sizes differ from image to image; without `dynamic` the second one would be compiled again.
    compiled = cast('torch.nn.Module', torch.compile(net, dynamic=True))
    try:
        super_resolve(torch.zeros(1, 3, 8, 8), compiled, precision=precision)
    except RuntimeError as error:
        logging.warning('--compile failed, continuing without it: %s', str(error).strip().splitlines()[0])
        return net
    return compiled
