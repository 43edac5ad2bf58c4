"""Crops, error maps and data URIs of the report."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from spinsr.report import pictures
from spinsr.report.pictures import BRIGHTEST, CROP_SIDE, LONGEST, Box, choose_crops, draw_error, encode_together, shrink

SIDE = CROP_SIDE


def flat(height, width, value=100):
    return np.full((height, width, 3), value, np.uint8)


def decode(uri):
    head, _, data = uri.partition(';base64,')
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert head == f'data:image/{image.format.lower()}'
        return image.format, np.array(image)


def marked(height, width, *spots):
    """A flat image with squares of 20 pixels, the first the brightest."""
    image = flat(height, width)
    for index, (y, x) in enumerate(spots):
        image[y : y + 20, x : x + 20] = 250 - 40 * index
    return image


def test_crops_are_where_the_error_is_largest():
    hr, bicubic = flat(200, 300), marked(200, 300, (150, 250), (10, 20), (90, 120))
    boxes = choose_crops(bicubic, hr)
    assert [box.cut(bicubic).shape for box in boxes] == [(SIDE, SIDE, 3)] * 3
    # Each holds the whole spot, the largest error first.
    assert [(box.cut(bicubic) == value).all(2).sum() for box, value in zip(boxes, (250, 210, 170), strict=True)] == [
        400,
        400,
        400,
    ]


def test_crops_without_hr_are_where_the_image_varies_most():
    waves, image = np.indices((SIDE, SIDE)).sum(0) % 2, flat(3 * SIDE, 2 * SIDE, 20)
    image[:SIDE, :SIDE] = 110  # bright and flat: no reason to look
    image[2 * SIDE :, SIDE:] = 20 + 200 * waves[..., None]
    assert choose_crops(image)[0] == Box(2 * SIDE, SIDE, SIDE, SIDE)


def test_crops_do_not_overlap():
    rng = np.random.default_rng(0)
    shown = np.zeros((5 * SIDE + 7, 4 * SIDE + 5), int)
    for box in choose_crops(rng.integers(0, 256, (*shown.shape, 3), np.uint8)):
        box.cut(shown)[:] += 1
    assert (shown.max(), shown.sum()) == (1, 3 * SIDE**2)


@pytest.mark.parametrize(('size', 'count'), [((7, 40), 3), ((1, 1), 0), ((9, 9), 1)], ids=['strip', 'pixel', 'square'])
def test_crops_of_small_images(size, count):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    boxes = choose_crops(image)
    assert [(box.height, box.width) for box in boxes] == [(min(size), min(size))] * count


def test_nothing_to_see_is_no_crop():
    assert choose_crops(flat(100, 100)) == []
    assert choose_crops(flat(100, 100, 77), flat(100, 100, 77)) == []


def test_error_map_is_black_where_nothing_differs_and_brightest_at_its_end():
    hr = flat(4, 4)
    image = hr.copy()
    image[0, 1], image[0, 2], image[0, 3] = 110, 100 + 80, 255  # Y differs by 8.6, 69 and 133
    red, _, _ = np.moveaxis(draw_error(image, hr).astype(int), 2, 0)
    total = draw_error(image, hr).sum(2, dtype=int)
    assert BRIGHTEST == 64
    assert total[1].tolist() == [total[0, 0]] * 4
    assert total[0, 0] < total[0, 1] < total[0, 2] == total[0, 3]
    assert red[0, 2] > 240
    assert np.array_equal(draw_error(hr, image), draw_error(image, hr))


@pytest.mark.parametrize(
    ('size', 'expected'),
    [((30, 40), (30, 40)), ((LONGEST, 2 * LONGEST), (LONGEST // 2, LONGEST)), ((3 * LONGEST, 1), (LONGEST, 1))],
    ids=['small', 'wide', 'line'],
)
def test_large_pictures_are_shrunk(size, expected):
    assert shrink(flat(*size)).shape == (*expected, 3)


def test_pictures_are_lossless_up_to_a_size_and_all_jpeg_above(monkeypatch):
    images = list(np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8))
    uris, lossless = encode_together(images)
    size = sum(len(base64.b64decode(uri.partition(',')[2])) for uri in uris)
    assert lossless
    assert [decode(uri)[0] for uri in uris] == ['WEBP'] * 2
    assert [np.array_equal(decode(uri)[1], image) for uri, image in zip(uris, images, strict=True)] == [True] * 2
    monkeypatch.setattr(pictures, 'LOSSLESS_BYTES', size - 1)
    uris, lossless = encode_together(images)
    assert not lossless
    assert [decode(uri)[0] for uri in uris] == ['JPEG'] * 2


def test_png_is_lossless():
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    kind, decoded = decode(pictures.encode_png(image))
    assert kind == 'PNG'
    assert np.array_equal(decoded, image)
