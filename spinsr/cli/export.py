"""`spinsr export`: a checkpoint -> ONNX, ncnn, or safetensors."""

import argparse

from spinsr.cli import arguments, network
from spinsr.training import imports
from spinsr.utils.text import printable
from spinsr.weights import require_file

EXAMPLE = """\
examples:
  spinsr export net_g_latest.pth spin_x4.onnx                    takes images of any size
  spinsr export swin2sr_x4.pth swin2sr_x4.onnx --size 128x128
  spinsr export net_g_latest.pth spin_x4.safetensors --dtype fp16
  spinsr export rlfn_x4.pth rlfn_x4.param                        ncnn; rlfn_x4.bin beside it
  spinsr export small.pth small.onnx --arch-args stoken_size=[12,16]
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'export',
        help='weights to ONNX, ncnn or safetensors, for other programs',
        description='Writes a network of spinsr as ONNX or ncnn, checked against PyTorch, or as safetensors. '
        'Network, scale and sizes are told from IN.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'source', metavar='IN', type=arguments.path, help=".pth, .pt or .safetensors: ours, BasicSR's or the authors'"
    )
    parser.add_argument('target', metavar='OUT', type=arguments.path, help='.onnx, .param (ncnn) or .safetensors')
    parser.add_argument('--arch', metavar='NAME', help='the network (default: told from the names in the file)')
    imports.add_import(parser)
    parser.add_argument('--overwrite', action='store_true', help='replace OUT if it exists')
    parser.add_argument(
        '--dtype',
        choices=('fp32', 'fp16', 'bf16'),
        default='fp32',
        help='how large weights are stored; fp16 and bf16 halve the file (default: fp32)',
    )
    parser.add_argument(
        '--arch-args',
        metavar='KEY=VALUE',
        nargs='+',
        type=network.argument,
        default=[],
        help='for ONNX and ncnn: arguments that no shape in IN tells, where they are not the default: '
        'stoken_size=[12,16] num_heads=2',
    )
    onnx = parser.add_argument_group('ONNX')
    onnx.add_argument(
        '--size',
        metavar='HxW',
        type=arguments.size,
        help='the size that OUT will take, in LR pixels (default: any if the network can, else 64x64)',
    )
    onnx.add_argument(
        '--opset', metavar='N', type=arguments.positive, help="version of ONNX's operators, from 18 (default: 18)"
    )
    parser.set_defaults(run=run, error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.target.suffix not in _WRITERS:
        raise ValueError(f'OUT must end in .onnx, .param or .safetensors, got {args.target}')
    _check_flags(args)
    if args.opset is not None and args.opset < 18:
        raise ValueError(f'opset must be at least 18, got {args.opset}')
    # Before torch is imported, so that a mistyped argument is reported at once.
    imports.require_modules(args.imports)
    require_file(args.source)
    outputs = [args.target, args.target.with_suffix('.bin')] if args.target.suffix == '.param' else [args.target]
    arguments.check_outputs(outputs, args.overwrite)
    network.import_modules(args)
    network.check_arch(args)
    return _WRITERS[args.target.suffix](args)


def _check_flags(args: argparse.Namespace) -> None:
    """Refuses flags that do not apply to OUT."""
    if args.target.suffix == '.safetensors':
        for flag, formats in (('size', 'ONNX'), ('opset', 'ONNX'), ('arch_args', 'ONNX and ncnn')):
            if getattr(args, flag):
                flag = flag.replace('_', '-')
                raise ValueError(f'--{flag} is for {formats}; a .safetensors file holds only weights')
    if args.target.suffix == '.param':
        for flag in ('size', 'opset'):
            if getattr(args, flag):
                raise ValueError(f'--{flag} is for ONNX; ncnn files take images of any size')
        if args.dtype != 'fp32':
            raise ValueError('--dtype is not for ncnn, which converts the weights itself (ncnnoptimize)')


def _write_safetensors(args: argparse.Namespace) -> int:
    from spinsr.convert import convert_file

    dtype = None if args.dtype == 'fp32' else args.dtype
    done = convert_file(args.source, args.target, args.arch, overwrite=args.overwrite, dtype=dtype)
    print(f'{printable(args.target)}: {done.arch} x{done.scale}, {done.parameters:,} parameters')
    return 0


def _write_onnx(args: argparse.Namespace) -> int:
    from spinsr.export.onnx import export_file

    arguments.say('export', f'{args.source} to ONNX, then a comparison of ONNX Runtime with PyTorch')
    done = export_file(
        args.source,
        args.target,
        args.arch,
        dict(args.arch_args),
        size=args.size,
        opset=args.opset or 18,
        dtype=args.dtype,
        overwrite=args.overwrite,
    )
    if done.size:
        takes = f'{done.size[0]} x {done.size[1]} pixels (height x width)'
    else:
        assert done.sides is not None
        least, largest = done.sides
        takes = (
            f'any size, sides of {least} to {largest} pixels' if largest else f'any size from {least} x {least} pixels'
        )
    print(
        f'{printable(args.target)}: takes {takes}; {done.num_bytes / 1e6:.1f} MB; '
        f'ONNX Runtime differs from PyTorch by at most {done.difference:.1g}'
    )
    if args.dtype != 'fp32':
        print(f'weights in {args.dtype}: the output changes by at most {done.rounding:.1g}')
    if done.set_aside:
        print(f'note: on {done.set_aside} generated images it was more; see docs/export.md, "The check"')
    return 0


def _write_ncnn(args: argparse.Namespace) -> int:
    from spinsr.export.ncnn import export_file

    arguments.say('export', f'{args.source} to ncnn, then a comparison of ncnn with PyTorch')
    done = export_file(args.source, args.target, args.arch, dict(args.arch_args), overwrite=args.overwrite)
    print(
        f'{printable(args.target)} and .bin: take any size from {done.least} x {done.least} pixels; '
        f'{done.num_bytes / 1e6:.1f} MB; ncnn differs from PyTorch by at most {done.difference:.1g}'
    )
    return 0


_WRITERS = {'.onnx': _write_onnx, '.param': _write_ncnn, '.safetensors': _write_safetensors}
