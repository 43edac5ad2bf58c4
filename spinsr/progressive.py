"""Patches that grow during a training ("progressive learning"), in the words of Restormer's option files.

Small patches make fast iterations, large ones show the network more around a pixel: a training begins with the former
and ends with the latter. The data set cuts patches of `gt_size`; a stage takes a part of each.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple


class Stage(NamedTuple):
    """A part of a training.

    Attributes:
        first: Its first iteration, counted from 1.
        gt_size: Side of its HR patches, in pixels.
        batch: Images of its batches, on each device.
    """

    first: int
    gt_size: int
    batch: int


def problem(dataset: Mapping[str, Any], scale: int, accumulate: int = 1) -> tuple[str, str] | None:
    """The first key of `datasets: train` that does not fit the others, and what is wrong.

    Args:
        dataset: The section; each value is of its kind.
        scale: HR sides are multiples of it.
        accumulate: Batches are multiples of it.
    """
    sizes, iters, batches = (dataset.get(key) for key in ('gt_sizes', 'iters', 'mini_batch_sizes'))
    if sizes is None:
        lone = next((key for key in ('iters', 'mini_batch_sizes') if dataset.get(key) is not None), None)
        return (lone, 'belongs to gt_sizes, and there is none') if lone else None
    # Batches may stay as they are.
    for key, numbers in (('iters', iters or []), ('mini_batch_sizes', batches or sizes)):
        if len(numbers) != len(sizes):
            return key, f'must have a number for each of gt_sizes {sizes}, got {dataset.get(key)}'
    if dataset.get('gt_size') is None or dataset.get('batch_size_per_gpu') is None:
        return 'gt_sizes', 'needs gt_size and batch_size_per_gpu, of the patches and batches that are loaded'
    if max(sizes) > dataset['gt_size'] or any(size % scale for size in sizes):
        return 'gt_sizes', f'must be multiples of scale={scale} up to gt_size={dataset["gt_size"]}, got {sizes}'
    most = dataset['batch_size_per_gpu']
    if batches and (max(batches) > most or any(batch % accumulate for batch in batches)):
        rule = f'must be multiples of accumulate={accumulate} up to batch_size_per_gpu={most}'
        return 'mini_batch_sizes', f'{rule}, got {batches}'
    return None


def stages(dataset: Mapping[str, Any]) -> list[Stage]:
    """The stages of a training, in order; the last goes on to its end. One where patches do not grow.

    Args:
        dataset: The section `datasets: train`, in which `problem` finds none.
    """
    sizes = dataset.get('gt_sizes') or [dataset['gt_size']]
    batches = dataset.get('mini_batch_sizes') or [dataset['batch_size_per_gpu']] * len(sizes)
    firsts = itertools.accumulate(dataset.get('iters') or [0], initial=1)
    return [Stage(*stage) for stage in zip(firsts, sizes, batches, strict=False)]
