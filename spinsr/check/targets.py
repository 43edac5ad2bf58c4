"""Validation with metrics needs HR images: that is checked before the first iteration, not at the first validation."""

from collections.abc import Mapping
from typing import Any

from spinsr.check.values import missing_targets, reference_metrics
from spinsr.utils.errors import OptionError


def require(dataset: Any, opt: Mapping[str, Any]) -> None:
    """Refuses a data set whose samples have no HR image if a metric of `val: metrics` compares with one.

    BasicSR compares with the HR patches of the last training batch instead, or fails after the first image.

    Args:
        dataset: The data set; its first sample is read.
        opt: The options.

    Raises:
        OptionError: It has no HR images.
    """
    metrics = reference_metrics(opt)
    if not metrics or len(dataset) == 0:
        return
    sample = dataset[0]
    if isinstance(sample, Mapping) and 'lq' in sample and 'gt' not in sample:
        own = getattr(dataset, 'opt', {})
        where = f'data set {own.get("name")} ({own.get("type")})'
        raise OptionError(missing_targets(where, metrics))
