"""Blocks that are computed once more for the gradient: the same numbers, from less memory."""

import pytest
import torch
from torch import nn

import spinsr
from spinsr.check import memory
from spinsr.training.grad_checkpointing import recompute_blocks

from ..networks import SMALL
from ..tiny_project import TRAIN, changed

# They have batch normalisation, which is refused.
REFUSED = ('ELAN', 'EMT')
each_arch = pytest.mark.parametrize('arch', [arch for arch in SMALL if arch not in REFUSED])


def results(net, x):
    net.zero_grad()
    output = net(x)
    output.square().sum().backward()
    return output.detach(), *(parameter.grad for parameter in net.parameters())


@each_arch
def test_results_names_and_gradients_stay(arch):
    net = spinsr.load(arch, 2, None, **SMALL[arch]).train()
    x = torch.rand(2, 3, 9, 14)
    expected, names = results(net, x), list(net.state_dict())
    recompute_blocks(net)
    assert all(torch.equal(*pair) for pair in zip(results(net, x), expected, strict=True))
    assert list(net.state_dict()) == names


@pytest.mark.slow
def test_a_compiler_takes_it(compiled, assert_close):
    net = spinsr.load('SPIN', 2, None, **SMALL['SPIN']).double().train()
    x = torch.rand(1, 3, 9, 14, dtype=torch.float64)
    expected = results(net, x)
    recompute_blocks(net)
    assert_close(results(compiled(net), x), expected)


def test_a_replica_computes_with_its_own_weights():
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3)))
    recompute_blocks(net)
    replica = net[0][0]._replicate_for_data_parallel()
    replica.weight, replica.bias = torch.zeros(3, 3), torch.ones(3, requires_grad=True)
    assert torch.equal(replica(torch.rand(2, 3)), torch.ones(2, 3))


def test_a_block_that_occurs_twice_is_computed_once_more_and_not_twice_more():
    calls = []
    block = nn.Linear(3, 3)
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    net = nn.Sequential(nn.Sequential(nn.Sequential(block)))
    net[0].append(net[0][0])
    recompute_blocks(net)
    net(torch.rand(2, 3)).sum().backward()
    assert len(calls) == 4


# The blocks of ETDS are single convolutions. LAPAR keeps most after its blocks, at the size of the result; ESRT and
# RAMiT keep much outside the largest sequence of blocks.
ELSEWHERE = ('ESRT', 'ETDS', 'ETDSInference', 'LAPAR', 'RAMiT')


@pytest.mark.parametrize('arch', [arch for arch in SMALL if arch not in (*REFUSED, *ELSEWHERE)])
def test_the_blocks_keep_nothing_but_their_input(arch):
    net = spinsr.load(arch, 2, None, **SMALL[arch]).train()
    x = torch.rand(2, 3, 9, 14)
    expected = saved_bytes(net, x)
    recompute_blocks(net)
    assert saved_bytes(net, x) < 0.55 * expected  # the rest of the network keeps what it did


def saved_bytes(net, x):
    """What the forward pass keeps for the gradient, beside the weights."""
    known = {parameter.data_ptr() for parameter in net.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(x).sum()
    return sum(kept.values())


def test_random_numbers_are_drawn_again():
    net = nn.Sequential(nn.Sequential(nn.Linear(30, 30), nn.Dropout(0.5)))
    recompute_blocks(net)
    x = torch.rand(1, 30)
    output = net(x)
    output.sum().backward()
    assert torch.equal(net[0][0].bias.grad == 0, output[0] == 0)


def test_without_gradient_nothing_is_done_twice():
    calls = []
    net = nn.Sequential(nn.Sequential(nn.Identity()))
    net[0][0].register_forward_hook(lambda *_: calls.append(1))
    recompute_blocks(net)
    with torch.no_grad():
        net(torch.rand(1))
    assert len(calls) == 1


def test_the_largest_sequence_is_taken():
    net = nn.Module()
    net.small, net.large = nn.ModuleList([nn.Linear(9, 9)]), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    recompute_blocks(net)
    assert [type(block) is nn.Linear for block in (*net.small, *net.large)] == [True, False, False]
    assert all(isinstance(block, nn.Linear) and type(block).__name__ == 'Linear' for block in net.large)


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match='Sequential has no sequence of blocks'):
        recompute_blocks(
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.ModuleList([nn.ModuleList([nn.ReLU()])]), nn.Sequential())
        )


def test_batch_normalisation_is_refused():
    with pytest.raises(ValueError, match='the blocks of Sequential have batch normalisation'):
        recompute_blocks(nn.Sequential(nn.Sequential(nn.Sequential(nn.BatchNorm2d(3)))))


def test_check_counts_it():
    def gigabytes(flag):
        changes = {'datasets:train:gt_size': 32, 'datasets:train:batch_size_per_gpu': 256, 'train:recompute': flag}
        options = changed(
            TRAIN, {**changes, 'network_g': {'type': 'RCAN_spinsr', 'num_group': 4, 'num_block': 5, 'upscale': 2}}
        )
        finding = next(iter(memory.memory(options, is_train=True)))
        return float(str(finding).partition('about ')[2].partition(' GB')[0])

    assert gigabytes(True) < 0.8 * gigabytes(False)
