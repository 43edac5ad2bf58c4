"""What only IPT has: several tasks, and tiles."""

import pytest
import torch

from spinsr.archs.ipt_arch import IPT, tile_weights

SMALL = {'num_feat': 2, 'patch_size': 8, 'patch_dim': 2, 'num_heads': 2, 'num_layer': 1}


def test_number_of_parameters_of_six_tasks():
    with torch.device('meta'):
        net = IPT(upscale=2, tasks=(2, 3, 4, 1, 1, 1))
    assert sum(parameter.numel() for parameter in net.parameters()) == 118_892_394 - 24  # MeanShift


@pytest.mark.parametrize('side', [8, 9, 10, 15, 21])
@pytest.mark.parametrize('scale', [2, 3])
def test_weights_of_tiles_sum_to_one(side, scale):
    total = torch.zeros(side * scale)
    for start, weights in tile_weights(side, 8, scale):
        total[start * scale : (start + 8) * scale] += torch.tensor(weights)
    assert total.allclose(torch.ones(1))


def test_tiles_of_a_network_that_sees_single_pixels_make_the_image(assert_close):
    """A network that copies the image is the same for the tiles as for the whole."""
    net, x = IPT(**SMALL, upscale=1, img_range=1, rgb_mean=(0, 0, 0)), torch.rand(2, 3, 13, 19)
    net._of_tile = lambda tiles: tiles
    assert_close(net(x), x)


def test_each_task_has_its_head_query_and_tail():
    net, x = IPT(**SMALL, upscale=3, tasks=(2, 3), task=1), torch.rand(1, 3, 8, 8)
    net(x).sum().backward()
    without = {name for name, value in net.named_parameters() if value.grad is None}
    assert {name.split('.')[0] for name in without} == {'heads', 'upsamples', 'tails'}
    assert {name.split('.')[1] for name in without} == {'0'}
    assert net.queries.grad[1].any() and not net.queries.grad[0].any()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'upscale': 2, 'tasks': (2, 3), 'task': 1}, r'upscale=2, tasks=\(2, 3\), task=1'),
        ({'upscale': 2, 'task': 1}, r'tasks=\(2,\), task=1'),
    ],
    ids=['scale', 'number'],
)
def test_bad_tasks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        IPT(**SMALL, **arguments)
