"""The command line: `spinsr <command>`, one file a command, arguments and printing only."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from spinsr._version import __version__
from spinsr.inference import devices
from spinsr.utils import memory
from spinsr.utils.text import nearest, printable

COMMANDS = (
    'app',
    'blend',
    'check',
    'complexity',
    'convert',
    'env',
    'evaluate',
    'export',
    'install-basicsr',
    'models',
    'options',
    'prepare',
    'report',
    'superpixels',
    'upscale',
    'zoo',
)
# Run by python -m; a beginner looks for them among the commands.
MODULES = ('train', 'test')
# Those that skip what an earlier run of theirs has done.
CONTINUING = ('prepare', 'upscale')
# Those whose images may need it; the others measure memory, or have small ones.
LARGE_IMAGES = ('app', 'upscale')
# `prepare` needs torch for some of its kinds only, and asks for the memory there.
WITHOUT_TORCH = ('install-basicsr', 'options', 'prepare')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 all done, 1 any failure, 2 usage."""
    parser = argparse.ArgumentParser(prog='spinsr', description='Image super-resolution on BasicSR.')
    parser.add_argument('--version', action='version', version=f'spinsr {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='command')
    for name in COMMANDS:
        importlib.import_module(f'spinsr.cli.{name.replace("-", "_")}').add_parser(commands)
    words = sys.argv[1:] if argv is None else argv
    if words and not words[0].startswith('-') and words[0] not in COMMANDS:
        parser.error(f'unknown command {printable(repr(words[0]))}; {_instead(words[0])}')
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        # The command's own parser: its usage shows the flags that there are.
        commands.choices[args.command].error(f'unrecognized arguments: {printable(" ".join(unknown))}')
    devices.allow_fallback()
    if args.command in LARGE_IMAGES:
        memory.use_huge_pages()
    try:
        if args.command not in WITHOUT_TORCH:
            memory.require_for_torch()
        return args.run(args) or 0
    except BrokenPipeError:  # whoever reads the output has seen enough, as in `spinsr options | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError) as error:
        out_of_memory = memory.ran_out(error)
        if isinstance(error, RuntimeError) and not out_of_memory:
            raise
        text = str(error) or type(error).__name__
        if out_of_memory and not text.startswith('out of memory'):
            text = 'out of memory or threads' + (f': {text.splitlines()[0]}' if str(error) else '')
        if isinstance(error, OSError) and error.filename is not None and error.strerror:  # without [Errno 2]
            text = f'{os.fsdecode(error.filename)}: {error.strerror}'
        print(f'spinsr {args.command}: error: {printable(text)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        continues = '; run the same command again to continue' if args.command in CONTINUING else ''
        print(f'spinsr {args.command}: interrupted{continues}', file=sys.stderr)
        return 1


def _instead(name: str) -> str:
    return f'use python -m spinsr.{name} -opt FILE' if name in MODULES else nearest(name, COMMANDS)
