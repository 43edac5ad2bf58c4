"""`spinsr export`: a checkpoint -> ONNX, or safetensors."""

import argparse

from spinsr.cli import arguments, network
from spinsr.training import imports
from spinsr.utils.text import printable
from spinsr.weights import require_file

EXAMPLE = """\
examples:
  spinsr export net_g_latest.pth spin_x4.onnx --size 128x128
  spinsr export RCAN_BIX4.pt rcan_x4.onnx                        takes images of any size
  spinsr export net_g_latest.pth spin_x4.safetensors
  spinsr export small.pth small.onnx --arch-args stoken_size=[12,16]
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'export',
        help='weights to ONNX or safetensors, for other programs',
        description='Writes a network of spinsr as an ONNX file, checked against PyTorch, or as safetensors. '
        'Network, scale and sizes are told from IN.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'source', metavar='IN', type=arguments.path, help=".pth, .pt or .safetensors: ours, BasicSR's or the authors'"
    )
    parser.add_argument('target', metavar='OUT', type=arguments.path, help='.onnx or .safetensors')
    parser.add_argument('--arch', metavar='NAME', help='the network (default: told from the names in the file)')
    imports.add_import(parser)
    parser.add_argument('--overwrite', action='store_true', help='replace OUT if it exists')
    onnx = parser.add_argument_group('ONNX')
    onnx.add_argument(
        '--arch-args',
        metavar='KEY=VALUE',
        nargs='+',
        type=network.argument,
        default=[],
        help='arguments that no shape in IN tells, where they are not the default: stoken_size=[12,16] num_heads=2',
    )
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
    if args.target.suffix == '.safetensors':
        for flag in ('size', 'opset', 'arch_args'):
            if getattr(args, flag):
                raise ValueError(f'--{flag.replace("_", "-")} is for ONNX; a .safetensors file holds only weights')
    elif args.target.suffix != '.onnx':
        raise ValueError(f'OUT must end in .onnx or .safetensors, got {args.target}')
    if args.opset is not None and args.opset < 18:
        raise ValueError(f'opset must be at least 18, got {args.opset}')
    # Before torch is imported, so that a mistyped argument is reported at once.
    imports.require_modules(args.imports)
    require_file(args.source)
    arguments.check_outputs([args.target], args.overwrite)
    network.import_modules(args)
    network.check_arch(args)
    return _write_safetensors(args) if args.target.suffix == '.safetensors' else _write_onnx(args)


def _write_safetensors(args: argparse.Namespace) -> int:
    from spinsr.convert import convert_file

    done = convert_file(args.source, args.target, args.arch, overwrite=args.overwrite)
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
        overwrite=args.overwrite,
    )
    if done.size:
        takes = f'{done.size[0]} x {done.size[1]} pixels (height x width)'
    else:
        least, largest = done.sides
        takes = (
            f'any size, sides of {least} to {largest} pixels' if largest else f'any size from {least} x {least} pixels'
        )
    print(
        f'{printable(args.target)}: takes {takes}; {done.num_bytes / 1e6:.1f} MB; '
        f'ONNX Runtime differs from PyTorch by at most {done.difference:.1g}'
    )
    if done.set_aside:
        print(f'note: on {done.set_aside} generated images it was more; see docs/export.md, "The check"')
    return 0
