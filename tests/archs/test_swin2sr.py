"""What only Swin2SR has: its clamp, and the second image of the compressed form."""

import ast
import math

import numpy as np
import pytest
import torch

from spinsr.archs.swin2sr_arch import CosineWindowAttention, Swin2SR
from spinsr.convert.parity import read_official


def test_logit_scale_is_at_most_100(assert_close):
    net, x = CosineWindowAttention(4, 1, 2).double(), torch.rand(1, 4, 4, dtype=torch.float64)
    results = []
    for scale in (101, 1000):
        torch.nn.init.constant_(net.logit_scale, math.log(scale))
        results.append(net(x, None))
    assert_close(*results)
    torch.nn.init.constant_(net.logit_scale, math.log(50))
    assert not torch.allclose(net(x, None), results[0], atol=1e-6)


def test_a_residual_is_left_out_or_enlarged_in_training(assert_close):
    net = Swin2SR(embed_dim=8, depths=(2,), num_heads=(2,), window_size=4, drop_path_rate=0.5)
    first, second = net.layers[0].residual_group['blocks']
    x = torch.rand(64, 1, 1, 2)
    assert first._drop(x) is x
    factors = second._drop(x) / x
    assert_close(factors.unique(), torch.tensor([0.0, 2.0]))
    assert 16 < (factors[:, 0, 0, 0] == 0).sum() < 48
    assert second.eval()._drop(x) is x


def test_auxiliary_image_is_the_authors(shared):
    path = shared('parity/zoo/swin2sr_aux_x4.npz')
    official = read_official(path)
    net = official.build()
    with torch.no_grad(), np.load(path) as archive:
        assert ast.literal_eval(str(archive['cfg']))['upsampler'] == 'pixelshuffle_aux'
        for number, x in enumerate(official.images):
            image, more = net(x.double(), auxiliary=True)
            assert torch.equal(image, net(x.double()))
            assert np.abs(more['aux'].numpy() - archive[f'aux{number}']).max() < 1e-9


def test_other_forms_have_no_auxiliary_image():
    with pytest.raises(ValueError, match="auxiliary needs upsampler='pixelshuffle_aux', got 'pixelshuffledirect'"):
        Swin2SR(embed_dim=4, depths=(1,), num_heads=(1,))(torch.rand(1, 3, 4, 4), auxiliary=True)
