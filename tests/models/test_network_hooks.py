"""What a network offers to its training: losses of further outputs, a hook for each iteration; frozen parameters."""

import copy
from typing import ClassVar

import pytest
import torch
from torch import nn

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.models import build_model
from basicsr.utils.registry import ARCH_REGISTRY

from spinsr.check import quick
from spinsr.models.registration import register
from spinsr.training.sampling import shuffle_channels
from spinsr.utils.errors import OptionError

from ..tiny_project import TRAIN, changed

register()


class Hooked(nn.Module):
    """A network with two outputs besides its image, and a temperature that falls with the iterations."""

    TRAINING_LOSSES: ClassVar = {'low_opt': ('low', 'gt'), 'sparsity_opt': ('sparsity', 'iteration')}

    def __init__(self, upscale: int = 2):
        super().__init__()
        self.conv_first = nn.Conv2d(3, 3, 1)
        self.conv_last = nn.Conv2d(3, 3 * upscale**2, 3, 1, 1)
        self.shuffle = nn.PixelShuffle(upscale)
        self.register_buffer('temperature', torch.ones(()), persistent=False)

    def begin_iteration(self, iteration: int) -> None:
        self.temperature.fill_(1 / iteration)

    def forward(self, x, auxiliary=False):
        mask = torch.sigmoid(self.conv_first(x) / self.temperature)
        image = self.shuffle(self.conv_last(x * mask))
        return (image, {'low': 0.5 * image, 'sparsity': mask.mean((1, 2, 3))}) if auxiliary else image


if 'Hooked' not in ARCH_REGISTRY:
    ARCH_REGISTRY.register(Hooked)

NETWORK = {'network_g': {'type': 'Hooked', 'upscale': 2}}
LOW = {'train:low_opt': {'type': 'L1Loss', 'loss_weight': 0.5}}
SPARSITY = {'train:sparsity_opt': {'type': 'SparsityLoss', 'loss_weight': 3.0, 'ramp_epochs': 4, 'epoch_iters': 1}}
FROZEN = {'train:freeze_params': ['conv_first'], 'train:freeze_iters': 2}


def build(**changes):
    options = changed(TRAIN, {'dist': False, 'is_train': True, 'rank': 0, **NETWORK, **changes})
    torch.manual_seed(0)
    return build_model({**copy.deepcopy(options), 'num_gpu': 0, 'world_size': 1})


def batch():
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(4, 3, side, side, generator=generator) for name, side in {'lq': 8, 'gt': 16}.items()}


def step(model, iteration=1):
    model.feed_data(batch())
    model.optimize_parameters(iteration)
    return model


@pytest.mark.parametrize('accumulate', [1, 2])
def test_losses_of_further_outputs(accumulate):
    model = build(**LOW, **SPARSITY, **{'train:accumulate': accumulate})
    data, net = batch(), copy.deepcopy(model.net_g)
    net.begin_iteration(3)
    with torch.no_grad():
        output, more = net(data['lq'], auxiliary=True)
    expected = {
        'l_pix': (output - data['gt']).abs().mean().item(),
        'l_low': 0.5 * (output / 2 - data['gt']).abs().mean().item(),
        'l_sparsity': 3 * 2 / 4 * more['sparsity'].mean().item(),
    }
    assert step(model, 3).log_dict == pytest.approx(expected, rel=1e-5)


def test_sections_are_needed_by_nobody():
    assert list(step(build()).log_dict) == ['l_pix']


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'train:low_opt': 0.5}, 'train:low_opt must be a section'),
        ({'train:low_opt': {'type': 'ContrastiveLoss'}}, 'ContrastiveLoss needs .* gives it low, gt'),
        (
            {'train:freeze_iters': 5},
            'freeze_iters must be set together, got None and 5',
        ),
        ({**FROZEN, 'train:freeze_params': ['convv']}, "'convv' matches no parameter"),
        ({**FROZEN, 'train:freeze_params': ['conv*']}, 'must leave parameters to train'),
    ],
    ids=['no-section', 'contrastive', 'iterations-alone', 'unknown', 'all'],
)
def test_wrong_options_are_one_line(changes, line):
    with pytest.raises(OptionError, match=line):
        build(**changes)


def test_a_loss_that_takes_less_than_the_section_gives_is_accepted():
    assert 'low_opt' in build(**{'train:low_opt': {'type': 'WeightedTVLoss'}}).more_losses


def test_check_knows_the_sections_of_the_network():
    options = changed(TRAIN, {**NETWORK, **LOW, **SPARSITY, **FROZEN, 'val:val_freq': 2})
    options['datasets']['val']['dataroot_gt'] = 'val/hr'
    assert list(quick(options, is_train=True)) == []
    other = changed(options, {'network_g': TRAIN['network_g']})
    assert {finding.key for finding in quick(other, is_train=True)} >= {'train:low_opt', 'train:sparsity_opt'}


@pytest.mark.parametrize('optimizer', ['Adam', 'AdamW', 'Muon'])
def test_frozen_parameters_stay_and_then_move(optimizer):
    options = {'type': optimizer, 'lr': 1e-2}
    if optimizer == 'AdamW':
        options['weight_decay'] = 0.1
    if optimizer == 'Muon':
        options['adam'] = {'params': []}
    model = build(**FROZEN, **{'train:optim_g': options})
    frozen, other = (copy.deepcopy(part.weight) for part in (model.net_g.conv_first, model.net_g.conv_last))
    for iteration in (1, 2):
        step(model, iteration)
        assert torch.equal(model.net_g.conv_first.weight, frozen)
        assert not torch.equal(model.net_g.conv_last.weight, other)
    assert not torch.equal(step(model, 3).net_g.conv_first.weight, frozen)


def test_shuffled_channels_are_those_of_result_and_target_alike():
    data = batch()
    data['gt'] = data['lq'].repeat_interleave(2, 2).repeat_interleave(2, 3)
    lq, gt = shuffle_channels([data['lq'], data['gt']], 0, 0, 7)
    assert torch.equal(gt, lq.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.equal(lq.sort(1)[0], data['lq'].sort(1)[0]) and not torch.equal(lq, data['lq'])
    again, of_other_process, later = (
        shuffle_channels([data['lq']], 0, *place)[0] for place in ((0, 7), (1, 7), (0, 8))
    )
    assert torch.equal(again, lq)
    assert not torch.equal(of_other_process, lq) and not torch.equal(later, lq)


def test_shuffling_is_an_option_of_training():
    model = build(**{'train:shuffle_channels': True})
    step(model)
    data = batch()
    lq, gt = shuffle_channels([data['lq'], data['gt']], 0, 0, 1)
    assert torch.equal(model.lq, lq) and torch.equal(model.gt, gt)
