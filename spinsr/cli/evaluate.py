"""`spinsr evaluate`: PSNR, SSIM and other metrics on benchmark folders, in named protocols."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spinsr.cli import arguments, network
from spinsr.evaluation.protocols import PROTOCOLS
from spinsr.inference.options import PRECISIONS
from spinsr.training import imports
from spinsr.utils.text import printable
from spinsr.weights import DEFAULT_SCALE, ENDINGS

EXAMPLE = """\
examples:
  spinsr evaluate --weights SPIN_x4.pth --benchmark datasets/benchmark/Set5
  spinsr evaluate --weights 'SPIN_x{scale}.pth' --scale 2,3,4 --benchmark Set5 Set14 --self-ensemble --json spin.json
  spinsr evaluate --sr SR/BI/RCAN --scale 4 --benchmark Set5 --protocol y_crop_scale
  spinsr evaluate --arch bicubic --scale 2,3,4 --benchmark Set5 Set14
  spinsr evaluate --no-gt --weights SPIN_x4.pth --benchmark photos --metric niqe
  spinsr evaluate --no-gt --sr results/photos --metric niqe,brisque
  spinsr evaluate --weights FOLDER --benchmark Set5   # every file in it, measured beside published
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'evaluate',
        help='PSNR and SSIM on benchmark folders, in named protocols',
        description='Scores a network, or images made elsewhere, on benchmark folders.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    network.add_arguments(parser)
    parser.add_argument(
        '--sr', metavar='DIR', help='score the images in DIR instead of a network (DIR/Set5/x4/baby_RCAN_x4.png, …)'
    )
    parser.add_argument(
        '--benchmark',
        metavar='DIR',
        type=arguments.path,
        nargs='+',
        action='extend',
        help='folders with HR/NAME.png and LR_bicubic/X4/NAMEx4.png; absent LR folders are made in memory',
    )
    parser.add_argument(
        '--scale',
        metavar='S',
        type=arguments.scales,
        nargs='+',
        help='scales, as 2,4 or 2 4 (default: that of the weights, else 4); {scale} in --weights and --sr is replaced',
    )
    parser.add_argument(
        '--protocol',
        metavar='NAME',
        type=_names,
        nargs='+',
        help='y_crop_scale, spin_published, ntire, rgb, y_mod12 (default: all that can be computed, without y_mod12)',
    )
    parser.add_argument(
        '--metric',
        metavar='NAME',
        type=_names,
        nargs='+',
        default=[],
        help='full-reference metrics of pyiqa too: lpips, dists, gmsd, fsim, … (on the images of the protocol rgb); '
        'with --no-gt its no-reference metrics: niqe (default), brisque, … (on the whole image)',
    )
    parser.add_argument(
        '--no-gt',
        action='store_true',
        help='no HR images: the folders of --benchmark hold LR images, or --sr DIR the images to score',
    )
    parser.add_argument(
        '--self-ensemble', action='store_true', help='mean over the 8 dihedral transforms (marked with a +)'
    )
    parser.add_argument(
        '--precision',
        choices=tuple(PRECISIONS),
        default='fp32',
        help='type of the computation, bf16 and fp16 by autocast: what the half types cost (default: %(default)s)',
    )
    parser.add_argument('--json', metavar='FILE', type=arguments.path, help='write every number')
    parser.add_argument('--csv', metavar='FILE', type=arguments.path, help='write a line for each image and mean')
    parser.add_argument('--markdown', metavar='FILE', type=arguments.path, help='write the table')
    parser.add_argument('--overwrite', action='store_true', help='replace these files where they exist')
    parser.set_defaults(run=run, error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ValueError, OSError, ImportError: Before the work starts: a file exists or cannot be written, the network cannot
            be built, --sr is not a directory, or pyiqa is missing or does not have the metric.
    """
    if args.no_gt:
        return _run_without_gt(args)
    if not args.benchmark:
        args.error('the following arguments are required: --benchmark')
    if args.weights != 'default' and os.path.isdir(os.path.expanduser(args.weights)):
        return _run_folder(args)
    scales = _scales(args)
    protocols = _unique(args.protocol) if args.protocol else None
    _check_usage(args, scales, protocols)

    _check_protocols(args, protocols)
    _check_files(args, scales)
    files = _tables(args)
    arguments.check_outputs(files, args.overwrite)

    from spinsr.evaluation import benchmark

    arguments.log_to_stderr(logging.INFO)
    metrics = benchmark.load_metrics(_unique(args.metric), network.device(args.device)) if args.metric else {}
    scales = _scales_of_weights(args, scales)
    upscaler, method, about = _source(args, scales)

    failures = []

    def failed(line: str) -> None:
        failures.append(line)
        print(f'spinsr evaluate: error: {printable(line)}', file=sys.stderr)

    results = benchmark.evaluate(
        args.benchmark, scales, upscaler, method=method, protocols=protocols, metrics=metrics, failed=failed
    )
    _write(results, about, files)
    return int(bool(failures))


def _run_without_gt(args: argparse.Namespace) -> int:
    """Scores results, or what a network makes of LR images, by metrics without a reference."""
    if args.protocol:
        args.error('argument --protocol: needs HR images, so it cannot be combined with --no-gt')
    if args.weights != 'default' and os.path.isdir(os.path.expanduser(args.weights)):
        args.error('argument --weights: a folder cannot be combined with --no-gt; name one file')
    scales = _scales(args)
    _check_usage(args, scales, None)
    if args.sr is not None and (args.benchmark or args.scale):
        flag = '--benchmark' if args.benchmark else '--scale'
        args.error(f'argument {flag}: cannot be combined with --no-gt --sr, which scores the images as they are')
    folders = args.benchmark or ([arguments.path(args.sr)] if args.sr is not None else [])
    if not folders:
        args.error('argument --no-gt: needs --benchmark DIR with LR images, or --sr DIR with the images to score')
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f'not a directory: {folder}')
    if args.sr is None and args.arch != 'bicubic':
        for scale in scales:
            network.check_files(_of_scale(args, scale), scale if args.scale else None)
    files = _tables(args)
    arguments.check_outputs(files, args.overwrite)

    from spinsr.evaluation import benchmark

    arguments.log_to_stderr(logging.INFO)
    names = _unique(args.metric) or ['niqe']
    metrics = benchmark.load_metrics(names, network.device(args.device), reference=False)
    if args.sr is None:
        scales = _scales_of_weights(args, scales)
        upscaler, method, about = _source(args, scales)
    else:
        upscaler, method, about = None, '-', {None: {'sr': args.sr}}
    failures = []

    def failed(line: str) -> None:
        failures.append(line)
        print(f'spinsr evaluate: error: {printable(line)}', file=sys.stderr)

    results = benchmark.evaluate_without_hr(folders, scales, upscaler, metrics, method=method, failed=failed)
    _write(results, about, files)
    return int(bool(failures))


def _tables(args: argparse.Namespace) -> dict[Path, str]:
    """The files to write: path -> function of `benchmark`."""
    files = {args.json: 'to_json', args.csv: 'to_csv', args.markdown: 'to_markdown'}
    return {path: name for path, name in files.items() if path is not None}


def _write(results: list[dict[str, Any]], about: Mapping[Any, dict[str, Any]], files: Mapping[Path, str]) -> None:
    """Prints the table and writes the files of `_tables`."""
    from spinsr.evaluation import benchmark
    from spinsr.utils.atomic_write import write_bytes

    if not results:
        return
    print('\n'.join(map(printable, benchmark.to_markdown(results).split('\n'))), end='')
    results = [result | about[result['scale']] for result in results]
    for path, name in files.items():
        # Names that are not UTF-8 have surrogates; in JSON their escapes read back as the same names.
        write_bytes(path, getattr(benchmark, name)(results).encode('utf-8', 'backslashreplace'))


def _scales(args: argparse.Namespace) -> list[int]:
    return sorted({scale for group in args.scale or [(DEFAULT_SCALE,)] for scale in group})


def _scales_of_weights(args: argparse.Namespace, scales: list[int]) -> list[int]:
    """The scale that the weights tell, where --scale does not."""
    if args.scale is None and (args.model or (args.weights != 'default' and '{scale}' not in args.weights)):
        return [network.resolve(args, None).scale]
    return scales


def _run_folder(args: argparse.Namespace) -> int:
    """Scores every file of weights in a folder, measured beside published."""
    told = {'--arch': args.arch, '--arch-args': args.arch_args, '--scale': args.scale, '--protocol': args.protocol}
    other = {'--sr': args.sr, '--metric': args.metric, **_of_networks(args)}
    for flag in (flag for flag, value in told.items() if value):
        args.error(f'argument {flag}: cannot be combined with a folder of --weights; it is read from the files')
    for flag in (flag for flag, value in other.items() if value):
        args.error(f'argument {flag}: cannot be combined with a folder of --weights')
    outputs = [path for path in (args.json, args.csv, args.markdown) if path]
    _check_different(outputs, args)
    _check_benchmarks(args)
    imports.require_modules(args.imports)
    folder = arguments.path(args.weights)
    files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ENDINGS and path.is_file())
    if not files:
        raise ValueError(f'{folder} has no files that end in {", ".join(ENDINGS)}')
    arguments.check_outputs(outputs, args.overwrite)
    network.import_modules(args)

    from spinsr.evaluation import benchmark, zoo
    from spinsr.utils.atomic_write import write_bytes

    arguments.log_to_stderr(logging.INFO)
    device = network.device(args.device)
    failures, results = [], []

    def failed(line: str) -> None:
        failures.append(line)
        print(f'spinsr evaluate: error: {printable(line)}', file=sys.stderr)

    for path in files:
        name = os.fspath(path.relative_to(folder))
        try:
            results += zoo.evaluate_file(
                path, args.benchmark, name=name, device=device, failed=lambda line, name=name: failed(f'{name}: {line}')
            )
        except (ValueError, TypeError, OSError, ImportError) as error:
            failed(str(error) if name in str(error) else f'{name}: {error}')
    if results:
        table = zoo.evaluated_to_markdown(results)
        print('\n'.join(map(printable, table.split('\n'))), end='')
        writers = {args.json: benchmark.to_json, args.csv: benchmark.to_csv, args.markdown: lambda _: table}
        for path in outputs:
            write_bytes(path, writers[path](results).encode('utf-8', 'backslashreplace'))
    return int(bool(failures))


def _of_networks(args: argparse.Namespace) -> dict[str, bool]:
    """How a network is run -> whether the user asked for it."""
    return {'--precision': args.precision != 'fp32', '--self-ensemble': args.self_ensemble}


def _check_usage(args: argparse.Namespace, scales: list[int], protocols: list[str] | None) -> None:
    if not scales or scales[0] < 1:
        args.error(f'argument --scale: must be integers of at least 1, got {scales}')
    needing = {'--weights': args.weights != 'default', '--model': args.model, **_of_networks(args)}
    if _is_rounded(args) and any(needing.values()):
        flag = next(flag for flag, value in reversed(needing.items()) if value)
        args.error(f'argument {flag}: needs a network, not {"--sr" if args.sr else "--arch bicubic"}')
    _check_different([path for path in (args.json, args.csv, args.markdown) if path], args)
    if len(scales) > 1 and not args.sr and args.weights != 'default' and '{scale}' not in args.weights:
        args.error(
            f'argument --weights: must name one file for each scale, as SPIN_x{{scale}}.pth, got {args.weights!r} for '
            f'the scales {", ".join(map(str, scales))}'
        )


def _check_different(files: list[Path], args: argparse.Namespace) -> None:
    if len({path.resolve() for path in files}) < len(files):
        args.error(f'arguments --json, --csv, --markdown: must be different files, got {", ".join(map(str, files))}')


def _check_files(args: argparse.Namespace, scales: list[int]) -> None:
    """Finds mistyped arguments before torch is imported."""
    _check_benchmarks(args)
    if args.sr is not None:
        for scale in scales:
            folder = _folder(args.sr, scale)
            if not os.path.isdir(folder):
                raise ValueError(f'not a directory: {folder}')
    elif args.arch != 'bicubic':
        for scale in scales:
            network.check_files(_of_scale(args, scale), scale if args.scale else None)


def _check_benchmarks(args: argparse.Namespace) -> None:
    if len({os.path.basename(os.path.abspath(folder)) for folder in args.benchmark}) < len(args.benchmark):
        raise ValueError(f'benchmarks must be folders of different names, got {", ".join(map(str, args.benchmark))}')
    if not any((folder / 'HR').is_dir() for folder in args.benchmark):
        raise ValueError(f'not a directory: {args.benchmark[0] / "HR"}')


def _of_scale(args: argparse.Namespace, scale: int) -> argparse.Namespace:
    """The flags with the weights of one scale."""
    return argparse.Namespace(**{**vars(args), 'weights': args.weights.replace('{scale}', str(scale))})


def _folder(text: str, scale: int) -> str:
    return os.path.expanduser(text).replace('{scale}', str(scale))


def _check_protocols(args: argparse.Namespace, protocols: list[str] | None) -> None:
    for name in protocols or ():
        if name not in PROTOCOLS:
            args.error(f'argument --protocol: must be among {", ".join(PROTOCOLS)}, got {name!r}')
    for name in (name for name, rules in PROTOCOLS.items() if rules.unrounded and _is_rounded(args)):
        message = f'{name} needs unrounded outputs of a network, but these images have 8 bits'
        if protocols is None:
            print(f'spinsr evaluate: skipped, {message}', file=sys.stderr)
        elif name in protocols:
            args.error(f'argument --protocol: {message}')


def _is_rounded(args: argparse.Namespace) -> bool:
    return args.sr is not None or args.arch == 'bicubic'


def _source(args: argparse.Namespace, scales: list[int]) -> tuple[Callable[..., Any], str, dict[int, dict[str, Any]]]:
    """Where the images come from, the method's name, and by scale what the files say about it."""
    from spinsr.evaluation import benchmark

    if args.sr is not None:
        folder = os.path.expanduser(args.sr)
        about = {scale: {'sr': _folder(args.sr, scale)} for scale in scales}
        return benchmark.images(folder), Path(os.path.abspath(folder)).name, about
    if args.arch == 'bicubic':
        return benchmark.upsample, 'bicubic', {scale: {} for scale in scales}
    nets, about = {}, {}
    for scale in scales:
        of_scale = _of_scale(args, scale)
        described = network.resolve(of_scale, scale)
        nets[scale] = described.build(network.device(args.device))
        about[scale] = {
            'arch': described.arch,
            'arch_args': dict(args.arch_args),
            'parameters': sum(parameter.numel() for parameter in nets[scale].parameters()),
            'weights': args.model or of_scale.weights,
            'self_ensemble': args.self_ensemble,
            'precision': args.precision,
        }
    upscaler = benchmark.network(nets, self_ensemble=args.self_ensemble, precision=args.precision)
    half = '' if args.precision == 'fp32' else f' ({args.precision})'
    return upscaler, described.arch + '+' * args.self_ensemble + half, about


def _names(text: str) -> list[str]:
    return [part for part in text.split(',') if part]


def _unique(groups: list[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))
