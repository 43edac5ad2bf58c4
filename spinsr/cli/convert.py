"""`spinsr convert`: a checkpoint of one form -> a file of another."""

import argparse

EXAMPLE = """\
examples:
  spinsr convert RCAN_BIX4.pt rcan_x4.safetensors              the authors' file -> ours
  spinsr convert net_g_latest.pth spin_x4.safetensors          BasicSR's .pth -> .safetensors (params_ema)
  spinsr convert spin_x4.safetensors model_x4_0.pt --to official
  spinsr convert RCAN_BIX4.pt rcan_x4.pth --to basicsr         for `type: RCAN`, BasicSR's own
"""

FORMS = {'spinsr': "spinsr's form", 'official': "the authors' form", 'basicsr': "the form of BasicSR's RCAN"}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'convert',
        help="convert weights: the authors', BasicSR's, ours; .pth, .safetensors",
        description='Converts weights of SPIN, SAN, RCAN, EMT and RLFN to another form, another container, or both. '
        'Reading executes nothing that a file holds.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('source', metavar='IN', help='.pth, .pt or .safetensors, of whichever form')
    parser.add_argument('target', metavar='OUT', help='.pth, .pt or .safetensors, in a folder that exists')
    parser.add_argument(
        '--arch',
        choices=('SPIN', 'SAN', 'RCAN', 'EMT', 'RLFN'),
        help='the network (default: told from the names in the file)',
    )
    parser.add_argument(
        '--to',
        choices=tuple(FORMS),
        default='spinsr',
        help="spinsr (the default); official, for the authors' code; basicsr, for BasicSR's own RCAN",
    )
    parser.add_argument(
        '--key',
        choices=('params', 'params_ema'),
        help='which weights of a BasicSR file (default: both where IN has both and OUT can hold both, which are '
        '.pth and .pt that are not official; else params_ema before params)',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace OUT if it exists')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from spinsr.convert import convert_file

    done = convert_file(args.source, args.target, args.arch, args.to, args.key, args.overwrite)
    keys = f' ({", ".join(done.keys)})' if done.keys else ''
    print(
        f'{args.source}: {done.arch} x{done.scale}, {FORMS[done.form]}{keys}, {done.parameters:,} parameters'
        f' -> {args.target}: {FORMS[args.to]}'
    )
    for note in done.notes:
        print(f'note: {note}')
    if done.left_out:
        print(f'left out: {", ".join(done.left_out)}')
    return 0
