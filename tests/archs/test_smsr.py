"""What only SMSR has: masks that are soft in training and hard in evaluation, and its sparsity."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from spinsr.archs.smsr_arch import SMSR, LearnedMask, SparseMaskConvolutions

SMALL = {'num_feat': 8, 'num_block': 2, 'squeeze_factor': 4, 'upscale': 2}


def test_masks_of_training_are_samples_of_the_gumbel_softmax():
    mask, logit = LearnedMask(temperature=0.5), torch.full((40_000,), 0.7)
    sample = mask(logit)
    assert ((sample > 0.01) & (sample < 0.99)).float().mean() > 0.7
    # The sample passes one half as often as the softmax says, at any temperature.
    assert abs((sample > 0.5).float().mean() - torch.sigmoid(torch.tensor(0.7))) < 0.02
    assert not torch.equal(mask(logit), sample)


def test_a_low_temperature_makes_masks_hard():
    mask, logit = LearnedMask(noise=False), torch.tensor([-0.3, 0.2])
    torch.testing.assert_close(mask(logit), torch.sigmoid(logit))
    mask.temperature = 0.01
    torch.testing.assert_close(mask(logit), torch.tensor([0.0, 1.0]))


def test_masks_of_evaluation_are_hard_with_a_gradient():
    logit = torch.tensor([-0.3, 0.0, 0.2], requires_grad=True)
    mask = LearnedMask().eval()(logit)
    assert mask.tolist() == [0, 0, 1]
    mask.sum().backward()
    assert (logit.grad > 0).all()


def test_sparse_channels_neither_receive_nor_contribute_outside_the_mask(assert_close):
    """The values that a sparse convolution computes, gathered pixel by pixel."""
    net = SparseMaskConvolutions(3, 2, LearnedMask()).double().eval()
    # Channel 0 is dense, 1 sparse, 2 dense and then sparse.
    net.channel_mask.data = torch.tensor([[[1, 0], [1, 0]], [[0, 1], [0, 1]], [[1, 0], [0, 1]]])[None].double()
    x, mask = torch.rand(1, 3, 4, 5, dtype=torch.float64), torch.zeros(1, 1, 4, 5, dtype=torch.float64)
    mask[..., 1:3, 2:4] = 1
    first = F.relu(net.convs[0](x))
    first[:, 1:2] *= mask
    known = first.clone()
    known[:, 1] = 0
    inside, outside = net.convs[1](first), net.convs[1](known)
    second = F.relu(torch.where(mask > 0, inside, outside))
    second[:, 1:] *= mask
    out, share = net(x, mask)
    assert_close(out, net.fuse(torch.cat([first, second], 1)))
    assert_close(share, torch.tensor((3 + 3 * 0.2) / 6, dtype=torch.float64))


@pytest.mark.parametrize('dense', [0, 3, 8], ids=['none', 'some', 'all'])
def test_without_gradients_channels_are_convolved_apart_with_the_same_result(dense, assert_close):
    net = SparseMaskConvolutions(8, 4, LearnedMask()).double().eval()
    logits = torch.tensor([[1.0, 0.0]] * dense + [[0.0, 1.0]] * (8 - dense))
    net.channel_mask.data = logits[None, :, None].repeat(1, 1, 4, 1)
    x, mask = torch.rand(2, 8, 4, 5, dtype=torch.float64), torch.rand(2, 1, 4, 5).gt(0.5).double()
    images, work = [], []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
            images.append(net(x, mask)[0])
        work.append(counter.get_total_flops() - 2 * images[0].numel() * 4 * 8)  # without the fusion
    assert_close(*images)
    assert work[1] * 7 == work[0] * 4


@pytest.mark.parametrize('dense', [0, 3, 8], ids=['none', 'some', 'all'])
@pytest.mark.parametrize('active', [[], [0, 5, 47]], ids=['empty', 'few'])
def test_few_pixels_are_gathered_with_the_same_result(dense, active, assert_close):
    net = SparseMaskConvolutions(8, 4, LearnedMask()).double().eval()
    logits = torch.tensor([[1.0, 0.0]] * dense + [[0.0, 1.0]] * (8 - dense))
    net.channel_mask.data = torch.stack([logits[torch.randperm(8)] for _ in range(4)], 1)[None]
    x, mask = torch.randn(2, 8, 4, 6, dtype=torch.float64), torch.zeros(48, dtype=torch.float64)
    mask[active] = 1
    mask = mask.view(2, 1, 4, 6)
    images, work = [], []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
            images.append(net(x, mask)[0])
        work.append(counter.get_total_flops())
    assert_close(*images)
    assert dense == 8 or work[1] < work[0] / 2


def test_sparsity_of_the_network():
    net, x = SMSR(**SMALL), torch.rand(2, 3, 8, 6)
    image, more = net(x, auxiliary=True)
    sparsity = more['sparsity']
    assert image.shape == (2, 3, 16, 12)
    sparsity.backward()
    assert net.body[0].body.channel_mask.grad.any()
    assert 0 < sparsity < 1
    net.eval()
    for block in net.body:
        block.spatial_mask[5].bias.data = torch.tensor([-9.0, 9.0])
    assert net(x, auxiliary=True)[1]['sparsity'] == 1


def test_temperature_of_all_masks():
    net = SMSR(**SMALL)
    net.set_temperature(0.1)
    assert {block.body.mask.temperature for block in net.body} == {0.1}
    with pytest.raises(ValueError, match='temperature=0'):
        net.set_temperature(0)
