"""Resampling keeps constants, does not alias, and weighs colours by alpha."""

import numpy as np
import pytest

from spinsr.data.resample import resize


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('shape', [(8, 12), (8, 12, 2), (8, 12, 3), (8, 12, 4)], ids=str)
def test_constants_stay(shape, dtype):
    image = np.full(shape, np.iinfo(dtype).max // 3, dtype)
    for size in ((5, 7), (1, 1), (9, 30)):
        found = resize(image, *size)
        assert found.dtype == dtype
        assert np.array_equal(found, np.full((*size, *shape[2:]), image.max(), dtype))


def test_both_depths_are_the_same_filter():
    # Not the whole range: between its two passes the filter of 8 bits clips.
    image = np.random.randint(90, 166, (40, 50, 3), np.uint8)
    deep = resize(image.astype(np.uint16) * 257, 23, 31) / 257
    assert abs(deep - resize(image, 23, 31)).max() < 1


def test_details_below_the_new_pixels_vanish():
    stripes = np.zeros((30, 30), np.uint8)
    stripes[:, ::2] = 200
    assert abs(resize(stripes, 10, 10)[:, 2:-2].astype(int) - 100).max() <= 25


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_colours_of_transparent_pixels_do_not_bleed(dtype):
    white = np.iinfo(dtype).max
    image = np.zeros((16, 16, 4), dtype)
    image[:, :8] = (white // 2, white // 4, 0, white)
    image[:, 8:] = (0, white, white, 0)
    found = resize(image, 6, 6)
    visible = found[found[..., 3] > white // 50]
    assert len(visible) >= 18
    assert abs(visible[:, :3].astype(int) - (white // 2, white // 4, 0)).max() <= 1


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match='must be at least 1'):
        resize(np.zeros((4, 4), np.uint8), 0, 3)
