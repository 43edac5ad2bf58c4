"""Slices that lie side by side in one tensor."""

import pytest
import torch

from spinsr.ops.common.slices import side_by_side

WHOLE = torch.arange(60.0).view(2, 3, 10)


WHOLES = {'3d': WHOLE, '2d': WHOLE.view(6, 10), 'offset': WHOLE[1:], 'rows': WHOLE[:, :2], 'rows_of_one': WHOLE[:1, :2]}


@pytest.mark.parametrize('whole', WHOLES.values(), ids=WHOLES.keys())
def test_slices_of_one_tensor_are_not_copied(whole):
    found = side_by_side(whole.split([2, 5, 3], -1))
    assert torch.equal(found, whole)
    assert found.data_ptr() == whole.data_ptr()


def other_order():
    a, b = WHOLE.split([4, 6], -1)
    return b, a


OTHERS = {
    'other_order': other_order(),
    'gap': (WHOLE[..., :3], WHOLE[..., 4:]),
    'other_tensors': (WHOLE[..., :4], WHOLE.clone()[..., 4:]),
    'transposed': WHOLE.mT.split([1, 2], -1),
    'contiguous': (WHOLE[..., :4].contiguous(), WHOLE[..., 4:]),
    'other_type': (WHOLE[..., :4], WHOLE.double()[..., 4:]),
    'expanded': (WHOLE[..., :1].expand(2, 3, 4), WHOLE[..., :1].expand(2, 3, 4)),
}


@pytest.mark.parametrize('parts', OTHERS.values(), ids=OTHERS.keys())
def test_others_are_joined(parts):
    found = side_by_side(parts)
    assert torch.equal(found, torch.cat(parts, -1))
    assert found.data_ptr() not in [part.data_ptr() for part in parts]
