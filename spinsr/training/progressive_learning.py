"""Patches that grow during a training ("progressive learning"), in the words of Restormer's option files.

Small patches make fast iterations, large ones show the network more around a pixel: a training begins with the former
and ends with the latter. The data set cuts patches of `gt_size`; a stage takes a part of each.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from spinsr.utils.validation import is_whole

# Of the section `datasets: train`.
KEYS = ('gt_sizes', 'iters', 'mini_batch_sizes')


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


def grows(dataset: Mapping[str, Any]) -> bool:
    """Whether a section `datasets: train` asks for patches that grow."""
    return dataset.get('gt_sizes') is not None


def problem(dataset: Mapping[str, Any], scale: int, accumulate: int = 1) -> tuple[str, str] | None:
    """The first key that is wrong or does not fit the others, and what is wrong with it.

    Args:
        dataset: A section that asks for patches that grow.
        scale: Sizes are multiples of it.
        accumulate: Batches are multiples of it.
    """
    for key in KEYS:
        value = dataset.get(key)
        if value is not None and not (isinstance(value, list) and value and all(is_whole(x) and x > 0 for x in value)):
            return key, f'must be a list of whole numbers of at least 1, got {value!r}'
    if dataset.get('scales'):
        return 'gt_sizes', f'must be left out with scales, whose patches do not grow, got {dataset["gt_sizes"]}'
    sizes, largest, most = dataset['gt_sizes'], dataset.get('gt_size'), dataset.get('batch_size_per_gpu')
    if not is_whole(largest) or not is_whole(most):
        return 'gt_sizes', 'needs gt_size and batch_size_per_gpu, of the patches and batches that are loaded'
    batches: list[int] = dataset.get('mini_batch_sizes') or [most] * len(sizes)
    for key, numbers in (('iters', dataset.get('iters') or []), ('mini_batch_sizes', batches)):
        if len(numbers) != len(sizes):
            return key, f'must have a number for each of gt_sizes {sizes}, got {dataset.get(key)}'
    if max(sizes) > largest or any(size % scale for size in sizes):
        return 'gt_sizes', f'must be multiples of scale={scale} up to gt_size={largest}, got {sizes}'
    if max(batches) > most or any(batch % accumulate for batch in batches):
        rule = f'must be multiples of accumulate={accumulate} up to batch_size_per_gpu={most}'
        return 'mini_batch_sizes', f'{rule}, got {batches}'
    return None


def stages(dataset: Mapping[str, Any]) -> list[Stage]:
    """The stages of a training, in order; the last one lasts until the end.

    Args:
        dataset: A section that asks for patches that grow, in which `problem` finds none.
    """
    sizes = dataset['gt_sizes']
    firsts = itertools.accumulate(dataset['iters'][:-1], initial=1)
    batches = dataset.get('mini_batch_sizes') or [dataset['batch_size_per_gpu']] * len(sizes)
    return [Stage(*stage) for stage in zip(firsts, sizes, batches, strict=True)]
