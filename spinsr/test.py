"""Testing: `python -m spinsr.test -opt FILE`, BasicSR's test_pipeline on options that spinsr.launch has checked."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spinsr.training import time_limit
from spinsr.utils import memory

if __name__ == '__main__':
    time_limit.end_at_ctrl_c('spinsr.test')  # the imports below take seconds
    try:
        memory.require_for_torch()
    except MemoryError as error:
        sys.exit(f'spinsr.test: error: {error}')

from spinsr import compat
from spinsr.check import targets
from spinsr.launch import launch, locked
from spinsr.training import progress_bar
from spinsr.utils.patching import replaced


def main(argv: Sequence[str] | None = None) -> int:
    """Tests; writes ./results. Returns the exit status."""
    time_limit.obey_ctrl_c()
    return launch('spinsr.test', _test, argv, is_train=False)


def _test(opt: dict[str, Any], args: argparse.Namespace) -> None:
    from basicsr.utils import get_root_logger

    test = importlib.import_module('basicsr.test')
    basicsr_build_model = test.build_model

    def build_model(opt: dict[str, Any]) -> Any:
        if opt['path'].get('pretrain_network_g') is None:
            get_root_logger().warning('path:pretrain_network_g is not set: the weights under test are random.')
        return basicsr_build_model(opt)

    basicsr_build_dataset = test.build_dataset

    def build_dataset(dataset_opt: dict[str, Any]) -> Any:
        dataset = basicsr_build_dataset(dataset_opt)
        targets.require(dataset, opt)
        return dataset

    with (
        locked(opt['path']['results_root']),
        progress_bar.headers_to_file(test),
        replaced(
            test,
            parse_options=lambda root_path, is_train: (opt, args),
            build_model=build_model,
            build_dataset=build_dataset,
        ),
    ):
        test.test_pipeline(str(Path.cwd()))


# A worker process that is spawned, not forked, imports this module first and unpickles BasicSR's classes then.
if __name__ == '__mp_main__':
    compat.install()

if __name__ == '__main__':
    sys.exit(main())
