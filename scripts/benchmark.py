"""Times a network with several ops backends in one run, and says how far each is from the arithmetic floor.

    python scripts/benchmark.py --arch SPIN --scale 4 --lr-size 180x320 --backends reference,auto --mode infer

Each backend has its own process (benchmark_worker.py), since a peak of memory is that of a process; the processes run
one at a time and in turns, so that a slow minute of the machine meets all of them. docs/performance.md says what every
number means. Exit status: 0 all done, 1 a backend failed or the backends disagree, 2 usage, 130 interrupted.
"""

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark_report import make_report, print_report, write_json
from benchmark_session import OUTPUT_LIMITS, RefusedError, Session, Worker, WorkerError, base_of, progress

from spinsr.cli.arguments import positive, size


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.recompute and args.mode != 'train':
        parser.error('--recompute is for --mode train')
    # So that the workers are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        report = measure(args)
        report['command'] = shlex.join(['python', 'scripts/benchmark.py', *argv])
        print_report(report)
        if args.json:
            write_json(args.json, report)
    except RefusedError as error:
        parser.error(str(error))
    except (WorkerError, OSError) as error:
        return complain(error)
    except KeyboardInterrupt:
        complain('interrupted', 'benchmark')
        return 130
    for backend, cause in report['failed'].items():
        complain(cause, f'backend {backend}')
    refused = [check for checks in report['agreement'].values() for check in checks if not check['holds']]
    return 1 if report['failed'] or refused else 0


def complain(message: object, who: str = 'benchmark: error') -> int:
    print(f'{who}: {message}', file=sys.stderr)
    return 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog='See docs/performance.md.')
    add = parser.add_argument
    add('--arch', default='SPIN', help="SPIN, SAN, RCAN, or another name in BasicSR's registry (default: SPIN)")
    add('--scale', type=positive, default=4, help='upscaling factor (default: 4)')
    add('--lr-size', type=size, default=(180, 320), metavar='HxW', help='LR pixels (default: 180x320)')
    add('--backends', type=names, default=['reference', 'auto'], help='comma-separated (default: reference,auto)')
    add('--mode', choices=('infer', 'train'), default='infer', help='a step of train is forward, L1 loss, backward')
    add('--recompute', action='store_true', help='in train: blocks twice, in less memory; not those of reference')
    add('--batch', type=positive, metavar='N', help='images (default: 1 for infer, 8 for train)')
    add('--repeats', type=positive, default=5, metavar='N', help='timed runs of each backend (default: 5)')
    add('--dtype', choices=tuple(OUTPUT_LIMITS), default='float32')
    add('--threads', type=positive, metavar='N', help="CPU threads (default: torch's)")
    add('--device', default='cpu', help='cpu or cuda (default: cpu)')
    add('--weights', metavar='FILE', help='.pth, .pt or .safetensors (default: random weights, seed 0)')
    add('--arch-args', type=assignment, nargs='+', default=[], metavar='KEY=VALUE', help='as under network_g')
    add('--import', dest='imports', action='append', default=[], metavar='MODULE', help='registers more archs')
    add('--json', type=new_file, metavar='FILE', help='write all numbers here')
    return parser


def names(text: str) -> list[str]:
    backends = text.split(',')
    if len(set(backends)) < len(backends):
        raise argparse.ArgumentTypeError(f'must be different names, got {text!r}')
    return backends


def assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition('=')
    if not key or not equals:
        raise argparse.ArgumentTypeError(f'must be KEY=VALUE, got {text!r}')
    return key, value


def new_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f'must be a file in a folder that exists, got {text!r}')
    return path


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the workers and returns everything that the report says."""
    settings = {name: value for name, value in vars(args).items() if name != 'json'}
    settings['batch'] = args.batch or {'infer': 1, 'train': 8}[args.mode]
    with contextlib.ExitStack() as stack:
        progress('starting')
        gauge = start(stack, {'worker': 'Gauge', **settings})
        workers = {name: start(stack, {'worker': 'Runner', **settings}, name) for name in args.backends}
        facts = gauge.facts()  # before anything is asked of the others, so that a mistake is said once
        session = Session(workers, gauge)
        session.run(args.repeats)
        agreement = session.agreement(base_of(args.backends), args.dtype)
        macs = session.count()
    progress()
    return make_report({**settings, **facts}, session, agreement, macs)


def start(stack: contextlib.ExitStack, settings: Mapping[str, Any], backend: str = 'auto') -> Worker:
    worker = Worker(settings, backend)
    stack.callback(worker.stop)
    return worker


if __name__ == '__main__':
    sys.exit(main())
