"""What only DLGSANet has: kernels for each pixel, and attention over tiles in eval mode."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from spinsr.archs.dlgsanet_arch import DLGSANet, DynamicConvolution, SparseGlobalAttention, tile_starts


def test_equal_kernels_everywhere_are_a_convolution(assert_close):
    net, x = DynamicConvolution(8, 4, 3).double(), torch.rand(2, 8, 5, 6, dtype=torch.float64)
    torch.nn.init.zeros_(net.expand.weight)
    kernels = net.expand.bias.detach().view(2, 1, 3, 3).repeat_interleave(4, 0)
    assert_close(net(x), F.conv2d(x, kernels, padding=1, groups=8))


@pytest.mark.parametrize('side', [1, 7, 8, 13, 14, 15, 29])
def test_tiles_cover_a_side(side):
    tile = min(side, 7)
    starts = tile_starts(side, tile)
    assert starts[0] == 0
    assert starts[-1] == side - tile
    assert all(0 < after - before <= tile for before, after in itertools.pairwise(starts))


def test_attention_over_tiles_is_for_eval_mode(assert_close):
    net, x = SparseGlobalAttention(4, 2, 7).double(), torch.rand(2, 4, 7, 11, dtype=torch.float64)
    net.project_out = torch.nn.Identity()
    qkv = net.qkv_dwconv(net.qkv(x))
    assert_close(net(x), net._attend(qkv))
    left, right = net._attend(qkv[..., :7]), net._attend(qkv[..., 4:])
    expected = torch.cat([left[..., :4], (left[..., 4:] + right[..., :3]) / 2, right[..., 3:]], 3)
    assert_close(net.eval()(x), expected)


def test_tiles_are_those_of_the_authors_at_each_scale():
    nets = [DLGSANet(num_feat=12, num_group=1, num_block=1, upscale=scale) for scale in (2, 3, 4)]
    assert [net.body[0][1].attn.tlc_kernel for net in nets] == [96, 72, 48]
