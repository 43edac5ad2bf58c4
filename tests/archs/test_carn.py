"""What only CARN has: one file for three scales."""

import pytest
import torch
from torch import nn

import spinsr
from spinsr.archs.carn_arch import CARN, cascade
from spinsr.convert import to_official


def test_cascade_keeps_the_input_and_all_units(assert_close):
    """Units that add one, and fusions that sum: the results are known."""
    add = nn.Conv2d(1, 1, 1)
    fusions = nn.Sequential(*(nn.Conv2d(step, 1, 1) for step in (2, 3, 4)))
    for conv in (add, *fusions):
        nn.init.ones_(conv.weight)
        nn.init.zeros_(conv.bias)
    nn.init.ones_(add.bias)
    x = torch.rand(1, 1, 2, 3)
    # 2x + 1; then x + (x + 1) + (2x + 2) = 4x + 3; then x + (x + 1) + (2x + 2) + (4x + 4) = 8x + 7.
    assert_close(cascade(x, nn.Sequential(add), fusions), 8 * x + 7)


@pytest.mark.parametrize('mobile', [False, True], ids=['CARN', 'CARN-M'])
def test_weights_for_several_scales_load_at_each(mobile):
    net = CARN(num_feat=8, groups=2, mobile=mobile, multi_scale=True).eval()
    x = torch.rand(1, 3, 5, 7)
    assert spinsr.load(weights=to_official(net.state_dict(), 'CARN')).upscale == 4
    for scale in (2, 3, 4):
        loaded = spinsr.load('CARN', scale, net.state_dict())
        net.upscale = scale
        assert loaded.upscale == scale
        assert torch.equal(loaded(x), net(x))
        assert net(x).shape == (1, 3, 5 * scale, 7 * scale)
    with pytest.raises(ValueError, match='the file holds CARN x4 weights'):
        spinsr.load('CARN', 8, net.state_dict())


def test_other_scales_than_those_of_the_file_are_refused():
    with pytest.raises(ValueError, match='2, 3 or 4 .* got upscale=8'):
        CARN(multi_scale=True, upscale=8)


def test_layers_of_the_mean_that_were_trained_are_refused():
    weights = to_official(CARN(num_feat=8).state_dict(), 'CARN')
    weights['add_mean.shifter.bias'] = weights['add_mean.shifter.bias'] + 1
    with pytest.raises(ValueError, match='the same mean'):
        spinsr.load('CARN', 4, weights)
