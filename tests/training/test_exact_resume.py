"""A training that was interrupted ends with the bits of one that was not."""

import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.utils import logger as basicsr_logger
from basicsr.utils.registry import ARCH_REGISTRY

from spinsr import train
from spinsr.models.spinsr_model import SpinsrModel
from spinsr.training import checkpoints
from spinsr.training.sampling import mixed_seed
from spinsr.utils import atomic_write

from ..tiny_project import DISTILLATION, TRAIN, changed, write_images, write_options, write_outputs

LONG = {
    'train:total_iter': 11,
    'train:scheduler:milestones': [3, 8],
    'train:warmup_iter': 2,
    'logger:save_checkpoint_freq': 3,
    'val:val_freq': 3,
}


class Stop(Exception):
    """Stands for a crash."""


class Drops(nn.Module):
    """A network that draws random numbers."""

    def __init__(self, upscale: int = 2):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)
        self.upscale = upscale

    def forward(self, x):
        x = nn.functional.dropout(self.conv(x), 0.5, self.training)
        return x.repeat_interleave(self.upscale, 2).repeat_interleave(self.upscale, 3)


if 'Drops' not in ARCH_REGISTRY:
    ARCH_REGISTRY.register(Drops)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(basicsr_logger, 'initialized_logger', {})
    write_images(tmp_path, 5)
    write_outputs(tmp_path, 5)
    return tmp_path


def options(project, name, changes):
    return write_options(project / f'{name}.yml', changed(TRAIN, {**LONG, 'name': name, **changes}))


def files(name):
    return Path('experiments', name, 'models'), Path('experiments', name, 'training_states')


def final(name, last=9):
    """All that a training leaves: the weights at its end, and its last state."""
    models, states = files(name)
    weights = torch.load(models / 'net_g_latest.pth', weights_only=True)
    state = torch.load(states / f'{last}.state', weights_only=True)
    assert set(weights) == {'params', 'params_ema'}
    return weights, {key: value for key, value in state.items() if key != checkpoints.NETWORKS}


