"""What train and test share: the flags, the option file, the registrations and the checks; then BasicSR."""

import argparse
import contextlib
import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from spinsr import check, compat
from spinsr.models.registration import register
from spinsr.training import distributed, option_files
from spinsr.training.experiment import NAME, Lock
from spinsr.training.imports import ImportFailed, add_import, import_modules
from spinsr.utils import memory
from spinsr.utils.errors import OptionError, UserError
from spinsr.utils.patching import replaced
from spinsr.utils.text import printable

# What a shell says of a program that Ctrl-C has ended.
INTERRUPTED = 130
_NO_MEMORY = 'out of memory or threads: a smaller batch or fewer workers may help'


def launch(
    name: str,
    pipeline: Callable[[dict[str, Any], argparse.Namespace], None],
    argv: Sequence[str] | None = None,
    *,
    is_train: bool,
) -> int:
    """Reads and checks the options, then runs a pipeline in the working directory.

    Args:
        name: The module's name, for the messages.
        pipeline: Called with BasicSR's options and its flags.
        argv: The flags; by default those of the process.
        is_train: For training, else for testing.

    Returns:
        The exit status: 0 done, 1 an error, 130 Ctrl-C; errors are one line on stderr. A usage error exits with 2.
    """
    is_program = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser(name).parse_args(argv)
    try:
        distributed.require_launcher(args.launcher)
        if args.imports:
            register()
            import_modules(args.imports)
        file, options = option_files.load(args.opt, args.force_yml or ())
        generated = option_files.origin(file)
        args.opt = str(file) if isinstance(file, Path) else file.name
        args.opt_text = None if isinstance(file, Path) else file.text()  # None: read the file
        if not NAME.holds(options.get('name')):
            # Also without checks: BasicSR moves aside whatever has this name.
            raise OptionError(f'name must be {NAME.wanted}, got {options.get("name")!r}')
        found = []
        if not args.no_check:
            found += check.stop_at_error(check.quick(options, is_train=is_train, launcher=args.launcher))
        register()
        options = check.with_whole_numbers(options)
        # BasicSR writes the command into the copy of the option file.
        with replaced(sys, argv=[f'python -m {name}', *argv]):
            opt = _basicsr_options(options, args, is_train)
            if not args.no_check:
                resumes = is_train and compat.find_resume_state(opt) is not None
                found += check.stop_at_error(check.files(opt, resumes=resumes))
            if opt['rank'] == 0:
                if generated:
                    sys.stderr.write(f'{name}: {generated}\n')
                sys.stderr.writelines(f'{name}: {finding.level}: {finding}\n' for finding in found)
            pipeline(opt, args)
        distributed.leave()
    except (UserError, ImportFailed) as error:
        return _fail(name, error)
    except (ConnectionError, EOFError) as error:
        # A worker that is killed while it hands over a batch: only the socket tells.
        return _fail(name, f'a data loader worker, or another process of this training, has died ({_reason(error)})')
    except OSError as error:
        return _fail(name, _reason(error))
    except MemoryError:
        return _fail(name, _NO_MEMORY)
    except (RuntimeError, ImportError) as error:
        if memory.ran_out(error):
            return _fail(name, f'{_NO_MEMORY} ({_reason(error)})')
        # A process that this one needs has died; its own message, or the system's, says why.
        if not _is_lost_worker(error) and not distributed.is_lost_peer(error):
            raise
        # Where torch says only "exited unexpectedly", the cause can name the signal: Killed, where memory ran out.
        return _fail(name, error.__cause__ if _is_lost_worker(error.__cause__) else error)
    except KeyboardInterrupt as error:
        if is_program:  # a second Ctrl-C must not end this in a traceback
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write(f'\n{name}: {str(error) or "interrupted"}\n')
        return 1 if str(error) else INTERRUPTED  # a second SIGTERM says what it was
    return 0


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Keeps other runs out of a folder of experiments or results; the processes of one run share the lock.

    Args:
        folder: The folder, which need not exist.

    Raises:
        OptionError: Another run works in it.
    """
    lock = Lock(folder)
    with contextlib.ExitStack() as stack:
        problem = None
        if distributed.is_main():
            try:
                stack.enter_context(lock)
            except OptionError as error:
                problem = str(error)
        # All processes must end, not wait for the first one.
        if problem := distributed.from_main(problem):
            raise OptionError(problem)
        yield


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f'{os.fsdecode(error.filename)}: {error.strerror}' if error.filename else error.strerror
    return next(iter(str(error).splitlines()), '') or type(error).__name__


def _is_lost_worker(error: BaseException | None) -> TypeGuard[RuntimeError]:
    return isinstance(error, RuntimeError) and str(error).startswith('DataLoader worker')


def _fail(name: str, error: BaseException | str) -> int:
    sys.stderr.write(f'{name}: error: {printable(" ".join(str(error).split()))}\n')
    return 1


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f'python -m {name}', description="BasicSR's flags; see docs/training.md.")
    parser.add_argument('-opt', required=True, help='an option file, or the name of one of spinsr')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), default='none', help='job launcher')
    parser.add_argument('--auto_resume', action='store_true', help='resume from the newest state of the experiment')
    parser.add_argument('--debug', action='store_true', help='validate and save every 8 iterations, under another name')
    parser.add_argument('--no-check', action='store_true', help='skip the checks')
    # torch.distributed.launch passes it with a hyphen since torch 2.0.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')
    parser.add_argument(
        '--force_yml', nargs='+', metavar='KEY=VALUE', help='set values of the option file: train:ema_decay=0.999'
    )
    add_import(parser)
    return parser


def _basicsr_options(options: dict[str, Any], args: argparse.Namespace, is_train: bool) -> dict[str, Any]:
    """BasicSR's parse_options on the option file with the forced values, which it would apply after seeding."""
    from basicsr.utils import options as basicsr_options

    def init_dist(launcher: str, **params: Any) -> None:
        distributed.init_process(launcher, options['num_gpu'], **params)

    flags = ['--launcher', args.launcher, '--local_rank', str(args.local_rank)]
    flags += ['--auto_resume'] if args.auto_resume else []
    flags += ['--debug'] if args.debug else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'options.yml')
        path.write_text(yaml.safe_dump(options, sort_keys=False), encoding='ascii')
        with (
            replaced(sys, argv=[sys.argv[0], '-opt', str(path), *flags]),
            replaced(basicsr_options, init_dist=init_dist),
            contextlib.redirect_stdout(io.StringIO()),  # 'Disable distributed.'
        ):
            return basicsr_options.parse_options(str(Path.cwd()), is_train=is_train)[0]
