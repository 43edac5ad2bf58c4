"""Which losses count when: the four strategies, and schedules that make no sense."""

import pytest

from spinsr.training import distillation

PIXEL, DISTILL = {'pixel_opt': {'type': 'L1Loss'}}, {'distill_opt': {'type': 'L1Loss'}}
BOTH = {**PIXEL, **DISTILL}


@pytest.mark.parametrize(
    ('train', 'hr', 'teacher'),
    [
        pytest.param(PIXEL, [1, 2, 3, 4], [], id='hr-alone'),
        pytest.param(DISTILL, [], [1, 2, 3, 4], id='teacher-alone'),
        pytest.param(BOTH, [1, 2, 3, 4], [1, 2, 3, 4], id='both'),
        pytest.param({**BOTH, 'distill_iters': 3, 'pixel_after': 3}, [4], [1, 2, 3], id='teacher-then-hr'),
        pytest.param({**BOTH, 'distill_iters': 3}, [1, 2, 3, 4], [1, 2, 3], id='both-then-hr'),
        pytest.param({**BOTH, 'pixel_after': 2}, [3, 4], [1, 2, 3, 4], id='teacher-then-both'),
        pytest.param({**BOTH, 'distill_iters': 3, 'pixel_after': 2}, [3, 4], [1, 2, 3], id='overlap'),
        pytest.param({**DISTILL, 'distill_iters': 4}, [], [1, 2, 3, 4], id='teacher-to-the-end'),
    ],
)
def test_strategies(train, hr, teacher):
    assert distillation.problem({**train, 'total_iter': 4}) is None
    assert [i for i in range(1, 5) if distillation.compares_with_hr(train, i)] == hr
    assert [i for i in range(1, 5) if distillation.distills(train, i)] == teacher


@pytest.mark.parametrize(
    ('train', 'problem'),
    [
        ({**PIXEL, 'distill_iters': 2}, ('distill_iters', 'needs distill_opt')),
        ({**DISTILL, 'pixel_after': 2}, ('pixel_after', 'needs pixel_opt')),
        ({**PIXEL, 'pixel_after': 2}, ('pixel_after', 'iterations 1 to 2 would have no loss')),
        ({**BOTH, 'distill_iters': 1, 'pixel_after': 3}, ('pixel_after', 'iterations 2 to 3 would have no loss')),
        ({**BOTH, 'distill_iters': 1, 'pixel_after': 9}, ('pixel_after', 'iterations 2 to 4 would have no loss')),
        ({**DISTILL, 'distill_iters': 3}, ('distill_iters', 'iterations 4 to 4 would have no loss')),
    ],
    ids=['no-teacher', 'no-hr', 'nothing-at-first', 'gap', 'gap-to-the-end', 'nothing-at-the-end'],
)
def test_iterations_without_a_loss_are_found(train, problem):
    assert distillation.problem({**train, 'total_iter': 4}) == problem
    assert 'needs' in problem[1] or distillation.problem({**train, 'total_iter': 4, 'tv_opt': {'type': 'x'}}) is None
