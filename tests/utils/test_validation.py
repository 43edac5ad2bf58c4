"""Rules on values, and the checks of constructors: what passes, and that an error names rule and value."""

import pytest

from spinsr.utils.validation import (
    FLAG,
    between,
    check,
    check_divisible,
    check_equal,
    check_length,
    each,
    one_of,
    whole,
)


@pytest.mark.parametrize(
    ('rule', 'right', 'wrong'),
    [
        (whole(1), [1, 7], [0, 1.0, True, '1', None]),
        (whole(1, None), [1, None], [0, 'None']),
        (between(1, 4), [1, 4], [0, 5, 2.5, True]),
        (one_of('a', 'b'), ['a', 'b'], ['c', None, ['a']]),
        (each(whole(1)), [[1, 2], (3,), []], [[0], [1.5], '12', 12, None]),
        (FLAG, [True, False], [0, 'no', None]),
    ],
    ids=['whole', 'whole_or_none', 'between', 'one_of', 'each', 'flag'],
)
def test_rule_holds_for_what_it_says(rule, right, wrong):
    assert all(rule.holds(value) for value in right)
    assert not any(rule.holds(value) for value in wrong)


@pytest.mark.parametrize(
    ('broken', 'message'),
    [
        (lambda: check(whole(1), a=1, b=0), 'b must be a whole number of at least 1, got b=0'),
        (lambda: check_divisible(a=6, b=5, c=3), 'a and b must be divisible by c, got a=6, b=5, c=3'),
        (lambda: check_equal(a=1, b='1'), "a and b must be equal, got a=1, b='1'"),
        (lambda: check_length(a=(1, 2), b=3), 'a must have b items, got a=(1, 2), b=3'),
    ],
    ids=['check', 'check_divisible', 'check_equal', 'check_length'],
)
def test_broken_rule_is_an_error_with_rule_and_value(broken, message):
    with pytest.raises(ValueError) as error:
        broken()
    assert str(error.value) == message


def test_values_that_satisfy_the_rules_pass():
    check(whole(1), a=1, b=2)
    check_divisible(a=6, b=9, c=3)
    check_equal(a=1, b=1)
    check_length(a=[1, 2], b=2)
