"""Training: `python -m spinsr.train -opt FILE`, BasicSR's train_pipeline with three of its functions replaced.

The options are read and checked by spinsr.launch (BasicSR seeds before --force_yml), a state is loaded on any device,
and the data loaders make training run exactly total_iter iterations. The loop is BasicSR's.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spinsr import compat
from spinsr.launch import launch, replaced


def main(argv: Sequence[str] | None = None) -> int:
    """Trains; writes ./experiments and ./tb_logger. Returns the exit status."""
    return launch('spinsr.train', _train, argv, is_train=True)


def _train(opt: dict[str, Any], args: argparse.Namespace) -> None:
    from spinsr.data import loader

    # `import basicsr.train` would do, but BasicSR's `from .train import *` fills the package with names.
    train = importlib.import_module('basicsr.train')
    state: dict[str, Any] | None = None

    def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
        nonlocal state
        state = compat.load_resume_state(opt)
        return state

    def create_train_val_dataloader(opt: dict[str, Any], logger: Any) -> tuple:
        return loader.create_train_val_dataloader(opt, logger, state)

    with replaced(
        train,
        parse_options=lambda root_path, is_train: (opt, args),
        load_resume_state=load_resume_state,
        create_train_val_dataloader=create_train_val_dataloader,
    ):
        train.train_pipeline(str(Path.cwd()))


# A worker process that is spawned, not forked, imports this module first and unpickles BasicSR's classes then.
if __name__ == '__mp_main__':
    compat.install()

if __name__ == '__main__':
    sys.exit(main())
