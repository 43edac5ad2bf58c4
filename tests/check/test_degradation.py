"""The checks of a training set that is degraded while it is read."""

import pytest

from spinsr.check import quick
from spinsr.check.images import images

from ..tiny_project import TRAIN, changed, without, write_images

GOOD = without(
    changed(
        TRAIN,
        {
            'datasets:train:type': 'DegradationDataset',
            'datasets:train:degradation': {'preset': 'light', 'first': {'jpeg_range': [40, 90.0]}},
            'datasets:train:gt_usm': True,
        },
    ),
    'datasets:train:dataroot_lq',
)


def findings(changes, found=quick):
    options = changed(GOOD, changes)
    return [finding for finding in found(options, is_train=True) if finding.key.startswith('datasets:train')]


def test_nothing_is_wrong():
    assert findings({}) == []


@pytest.mark.parametrize(
    ('key', 'value', 'where'),
    [
        ('degradation', {'preset': 'light', 'second': {'jpeg_range': [90, 40]}}, 'degradation:second:jpeg_range'),
        ('degradation', 'medium', 'degradation'),
        ('gt_usm', 1, 'gt_usm'),
        ('gt_size', 15, 'gt_size'),
    ],
)
def test_a_wrong_value_is_an_error_at_its_key(key, value, where):
    assert [(finding.level, finding.key) for finding in findings({f'datasets:train:{key}': value})] == [
        ('error', f'datasets:train:{where}')
    ]


def test_a_missing_degradation_is_an_error():
    found = list(quick(without(GOOD, 'datasets:train:degradation'), is_train=True))
    assert [finding.level for finding in found if "'degradation'" in finding.message] == ['error']


def test_images_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, 2)
    seen = dict(images(changed(GOOD, {'datasets:train:gt_size': 26})))['datasets:train']
    assert seen.count == 2 and [finding.level for finding in seen.findings] == ['error']
