"""The output of a training: a progress bar on a terminal, BasicSR's log lines elsewhere, a summary at the end."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from spinsr.utils.patching import replaced

# BasicSR's name for its logger.
LOGGER = 'basicsr'


class _Header(str):
    """A message that is for the log file only."""


@contextlib.contextmanager
def headers_to_file(pipeline: Any) -> Iterator[None]:
    """Keeps BasicSR's banner and its list of all options off the terminal; they go to the log file.

    Args:
        pipeline: The module basicsr.train or basicsr.test.
    """
    get_env_info, dict2str, get_root_logger = pipeline.get_env_info, pipeline.dict2str, pipeline.get_root_logger

    def get_logger(*args: Any, **keywords: Any) -> logging.Logger:
        logger = get_root_logger(*args, **keywords)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_is_no_header)
        return logger

    with replaced(
        pipeline,
        get_env_info=lambda: _Header(get_env_info()),
        dict2str=lambda *args: _Header(dict2str(*args)),
        get_root_logger=get_logger,
    ):
        yield


def _is_no_header(record: logging.LogRecord) -> bool:
    return not isinstance(record.msg, _Header)


class Progress:
    """The progress bar of a training; nothing if stderr is not a terminal.

    Args:
        total: Iterations of the whole training.
        done: Iterations of earlier runs.
        name: The experiment.
        shown: Whether this process shows it; None if stderr is a terminal.
    """

    def __init__(self, total: int, done: int, name: str, shown: bool | None = None) -> None:
        shown = sys.stderr.isatty() if shown is None else shown
        self._bar = tqdm(
            total=total, initial=done, desc=name, unit='it', dynamic_ncols=True, disable=not shown, smoothing=0.05
        )
        self._redirected = contextlib.ExitStack()
        if shown:
            self._redirected.enter_context(logging_redirect_tqdm([logging.getLogger(LOGGER)]))
            # The bar says what the line of every print_freq iterations says; it still goes to the log file.
            for handler in logging.getLogger(LOGGER).handlers:
                if not isinstance(handler, logging.FileHandler):
                    handler.addFilter(_is_no_iteration)
                    self._redirected.callback(handler.removeFilter, _is_no_iteration)

    def step(self, log: Mapping[str, float], rate: float) -> None:
        """One more iteration.

        Args:
            log: The losses.
            rate: The learning rate.
        """
        if not self._bar.disable:
            losses = {name: f'{value:.3e}' for name, value in log.items() if name.startswith('l_')}
            self._bar.set_postfix({**losses, 'lr': f'{rate:.2e}'}, refresh=False)
            self._bar.update()
            if self._bar.n >= self._bar.total:  # what follows, the last validation, is none of the bar's
                self.close()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()
        self._redirected.close()


def _is_no_iteration(record: logging.LogRecord) -> bool:
    return '..][epoch:' not in str(record.msg)


def summary(opt: Mapping[str, Any], model: Any) -> Iterator[str]:
    """The last lines of a training: the best metrics, what was skipped, and where the files are.

    Args:
        opt: BasicSR's options.
        model: The model that was trained.
    """
    for dataset, record in getattr(model, 'best_metric_results', {}).items():
        best = ', '.join(
            f'{metric} {entry["val"]:.4f} at iteration {entry["iter"]}'
            for metric, entry in record.items()
            if entry['iter'] >= 0
        )
        if best:
            yield f'Best on {dataset}: {best}'
    if getattr(model, 'nonfinite', 0):
        yield f'Skipped because loss or gradient was not finite: {model.nonfinite} iterations'
    models = Path(opt['path']['models'])
    yield f'Weights: {models / "net_g_latest.pth"}; checkpoints, log and option file: {models.parent}'
