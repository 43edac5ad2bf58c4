"""`spinsr check`: finds what in an option file would fail or mislead later."""

import argparse

from spinsr.training.imports import add_import, import_modules
from spinsr.utils.text import printable

_EPILOG = """example:
  spinsr check -opt train_SPIN_x4.yml
  spinsr check -opt my.yml --force_yml train:total_iter=1000 --deep
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'check',
        help='check an option file before it is used',
        description='Lists everything that would fail or mislead when an option file is used: misspelt keys, wrong '
        'values, missing, unpaired, damaged or mis-sized images, weights that do not fit, too little memory.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('-opt', metavar='FILE', required=True, help='an option file, or the name of one of spinsr')
    parser.add_argument(
        '--force_yml', nargs='+', metavar='KEY=VALUE', default=(), help='set values first: train:ema_decay=0.999'
    )
    parser.add_argument('--test', action='store_true', help='a file for testing (default: its sections tell)')
    parser.add_argument('--deep', action='store_true', help='decode every image, not only its header: slow')
    add_import(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 without errors, 1 with.

    Raises:
        OptionError: The file cannot be read, or a forced key does not exist.
        ImportFailed: A module of --import fails.
    """
    from spinsr.check import check
    from spinsr.models.registration import register
    from spinsr.training import option_files

    if args.imports:
        register()
        import_modules(args.imports)
    file, options = option_files.load(args.opt, args.force_yml)
    if generated := option_files.origin(file):
        print(printable(generated))
    findings = check(options, is_train=False if args.test else None, decode=args.deep, progress=True)
    for finding in findings:
        print(f'{finding.level:<8} {finding}')
    counts = {level: sum(finding.level == level for finding in findings) for level in ('error', 'warning')}
    print(', '.join(f'{count} {level}{"" if count == 1 else "s"}' for level, count in counts.items()))
    return 1 if counts['error'] else 0
