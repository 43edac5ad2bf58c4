"""Training against a discriminator: BasicSR's ESRGANModel bit for bit, and what SpinsrModel adds to it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import spinsr.archs

# isort: split
from basicsr.models import build_model
from basicsr.utils import logger as basicsr_logger

from spinsr import train
from spinsr.check import quick
from spinsr.data.image_file import write_png
from spinsr.models.registration import register
from spinsr.utils.errors import OptionError

from ..tiny_project import TRAIN, changed, without, write_images, write_options

register()

OPTIONS = Path(spinsr.archs.__file__).parents[2] / 'options'
GAN = changed(
    TRAIN,
    {
        'model_type': 'AdversarialModel',
        'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4},
        'train:optim_d': {'type': 'Adam', 'lr': 1e-3},
        'train:gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
    },
)
MUON = {'type': 'Muon', 'lr': 0.01, 'adam': {'lr': 1e-3, 'params': ['conv_first', 'conv_last']}}


def build(options):
    options = changed(options, {'dist': False, 'is_train': True, 'rank': 0})
    torch.manual_seed(0)
    return build_model({**options, 'num_gpu': 0, 'world_size': 1})


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    lq, gt = (torch.rand(2, 3, side, side, generator=generator) for side in (8, 16))
    return {'lq': lq, 'gt': gt, 'lq_path': ['0.png', '1.png']}


def step(model, iteration, data=None):
    model.update_learning_rate(iteration, warmup_iter=-1)
    model.feed_data(data or batch(iteration))
    model.optimize_parameters(iteration)


def weights(model):
    nets = {'g': model.net_g, 'ema': model.net_g_ema, 'd': model.net_d}
    return {f'{name}.{key}': value.clone() for name, net in nets.items() for key, value in net.state_dict().items()}


def differ(one, other):
    assert one.keys() == other.keys()
    return {key for key, value in one.items() if not torch.equal(value, other[key])}


def test_without_options_it_computes_what_esrganmodel_does():
    ours, basicsr = build(GAN), build(changed(GAN, {'model_type': 'ESRGANModel'}))
    start = weights(ours)
    assert differ(start, weights(basicsr)) == set()
    for iteration in (1, 2, 3):
        step(ours, iteration)
        step(basicsr, iteration)
    assert differ(weights(ours), weights(basicsr)) == set()
    assert {key.partition('.')[0] for key in differ(weights(ours), start)} == {'g', 'ema', 'd'}
    names = {'l_g_pix': 'l_pix', 'l_g_gan': 'l_gan'}
    assert ours.log_dict == {names.get(key, key): value for key, value in basicsr.log_dict.items()}


def test_a_batch_that_is_not_finite_changes_no_parameter():
    model = build(GAN)
    step(model, 1)
    before = [p.clone() for net in (model.net_g, model.net_g_ema, model.net_d) for p in net.parameters()]
    data = batch(2)
    data['gt'][0, 0, 0, 0] = float('nan')
    step(model, 2, data)
    after = [p for net in (model.net_g, model.net_g_ema, model.net_d) for p in net.parameters()]
    assert all(map(torch.equal, before, after)) and model.nonfinite == 1


def test_muon_leaves_the_discriminator_its_own_optimizer():
    model = build(changed(GAN, {'train:optim_g': MUON}))
    start = weights(model)
    step(model, 1)
    assert [type(optimizer).__name__ for optimizer in model.optimizers] == ['Muon', 'Adam']
    assert {key.partition('.')[0] for key in differ(weights(model), start)} == {'g', 'ema', 'd'}


@pytest.mark.parametrize(
    ('options', 'line'),
    [
        (without(GAN, 'network_d'), 'needs the section network_d'),
        (without(GAN, 'train:optim_d'), 'needs the section train:optim_d'),
        (without(GAN, 'train:gan_opt'), 'needs the section train:gan_opt'),
        (changed(GAN, {'train:accumulate': 2}), 'train:accumulate must be 1'),
        (changed(GAN, {'train:recompute': True}), 'train:recompute must be false'),
    ],
    ids=['network_d', 'optim_d', 'gan_opt', 'accumulate', 'recompute'],
)
def test_wrong_options_are_one_line_and_the_check_finds_them(options, line):
    with pytest.raises(OptionError, match=line):
        build(options)
    assert any(finding.level == 'error' for finding in quick(options, is_train=True))


def test_the_check_finds_nothing_wrong_with_good_options():
    assert [str(finding) for finding in quick(GAN, is_train=True) if finding.level == 'error'] == []
    net_d_iters = changed(GAN, {'train:net_d_iters': 2})
    assert any(finding.key == 'train:net_d_iters' for finding in quick(net_d_iters, is_train=True))


def test_a_state_of_another_discriminator_is_refused_by_its_name():
    saved = [optimizer.state_dict() for optimizer in build(GAN).optimizers]
    with pytest.raises(OptionError, match='network_d: must be that of the state'):
        model = build(changed(GAN, {'network_d': {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 4}}))
        model.resume_training({'optimizers': saved, 'schedulers': []})


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(basicsr_logger, 'initialized_logger', {})
    return tmp_path


def test_checkpoint_holds_both_networks_and_old_ones_go(project):
    model = build(changed(GAN, {'logger:keep_last': 1}))
    model.opt['path'] |= {'models': str(project), 'training_states': str(project)}
    model.save(0, 1)
    model.save(0, 2)
    assert {path.name for path in project.iterdir()} == {'net_g_2.pth', 'net_d_2.pth', '2.state'}


@pytest.mark.slow
def test_a_resumed_training_on_degraded_images_gives_the_same_bits(project):
    """Training ends after 3 of 6 iterations, within an epoch, and continues from its checkpoint."""
    write_images(project, 5)
    changes = {
        'datasets:train:type': 'DegradationDataset',
        'datasets:train:degradation': 'strong',
        'train:total_iter': 6,
        'train:scheduler:milestones': [2, 5],
        'logger:save_checkpoint_freq': 3,
    }
    options = without(changed(GAN, changes), 'datasets:train:dataroot_lq')
    assert train.main(['-opt', write_options('whole.yml', options | {'name': 'whole'})]) == 0
    whole, models = Path('experiments/whole/models'), Path('experiments/resumed/models')
    for name in ('models', 'training_states'):
        shutil.copytree(whole.parent / name, models.parent / name)
    for path in (*models.parent.rglob('*_6.pth'), *models.parent.rglob('6.state'), *models.glob('*_latest.pth')):
        path.unlink()
    resumed = write_options('resumed.yml', options | {'name': 'resumed'})
    assert train.main(['-opt', resumed, '--auto_resume']) == 0
    for name in ('net_g_6.pth', 'net_d_6.pth', 'net_d_latest.pth'):
        one, other = (torch.load(folder / name, weights_only=True) for folder in (whole, models))
        for key in one:
            assert differ(one[key], other[key]) == set()
    states = [torch.load(folder.parent / 'training_states/6.state', weights_only=True) for folder in (whole, models)]
    for one, other in zip(*(state['optimizers'] for state in states), strict=True):
        assert all(torch.equal(value['exp_avg'], other['state'][key]['exp_avg']) for key, value in one['state'].items())


@pytest.mark.slow
def test_ten_iterations_of_the_option_file(project, photo):
    """The shipped file on a few small images, from the shipped weights, without a download."""
    for index in range(4):
        write_png(project / 'hr' / f'{index}.png', photo(48, 48, index))
    options = yaml.safe_load((OPTIONS / 'train_SPIN_x4_gan.yml').read_text())
    disk = {'dataroot_gt': 'hr', 'io_backend': {'type': 'disk'}}
    options['datasets']['train'] |= disk | {'gt_size': 32, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0}
    options['datasets']['val'] |= disk | {'max_images': 1}
    options['path'] |= {'pretrain_network_g': 'SPIN_x4.safetensors'}
    options['train']['total_iter'] = 10
    options['train']['scheduler']['milestones'] = [5]
    options['val']['val_freq'] = options['logger']['save_checkpoint_freq'] = 10
    options['logger'] |= {'use_tb_logger': False, 'print_freq': 5}
    assert train.main(['-opt', write_options('options.yml', options), '--force_yml', 'num_gpu=0']) == 0
    models = Path('experiments', options['name'], 'models')
    files = {f'{net}_{end}.pth' for net in ('net_g', 'net_d') for end in (10, 'latest')}
    assert {path.name for path in models.iterdir()} == files
    trained = torch.load(models / 'net_g_latest.pth', weights_only=True)['params']
    assert all(np.isfinite(value.numpy()).all() for value in trained.values())
