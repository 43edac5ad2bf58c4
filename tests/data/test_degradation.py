"""The degradation of photographs: each step does something, the seed decides all of it, wrong values are named."""

import random

import numpy as np
import pytest

from spinsr.data import degradation
from spinsr.data.bicubic import downsample
from spinsr.data.degradation import KERNELS, PRESETS, from_options
from spinsr.data.degrade import degrade, seed_of

OFF = {'blur_prob': 0, 'resize_prob': [0, 0, 1], 'noise_prob': 0, 'jpeg_prob': 0}


def made(first=(), second=(), **changes):
    """A degradation without any step but those that are given."""
    return from_options(
        {
            'preset': 'strong',
            'first': {**OFF, **dict(first)},
            'second': {**OFF, **dict(second)},
            'final_sinc_prob': 0,
            'resize_modes': ['bicubic'],
            **changes,
        }
    )


@pytest.fixture
def image(photo):
    return photo(48, 60)


STEPS = {
    'blur': {'blur_prob': 1, 'sinc_prob': 0},
    'sinc': {'blur_prob': 1, 'sinc_prob': 1},
    'enlarging': {'resize_prob': [1, 0, 0]},
    'shrinking': {'resize_prob': [0, 1, 0]},
    'Gaussian noise': {'noise_prob': 1, 'gaussian_noise_prob': 1},
    'Poisson noise': {'noise_prob': 1, 'gaussian_noise_prob': 0},
    'JPEG': {'jpeg_prob': 1},
}


@pytest.mark.parametrize('step', STEPS)
@pytest.mark.parametrize('stage', ['first', 'second'])
def test_each_step_of_each_stage_changes_the_image(image, stage, step):
    assert not np.array_equal(degrade(image, 2, made(**{stage: STEPS[step]}), 1), degrade(image, 2, made(), 1))


def test_final_sinc_changes_the_image(image):
    assert not np.array_equal(degrade(image, 2, made(final_sinc_prob=1), 1), degrade(image, 2, made(), 1))


def test_without_steps_it_is_a_resize(image):
    plain = degrade(image, 4, made(antialias=True), 1)
    # An interpolation with antialiasing, which differs from MATLAB's in a and in the rounding.
    assert np.abs(plain.astype(int) - downsample(image, 4)).mean() < 2


def test_each_kernel_is_another_blur(image):
    steps = ({'blur_prob': 1, 'sinc_prob': 0, 'kernel_prob': {kernel: 1}, 'blur_sigma': [2, 3]} for kernel in KERNELS)
    assert len({degrade(image, 2, made(first=step), 1).tobytes() for step in steps}) == len(KERNELS)


def test_grey_noise_is_equal_in_all_channels():
    grey = np.full((32, 32, 3), 128, np.uint8)
    noise = {'noise_prob': 1, 'gaussian_noise_prob': 1, 'noise_range': [20, 20]}
    lr = [degrade(grey, 2, made(second={**noise, 'gray_noise_prob': prob}), 1) for prob in (0, 1)]
    assert [bool((part == part[..., :1]).all()) for part in lr] == [False, True]
    assert 10 < lr[1].std() < 25


def test_jpeg_of_low_quality_loses_more(image):
    plain = degrade(image, 2, made(), 1).astype(int)
    steps = ({'jpeg_prob': 1, 'jpeg_range': [quality, quality]} for quality in (95, 10))
    high, low = (np.abs(degrade(image, 2, made(second=step), 1) - plain).mean() for step in steps)
    assert high < low


def test_strong_degrades_more_than_light(image):
    lr = downsample(image, 4).astype(int)
    errors = {
        name: np.mean([np.abs(degrade(image, 4, preset, seed) - lr).mean() for seed in range(8)])
        for name, preset in PRESETS.items()
    }
    assert errors['light'] < errors['strong'] / 2


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('preset', PRESETS)
def test_size_is_exact(photo, preset, scale):
    for seed in range(4):
        lr = degrade(photo(scale * 7, scale * 1), scale, PRESETS[preset], seed)
        assert lr.shape == (7, 1, 3) and lr.dtype == np.uint8


def test_the_seed_decides_everything_and_the_generators_stay(image):
    before = random.getstate(), np.random.get_state()[1].tolist()
    one = degrade(image, 4, PRESETS['strong'], 7)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.seed(1)
    np.random.seed(1)
    original = image.copy()
    assert np.array_equal(degrade(image, 4, PRESETS['strong'], 7), one)
    assert np.array_equal(image, original)
    assert not np.array_equal(degrade(image, 4, PRESETS['strong'], 8), one)
    assert seed_of('baby') != seed_of('bird')


@pytest.mark.parametrize(
    ('shape', 'dtype', 'error'),
    [((8, 8, 3), np.float32, TypeError), ((8, 8), np.uint8, ValueError), ((8, 9, 3), np.uint8, ValueError)],
)
def test_wrong_images_are_refused(shape, dtype, error):
    with pytest.raises(error, match='must be'):
        degrade(np.zeros(shape, dtype), 4, PRESETS['light'], 0)


def test_presets_are_good_and_fields_are_overridden():
    for name, preset in PRESETS.items():
        assert from_options(name) == from_options({'preset': name}) == preset
        parts = {key: dict(vars(getattr(preset, key))) for key in ('first', 'second')}
        assert list(degradation.problems({'preset': name, **vars(preset), **parts})) == []
    changed = from_options({'preset': 'light', 'first': {'jpeg_range': [60.0, 70]}, 'antialias': False})
    assert changed.first.jpeg_range == (60, 70) and not changed.antialias
    assert changed.second == PRESETS['light'].second
    assert changed.first.blur_sigma == PRESETS['light'].first.blur_sigma


@pytest.mark.parametrize(
    ('changes', 'key'),
    [
        ('medium', ''),
        (None, ''),
        ({}, ''),
        ({'preset': 'medium'}, 'preset'),
        ({'final_sinc_prob': 1.5}, 'final_sinc_prob'),
        ({'jpeg_range': [30, 95]}, 'jpeg_range'),
        ({'resize_modes': ['nearest']}, 'resize_modes'),
        ({'first': 3}, 'first'),
        ({'first': {'jpeg_range': [95, 60]}}, 'first:jpeg_range'),
        ({'first': {'jpeg_range': [60.5, 95]}}, 'first:jpeg_range'),
        ({'second': {'jpeg_range': [0, 95]}}, 'second:jpeg_range'),
        ({'first': {'blur_sigma': [1, 1]}}, 'first:blur_sigma'),
        ({'first': {'blur_sigma': [1, float('inf')]}}, 'first:blur_sigma'),
        ({'first': {'noise_range': [1]}}, 'first:noise_range'),
        ({'first': {'kernel_size': [6, 20]}}, 'first:kernel_size'),
        ({'first': {'kernel_prob': {'skew': 1}}}, 'first:kernel_prob'),
        ({'first': {'resize_prob': [0, 0, 0]}}, 'first:resize_prob'),
        ({'first': {'resize_range': [1.1, 1.5]}}, 'first:resize_range'),
        ({'second': {'betag_range': [0.5, 0.9]}}, 'second:betag_range'),
    ],
    ids=str,
)
def test_wrong_values_are_named(changes, key):
    options = {'preset': 'light', **changes} if isinstance(changes, dict) and changes else changes
    assert [found for found, _ in degradation.problems(options)] == [key]
    with pytest.raises(ValueError, match=f'^degradation{":" if key else ""}{key}: '):
        from_options(options)
