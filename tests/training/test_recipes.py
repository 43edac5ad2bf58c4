"""Option files from recipes: the values, and the layout that people read."""

import dataclasses

import pytest
import yaml

from spinsr.convert import get_format
from spinsr.convert.recipe import DF2K, Recipe, Start, adamw, cosine, l1
from spinsr.training.recipes import RecipeFile

RECIPE = Recipe(
    about='Everything is our choice, and this sentence is so long that it needs more than one line of comment.',
    hr_patch=100,
    batch=5,
    data=DF2K,
    augment={'use_hflip': True, 'use_rot': False},
    network={'num_block': 3},
    ema_decay=0.999,
    optim_g=adamw(1e-6),
    scheduler=cosine(60, 40, eta_min=1e-7),
    total_iter=100,
    warmup_iter=20,
    grad_clip=10.0,
    precision='bf16',
    losses={'pixel_opt': l1(), 'tv_opt': {'type': 'WeightedTVLoss', 'loss_weight': 0.1}},
    train={'accumulate': 2},
    start=Start(scale=2, comment='x2 comes first.'),
    stages={'tune': {'start': Start(comment='The first stage comes first.')}},
    comments={'lr': 'low', 'eta_min': 'A sentence goes above its line.', 'total_iter': 'x' * 120},
)
FORMAT = dataclasses.replace(get_format('RDBESA'), recipe=RECIPE, configurations={'RDBESA-S': {'num_feat': 32}})


def text(phase='train', scale=3, configuration='RDBESA', stage=''):
    return RecipeFile(phase, FORMAT, configuration, scale, stage).text()


def values(**options):
    return yaml.safe_load(text(**options))


def test_values_of_training():
    options = values()
    data, train = options['datasets']['train'], options['train']
    assert (data['gt_size'], data['batch_size_per_gpu'], data['use_rot']) == (99, 5, False)
    assert data['dataroot_lq'] == 'datasets/df2k/DIV2K_train_LR_bicubic_X3_sub.lmdb'
    assert train == {
        'ema_decay': 0.999,
        'optim_g': {'type': 'AdamW', 'lr': 1e-6, 'weight_decay': 1e-4, 'betas': [0.9, 0.999]},
        'scheduler': {
            'type': 'CosineAnnealingRestartLR',
            'periods': [60, 40],
            'restart_weights': [1, 1],
            'eta_min': 1e-7,
        },
        'total_iter': 100,
        'warmup_iter': 20,
        'grad_clip': 10.0,
        'precision': 'bf16',
        'accumulate': 2,
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
        'tv_opt': {'type': 'WeightedTVLoss', 'loss_weight': 0.1},
    }


def test_network_has_every_argument():
    assert values(configuration='RDBESA-S')['network_g'] == {
        'type': 'RDBESA',
        'num_in_ch': 3,
        'num_out_ch': 3,
        'num_feat': 32,
        'num_block': 3,
        'squeeze_factor': 16,
        'upscale': 3,
    }


def test_an_argument_that_the_network_lacks_is_refused():
    format = dataclasses.replace(FORMAT, recipe=dataclasses.replace(RECIPE, network={'num_blocks': 3}))
    with pytest.raises(ValueError, match=r"RDBESA has arguments that RDBESA lacks: \['num_blocks'\]"):
        RecipeFile('train', format, 'RDBESA', 2).text()


@pytest.mark.parametrize(
    ('scale', 'stage', 'start', 'strict'),
    [
        (2, '', None, True),
        (3, '', 'experiments/train_RDBESA_x2/models/net_g_latest.pth', False),
        (2, 'tune', 'experiments/train_RDBESA_x2/models/net_g_latest.pth', True),
        (3, 'tune', 'experiments/train_RDBESA_x3/models/net_g_latest.pth', True),
    ],
)
def test_what_training_starts_from(scale, stage, start, strict):
    path = values(scale=scale, stage=stage)['path']
    assert (path['pretrain_network_g'], path['strict_load_g']) == (start, strict)
    assert path['param_key_g'] == ('params_ema' if start else 'params')


def test_what_a_test_loads():
    options = values(phase='test', stage='tune')
    assert options['name'] == 'test_RDBESA_x3_tune'
    assert options['path']['pretrain_network_g'] == 'experiments/train_RDBESA_x3_tune/models/net_g_latest.pth'
    assert options['path']['param_key_g'] == 'params_ema'


def test_where_comments_go():
    lines = text().splitlines()
    assert '    lr: 1.0e-06  # low' in lines
    assert lines[lines.index('    eta_min: 1.0e-07') - 1] == '    # A sentence goes above its line.'
    assert lines[lines.index('  total_iter: 100') - 1] == f'  # {"x" * 120}', 'too long for the line'
    assert lines[0].startswith('# RDBESA x3 on DF2K, stage 1 of 2: "Possible Architecture"')
    assert all(line.startswith('# ') and len(line) <= 120 for line in lines[: lines.index('')])