def assert_identical(one, other, where=''):
    """Compares nested containers, tensors bit for bit; names the first place that differs."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_identical(one[key], other[key], f'{where}:{key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_identical(*pair, f'{where}:{index}')
    else:
        assert one == other, where


def crash(monkeypatch, owner, name, call):
    """Makes the given call, counted from 1, of a function raise Stop."""
    calls, own = [0], getattr(owner, name)

    def failing(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            raise Stop
        return own(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


GROWS = {'datasets:train:gt_sizes': [8, 16], 'datasets:train:iters': [4, 4], 'datasets:train:mini_batch_sizes': [2, 1]}


RANDOM = {'network_g': {'type': 'Drops', 'upscale': 2}}
STOPS = {
    'before-the-first-checkpoint': (SpinsrModel, 'optimize_parameters', 2),
    'in-an-epoch': (SpinsrModel, 'optimize_parameters', 6),
    'after-a-checkpoint': (SpinsrModel, 'optimize_parameters', 7),
    'before-a-validation': (SpinsrModel, 'validation', 2),
    'between-the-files-of-a-checkpoint': (SpinsrModel, 'save_training_state', 2),
    'in-a-network-file': (checkpoints.os, 'replace', 3),
    'in-a-state': (checkpoints.os, 'replace', 4),
    'in-the-latest': (checkpoints.os, 'replace', 7),
}


@pytest.mark.parametrize(
    ('changes', 'owner', 'name', 'call'),
    [
        pytest.param(GROWS, *STOPS['in-an-epoch'], id='growing-patches-in-an-epoch'),
        *(pytest.param(RANDOM, *stop, id=f'random-{where}') for where, stop in STOPS.items()),
    ],
)
def test_resume_gives_the_same_bits(project, monkeypatch, changes, owner, name, call):
    assert train.main(['-opt', options(project, 'whole', changes)]) == 0
    broken = options(project, 'broken', changes)
    with monkeypatch.context() as patch:
        crash(patch, owner, name, call)
        with pytest.raises(Stop):
            train.main(['-opt', broken])

    assert train.main(['-opt', broken, '--auto_resume']) == 0

    assert_identical(final('broken'), final('whole'))


LOSSES = {
    'train:fft_opt': {'type': 'FFTLoss', 'loss_weight': 0.05},
    'train:tv_opt': {'type': 'WeightedTVLoss', 'loss_weight': 0.1},
    'train:contrastive_opt': {'type': 'ContrastiveLoss', 'loss_weight': 0.01, 'num_feat': 4},
}
UNCERTAINTY = {
    'model_type': 'UncertaintyModel',
    'network_s': {'type': 'RDBESA', 'num_feat': 4, 'num_block': 1, 'squeeze_factor': 2, 'upscale': 2},
    'train:pixel_opt:type': 'UncertaintyEstimationLoss',
}


MUON = {'train:optim_g': {'type': 'Muon', 'lr': 0.01, 'adam': {'params': ['conv_first', 'conv_last']}}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('changes', 'labels'),
    [
        pytest.param(LOSSES, ['net_g'], id='more-losses'),
        pytest.param({**MUON, 'train:warmup_iter': 3}, ['net_g'], id='muon'),
        pytest.param(
            {**DISTILLATION, **GROWS, 'train:distill_iters': 6, 'train:pixel_after': 5},
            ['net_g'],
            id='teacher-then-hr-with-growing-patches',
        ),
        pytest.param(
            {**DISTILLATION, **GROWS, 'train:pixel_opt': None, 'datasets:train:read_gt': False},
            ['net_g'],
            id='teacher-alone-with-growing-patches',
        ),
        pytest.param(UNCERTAINTY, ['net_g', 'net_s'], id='uncertainty-estimation'),
        pytest.param(
            {
                **UNCERTAINTY,
                'train:pixel_opt:type': 'UncertaintyDrivenLoss',
                'path:pretrain_network_s': 'experiments/first/models/net_s_latest.pth',
            },
            ['net_g', 'net_s'],
            id='uncertainty-driven',
        ),
    ],
)
def test_resume_with_losses_of_ours_gives_the_same_bits(project, monkeypatch, changes, labels):
    if 'path:pretrain_network_s' in changes:
        assert train.main(['-opt', options(project, 'first', UNCERTAINTY)]) == 0
    assert train.main(['-opt', options(project, 'whole', changes)]) == 0
    broken = options(project, 'broken', changes)
    with monkeypatch.context() as patch:
        crash(patch, SpinsrModel, 'optimize_parameters', 5)
        with pytest.raises(Stop):
            train.main(['-opt', broken])

    assert train.main(['-opt', broken, '--auto_resume']) == 0

    assert_identical(final('broken'), final('whole'))
    ends = [files(name)[0] / f'{labels[-1]}_latest.pth' for name in ('broken', 'whole')]
    assert_identical(*(torch.load(path, weights_only=True) for path in ends))


@pytest.mark.parametrize(
    ('first', 'then', 'line'),
    [
        pytest.param({}, MUON, 'train:optim_g:type: must be that of the state to resume, Adam, got Muon', id='adam'),
        pytest.param(MUON, {}, 'train:optim_g:type: must be that of the state to resume, Muon, got Adam', id='muon'),
        pytest.param(
            MUON,
            {'train:optim_g': {'type': 'Muon', 'lr': 0.01, 'adam': {'params': ['conv_last']}}},
            'train:optim_g:adam:params: must be that of the state to resume, ',
            id='other-tensors',
        ),
    ],
)
def test_state_of_another_optimizer_is_one_line(project, capsys, first, then, line):
    assert train.main(['-opt', options(project, 'one', {**first, 'train:total_iter': 3})]) == 0
    assert train.main(['-opt', options(project, 'one', then), '--auto_resume']) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith(f'spinsr.train: error: {line}'), errors


@pytest.mark.slow
def test_resume_twice_in_one_epoch_gives_the_same_bits(project, monkeypatch):
    long = {'datasets:train:dataset_enlarge_ratio': 4}
    assert train.main(['-opt', options(project, 'whole', long)]) == 0
    broken = options(project, 'broken', long)
    with monkeypatch.context() as patch:
        crash(patch, SpinsrModel, 'optimize_parameters', 5)
        with pytest.raises(Stop):
            train.main(['-opt', broken])
    with monkeypatch.context() as patch:
        crash(patch, SpinsrModel, 'optimize_parameters', 5)
        with pytest.raises(Stop):
            train.main(['-opt', broken, '--auto_resume'])

    assert train.main(['-opt', broken, '--auto_resume']) == 0

    assert_identical(final('broken'), final('whole'))


@pytest.mark.slow
def test_resume_with_other_workers_gives_the_same_bits(project, monkeypatch, capfd):
    whole = options(project, 'whole', {'datasets:train:num_worker_per_gpu': 2})
    assert train.main(['-opt', whole]) == 0
    with monkeypatch.context() as patch:
        crash(patch, SpinsrModel, 'optimize_parameters', 8)
        with pytest.raises(Stop):
            train.main(['-opt', options(project, 'broken', {'datasets:train:num_worker_per_gpu': 3})])

    assert train.main(['-opt', options(project, 'broken', {}), '--auto_resume']) == 0

    assert_identical(final('broken'), final('whole'))
    assert 'The schedule is not' not in capfd.readouterr().err


@pytest.mark.slow
def test_seed_of_the_state_orders_the_samples(project, monkeypatch):
    """Without manual_seed every start draws a new seed."""
    assert train.main(['-opt', options(project, 'whole', {'manual_seed': 7})]) == 0
    with monkeypatch.context() as patch:
        crash(patch, SpinsrModel, 'optimize_parameters', 8)
        with pytest.raises(Stop):
            train.main(['-opt', options(project, 'broken', {'manual_seed': 7})])

    assert train.main(['-opt', options(project, 'broken', {'manual_seed': 8}), '--auto_resume']) == 0

    assert_identical(final('broken'), final('whole'))


def flip_a_bit(path):
    moment = torch.load(path, weights_only=True)['optimizers'][0]['state'][0]['exp_avg']
    content = bytearray(path.read_bytes())
    content[content.find(moment.numpy().tobytes())] ^= 1
    path.write_bytes(content)


def flip_the_folder_bit(path):
    """In the archive's directory, of the record of the last tensor: torch then leaves the tensor uninitialized."""
    content = bytearray(path.read_bytes())
    record = content.rindex(b'PK\1\2', 0, content.rindex(b'/data/'))
    content[record + 38] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    'damage',
    [
        pytest.param(
            lambda models, states: flip_the_folder_bit(states / '9.state'),
            id='directory-of-the-state',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda models, states: (states / '9.state').write_bytes(b'PK'), id='state', marks=pytest.mark.slow
        ),
        pytest.param(lambda models, states: flip_a_bit(states / '9.state'), id='tensor-of-the-state'),
        pytest.param(
            lambda models, states: (states / '9.state').write_bytes(b''), id='empty-state', marks=pytest.mark.slow
        ),
        pytest.param(lambda models, states: os.truncate(models / 'net_g_9.pth', 500), id='network'),
        pytest.param(lambda models, states: (models / 'net_g_9.pth').unlink(), id='no-network', marks=pytest.mark.slow),
        pytest.param(
            lambda models, states: (models / 'net_g_6.pth').replace(models / 'net_g_9.pth'),
            id='another-network',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda models, states: (states / '9.state').rename(states / '12.state'),
            id='another-number',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_damaged_checkpoint_is_reported_and_an_older_one_used(project, capfd, damage):
    whole = options(project, 'whole', {})
    assert train.main(['-opt', whole]) == 0
    expected = final('whole')
    damage(*files('whole'))
    left = sorted(path.name for folder in files('whole') for path in folder.iterdir())
    capfd.readouterr()

    assert train.main(['-opt', whole, '--auto_resume']) == 0

    assert_identical(final('whole'), expected)
    log = capfd.readouterr().err
    assert 'the file is kept, and not used.' in log
    assert 'Resuming from ' in log
    assert {path.name for folder in files('whole') for path in folder.iterdir()} >= set(left)


@pytest.mark.slow
def test_without_a_usable_checkpoint_training_starts_from_scratch_and_deletes_nothing(project, capfd):
    whole = options(project, 'whole', {})
    assert train.main(['-opt', whole]) == 0
    expected = final('whole')
    _, states = files('whole')
    for path in states.iterdir():
        path.write_bytes(b'damaged')

    assert train.main(['-opt', whole, '--auto_resume']) == 0

    assert 'No checkpoint is usable: training starts from scratch.' in capfd.readouterr().err
    assert_identical(final('whole'), expected)
    (archived,) = Path('experiments').glob('whole_archived_*')
    assert (archived / 'training_states' / '9.state').read_bytes() == b'damaged'


def test_damaged_state_that_was_named_is_one_line(project, capsys):
    whole = options(project, 'whole', {})
    assert train.main(['-opt', whole]) == 0
    os.truncate('experiments/whole/models/net_g_6.pth', 500)
    capsys.readouterr()

    resume = 'path:resume_state=experiments/whole/training_states/6.state'
    assert train.main(['-opt', whole, '--force_yml', resume]) == 1

    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('spinsr.train: error: ') and 'net_g_6.pth is damaged' in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ('first', 'then', 'rates'),
    [
        pytest.param(
            {'type': 'CosineAnnealingRestartLR', 'periods': [6], 'restart_weights': [1]},
            {'periods': [12]},
            [0.5 * (1 + math.cos(math.pi * (k - 1) / 12)) * 1e-3 for k in (7, 12)],
            id='longer-cosine',
        ),
        pytest.param(
            {'type': 'MultiStepLR', 'milestones': [3, 5], 'gamma': 0.5},
            {'milestones': [3, 5, 9]},
            [1e-3 / 4, 1e-3 / 8],
            id='one-more-milestone',
        ),
    ],
)
def test_schedule_may_change_on_resume(project, capfd, first, then, rates):
    changes = {'train:total_iter': 6, 'train:warmup_iter': -1, 'logger:save_checkpoint_freq': 6}
    assert train.main(['-opt', options(project, 'whole', {**changes, 'train:scheduler': first})]) == 0
    longer = {**changes, 'train:total_iter': 12, 'train:scheduler': {**first, **then}}
    capfd.readouterr()

    assert train.main(['-opt', options(project, 'whole', longer), '--auto_resume']) == 0

    log = capfd.readouterr().err
    assert 'The schedule is not that of the state' in log
    seen = [float(log.split(f'iter:{number:8,d}, lr:(')[1].split(',')[0]) for number in (7, 12)]
    assert seen == pytest.approx(rates, rel=1e-3)


def test_keep_last_bounds_the_checkpoints(project):
    assert train.main(['-opt', options(project, 'whole', {'logger:keep_last': 2})]) == 0
    models, states = files('whole')
    assert {path.name for path in states.iterdir()} == {'6.state', '9.state'}
    assert {path.name for path in models.iterdir()} == {'net_g_6.pth', 'net_g_9.pth', 'net_g_latest.pth'}


@pytest.mark.slow
def test_keep_last_leaves_the_checkpoint_just_written_beside_a_later_one_that_is_damaged(project):
    whole = options(project, 'whole', {'logger:keep_last': 2})
    assert train.main(['-opt', whole]) == 0
    models, states = files('whole')
    os.truncate(states / '9.state', 500)

    shorter = ['logger:save_checkpoint_freq=1', 'logger:keep_last=1', 'train:total_iter=8']
    assert train.main(['-opt', whole, '--auto_resume', '--force_yml', *shorter]) == 0

    assert {path.name for path in states.iterdir()} == {'8.state', '9.state'}
    assert checkpoints.newest(states, models)[0] == states / '8.state'


def test_full_disk_is_one_line_and_the_checkpoint_before_it_stays(project, monkeypatch, capsys):
    class Full:
        """A file on a disk that is full."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[:100])
            raise OSError(28, 'No space left on device')

    whole = options(project, 'whole', {})
    writes = []

    def opened(path, mode):
        writes.append(path)
        file = open(path, mode)
        return Full(file) if len(writes) > 2 else file

    monkeypatch.setattr(atomic_write, 'open', opened, raising=False)
    assert train.main(['-opt', whole]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith('spinsr.train: error: ')
    assert 'net_g_6.pth cannot be written: No space left on device' in last
    models, states = files('whole')
    assert {path.name for path in (*models.iterdir(), *states.iterdir())} == {'net_g_3.pth', '3.state'}
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert train.main(['-opt', whole, '--auto_resume']) == 0


def test_what_a_killed_write_left_is_deleted(project):
    whole = options(project, 'whole', {})
    assert train.main(['-opt', whole]) == 0
    left = [folder / '.12.part' for folder in files('whole')]
    list(map(Path.touch, left))
    assert train.main(['-opt', whole, '--auto_resume']) == 0
    assert not any(map(Path.exists, left))


def test_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(checkpoints.os, 'fsync', lambda descriptor: calls.append('fsync'))
    monkeypatch.setattr(checkpoints.os, 'replace', lambda part, path: calls.append('replace'))
    checkpoints.write(tmp_path / 'a.pth', {})
    assert calls[:2] == ['fsync', 'replace']


def test_best_metrics_are_kept_over_a_resume(project, monkeypatch):
    seen = []
    own = SpinsrModel._update_best_metric_result

    def falling(self, dataset_name, metric, val, current_iter):
        seen.append(current_iter)
        own(self, dataset_name, metric, 100 - current_iter, current_iter)

    monkeypatch.setattr(SpinsrModel, '_update_best_metric_result', falling)
    whole = options(project, 'whole', {})
    assert train.main(['-opt', whole]) == 0
    assert train.main(['-opt', whole, '--auto_resume', '--force_yml', 'train:total_iter=15']) == 0

    assert seen == [3, 6, 9, 11, 9, 12, 15]
    state = torch.load(files('whole')[1] / '15.state', weights_only=True)
    assert state['best_metric_results'] == {'pairs_val': {'psnr': {'better': 'higher', 'val': 97.0, 'iter': 3}}}


@pytest.mark.slow
def test_metric_that_is_added_before_a_resume_begins_its_own_record(project):
    assert train.main(['-opt', options(project, 'whole', {})]) == 0
    ssim = {'type': 'calculate_ssim', 'crop_border': 2, 'test_y_channel': True}
    longer = options(project, 'whole', {'val:metrics:ssim': ssim, 'train:total_iter': 15})
    assert train.main(['-opt', longer, '--auto_resume']) == 0

    best = torch.load(files('whole')[1] / '15.state', weights_only=True)['best_metric_results']['pairs_val']
    assert best['psnr']['iter'] >= 3 and best['ssim']['iter'] >= 9


@pytest.mark.slow
def test_another_experiment_goes_on_from_a_named_state(project):
    assert train.main(['-opt', options(project, 'whole', {})]) == 0
    resume = 'path:resume_state=experiments/whole/training_states/6.state'
    assert train.main(['-opt', options(project, 'other', {}), '--force_yml', resume]) == 0

    assert_identical(final('other'), final('whole'))


@pytest.mark.slow
def test_networks_draw_other_numbers_than_samples(project, monkeypatch):
    seeds, own = [], SpinsrModel._backward

    def backward(self, current_iter):
        seeds.append(torch.initial_seed())
        return own(self, current_iter)

    monkeypatch.setattr(SpinsrModel, '_backward', backward)
    assert train.main(['-opt', options(project, 'whole', {})]) == 0

    assert len(set(seeds)) == LONG['train:total_iter']
    assert not set(seeds) & {mixed_seed(TRAIN['manual_seed'], 0, position) for position in range(20)}
