"""Which losses count when, in a training that learns from a teacher's outputs and from HR.

| | distill_opt | pixel_opt | distill_iters | pixel_after |
| --- | --- | --- | --- | --- |
| HR alone | | yes | | |
| teacher alone | yes | | | |
| both, by their loss_weight | yes | yes | | |
| teacher for N iterations, then HR | yes | yes | N | N |
"""

from collections.abc import Mapping
from typing import Any

from spinsr.utils.validation import is_whole

# Sections of train whose losses count in every iteration.
_THROUGHOUT = ('perceptual_opt', 'fft_opt', 'tv_opt', 'contrastive_opt')


def problem(train: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first key of a section `train` that does not fit the others, and what is wrong with it.

    Args:
        train: Its `distill_iters` and `pixel_after` are whole numbers where they are given.
    """
    has = {name: bool(train.get(name)) for name in ('distill_opt', 'pixel_opt', *_THROUGHOUT)}
    end, start, total = train.get('distill_iters'), train.get('pixel_after') or 0, train.get('total_iter')
    if end is not None and not has['distill_opt']:
        return 'distill_iters', 'needs distill_opt'
    if start and not has['pixel_opt']:
        return 'pixel_after', 'needs pixel_opt'
    if not is_whole(total) or not any(has.values()) or any(has[name] for name in _THROUGHOUT):
        return None
    last = (total if end is None else end) if has['distill_opt'] else 0
    first = min(start, total) if has['pixel_opt'] else total
    if last < first:
        return 'pixel_after' if start else 'distill_iters', f'iterations {last + 1} to {first} would have no loss'
    return None


def distills(train: Mapping[str, Any], iteration: int) -> bool:
    """Whether `distill_opt` counts in an iteration, counted from 1."""
    return bool(train.get('distill_opt')) and (
        train.get('distill_iters') is None or iteration <= train['distill_iters']
    )


def compares_with_hr(train: Mapping[str, Any], iteration: int) -> bool:
    """Whether `pixel_opt` counts in an iteration, counted from 1."""
    return bool(train.get('pixel_opt')) and iteration > (train.get('pixel_after') or 0)
