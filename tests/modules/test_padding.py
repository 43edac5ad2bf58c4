import pytest
import torch

from spinsr.modules.padding import pad_to, pad_to_multiple

IMAGE = torch.tensor([[[[1.0, 2, 3], [4, 5, 6]]]])


@pytest.mark.parametrize(
    ('height', 'width', 'expected'),
    [
        (2, 4, [[1, 2, 3, 2], [4, 5, 6, 5]]),
        (2, 5, [[1, 2, 3, 2, 1], [4, 5, 6, 5, 4]]),
        (2, 7, [[1, 2, 3, 2, 1, 1, 1], [4, 5, 6, 5, 4, 4, 4]]),
        (4, 1, [[1, 2, 3], [4, 5, 6], [1, 2, 3], [1, 2, 3]]),
    ],
    ids=['reflects', 'reflects_all', 'replicates_the_rest', 'rows'],
)
def test_reflects_then_replicates(height, width, expected):
    assert pad_to(IMAGE, height, width).tolist() == [[expected]]


def test_one_pixel_is_replicated():
    assert pad_to(torch.full((2, 3, 1, 1), 7.0), 3, 2).eq(7).sum() == 2 * 3 * 3 * 2


def test_a_large_image_is_itself():
    assert pad_to(IMAGE, 2, 3) is IMAGE


def test_pads_to_a_multiple_by_reflection_or_with_zeros():
    x = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert pad_to_multiple(x, 4)[0, 0].tolist() == [[1, 2, 3, 2]] * 4
    assert pad_to_multiple(x, 4, zeros=True)[0, 0].tolist() == [[1, 2, 3, 0]] + [[0, 0, 0, 0]] * 3
    assert pad_to_multiple(x, 1) is x
