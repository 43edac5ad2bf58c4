"""Bicubic resizing equals MATLAB's: by hand, by MATLAB's formula in floating point, and on the published LR images."""

import doctest

import numpy as np
import pytest

from spinsr.data import bicubic, image_file
from spinsr.data.bicubic import downsample, downsample_window, mod_crop, upsample

SET5 = ('baby', 'bird', 'butterfly', 'head', 'woman')
SET14 = (
    *('baboon', 'barbara', 'bridge', 'coastguard', 'comic', 'face', 'flowers'),
    *('foreman', 'lenna', 'man', 'monarch', 'pepper', 'ppt3', 'zebra'),
)
PUBLISHED = [*(('Set5', name) for name in SET5), *(('Set14', name) for name in SET14)]


def matlab_weights(size: int, out_size: int, scale: float) -> np.ndarray:
    """The matrix (out_size, size) of MATLAB's imresize, in floating point as its documentation describes it."""

    def cubic(x):
        x = np.abs(x)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return np.where(x <= 1, near, np.where(x <= 2, far, 0))

    stretch = min(scale, 1)
    centre = (np.arange(out_size) + 0.5) / scale - 0.5
    index = np.floor(centre - 2 / stretch).astype(int)[:, None] + np.arange(int(4 / stretch) + 2)
    weight = cubic(stretch * (centre[:, None] - index))
    weight /= weight.sum(1, keepdims=True)
    mirrored = np.r_[np.arange(size), np.arange(size)[::-1]][index % (2 * size)]
    matrix = np.zeros((out_size, size))
    np.add.at(matrix, (np.arange(out_size)[:, None], mirrored), weight)
    return matrix


def matlab_imresize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    def to_uint8(x):
        # Weights that are binary fractions give exact ties; those of x3 give none, and an error of 1e-13.
        return np.clip(np.floor(np.round(x, 9) + 0.5), 0, 255)

    scale = height / image.shape[0]
    rows = to_uint8(np.einsum('oh,hwc->owc', matlab_weights(image.shape[0], height, scale), image.astype(float)))
    return to_uint8(np.einsum('ow,hwc->hoc', matlab_weights(image.shape[1], width, scale), rows)).astype(np.uint8)


@pytest.mark.parametrize(
    ('row', 'expected'),
    [
        # Weights of x2, from the offsets -3 to 4: -3, -9, 29, 111, 111, 29, -9, -3, over 256.
        ([100] * 8 + [200] + [100] * 7, [100, 100, 99, 111, 143, 96, 100, 100]),
        ([200] + [100] * 15, [155, 95, 100, 100, 100, 100, 100, 100]),
        # 255 * 259/256 and 255 * -3/256 are clipped, 255 * 239/256 and 255 * 17/256 are not.
        ([255] * 8 + [0] * 8, [255, 255, 255, 238, 17, 0, 0, 0]),
    ],
    ids=['inside', 'mirrored_border', 'clipped'],
)
def test_downsample_by_hand(row, expected):
    image = np.array([row, row], np.uint8)
    expected = np.array([expected], np.uint8)
    np.testing.assert_array_equal(downsample(image, 2), expected)
    np.testing.assert_array_equal(downsample(image.T.copy(), 2), expected.T)


def test_height_comes_first_and_each_pass_is_rounded():
    # Of a side of 2, x2 is the mean. Height first: 0.5 -> 1 and 1.5 -> 2, then 1.5 -> 2. Width first would give 1.
    np.testing.assert_array_equal(downsample(np.array([[0, 2], [1, 1]], np.uint8), 2), [[2]])
    # Without the rounding in between: 0.25 -> 0.
    np.testing.assert_array_equal(downsample(np.array([[0, 0], [1, 0]], np.uint8), 2), [[1]])


def test_upsample_by_hand():
    # Weights of x2 by distance 1/4, 3/4, 5/4, 7/4: 111, 29, -9, -3, over 128.
    image = np.array([[100, 100, 200, 100, 100, 100]], np.uint8)
    expected = [100, 98, 93, 123, 187, 187, 123, 93, 98, 100, 100, 100]
    np.testing.assert_array_equal(upsample(image, 2), [expected, expected])


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 5), (2, 3), (7, 4), (13, 10)], ids=str)
def test_downsample_equals_the_formula(photo, scale, height, width):
    image = photo(height * scale, width * scale)
    np.testing.assert_array_equal(downsample(image, scale), matlab_imresize(image, height, width))


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 5), (2, 3), (17, 10)], ids=str)
def test_upsample_equals_the_formula(photo, scale, height, width):
    image = photo(height, width)
    np.testing.assert_array_equal(upsample(image, scale), matlab_imresize(image, height * scale, width * scale))


@pytest.mark.parametrize('function', [downsample, upsample])
def test_greyscale_is_a_channel(photo, function):
    image = photo(24, 36)
    np.testing.assert_array_equal(function(image[..., 1], 3), function(image, 3)[..., 1])


@pytest.mark.parametrize('function', [downsample, upsample])
def test_scale_1_is_a_copy(photo, function):
    image = photo(5, 7)
    result = function(image, 1)
    np.testing.assert_array_equal(result, image)
    assert not np.shares_memory(result, image)


