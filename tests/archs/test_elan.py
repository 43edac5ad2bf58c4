"""What only ELAN has: attention maps that layers share."""

import torch

from spinsr.archs.elan_arch import GroupwiseAttention


def test_maps_of_an_earlier_layer_are_used():
    """With maps that copy the first pixel of a window, every pixel of a window has its value."""
    net, x = GroupwiseAttention(2, (2, 4), has_maps=False).eval(), torch.rand(1, 2, 4, 4)
    net.project_in = net.norm = net.project_out = torch.nn.Identity()
    maps = [torch.zeros(4, 4, 4), torch.zeros(1, 16, 16)]
    for one in maps:
        one[:, :, 0] = 1
    mixed, same = net(x, maps, shifted=False)
    assert same is maps
    assert torch.equal(mixed[0, 0], x[0, 0, ::2, ::2].repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert torch.equal(mixed[0, 1], x[0, 1, 0, 0].expand(4, 4))
