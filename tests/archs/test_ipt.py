"""What only IPT has: several tasks, and the tiles into which it cuts an image."""

import pytest
import torch

import spinsr
from spinsr.archs.ipt_arch import IPT, tile_shares
from spinsr.convert import convert_state_dict, to_official

SMALL = {'num_feat': 4, 'patch_size': 8, 'token_size': 2, 'num_layer': 1, 'num_heads': 2}


def test_number_of_tensors_of_six_tasks():
    with torch.device('meta'):
        net = IPT(tasks=(2, 3, 4, 1, 1, 1))
    assert len(to_official(net.state_dict(), 'IPT')) == 381


@pytest.mark.parametrize('first_alone', [False, True])
@pytest.mark.parametrize('length', [8, 9, 12, 23])
def test_shares_of_the_tiles_are_one_everywhere(length, first_alone):
    total = torch.zeros(3 * length, dtype=torch.float64)
    for start, share in tile_shares(length, 8, 3, first_alone).items():
        total[3 * start : 3 * (start + 8)] += share
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_shares_by_hand():
    """13 pixels: tiles at 0, 2 and 4, and one at 5, which takes over in the middle of the 7 in common with the last."""
    shares = tile_shares(13, 8, 1)
    assert list(shares) == [0, 2, 4, 5]
    assert shares[0].tolist() == [1, 1, 1, 1, 0.5, 0.5, 0, 0]
    assert shares[2].tolist() == [0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0]
    assert shares[4].tolist() == [0, 0, 0.5, 0.5, 1, 0, 0, 0]
    assert shares[5].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_an_image_of_tiles_that_agree_is_what_they_agree_on(assert_close):
    net, x = IPT(**SMALL, upscale=2).double(), torch.rand(1, 3, 13, 19, dtype=torch.float64)
    net._super_resolve_tiles = lambda tiles: tiles.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert_close(net(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_tasks_of_one_file():
    net = IPT(**SMALL, tasks=(2, 3, 1, 1), upscale=1, task=3).eval()
    official = to_official(net.state_dict(), 'IPT')
    assert official['body.position_encoding.position_ids'].tolist() == [list(range(16))]
    assert convert_state_dict(official, 'IPT').keys() == net.state_dict().keys()
    x = torch.rand(1, 3, 8, 8)
    for task, scale in enumerate((2, 3, 1, 1)):
        loaded = spinsr.load('IPT', scale, official, num_heads=2)
        loaded.task = net.task = task
        net.upscale = scale
        assert torch.equal(loaded(x), net(x))
        assert loaded(x).shape[2] == 8 * scale
    assert spinsr.load('IPT', 1, official, num_heads=2).task == 2
    with pytest.raises(ValueError, match='the file holds IPT x3 weights'):
        spinsr.load('IPT', 4, official, num_heads=2)


def test_a_task_of_one_file_tells_its_factor():
    weights = IPT(**SMALL, tasks=(2, 3, 1, 1), upscale=1).state_dict()
    for task, scale in enumerate((2, 3, 1, 1)):
        net = spinsr.load('IPT', None, weights, num_heads=2, task=task)
        assert (net.task, net.upscale) == (task, scale)
    with pytest.raises(ValueError, match='the file holds IPT x2 weights'):
        spinsr.load('IPT', 3, weights, num_heads=2, task=0)
    with pytest.raises(ValueError, match='task=4'):
        spinsr.load('IPT', None, weights, num_heads=2, task=4)


def test_a_task_of_another_factor_is_refused():
    with pytest.raises(ValueError, match='upscale=2.*task=1'):
        IPT(**SMALL, tasks=(2, 3), upscale=2, task=1)