@pytest.mark.parametrize('function', [downsample, upsample])
def test_views_give_what_copies_give_and_stay_as_they_were(photo, function):
    image = photo(40, 52)
    before = image.copy()
    view = image[2:38:2, ::-2][..., ::-1]
    np.testing.assert_array_equal(function(view, 2), function(np.ascontiguousarray(view), 2))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
@pytest.mark.parametrize(
    ('rows', 'columns'),
    [((0, 3), (0, 3)), ((0, 1), (9, 10)), ((3, 7), (2, 4)), ((7, 8), (0, 1)), ((5, 8), (7, 10)), ((0, 8), (0, 10))],
    ids=str,
)
def test_window_equals_the_part_of_the_whole(photo, scale, rows, columns):
    image = photo(8 * scale, 10 * scale)
    rows, columns = slice(*rows), slice(*columns)
    expected = downsample(image, scale)[rows, columns]
    np.testing.assert_array_equal(downsample_window(image, scale, rows, columns), expected)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_16_bits_are_enlarged_by_the_same_rules(photo, scale):
    image = photo(8, 10) // 2 + 60  # so that nothing is clipped, in either type
    np.testing.assert_array_equal(upsample(image.astype(np.uint16), scale), upsample(image, scale))


def test_16_bits_are_clipped_at_their_own_white():
    image = np.repeat(np.array([0, 65535], np.uint16), 4)[None]
    result = upsample(image, 4)
    assert result.dtype == np.uint16
    assert (result.min(), result.max()) == (0, 65535)


@pytest.mark.parametrize(
    ('height', 'width', 'scale', 'expected'),
    [(9, 11, 4, (8, 8)), (8, 12, 4, (8, 12)), (3, 3, 3, (3, 3)), (5, 7, 1, (5, 7))],
)
def test_mod_crop(photo, height, width, scale, expected):
    image = photo(height, width)
    cropped = mod_crop(image, scale)
    assert cropped.shape == (*expected, 3)
    np.testing.assert_array_equal(cropped, image[: expected[0], : expected[1]])


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda: downsample(np.zeros((8, 9, 3), np.uint8), 4), ValueError, r'divisible by the scale.*8x9.*scale=4'),
        (lambda: downsample(np.zeros((8, 8, 3)), 4), TypeError, 'uint8 array, got float64'),
        (lambda: downsample(np.zeros((8, 8), np.uint16), 4), TypeError, 'uint8 array, got uint16'),
        (lambda: upsample(np.zeros((8, 8)), 4), TypeError, 'uint8 or uint16 array, got float64'),
        (lambda: downsample([[0]], 1), TypeError, 'uint8 array, got list'),
        (lambda: downsample(np.zeros((8, 8, 3), np.uint8), 2.0), TypeError, 'integer, got 2.0'),
        (lambda: downsample(np.zeros((8, 8, 3), np.uint8), 0), ValueError, 'at least 1, got scale=0'),
        (lambda: upsample(np.zeros((8,), np.uint8), 2), ValueError, r'shape \(8,\)'),
        (lambda: upsample(np.zeros((0, 8), np.uint8), 2), ValueError, r'not empty, got shape \(0, 8\)'),
        (lambda: mod_crop(np.zeros((3, 9), np.uint8), 4), ValueError, '3x9.*scale=4'),
        (
            lambda: downsample_window(np.zeros((8, 8), np.uint8), 2, slice(2, 5), slice(0, 4)),
            ValueError,
            r'0 … 4.*slice\(2, 5',
        ),
    ],
    ids=[
        'sides',
        'float',
        'uint16',
        'upsample_float',
        'list',
        'float_scale',
        'scale_0',
        'one_dimension',
        'empty',
        'too_small',
        'window',
    ],
)
def test_errors_name_the_rule_and_the_value(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_examples_run():
    assert doctest.testmod(bicubic).failed == 0


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize(('group', 'name'), PUBLISHED)
def test_published_lr_bit_for_bit(benchmark_folder, group, name, scale):
    hr = image_file.read(benchmark_folder / group / 'HR' / f'{name}.png')
    lr = image_file.read(benchmark_folder / group / 'LR_bicubic' / f'X{scale}' / f'{name}x{scale}.png')
    np.testing.assert_array_equal(downsample(mod_crop(hr, scale), scale), lr)


@pytest.mark.parametrize(
    ('group', 'names', 'scale', 'expected'),
    [
        ('Set5', SET5, 2, 33.673),
        ('Set5', SET5, 3, 30.403),
        ('Set5', SET5, 4, 28.429),
        ('Set14', SET14, 2, 30.325),
        ('Set14', SET14, 3, 27.631),
        ('Set14', SET14, 4, 26.088),
    ],
    ids=lambda value: str(value) if isinstance(value, (str, int)) else '',
)
def test_psnr_of_bicubic(benchmark_folder, group, names, scale, expected):
    from spinsr import compat

    compat.install()
    from basicsr.metrics import calculate_psnr

    def psnr(name):
        hr = image_file.read(benchmark_folder / group / 'HR' / f'{name}.png')
        lr = image_file.read(benchmark_folder / group / 'LR_bicubic' / f'X{scale}' / f'{name}x{scale}.png')
        sr, hr = (image[..., ::-1] for image in (upsample(lr, scale), mod_crop(hr, scale)))
        return calculate_psnr(sr, hr, crop_border=scale, test_y_channel=True)

    assert np.mean([psnr(name) for name in names]) == pytest.approx(expected, abs=5e-4)
