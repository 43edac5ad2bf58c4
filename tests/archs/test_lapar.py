"""What only LAPAR has: its dictionary, its filters, and weight-normalised convolutions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spinsr.archs.lapar_arch import LAPAR, _filtered, dictionary
from spinsr.modules.local_fusion import LocalFusionBlock
from spinsr.modules.weight_norm import WeightNormConv2d


def test_dictionary_is_the_published_one(shared):
    with np.load(shared('parity/zoo') / 'lapar_kernels.npz') as archive:
        assert np.abs(dictionary() - archive['kernel_72_k5']).max() < 1e-15


def test_dictionary_by_hand():
    kernels = dictionary()
    assert kernels.shape == (72, 5, 5)
    assert np.abs(kernels.sum((1, 2)) - 1).max() < 1e-12
    # The first is isotropic; the second is longer than it is high; the one at 60 degrees leans down to the right.
    assert kernels[0, 2, 4] == pytest.approx(kernels[0, 2, 2] * np.exp(-0.5))
    assert kernels[0, 4, 2] == pytest.approx(kernels[0, 2, 4])
    assert kernels[1, 2, 4] > kernels[1, 4, 2]
    assert kernels[5, 4, 3] > kernels[5, 4, 1]
    assert np.abs(np.maximum(kernels[51:], 0).sum((1, 2)) - 1.4).max() < 1e-12


def test_every_pixel_has_its_own_filter(assert_close):
    image, filters = torch.rand(2, 3, 4, 6, dtype=torch.float64), torch.randn(2, 25, 4, 6, dtype=torch.float64)
    patches = F.unfold(F.pad(image, (2, 2, 2, 2), mode='reflect'), 5).view(2, 3, 25, 4, 6)
    assert_close(_filtered(image, filters), (patches * filters[:, None]).sum(2))


def test_equal_weights_of_a_sum_of_one_keep_a_flat_image(assert_close):
    net, x = LAPAR(num_feat=4, num_block=1, upscale=2), torch.full((1, 3, 4, 5), 0.3)
    nn.init.zeros_(net.conv_last.weight_g)
    nn.init.constant_(net.conv_last.bias, 1 / 72)
    assert_close(net(x), torch.full((1, 3, 8, 10), 0.3))


def test_weight_normalisation_is_that_of_torch(assert_close):
    conv, x = WeightNormConv2d(3, 4, 5), torch.randn(1, 3, 7, 6)
    assert_close(conv(x), F.conv2d(x, conv.weight_v, conv.bias, padding=2))  # the start
    nn.init.normal_(conv.weight_g)
    weight = torch._weight_norm(conv.weight_v, conv.weight_g, 0)
    assert_close(conv(x), F.conv2d(x, weight, conv.bias, padding=2))


def test_local_fusion_without_convolutions_is_a_weighted_skip(assert_close):
    block, x = LocalFusionBlock(2, 3, num_unit=2), torch.rand(1, 2, 4, 4)
    nn.init.zeros_(block.fuse.weight_g)
    nn.init.zeros_(block.fuse.bias)
    nn.init.constant_(block.x_scale, 3)
    assert_close(block(x), 3 * x)


def test_bad_arguments_are_refused_with_the_value():
    with pytest.raises(ValueError, match='num_out_ch=1'):
        LAPAR(num_out_ch=1)
    with pytest.raises(ValueError, match=r'rgb_mean=\(0.5,\)'):
        LAPAR(rgb_mean=(0.5,))
