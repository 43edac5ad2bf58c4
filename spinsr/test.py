"""Testing: `python -m spinsr.test -opt FILE`, BasicSR's test_pipeline on options that spinsr.launch has checked."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spinsr import compat
from spinsr.launch import launch
from spinsr.utils.patching import replaced


def main(argv: Sequence[str] | None = None) -> int:
    """Tests; writes ./results. Returns the exit status."""
    return launch('spinsr.test', _test, argv, is_train=False)


def _test(opt: dict[str, Any], args: argparse.Namespace) -> None:
    from basicsr.utils import get_root_logger

    test = importlib.import_module('basicsr.test')
    basicsr_build_model = test.build_model

    def build_model(opt: dict[str, Any]) -> Any:
        if opt['path'].get('pretrain_network_g') is None:
            get_root_logger().warning('path:pretrain_network_g is not set: the weights under test are random.')
        return basicsr_build_model(opt)

    with replaced(test, parse_options=lambda root_path, is_train: (opt, args), build_model=build_model):
        test.test_pipeline(str(Path.cwd()))


# A worker process that is spawned, not forked, imports this module first and unpickles BasicSR's classes then.
if __name__ == '__mp_main__':
    compat.install()

if __name__ == '__main__':
    sys.exit(main())
