"""What only RAMiT has: attentions that weigh each other's values."""

import torch

from spinsr.archs.ramit_arch import ReciprocalBlock


def test_each_kind_of_attention_weighs_the_other(assert_close):
    """Without queries, keys and values apart from biases, values of 1 become the weights themselves."""
    block = ReciprocalBlock(16, 4, 1, 2, 0, 2, True, 1, True).double()
    torch.nn.init.zeros_(block.qkv.weight)
    torch.nn.init.ones_(block.qkv.bias)
    block.spatial.proj = block.channel.proj = torch.nn.Identity()
    before = torch.rand(1, 12, 2, 2, dtype=torch.float64), torch.rand(1, 4, 2, 2, dtype=torch.float64)
    torch.nn.init.zeros_(block.spatial.bias.table)
    _, _, (pixels, channels) = block(torch.zeros(1, 16, 2, 2, dtype=torch.float64), before)
    # All logits are equal: the window's mean of each channel, and the same pixel for each channel.
    assert_close(pixels, before[1].mean((2, 3), keepdim=True).expand(1, 4, 2, 2).repeat(1, 3, 1, 1))
    assert_close(channels, before[0].mean(1, keepdim=True).expand(1, 4, 2, 2))
