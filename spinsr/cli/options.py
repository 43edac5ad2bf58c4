"""`spinsr options`: lists option files, or writes them: the shipped ones, and those generated from recipes."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from spinsr.cli import arguments, network
from spinsr.training import imports, option_files
from spinsr.utils import atomic_write
from spinsr.utils.text import nearest, printable

_EPILOG = """examples:
  spinsr options                             all names
  spinsr options RLFN --scale 4              the names of one network and scale
  spinsr options RLFN --scale 4 -o my        writes them to my/
  spinsr options train_RLFN_x4.yml           prints one file
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'options',
        help='list or write option files',
        description='Lists the option files of spinsr; with -o, writes them to a folder, to be changed there. '
        'train, test and check know all of them by name.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'names', metavar='NAME', nargs='*', help='a network, or an option file (default: all); a single file is printed'
    )
    parser.add_argument(
        '--scale', metavar='N', type=arguments.scales, nargs='+', default=[], help='only these upscaling factors'
    )
    parser.add_argument('-o', '--out', '--copy', metavar='DIR', type=arguments.path, help='write them to DIR')
    parser.add_argument('--overwrite', action='store_true', help='let -o replace files that differ')
    imports.add_import(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ValueError: No option file has one of the names, or of the scales.
        ImportError: A module of --import does not exist, or fails.
        FileExistsError: If a file would be replaced by another and --overwrite is not given; nothing is written then.
    """
    if args.imports:
        imports.require_modules(args.imports)
        network.import_modules(args)
    files = _selected(args.names, {scale for group in args.scale for scale in group})
    if args.out is not None:
        _write({args.out / name: content() for name, content in files.items()}, args.overwrite)
        print(f'{len(files)} option files in {printable(args.out)}')
    elif len(args.names) == 1 and list(files) == [_file_name(args.names[0])]:
        (content,) = files.values()
        print(content().decode(), end='')
    else:
        for name in files:
            print(name)
    return 0


def _selected(names: list[str], scales: set[int]) -> dict[str, Callable[[], bytes]]:
    """Name -> content of the option files of these networks and scales, or with these file names."""
    files = {name: path.read_bytes for name, path in option_files.shipped().items()}
    for name, file in option_files.generated().items():
        files[name] = lambda file=file: file.text().encode()
    pattern = re.compile(r'(?:train|test)_(.+?)_x(\d+)(?:_\w+)?\.yml')
    of_network = {name: match for name in files if (match := pattern.fullmatch(Path(name).name))}
    known = {match[1] for match in of_network.values()}
    for name in names:
        if name not in known and _file_name(name) not in files:
            hint = nearest(name, [*known, *files])
            raise ValueError(f'{name} is neither a network with option files nor an option file; {hint}')
    wanted = {
        name: content
        for name, content in sorted(files.items())
        if (not names or of_network[name][1] in names or name in map(_file_name, names))
        and (not scales or int(of_network[name][2]) in scales)
    }
    if not wanted:
        of = f' of {", ".join(names)}' if names else ''
        raise ValueError(f'no option file{of} is for scale {", ".join(map(str, sorted(scales)))}')
    return wanted


def _file_name(name: str) -> str:
    return name.removesuffix('.yml') + '.yml'


def _write(contents: dict[Path, bytes], overwrite: bool) -> None:
    changed = [path for path, content in contents.items() if path.exists() and path.read_bytes() != content]
    if changed and not overwrite:
        raise FileExistsError(f'{changed[0]} exists and differs; --overwrite replaces such files ({len(changed)})')
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write.write_bytes(path, content)
