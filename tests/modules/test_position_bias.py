import torch

from spinsr.modules.position_bias import RelativePositionBias


def test_bias_depends_on_the_offset_alone():
    net = RelativePositionBias(3, 2)
    bias = net().detach().view(2, 3, 3, 3, 3)  # (heads, row and column of the query, row and column of the key)
    table = net.table.detach().view(5, 5, 2)
    for query, key in (((0, 0), (0, 0)), ((2, 1), (0, 2)), ((1, 0), (2, 2))):
        offset = [one - other + 2 for one, other in zip(query, key, strict=True)]
        assert torch.equal(bias[(slice(None), *query, *key)], table[tuple(offset)])
