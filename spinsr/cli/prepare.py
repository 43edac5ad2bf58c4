"""`spinsr prepare`: makes the data that the option files name."""

import argparse
import logging
import os
from pathlib import Path

from spinsr.cli import arguments, network
from spinsr.data.degradation import PRESETS
from spinsr.utils import memory
from spinsr.utils.text import printable

EXAMPLE = """\
examples:
  spinsr prepare sample
  spinsr prepare div2k ~/DIV2K --workers 8
  spinsr prepare benchmark ~/Set5 ~/Urban100/HR --scale 2,3,4
  spinsr prepare images ~/photos --scale 4 --exclude B100 ~/Set5 -o datasets/photos
  spinsr prepare degraded ~/Set5 --preset light strong --scale 4
  spinsr prepare teacher datasets/photos --arch RCAN --weights RCAN_x4.pth --scale 4

The same command continues an interrupted run; finished outputs are skipped.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'prepare',
        help="prepare DIV2K, your own images, benchmarks, the embedded sample, degraded LR, or a teacher's outputs",
        description='Makes LMDBs and benchmark folders, with LR images equal to those of MATLAB.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='kind')

    div2k = _add_kind(
        kinds,
        'div2k',
        'the official DIV2K folder -> LMDBs',
        'spinsr prepare div2k ~/DIV2K --scale 2,3,4,8 --workers 8',
        out='datasets/div2k',
        scales=(2, 3, 4, 8),
    )
    div2k.add_argument(
        'source',
        metavar='SOURCE',
        type=arguments.path,
        help='folder with DIV2K_train_HR, DIV2K_valid_HR and, optionally, the LR folders',
    )
    div2k.add_argument(
        '--subset', action='store_true', help='take all images of the folders, whatever their names and however many'
    )
    div2k.set_defaults(prepare=_div2k)

    benchmark = _add_kind(
        kinds,
        'benchmark',
        'folders of HR images -> benchmark folders (HR, HR_mod, LR_bicubic)',
        'spinsr prepare benchmark ~/Set5 ~/Urban100/HR --scale 2,3,4',
        out='datasets/benchmark',
        scales=(2, 3, 4, 8),
    )
    benchmark.add_argument(
        'folders',
        metavar='HR_DIR',
        type=arguments.path,
        nargs='+',
        help='images, or a folder HR of them; gives OUT/<name of HR_DIR, or of its parent if it is HR>',
    )
    benchmark.add_argument('--overwrite', action='store_true', help='overwrite existing files')
    benchmark.set_defaults(prepare=_benchmark)

    images = _add_kind(
        kinds,
        'images',
        'folders of your own HR images -> LMDBs of whole images for training',
        'spinsr prepare images ~/photos --scale 4 --min-side 192 --exclude B100 ~/Set5 ~/Set14 -o datasets/photos',
        out='datasets/images',
        scales=(2, 3, 4),
    )
    images.add_argument('folders', metavar='HR_DIR', type=arguments.path, nargs='+', help='folders of images')
    images.add_argument(
        '--min-side',
        metavar='N',
        type=arguments.positive,
        default=1,
        help='skip images with a shorter side, after the cut to multiples of 12; at least the gt_size of training',
    )
    images.add_argument(
        '--exclude',
        metavar='BENCHMARK',
        nargs='+',
        default=[],
        help='skip images of these benchmarks: folders, whose images are recognised, or B100, by BSDS500 names',
    )
    images.set_defaults(prepare=_images)

    sample = _add_kind(
        kinds,
        'sample',
        "photographs of scikit-image's wheel -> a small training and validation set",
        'spinsr prepare sample',
        out='datasets/sample',
        scales=(2, 3, 4),
    )
    sample.set_defaults(prepare=_sample)

    degraded = _add_kind(
        kinds,
        'degraded',
        'folders of HR images -> LR images degraded as for training on photographs',
        'spinsr prepare degraded ~/Set5 --preset light strong --scale 4',
        out='datasets/degraded',
        scales=(4,),
        workers=False,
    )
    degraded.add_argument('folders', metavar='HR_DIR', type=arguments.path, nargs='+', help='folders of images')
    degraded.add_argument(
        '--preset', nargs='+', choices=tuple(PRESETS), default=list(PRESETS), help='the degradations (default: all)'
    )
    degraded.add_argument('--overwrite', action='store_true', help='overwrite existing files')
    degraded.set_defaults(prepare=_degraded)
    _add_teacher(kinds)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    arguments.log_to_stderr(logging.INFO)
    args.scales = sorted({scale for group in args.scale for scale in group})
    for path in args.prepare(args):
        print(printable(path))
    return 0


def _add_teacher(kinds: argparse._SubParsersAction) -> None:
    summary = "training data and a network -> an LMDB of the network's outputs, for distillation"
    teacher = kinds.add_parser(
        'teacher',
        help=summary,
        description=f'{summary}.',
        epilog='example:\n  spinsr prepare teacher datasets/images --arch RCAN --weights RCAN_x4.pth --scale 4\n',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    teacher.add_argument(
        'dataset',
        metavar='DATASET',
        type=arguments.path,
        help='folder with train_LR_bicubic_X<S>.lmdb, as prepare images makes it, or DIV2K_train_LR_bicubic_X<S>_sub'
        '.lmdb, as prepare div2k does; or such an LMDB',
    )
    teacher.add_argument('--scale', metavar='S', type=int, default=4, help='upscaling factor (default: 4)')
    teacher.add_argument(
        '-o',
        '--out',
        metavar='LMDB',
        type=arguments.path,
        help='output (default: train_teacher_X<S>.lmdb beside the LR images)',
    )
    teacher.add_argument(
        '--tile',
        metavar='N',
        type=int,
        help='work in overlapping tiles of N x N LR pixels, at least 32 (default: whole images; one that does not '
        'fit into memory is an error)',
    )
    network.add_arguments(teacher)
    teacher.set_defaults(run=_run_teacher)


def _run_teacher(args: argparse.Namespace) -> int:
    from tqdm.contrib.logging import logging_redirect_tqdm

    from spinsr.data.teacher_outputs import describe, find_lr
    from spinsr.inference.options import check_options

    arguments.log_to_stderr(logging.INFO)
    # Before torch is imported, so that a mistyped argument is reported at once.
    check_options(args.tile, 'fp32')
    find_lr(args.dataset, args.scale)
    network.check_files(args, args.scale)
    memory.require_for_torch()

    from spinsr.inference.teacher import prepare_teacher

    described = network.resolve(args, args.scale)
    weights = network.shipped_file(args, described.arch, args.scale) or arguments.path(args.weights)
    teacher = describe(described.arch, weights, args.scale, args.tile, dict(args.arch_args))
    net = described.build(network.device(args.device))
    with logging_redirect_tqdm(), network.limited_memory(args):
        print(printable(prepare_teacher(args.dataset, net, teacher, args.out)))
    return 0


def _add_kind(
    kinds: argparse._SubParsersAction,
    name: str,
    summary: str,
    example: str,
    out: str,
    scales: tuple[int, ...],
    workers: bool = True,
) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        name,
        help=summary,
        description=f'{summary}.',
        epilog=f'example:\n  {example}\n',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '-o', '--out', metavar='DIR', type=arguments.path, default=Path(out), help=f'output (default: {out})'
    )
    parser.add_argument(
        '--scale',
        metavar='S',
        type=arguments.scales,
        nargs='+',
        default=[scales],
        help=f'scales, as 2,4 or 2 4 (default: {",".join(map(str, scales))})',
    )
    if workers:
        parser.add_argument(
            '--workers',
            metavar='N',
            type=arguments.positive,
            default=_processors(),
            help='processes (default: %(default)s, all processors)',
        )
    parser.set_defaults(run=run)
    return parser


def _processors() -> int:
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _div2k(args: argparse.Namespace) -> list[Path]:
    from spinsr.data.prepare import prepare_div2k

    return prepare_div2k(args.source, args.out, args.scales, args.workers, args.subset)


def _benchmark(args: argparse.Namespace) -> list[Path]:
    from spinsr.data.prepare import prepare_benchmark

    return prepare_benchmark(args.folders, args.out, args.scales, args.workers, args.overwrite)


def _images(args: argparse.Namespace) -> list[Path]:
    from spinsr.data.own_images import prepare_images

    return prepare_images(args.folders, args.out, args.scales, args.workers, args.min_side, args.exclude)


def _degraded(args: argparse.Namespace) -> list[Path]:
    memory.require_for_torch()
    from spinsr.data.degraded_images import prepare_degraded

    return prepare_degraded(args.folders, args.out, args.scales, args.preset, args.overwrite)


def _sample(args: argparse.Namespace) -> list[Path]:
    from spinsr.data.sample import prepare_sample

    return prepare_sample(args.out, args.scales, args.workers)
