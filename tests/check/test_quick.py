"""The checks of the option file alone: each mistake gives its line, and a good file gives none."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import spinsr.archs  # noqa: F401

from ..tiny_project import DISTILLATION, TEST, TRAIN, changed, without

# isort: split
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY

from spinsr.check import files, is_training, quick, stop_at_error, with_whole_numbers
from spinsr.check.finding import Finding, error, note, warning
from spinsr.models.registration import register
from spinsr.models.spinsr_model import SpinsrModel
from spinsr.training import option_files
from spinsr.utils.errors import OptionError

register()

GOOD = changed(TRAIN, {'val:val_freq': 2, 'datasets:val:dataroot_gt': 'val/hr'})
# As BasicSR's own option files write numbers: val_freq: !!float 5e3.
WHOLE_FLOATS = {
    'train:total_iter': 4.0,
    'train:warmup_iter': -1.0,
    'train:scheduler:milestones': [2.0, 3.0],
    'val:val_freq': 2.0,
    'val:metrics:psnr:crop_border': 2.0,
    'logger:print_freq': 1.0,
    'logger:save_checkpoint_freq': 2.0,
    'datasets:train:gt_size': 16.0,
    'datasets:train:batch_size_per_gpu': 2.0,
    'network_g:num_feat': 8.0,
    'scale': 2.0,
    'manual_seed': 0.0,
}
NIQE = {'niqe': {'type': 'calculate_niqe', 'crop_border': 0}}
WITHOUT_HR = {'datasets:test_1:type': 'SingleImageDataset', 'val:metrics': NIQE}
COSINE = {'type': 'CosineAnnealingRestartLR', 'periods': [4], 'restart_weights': [1], 'eta_min': 1e-7}

SCALES = {'datasets:train:type': 'MultiScaleDataset', 'datasets:train:scales': [2, 4]}
FREEZE = {'train:freeze_params': ['conv_first'], 'train:freeze_iters': 2}
MUON = {'type': 'Muon', 'lr': 0.01, 'adam': {'lr': 1e-3, 'betas': [0.9, 0.99], 'params': ['conv_first', 'conv_last']}}


GAN = {
    'model_type': 'SRGANModel',
    'network_d': {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 8},
    'train:optim_d': {'type': 'Adam', 'lr': 1e-4},
    'train:gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
    'datasets:train:gt_size': 128,
}


def grows(**changes):
    part = {'gt_sizes': [8, 16], 'iters': [2, 2], **changes}
    return {f'datasets:train:{key}': value for key, value in part.items()}


def muon_with(**changes):
    return {'model_type': 'SpinsrModel', 'train:optim_g': {**MUON, **changes}}


@pytest.fixture(autouse=True)
def without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


def lines(options, level, is_train=True):
    return [str(finding) for finding in quick(options, is_train=is_train) if finding.level == level]


def matching(found, line):
    return [text for text in found if line in text]


@pytest.mark.parametrize(
    ('options', 'is_train'),
    [
        (GOOD, True),
        (TEST, False),
        (changed(GOOD, {'train:scheduler': COSINE}), True),
        (changed(GOOD, {'train:scheduler': {**COSINE, 'periods': [3]}}), True),
        (changed(GOOD, {'model_type': 'SRModel'}), True),
        (changed(GOOD, grows(mini_batch_sizes=[2, 1])), True),
        (changed(GOOD, grows(gt_sizes=None, iters=None, mini_batch_sizes=None)), True),
        (changed(without(GOOD, 'scale'), {**grows(), 'datasets:train:scale': 2, 'datasets:val:scale': 2}), True),
        (changed(GOOD, {'datasets:val:name': 'pairs'}), True),
        (changed(GOOD, {'train:scheduler:milestones': []}), True),
        (changed(GOOD, {'train:perceptual_opt': None}), True),
        (changed(GOOD, {'train:optim_g': MUON}), True),
        (changed(GOOD, FREEZE), True),
        (changed(GOOD, DISTILLATION), True),
        (changed(GOOD, {**DISTILLATION, 'train:pixel_opt': None, 'datasets:train:read_gt': False}), True),
        (changed(GOOD, {**DISTILLATION, 'train:distill_iters': 2, 'train:pixel_after': 2}), True),
        (changed(GOOD, {'train:time_limit': '2h30m'}), True),
        (changed(GOOD, WHOLE_FLOATS), True),
        (changed(GOOD, grows(gt_sizes=[8.0, 16.0], iters=[2.0, 2.0])), True),
        (changed(GOOD, GAN), True),
        (changed(without(TEST, 'val:suffix'), {'val:save_img': False}), False),
        (changed(without(TEST, 'datasets:test_1:dataroot_gt'), WITHOUT_HR), False),
        (changed(GOOD, {'datasets:val:name': 'a/b'}), True),
    ],
    ids=[
        'train',
        'test',
        'cosine',
        'cosine-one-less',
        'SRModel',
        'patches-that-grow',
        'patches-that-do-not',
        'patches-that-grow-by-the-scale-of-their-set',
        'name-of-the-training-set',
        'no-milestones',
        'no-perceptual-loss',
        'muon',
        'frozen',
        'teacher-and-hr',
        'teacher-alone',
        'teacher-then-hr',
        'time-limit',
        'whole-floats',
        'whole-floats-of-growth',
        'gan',
        'no-suffix-without-pictures',
        'metric-without-reference',
        'set-below',
    ],
)
def test_a_good_file_has_no_finding(options, is_train):
    assert list(quick(options, is_train=is_train)) == []
    assert is_training(options) == is_train


# The largest scale of each network, with all stages; of its other configurations the first stage.
GENERATED = [
    file
    for file in option_files.generated().values()
    if file.phase == 'train'
    and file.scale == max(file.format.recipe.scales)
    and (not file.stage or file.configuration == file.format.name)
]


@pytest.mark.parametrize('file', GENERATED, ids=lambda file: file.name)
def test_a_generated_file_has_no_finding(file):
    assert list(quick(option_files.read(file), is_train=True)) == []


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.slow if '_x2' in path.stem or '_x3' in path.stem else ())
        for path in option_files.shipped().values()
    ],
)
def test_a_shipped_file_has_no_finding(path):
    options = option_files.read(path)
    assert list(quick(options, is_train=is_training(options))) == []


ERRORS = [
    pytest.param(without(GOOD, 'datasets'), "key 'datasets' is missing from the option file", id='no-datasets'),
    pytest.param(changed(without(GOOD, 'network_g'), {'network_q': {}}), "mean 'network_q'?", id='misspelt-section'),
    pytest.param(without(GOOD, 'train:total_iter'), "train: key 'total_iter' is missing", id='no-total'),
    pytest.param(without(GOOD, 'datasets:train'), "datasets: key 'train' is missing", id='no-training-set'),
    pytest.param(without(GOOD, 'val:save_img'), "val: key 'save_img' is missing", id='no-save_img'),
    pytest.param(without(GOOD, 'train:scheduler:type'), "scheduler: key 'type' is missing", id='no-scheduler-type'),
    pytest.param(without(GOOD, 'datasets:train:gt_size'), "key 'gt_size' is missing", id='no-gt_size'),
    pytest.param(without(GOOD, 'datasets:val:dataroot_lq'), "key 'dataroot_lq' is missing", id='no-dataroot'),
    pytest.param(changed(GOOD, {'train': None}), 'train: the section must not be empty', id='empty-section'),
    pytest.param(changed(GOOD, {'path': 'here'}), 'path: must be a section', id='no-section'),
    pytest.param(changed(GOOD, {'datasets:test': {}}), 'begin with one of train, val', id='phase'),
]
for changes, line, name in [
    ({'train:optim_g:lr': '2e-4'}, 'train:optim_g:lr: 2e-4 is text to YAML, not a number; write 0.0002', 'text-number'),
    ({'path:pretrain_netwrok_g': 'x.pth'}, "did you mean 'pretrain_network_g'", 'path-pretrain'),
    ({'path:model': 'x'}, "path has no key 'model'", 'path-unknown'),
    ({'model_type': 'SRModle'}, "'SRModle' is not registered; did you mean 'SRModel'", 'model'),
    ({'model_type': ['SRModel']}, 'is not registered', 'model-list'),
    ({'datasets:val:type': 'PairedImageDatset'}, "did you mean 'PairedImageDataset'", 'dataset'),
    ({'network_g:type': 'RCANspinsr'}, "did you mean 'RCAN_spinsr'", 'arch'),
    ({'network_g:stoken_sise': 4}, "network_g:stoken_sise: SPIN has no keyword 'stoken_sise'; did you", 'arch-key'),
    ({'network_g:num_feat': '8'}, "network_g:num_feat: must be a number, got '8'", 'arch-kind'),
    ({'network_g:stoken_size': 4}, 'network_g: stoken_size must be a list', 'arch-list'),
    ({'network_g:stoken_size': [12, 12]}, 'network_g: stoken_size must have num_block', 'arch-values'),
    ({'network_g:upscale': 5}, 'upscale must be 2, 3 or 4, got 5', 'arch-upscale'),
    ({'network_d': {'type': 'VGGStyleDiscriminator'}}, "needs the keyword 'num_in_ch'", 'arch-missing'),
    ({'train:pixel_opt:type': 'L1Los'}, "did you mean 'L1Loss'", 'loss'),
    ({'train:pixel_opt:loss_wieght': 1.0}, "has no keyword 'loss_wieght'; did you mean 'loss_weight'", 'loss-key'),
    ({'train:pixel_opt:loss_weight': '1'}, 'train:pixel_opt:loss_weight: must be a number', 'loss-kind'),
    ({'train:pixel_opt:reduction': 'average'}, 'train:pixel_opt: ', 'loss-value'),
    ({'train:pixel_opt': None}, 'train: no loss found', 'no-loss'),
    (
        {'model_type': 'SpinsrModel', 'train:pixel_opt': {'type': 'UncertaintyDrivenLoss'}},
        'train:pixel_opt: UncertaintyDrivenLoss needs pred, target, log_scale, but SpinsrModel gives it output, gt',
        'loss-of-another-model',
    ),
    (
        {'model_type': 'SRModel', 'train:pixel_opt': {'type': 'UncertaintyDrivenLoss'}},
        'train:pixel_opt: UncertaintyDrivenLoss needs pred, target, log_scale, but SRModel gives it output, gt',
        'loss-without-a-model',
    ),
    ({'train:optim_g:type': 'Adamm'}, "has no optimizer 'Adamm'", 'optimizer'),
    ({'train:optim_g:beta': [0.9, 0.99]}, "Adam has no keyword 'beta'; did you mean 'betas'", 'optimizer-key'),
    ({'train:optim_g:betas': [0.9, 99]}, 'train:optim_g: ', 'optimizer-value'),
    ({'train:optim_g:betas': []}, 'train:optim_g: ', 'optimizer-values-missing'),
    ({'train:optim_g:lr': 0}, 'train:optim_g:lr: must be a finite number above 0, got 0', 'lr-zero'),
    ({'train:optim_g:lr': float('inf')}, 'lr: must be a finite number above 0, got inf', 'lr-infinite'),
    ({'datasets:train:dataset_enlarge_ratio': float('inf')}, 'must be a number above 0, or ~, got inf', 'ratio'),
    ({'train:optim_g': {**MUON, 'lr': '1e-2'}}, 'train:optim_g:lr: 1e-2 is text to YAML', 'muon-text'),
    ({'train:optim_g': {**MUON, 'lr': -1}}, 'train:optim_g:lr: must be a number above 0, got -1', 'muon-lr'),
    ({'train:optim_g': {**MUON, 'momntum': 0.9}}, "no keyword 'momntum'; did you mean 'momentum'", 'muon-key'),
    ({'train:optim_g': {**MUON, 'adam': {'lr': '1e-3'}}}, 'train:optim_g:adam:lr: 1e-3 is text', 'muon-adam-text'),
    ({'train:optim_g': {**MUON, 'adam': {'betas': 0.9}}}, 'adam:betas: must be a list of two', 'muon-adam-value'),
    ({'train:optim_g': {**MUON, 'adam': {'params': ['tail']}}}, "'tail' matches no parameter", 'muon-names'),
    ({'train:optim_g': {'type': 'Muon'}}, "train:optim_g: Muon needs the keyword 'lr'", 'muon-no-lr'),
    (
        {'model_type': 'SRModel', 'train:optim_g': MUON},
        "train:optim_g:type: SRModel has no optimizer 'Muon'; model_type: SpinsrModel has",
        'muon-of-another-model',
    ),
    ({'train:freeze_iters': 5}, 'freeze_params and freeze_iters must be set together, got None and 5', 'freeze-alone'),
    ({**FREEZE, 'train:freeze_params': ['convv']}, "freeze_params: 'convv' matches no parameter", 'freeze-unknown'),
    ({**FREEZE, 'train:freeze_params': ['*']}, 'freeze_params: must leave parameters to train', 'freeze-all'),
    ({'train:scheduler:type': 'MultiStep'}, "did you mean 'MultiStepLR'", 'scheduler'),
    ({'train:scheduler:milstones': [1]}, "did you mean 'milestones'", 'scheduler-key'),
    ({'train:scheduler:milestones': 3}, 'train:scheduler: ', 'scheduler-value'),
    ({'train:scheduler:milestones': [1.5]}, 'must be a list of whole numbers, got [1.5]', 'milestone-half'),
    ({'train:scheduler': {**COSINE, 'restart_weights': [1, 1]}}, 'train:scheduler: ', 'cosine-lengths'),
    ({'train:scheduler': {**COSINE, 'periods': [2]}}, 'end at 2, where BasicSR fails, before total_iter=4', 'cosine'),
    ({'val:metrics:psnr:type': 'calculate_pnsr'}, "did you mean 'calculate_psnr'", 'metric'),
    ({'val:metrics:psnr:test_y_chanel': True}, "did you mean 'test_y_channel'", 'metric-key'),
    ({'val:metrics:psnr': {'type': 'calculate_psnr'}}, "needs the keyword 'crop_border'", 'metric-missing'),
    ({'val:metrics:psnr:test_y_channel': 1}, 'psnr:test_y_channel: must be true or false, got 1', 'metric-kind'),
    ({'val:metrics:psnr:crop_border': -1}, 'at least 0, got -1', 'crop_border'),
    ({'val:metrics:psnr:better': 'more'}, "must be higher or lower, got 'more'", 'better'),
    ({'val:metrics:psnr': 2}, 'val:metrics:psnr: must be a section', 'metric-section'),
    ({'train:total_iter': 0}, 'train:total_iter: must be a whole number of at least 1, got 0', 'total-zero'),
    ({'train:ema_decay': '0.999'}, "train:ema_decay: must be a number from 0 to below 1, got '0.999'", 'ema-text'),
    ({'train:ema_decay': 1}, 'from 0 to below 1, got 1', 'ema-one'),
    ({'train:warmup_iter': None}, 'train:warmup_iter: must be', 'warmup-none'),
    ({'datasets:train:batch_size_per_gpu': 1.5}, 'batch_size_per_gpu: must be', 'half-a-batch'),
    ({'datasets:train:num_worker_per_gpu': True}, 'at least 0, got True', 'bool-for-int'),
    ({'datasets:train:use_hflip': 'yes'}, "use_hflip: must be true or false, got 'yes'", 'flag'),
    ({'datasets:train:prefetch_mode': 'gpu'}, 'must be cpu, cuda or ~', 'prefetch'),
    ({'datasets:train:persistent_workers': True}, 'needs num_worker_per_gpu above 0 and a training set', 'persistent'),
    ({'datasets:val:filename_tmpl': 'x4'}, 'must be text with {} in it', 'template'),
    ({'datasets:val:io_backend': {'type': 'lmbd'}}, "disk, lmdb or memcached, got 'lmbd'", 'backend'),
    ({'datasets:val:io_backend:path': 'x'}, "io_backend:path: disk has no key 'path'", 'backend-key'),
    ({'datasets:val:io_backend': {'type': 'lmdb'}}, 'must end with .lmdb, as io_backend:type is lmdb', 'no-lmdb'),
    ({'datasets:val:dataroot_gt': 'x.lmdb'}, 'must be a folder, no .lmdb', 'lmdb-on-disk'),
    ({**SCALES, 'datasets:train:scales': [3, 4]}, 'scales: must contain the scale, got [3, 4] for scale 2', 'scales'),
    ({**SCALES, 'datasets:train:scales': 2}, 'datasets:train:scales: must be a list, each item', 'scales-number'),
    ({**SCALES, 'datasets:train:gt_sizes': [8]}, 'gt_sizes: must be left out with scales', 'scales-growth'),
    ({'datasets:train:gt_size': 15}, 'must be a multiple of the scale, got 15 for scale 2', 'gt_size'),
    (grows(iters=None), 'iters: must have a number for each of gt_sizes [8, 16], got None', 'growth-without-iters'),
    (grows(iters=[4]), 'iters: must have a number for each of gt_sizes [8, 16], got [4]', 'growth-of-other-length'),
    (grows(gt_sizes=[8, 18]), 'must be multiples of scale=2 up to gt_size=16, got [8, 18]', 'growth-beyond-gt_size'),
    (grows(gt_sizes=[7, 16]), 'must be multiples of scale=2 up to gt_size=16, got [7, 16]', 'growth-beside-the-scale'),
    (grows(gt_sizes=[0, 16]), 'must be a list of whole numbers of at least 1, got [0, 16]', 'growth-from-0'),
    (grows(gt_sizes=[]), 'must be a list of whole numbers of at least 1, got []', 'growth-of-nothing'),
    (grows(iters='long'), "iters: must be a list of whole numbers of at least 1, got 'long'", 'growth-for-text'),
    ({**grows(), 'datasets:train:gt_size': '16'}, 'gt_sizes: needs gt_size and batch_size_per_gpu', 'growth-to-text'),
    (grows(mini_batch_sizes=[2]), 'mini_batch_sizes: must have a number for each', 'mini-batches-of-other-length'),
    (
        grows(mini_batch_sizes=[4, 1]),
        'must be multiples of accumulate=1 up to batch_size_per_gpu=2, got [4, 1]',
        'mini-batches-above-the-batch',
    ),
    (
        {**grows(mini_batch_sizes=[2, 1]), 'train:accumulate': 2},
        'must be multiples of accumulate=2 up to batch_size_per_gpu=2, got [2, 1]',
        'mini-batches-that-do-not-divide',
    ),
    ({'train:accumulate': 3}, 'train:accumulate: must divide the batch, got 3 for ', 'accumulate-that-does-not-divide'),
    (
        {'train:distill_opt': DISTILLATION['train:distill_opt']},
        'train:distill_opt: needs the outputs of a teacher; datasets:train:type is PairedImageDataset',
        'distill-without-a-teacher',
    ),
    (
        {**DISTILLATION, 'datasets:train:read_gt': False},
        'datasets:train:read_gt: must be true: train:pixel_opt needs HR',
        'distill-without-hr',
    ),
    ({**DISTILLATION, 'datasets:train:read_gt': 'no'}, "read_gt: must be true or false, got 'no'", 'read_gt-text'),
    (
        {**DISTILLATION, 'train:distill_iters': 1, 'train:pixel_after': 3},
        'train:pixel_after: iterations 2 to 3 would have no loss',
        'distill-with-a-gap',
    ),
    ({'train:distill_iters': 3}, 'train:distill_iters: needs distill_opt', 'distill_iters-alone'),
    ({**DISTILLATION, 'train:distill_iters': 0.5}, 'train:distill_iters: must be a whole number', 'distill_iters-half'),
    (
        {**DISTILLATION, 'train:distill_opt': {'type': 'ContrastiveLoss'}},
        'train:distill_opt: ContrastiveLoss needs pred, target, lq, but SpinsrModel gives it output, teacher',
        'distill-by-another-loss',
    ),
    ({**DISTILLATION, 'datasets:train:dataroot_teacher': 'x.lmdb'}, 'must be a folder, no .lmdb', 'teacher-lmdb'),
    ({'scale': 4}, 'scale: is 4, but network_g:upscale is 2', 'scale'),
    ({'network_s': {'type': 'RDBESA', 'upscale': 3}}, 'scale: is 2, but network_s:upscale is 3', 'scale-of-estimator'),
    ({'network_s': {'type': 'RDBESA'}}, 'scale: is 2, but network_s:upscale is 4, its default', 'scale-by-default'),
    ({'scale': '4'}, "scale: must be a whole number of at least 1, got '4'", 'scale-text'),
    ({'path:strict_load_g': 'no'}, "path:strict_load_g: must be true or false, got 'no'", 'strict'),
    ({'logger:wandb': {'project': 'p'}}, 'logger:wandb:project: needs use_tb_logger: true', 'wandb'),
    ({'num_gpu': 1}, 'use num_gpu: auto or 0', 'no-gpu'),
    ({'num_gpu': 'all'}, "num_gpu: must be 'auto' or a whole number", 'num_gpu-text'),
    ({'num_gpu': -1}, 'got -1', 'num_gpu-negative'),
    ({'name': '../precious'}, 'name: must be the name of a folder: text without /', 'name-above'),
    ({'name': 'a/b'}, 'name: must be the name of a folder: text without /', 'name-below'),
    ({'name': '/a'}, 'name: must be the name of a folder: text without /', 'name-absolute'),
    ({'name': '..'}, 'name: must be the name of a folder', 'name-dots'),
    ({'name': 'a' * 200}, 'name: must be the name of a folder', 'name-long'),
    ({'name': 'a\nb'}, 'name: must be the name of a folder', 'name-of-two-lines'),
    ({'datasets:val:name': '../x'}, 'datasets:val:name: must be text that is not an absolute path', 'set-above'),
    ({'datasets:val:name': '/x'}, 'datasets:val:name: must be text that is not an absolute path', 'set-absolute'),
    ({'val:suffix': '/../../x'}, 'val:suffix: must be text without /', 'suffix-elsewhere'),
    ({'datasets:val:type': 'SingleImageDataset'}, 'SingleImageDataset has no HR images to compare', 'no-hr'),
    ({'val:val_freq': 2.5}, 'val:val_freq: must be a whole number of at least 1, got 2.5', 'half-an-iteration'),
    ({'manual_seed': 2**32}, 'manual_seed: must be a whole number from 0 to 4294967295', 'seed-large'),
    ({'logger:wandb': 'p'}, 'logger:wandb: must be a section', 'wandb-text'),
    ({'dist_params': 'nccl'}, 'dist_params: must be a section', 'dist-text'),
    ({'datasets:val:filename_tmpl': {}}, 'filename_tmpl: must be text with {} in it', 'template-mapping'),
    ({'datasets:val:filename_tmpl': '{}{}'}, 'filename_tmpl: must be text with {} in it', 'template-twice'),
    ({'datasets:val:filename_tmpl': '{x}{}'}, 'filename_tmpl: must be text with {} in it', 'template-named'),
    (
        {'datasets:val:io_backend': {'type': 'lmdb', 'map_sze': 1}},
        "io_backend:map_sze: lmdb has no key 'map_sze'; did you mean 'map_size'",
        'lmdb-key',
    ),
    ({'model_type': 'RealESRNetModel'}, 'model_type: RealESRNetModel runs on CUDA devices only', 'cuda-only'),
    ({'model_type': 'RealESRGANModel'}, 'model_type: RealESRGANModel runs on CUDA devices only', 'cuda-only-gan'),
    ({'model_type': 'SRGANModel'}, "SRGANModel needs the section 'network_d'", 'gan-without-discriminator'),
    (
        {**GAN, 'network_d': {**GAN['network_d'], 'input_size': 100}},
        'network_d: VGGStyleDiscriminator fails',
        'discriminator-value',
    ),
    ({**GAN, 'datasets:train:gt_size': 64}, 'network_d:input_size: must be gt_size, 64, got 128', 'discriminator-size'),
    (
        {**GAN, 'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 8}, **grows(gt_sizes=[8, 20])},
        'gt_sizes: must be a multiple of 8 for UNetDiscriminatorSN, got 20',
        'discriminator-stride',
    ),
    ({'network_g:type': 'MyNet'}, "'MyNet' is not registered; --import MODULE registers", 'arch-of-another-package'),
]:
    ERRORS.append(pytest.param(changed(GOOD, changes), line, id=name))
ERRORS.append(
    pytest.param(
        without(changed(GOOD, DISTILLATION), 'datasets:train:dataroot_teacher'),
        "datasets:train: key 'dataroot_teacher' is missing",
        id='no-dataroot_teacher',
    )
)
ERRORS.append(pytest.param(without(GOOD, 'scale'), 'scale: is not set, and datasets:train needs it', id='no-scale'))
ERRORS.append(pytest.param(without(GOOD, 'train:optim_g:lr'), "needs the keyword 'lr'", id='no-lr'))


@pytest.mark.parametrize(
    ('launcher', 'found'), [('none', []), ('pytorch', ['must divide the batch, got 2 for 3 images'])]
)
def test_parts_of_the_batch_are_of_all_devices_or_of_one_process(launcher, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    options = changed(GOOD, {'train:accumulate': 2, 'datasets:train:batch_size_per_gpu': 3})
    errors = [finding for finding in quick(options, is_train=True, launcher=launcher) if finding.level == 'error']
    assert [finding.message for finding in errors if finding.key == 'train:accumulate'] == found


@pytest.mark.parametrize(('options', 'line'), ERRORS)
def test_error(capsys, options, line):
    assert matching(lines(options, 'error'), line)
    assert capsys.readouterr().out == ''
    with pytest.raises(OptionError):
        stop_at_error(quick(options, is_train=True))


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        pytest.param({'manual_sed': 1}, "nothing reads the key 'manual_sed'; did you mean 'manual_seed'", id='top'),
        pytest.param({'ema_decay': 0.9}, "nothing reads the key 'ema_decay'", id='wrong-section'),
        pytest.param({'train:ema_decy': 0.9}, "train:ema_decy: nothing reads the key 'ema_decy'; did", id='train'),
        pytest.param(
            {'model_type': 'SRModel', 'train:recompute': True},
            "nothing reads the key 'recompute'; model_type: SpinsrModel would",
            id='of-SpinsrModel',
        ),
        pytest.param({'train:accumulate': 3}, "nothing reads the key 'accumulate'", id='parts-of-SpinsrModel'),
        pytest.param(
            {'model_type': 'SRModel', **grows()},
            "datasets:train:gt_sizes: nothing reads the key 'gt_sizes'; model_type: SpinsrModel would",
            id='patches-of-SpinsrModel',
        ),
        pytest.param(
            {'train:distill_opt': DISTILLATION['train:distill_opt']},
            "train:distill_opt: nothing reads the key 'distill_opt'; model_type: SpinsrModel would",
            id='teacher-of-SpinsrModel',
        ),
        pytest.param(
            {**DISTILLATION, 'model_type': 'SpinsrModel', 'train:distill_opt': None},
            'datasets:train: the outputs of the teacher are not used: train:distill_opt is missing',
            id='teacher-without-a-loss',
        ),
        pytest.param({'datasets:train:iters': [4]}, "datasets:train:iters: nothing reads the key 'iters'", id='iters'),
        pytest.param(
            {'model_type': 'SpinsrModel', **grows(iters=[4, 1])},
            'datasets:train:iters: [16] of gt_sizes are never reached: total_iter=4',
            id='patches-that-never-come',
        ),
        pytest.param({'val:val_frq': 1}, "did you mean 'val_freq'", id='val'),
        pytest.param({'logger:print_frq': 1}, "did you mean 'print_freq'", id='logger'),
        pytest.param({'logger:wandb': {'projct': 1}}, 'logger:wandb:projct: nothing reads', id='wandb'),
        pytest.param({'dist_params': {'prot': 1}}, "did you mean 'port'", id='dist'),
        pytest.param({'datasets:val:filename_tmp': '{}'}, "did you mean 'filename_tmpl'", id='dataset'),
        pytest.param({'path:strict_load_d': True}, "did you mean 'strict_load_g'", id='path'),
        pytest.param({'manual_seed': None}, 'manual_seed: is not set', id='seed'),
        pytest.param({'name': 'debug_it'}, "has 'debug' in it", id='debug'),
        pytest.param({'train:scheduler:milestones': [2, 4]}, '[4] are never reached', id='milestone'),
        pytest.param({'train:warmup_iter': 3}, '[2] have no effect', id='milestone-in-warm-up'),
        pytest.param({'train:warmup_iter': 5}, 'the warm up never ends', id='warm-up'),
        pytest.param({'train:scheduler': {**COSINE, 'periods': [9]}}, 'end at 9, but training at', id='cosine-long'),
        pytest.param({'val:val_freq': 5}, 'nothing is validated before the end', id='val_freq'),
        pytest.param({'logger:save_checkpoint_freq': 5}, 'no state is saved', id='save_checkpoint_freq'),
        pytest.param({'logger:print_freq': 5}, 'the log shows no loss', id='print_freq'),
        pytest.param({'train:optim_g:lr': 0.1}, 'train:optim_g:lr: is 0.1', id='lr'),
        pytest.param(muon_with(lr=0.2), 'train:optim_g:lr: is 0.2', id='lr-of-muon'),
        pytest.param(muon_with(adam={'lr': 0.02}), 'train:optim_g:adam:lr: is 0.02', id='lr-beside-muon'),
        pytest.param({'val:metrics:psnr:crop_border': 4}, 'crop_border: is 4: papers leave out', id='crop_border'),
        pytest.param({'val:metrics:psnr:test_y_channel': False}, 'papers measure on Y', id='test_y_channel'),
        pytest.param({'datasets:val_2': GOOD['datasets']['val']}, 'val_2: has the images of datasets:val', id='twice'),
        pytest.param(
            {'datasets:val_2': {**GOOD['datasets']['val'], 'dataroot_gt': 'x'}},
            'datasets:val_2:name: is that of datasets:val',
            id='name-twice',
        ),
        pytest.param({'datasets': {'train': GOOD['datasets']['train']}}, 'no data set to validate on', id='no-val-set'),
        pytest.param({'val': None}, 'datasets:val: is never used', id='no-val'),
    ],
)
def test_warning(changes, line):
    options = changed(GOOD, {'model_type': 'SRModel', **changes})
    assert matching(lines(options, 'warning'), line)
    assert lines(options, 'error') == []


def test_a_class_declares_its_keys():
    dataset = {**without(GOOD, 'datasets:val:dataroot_lq')['datasets']['val'], 'type': 'BicubicImageDataset'}
    options = changed(GOOD, {'datasets:val': {**dataset, 'max_images': 3, 'max_imges': 3}})
    assert [finding.key for finding in quick(options, is_train=True)] == ['datasets:val:max_imges']


@pytest.fixture
def foreign(monkeypatch):
    """A model with an optimizer and a section of its own, and a data set, as another plugin has them."""

    class TheirModel(SRModel):
        def get_optimizer(self, optim_type, params, lr, **kwargs):
            if optim_type != 'AdamW':
                raise NotImplementedError(optim_type)
            return torch.optim.AdamW(params, lr, **kwargs)

    class TheirDataset(PairedImageDataset):
        pass

    class TheirSpinsrModel(SpinsrModel):
        pass

    monkeypatch.setitem(MODEL_REGISTRY._obj_map, 'TheirModel', TheirModel)
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, 'TheirSpinsrModel', TheirSpinsrModel)
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'TheirDataset', TheirDataset)


@pytest.mark.parametrize(
    'changes',
    [{'train:their': 1}, {'their': 1}, {'path:pretrain_network_x': None}, {'datasets:val:their': 1}, {'val:their': 1}],
    ids=['train', 'top', 'path', 'dataset', 'val'],
)
def test_nothing_is_said_of_a_class_that_is_not_known(foreign, changes):
    theirs = {'model_type': 'TheirModel', 'datasets:val:type': 'TheirDataset', 'train:optim_g:type': 'AdamW'}
    assert list(quick(changed(GOOD, {**theirs, **changes}), is_train=True)) == []


@pytest.mark.parametrize('model', ['TheirModel', 'TheirSpinsrModel'])
def test_a_model_that_is_not_known_may_have_patches_that_grow(foreign, model):
    theirs = {'model_type': model, 'train:optim_g:type': 'AdamW'}
    assert list(quick(changed(GOOD, {**theirs, **grows()}), is_train=True)) == []


def test_a_set_of_another_plugin_may_have_a_key_of_that_name(foreign):
    theirs = {'datasets:train:type': 'TheirDataset', 'datasets:train:iters': 1000}
    assert list(quick(changed(GOOD, theirs), is_train=True)) == []


def test_looking_at_files_needs_no_torch():
    code = 'import spinsr.check, sys; assert not {"torch", "basicsr", "cv2"} & set(sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


@pytest.mark.parametrize(('kind', 'found'), [('AdamW', 0), ('Adam', 1)])
def test_the_model_is_asked_for_its_optimizers(foreign, kind, found):
    options = changed(GOOD, {'model_type': 'TheirModel', 'train:optim_g:type': kind})
    assert len(lines(options, 'error')) == found


@pytest.mark.parametrize('text', ['easy', 'hr/e4', '{}x4', 'auto'])
def test_text_that_is_no_number(text):
    assert lines(changed(GOOD, {'datasets:train:name': text}), 'error') == []


def test_whole_floats_become_integers_where_an_integer_is_wanted():
    options = with_whole_numbers(changed(TRAIN, {**WHOLE_FLOATS, 'train:optim_g:lr': 1.0, 'val:val_freq': 2.5}))
    assert (options['train']['total_iter'], type(options['train']['total_iter'])) == (4, int)
    assert [type(step) for step in options['train']['scheduler']['milestones']] == [int, int]
    assert type(options['network_g']['num_feat']) is type(options['val']['metrics']['psnr']['crop_border']) is int
    assert type(options['train']['optim_g']['lr']) is type(options['val']['val_freq']) is float


@pytest.mark.parametrize(
    'network',
    [
        {'type': 'RLFN', 'num_mid': 46.0},
        {'type': 'SPIN', 'stoken_size': [12.0, 16.0]},
        {'type': 'SwinIR', 'depths': [6.0, 6.0], 'img_range': 1.0},
        {'type': 'EMT', 'window_size': [[32.0, 8.0], [8.0, 32.0]]},
        {'type': 'EDSR', 'num_in_ch': 3.0, 'rgb_mean': [0.0, 0.0, 1.0]},
    ],
    ids=lambda network: network['type'],
)
def test_whole_floats_in_arguments_of_networks(network):
    converted = with_whole_numbers({'network_g': network})['network_g']
    wanted, *others = [key for key in network if key != 'type']
    assert '.' not in str(converted[wanted])
    assert all(str(converted[key]) == str(network[key]) for key in others)


def test_a_key_is_shown_without_control_sequences():
    (finding,) = [
        finding for finding in quick(changed(GOOD, {'\x1b[2J\nkey': 1}), is_train=True) if 'key' in finding.key
    ]
    assert str(finding).startswith('\\x1b[2J\\nkey: ')


def test_all_errors_are_found_at_once():
    changes = {'train:optim_g:lr': '2e-4', 'network_g:num_fet': 8, 'path:model': 'x', 'val:metrics:psnr:crop': 2}
    found = [finding.key for finding in quick(changed(GOOD, changes), is_train=True)]
    assert found == ['train:optim_g:lr', 'path:model', 'network_g:num_fet', 'val:metrics:psnr:crop']


def test_package_that_is_not_there(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *_: None)
    options = changed(GOOD, {'logger:use_tb_logger': True, 'logger:wandb': {'project': 'p'}})
    found = lines(options, 'error')
    assert matching(found, 'needs the package tensorboard')
    assert matching(found, 'needs the package wandb')


def test_stop_at_error():
    findings = [warning('a', 'odd'), note('b', 'by the way')]
    assert stop_at_error(findings) == findings
    with pytest.raises(OptionError, match='^c: wrong$'):
        stop_at_error([*findings, error('c', 'wrong'), error('d', 'wrong too')])
    assert str(Finding('error', '', 'wrong')) == 'wrong'


@pytest.mark.parametrize(
    ('changes', 'launcher', 'count', 'line'),
    [
        pytest.param({}, 'slurm', 0, '--launcher slurm needs CUDA', id='launcher'),
        pytest.param({'num_gpu': 3}, 'none', 2, 'num_gpu: is 3, but torch finds 2', id='too-many'),
        pytest.param({'datasets:train:prefetch_mode': 'cuda'}, 'none', 1, 'needs pin_memory: true', id='pin_memory'),
        pytest.param({'num_gpu': 2}, 'pytorch', 2, '', id='all-well'),
    ],
)
def test_devices(monkeypatch, changes, launcher, count, line):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
    found = [str(finding) for finding in quick(changed(GOOD, changes), is_train=True, launcher=launcher)]
    assert matching(found, line) if line else found == []


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A working directory with the data of the tiny project."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'hr').mkdir()
    (tmp_path / 'lr').mkdir()
    (tmp_path / 'half.lmdb').mkdir()
    (tmp_path / 'empty_line.txt').write_text('0.png (24,24,3)\n\n')
    (tmp_path / 'indented.txt').write_text('0.png (24,24,3)\n 1.png (24,24,3)\n')
    (tmp_path / 'bom.txt').write_bytes(b'\xef\xbb\xbf0.png (24,24,3)\n')
    (tmp_path / 'nul.txt').write_bytes('0.png\n'.encode('utf-16-le'))
    (tmp_path / 'latin.txt').write_bytes(b'\xe4.png\n')
    (tmp_path / 'none.txt').touch()


@pytest.mark.parametrize(
    ('changes', 'resumes', 'line'),
    [
        ({'datasets:val:dataroot_gt': 'datasets/div2k/x.lmdb'}, False, 'with: spinsr prepare div2k PATH_TO_DIV2K'),
        ({'datasets:val:dataroot_gt': 'datasets/sample/x.lmdb'}, False, 'make it with: spinsr prepare sample'),
        (
            {'datasets:val:dataroot_gt': 'datasets/benchmark/B100/HR'},
            False,
            'make it with: spinsr prepare benchmark PATH_TO/B100',
        ),
        ({'datasets:val:dataroot_gt': 'elsewhere/HR'}, False, 'datasets:val:dataroot_gt: elsewhere/HR does not exist'),
        ({'datasets:val:dataroot_gt': 'half.lmdb'}, False, 'half.lmdb is not complete'),
        ({'datasets:val:dataroot_gt': 'x\x1b[2J\ny'}, False, 'x\\x1b[2J\\ny does not exist'),
        ({'datasets:train:meta_info_file': 'meta.txt'}, False, 'datasets:train:meta_info_file: meta.txt does not'),
        ({'path:pretrain_network_g': 'a.pth'}, False, 'a.pth does not exist'),
        (
            {'path:pretrain_network_g': 'SPIN_x9.safetensors'},
            False,
            'SPIN_x9.safetensors does not exist; spinsr ships RCAN_x4_light.safetensors, SPIN_x',
        ),
        (
            {'path:pretrain_network_g': 'experiments/mine/models/net_g_5.pth'},
            False,
            'train the experiment mine first',
        ),
        (
            {'path:pretrain_network_g': 'experiments/train_SAN_x2/models/net_g_5.pth'},
            False,
            'train it first: python -m spinsr.train -opt train_SAN_x2.yml',
        ),
        ({'path:resume_state': 'a.state'}, True, 'resume_state: a.state does not exist'),
        ({'datasets:val:meta_info_file': 'empty_line.txt'}, False, 'empty_line.txt, line 2 is empty, which BasicSR'),
        ({'datasets:val:meta_info_file': 'indented.txt'}, False, 'indented.txt, line 2 begins with a space, which B'),
        ({'datasets:val:meta_info_file': 'bom.txt'}, False, 'bom.txt begins with a byte order mark'),
        ({'datasets:val:meta_info_file': 'latin.txt'}, False, 'latin.txt is not a text file in UTF-8'),
        ({'datasets:val:meta_info_file': 'nul.txt'}, False, 'nul.txt is not a text file in UTF-8'),
        ({'datasets:val:meta_info_file': 'none.txt'}, False, 'none.txt is empty'),
        ({}, False, ''),
        ({'path:pretrain_network_g': 'a.pth'}, True, ''),
        ({'path:resume_state': 'a.state', 'auto_resume': True}, False, ''),
    ],
    ids=[
        'div2k',
        'sample',
        'benchmark',
        'elsewhere',
        'half-an-lmdb',
        'control-sequence',
        'meta_info',
        'weights',
        'weights-of-mine',
        'no-shipped-weights',
        'weights-of-a-shipped-file',
        'state',
        'list-with-an-empty-line',
        'list-with-an-indented-line',
        'list-with-a-byte-order-mark',
        'list-in-another-encoding',
        'list-in-utf-16',
        'empty-list',
        'all-there',
        'weights-of-a-resume',
        'auto-resume',
    ],
)
def test_files(data, changes, resumes, line):
    found = [str(finding) for finding in files(changed(TRAIN, changes), resumes=resumes)]
    assert [text for text in found if text.endswith(line) or line in text] == found
    assert bool(found) == bool(line)


def perceptual(kind='vgg19'):
    return {'train:perceptual_opt': {'type': 'PerceptualLoss', 'layer_weights': {'conv5_4': 1}, 'vgg_type': kind}}


@pytest.mark.parametrize(
    ('changes', 'there', 'lines'),
    [
        ({}, None, []),
        (perceptual(), None, ['warning train:perceptual_opt: torchvision downloads https://']),
        (perceptual(), 'torch/hub/checkpoints/vgg19-dcbb9e9d.pth', []),
        (perceptual(), 'experiments/pretrained_models/vgg19-dcbb9e9d.pth', []),
        (
            perceptual('vgg16'),
            'experiments/pretrained_models/vgg19-dcbb9e9d.pth',
            ['warning train:perceptual_opt: torchvision downloads https://'],
        ),
        (perceptual('vgg20'), None, ["has no 'vgg20'"]),
    ],
    ids=['no-loss', 'download', 'cached', 'beside', 'another-vgg', 'no-vgg'],
)
def test_weights_of_the_perceptual_loss(data, monkeypatch, changes, there, lines):
    monkeypatch.setenv('TORCH_HOME', 'torch')
    if there:
        Path(there).parent.mkdir(parents=True)
        Path(there).touch()
    found = [f'{finding.level} {finding}' for finding in files(changed(TRAIN, changes))]
    assert len(found) == len(lines)
    assert all(line in text for line, text in zip(lines, found, strict=True))
