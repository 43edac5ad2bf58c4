import torch

from spinsr.modules.position_bias import RelativePositionBias


def test_bias_depends_on_the_offset_alone():
    net = RelativePositionBias(3, 2)
    bias = net().detach().view(2, 3, 3, 3, 3)  # (heads, row and column of the query, row and column of the key)
    table = net.table.detach().view(5, 5, 2)
    for (qy, qx), (ky, kx) in (((0, 0), (0, 0)), ((2, 1), (0, 2)), ((1, 0), (2, 2))):
        assert torch.equal(bias[:, qy, qx, ky, kx], table[qy - ky + 2, qx - kx + 2])
