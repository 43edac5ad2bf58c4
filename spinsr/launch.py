"""What train and test have in common: the flags, the option file, the registrations and the checks; then BasicSR."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from spinsr import check, compat
from spinsr.models.registration import register
from spinsr.training import distributed, option_files
from spinsr.utils.errors import UserError
from spinsr.utils.patching import replaced


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
        The exit status: 0 all done, 1 an error or Ctrl-C, said in one line on stderr. A usage error leaves with 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser(name).parse_args(argv)
    try:
        distributed.require_launcher(args.launcher)
        path, options = option_files.load(args.opt, args.force_yml or ())
        args.opt = str(path)
        found = []
        if not args.no_check:
            found += check.stop_at_error(check.quick(options, is_train=is_train, launcher=args.launcher))
        register()
        # BasicSR writes the command into the copy of the option file.
        with replaced(sys, argv=[f'python -m {name}', *argv]):
            opt = _basicsr_options(options, args, is_train)
            if not args.no_check:
                resumes = is_train and compat.find_resume_state(opt) is not None
                found += check.stop_at_error(check.files(opt, resumes=resumes))
            if opt['rank'] == 0:
                sys.stderr.writelines(f'{name}: {finding.level}: {finding}\n' for finding in found)
            pipeline(opt, args)
        distributed.leave()
    except (UserError, OSError) as error:
        return _fail(name, error)
    except RuntimeError as error:
        # A process that this one needs has died; its own message, or the system's, says why.
        if not _is_lost_worker(error) and not distributed.is_lost_peer(error):
            raise
        # Where torch says only "exited unexpectedly", the cause can name the signal: Killed, where memory ran out.
        return _fail(name, error.__cause__ if _is_lost_worker(error.__cause__) else error)
    except KeyboardInterrupt as error:
        sys.stderr.write(f'{name}: {str(error) or "interrupted"}\n')
        return 1
    return 0


def _is_lost_worker(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith('DataLoader worker')


def _fail(name: str, error: BaseException) -> int:
    sys.stderr.write(f'{name}: error: {" ".join(str(error).split())}\n')
    return 1


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f'python -m {name}', description="BasicSR's flags; see docs/training.md.")
    parser.add_argument('-opt', required=True, help='an option file, or the name of a shipped one')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), default='none', help='job launcher')
    parser.add_argument('--auto_resume', action='store_true', help='go on from the last state of the experiment')
    parser.add_argument('--debug', action='store_true', help='validate and save every 8 iterations, under another name')
    parser.add_argument('--no-check', action='store_true', help='leave out the checks: BasicSR fails in its own way')
    # torch.distributed.launch passes it with a hyphen since torch 2.0.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')
    parser.add_argument(
        '--force_yml', nargs='+', metavar='KEY=VALUE', help='set values of the option file: train:ema_decay=0.999'
    )
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
        ):
            return basicsr_options.parse_options(str(Path.cwd()), is_train=is_train)[0]
