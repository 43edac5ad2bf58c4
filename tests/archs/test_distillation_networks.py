"""What only IMDN, RFDN and BSRN have: their blocks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spinsr.archs.imdn_arch import IMDN, IMDN_AS, IMDN_RTC, InformationMultiDistillationBlock
from spinsr.archs.rfdn_arch import RFDN
from spinsr.convert import to_official
from spinsr.modules.cca import ContrastAwareChannelAttention
from spinsr.modules.distillation import CollectedBlocks, FeatureDistillation


def test_contrast_is_the_standard_deviation_of_the_population(assert_close):
    net, x = ContrastAwareChannelAttention(4, 2).double(), torch.randn(2, 4, 5, 7, dtype=torch.float64)
    statistics = x.std((2, 3), unbiased=False, keepdim=True) + x.mean((2, 3), keepdim=True)
    assert_close(net(x), x * torch.sigmoid(net.conv_out(F.relu(net.conv_in(statistics)))))


def test_contrast_of_a_constant_channel_is_zero_with_a_finite_gradient():
    net = ContrastAwareChannelAttention(2, 1)
    x = torch.stack([torch.full((3, 3), 0.5), torch.rand(3, 3)])[None].requires_grad_()
    net(x).sum().backward()
    assert x.grad.isfinite().all()


def test_contrast_of_large_half_values_does_not_overflow():
    net, x = ContrastAwareChannelAttention(2, 1).half(), 3000 * torch.rand(1, 2, 40, 40)
    nn.init.constant_(net.conv_in.weight, 1e-4)
    nn.init.ones_(net.conv_out.weight)
    half, exact = net(x.half()).float(), net.float()(x)
    assert (half - exact).norm() < 0.01 * exact.norm()


def test_imdb_keeps_the_first_quarter(assert_close):
    """Convolutions that copy their first channels, and a fusion that sums: the kept channels are known."""
    block = InformationMultiDistillationBlock(8, attention=False).double()
    for conv in (block.c1, block.c2, block.c3, block.c4):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        for channel in range(min(conv.weight.shape[:2])):
            conv.weight.data[channel, channel, 1, 1] = 1
    nn.init.zeros_(block.c5.bias)
    block.c5.weight.data = torch.eye(8, dtype=torch.float64).view(8, 8, 1, 1)
    x = torch.rand(1, 8, 3, 3, dtype=torch.float64)
    # Six channels are handed on; two of the eight that the next convolution makes of them are empty.
    expected = torch.cat([x[:, 0:2], x[:, 2:4], x[:, 4:6], x[:, 6:8]], 1)
    assert_close(block(x), x + expected)


def test_blocks_are_chained_and_collected(assert_close):
    double = nn.Conv2d(2, 2, 1, bias=False)
    double.weight.data = 2 * torch.eye(2).view(2, 2, 1, 1)
    x = torch.rand(1, 2, 3, 3)
    assert_close(CollectedBlocks([double, double])(x), torch.cat([2 * x, 4 * x], 1))


def test_feature_distillation_by_hand(assert_close):
    """Every refinement doubles (the convolution copies, the input is added); every distillation takes one channel."""
    net, x = FeatureDistillation(2, lambda n, m: nn.Conv2d(n, m, 1), F.relu), torch.rand(1, 2, 3, 3)
    for layer in net.children():
        nn.init.zeros_(layer.bias)
        layer.weight.data = torch.eye(*layer.weight.shape[:2])[..., None, None]
    net.c5.weight.data = torch.ones(2, 4, 1, 1)
    first = x[:, :1]
    assert_close(net(x), (first + 2 * first + 4 * first + 8 * first).expand(1, 2, 3, 3))


def test_rfdn_with_channel_attention_is_not_padded_and_has_no_official_form(assert_close):
    net = RFDN(num_feat=8, num_block=1, attention='cca', upscale=2).double()
    x = torch.rand(1, 3, 4, 5, dtype=torch.float64)
    shallow = net.conv_first(255 * x)
    deep = shallow + net.conv_after_body(F.leaky_relu(net.fuse(net.body(shallow)), 0.05))
    assert_close(net(x), F.pixel_shuffle(net.conv_last(deep), 2) / 255)
    with pytest.raises(ValueError, match='no official form'):
        to_official(net.state_dict(), 'RFDN')


@pytest.mark.parametrize(
    ('arch', 'arguments', 'message'),
    [
        (IMDN, {'num_feat': 12}, 'at least 16, got num_feat=12'),
        (IMDN, {'num_feat': 18}, 'num_feat=18'),
        (IMDN_RTC, {'num_feat': 6}, 'num_feat=6'),
        (RFDN, {'attention': 'se'}, "attention='se'"),
    ],
)
def test_bad_arguments_are_refused_with_the_value(arch, arguments, message):
    with pytest.raises(ValueError, match=message):
        arch(**arguments)


def test_imdn_as_works_at_a_quarter_of_the_size():
    net, seen = IMDN_AS(num_feat=16, num_block=1), []
    net.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:]))
    assert net(torch.rand(1, 3, 13, 20)).shape == (1, 3, 13, 20)
    assert seen == [(4, 5)]


def test_imdn_as_reads_no_unwritten_memory_in_bf16():
    for _ in range(60):
        dirty = [torch.full((64 * 4**i,), torch.nan) for i in range(7) for _ in range(3)]
        net = IMDN_AS(num_feat=64, num_block=1)
        del dirty  # for whoever takes memory next
        with torch.autocast('cpu', torch.bfloat16):
            loss = net(torch.rand(2, 3, 1, 1)).float().sum()
        loss.backward()
        assert net.conv_second.weight.grad.isfinite().all()
