"""`spinsr options`: lists the shipped option files, or copies them to a folder."""

import argparse
import shutil

from spinsr.cli import arguments
from spinsr.training import option_files


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'options',
        help='list or copy the shipped option files',
        description='Lists the shipped option files; with --copy, writes them to a folder, to be changed there.',
    )
    parser.add_argument('--copy', metavar='DIR', type=arguments.path, help='copy them to DIR')
    parser.add_argument('--overwrite', action='store_true', help='let --copy replace files that differ')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        FileExistsError: If a file would be replaced by another and --overwrite is not given; nothing is copied then.
    """
    files = option_files.shipped()
    if args.copy is None:
        for name in files:
            print(name)
        return 0
    targets = {path: args.copy / name for name, path in files.items()}
    changed = [new for old, new in targets.items() if new.exists() and new.read_bytes() != old.read_bytes()]
    if changed and not args.overwrite:
        raise FileExistsError(f'{changed[0]} exists and differs; --overwrite replaces such files ({len(changed)})')
    for old, new in targets.items():
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(old, new)
    print(f'{len(targets)} option files in {args.copy}')
    return 0
