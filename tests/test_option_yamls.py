"""Every option file loads with BasicSR, builds, and agrees with itself; what would need data or weights is not run.

Files from recipes differ between scales in nothing but the scale, so one scale stands for all; between networks in
patches, network, optimizer and losses alone, so only these are tested of every network. The shipped ones of SPIN, SAN
and RCAN are those that the recipes determine, byte for byte.
"""

import functools
import inspect
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.archs import build_network, vgg_arch
from basicsr.losses import build_loss
from basicsr.models import lr_scheduler
from basicsr.utils.options import ordered_yaml, parse_options
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from spinsr import convert, weights
from spinsr.launch import register
from spinsr.training import recipes

from .networks import NETWORKS, bare

register()

OPTIONS = Path(__file__).parents[1] / 'options'
SHIPPED = sorted(OPTIONS.glob('*.yml'))
OF_RECIPES = recipes.files()
# Their plain files stay in options/, so that people find and read them there.
KEPT = ('SPIN', 'SAN', 'RCAN')
# Networks whose files from recipes stand for those of the others: the shipped ones, and one with stages.
LAYOUTS = (*KEPT, 'RLFN')


class OptionFile(NamedTuple):
    stem: str
    text: str


def stands_for_others(file):
    """The largest scale; all stages of the network, and the first of its other configurations."""
    largest = max(other.scale for other in OF_RECIPES.values() if other.format is file.format)
    return file.scale == largest and (file.configuration == file.format.name or not file.stage)


FILES = [OptionFile(path.stem, path.read_text()) for path in SHIPPED if path.name not in OF_RECIPES]
FILES += [
    OptionFile(name.removesuffix('.yml'), file.text())
    for name, file in OF_RECIPES.items()
    if stands_for_others(file)
    and (file.format.name in LAYOUTS or file.phase == 'train')
    and not isinstance(file.format.arch, str)  # BasicSR's networks: tests/archs/test_basicsr_networks.py
]
OTHERS = [file for file in FILES if (of := OF_RECIPES.get(f'{file.stem}.yml')) and of.format.name not in LAYOUTS]
FILES = [file for file in FILES if file not in OTHERS]
TRAIN = [file for file in FILES if file.stem.startswith('train_')]
TEST = [file for file in FILES if file.stem.startswith('test_')]
# The variants of SPIN x4: parameters, and what differs from train_SPIN_x4.yml beside the name.
PAPER_CELLS = [12, 16, 20, 24]
VARIANT = {'type': 'SPINVariant'}
ABLATION = {
    'only_ispa': (605_115, VARIANT | {'num_block': 12, 'stoken_size': 3 * PAPER_CELLS, 'interaction': 'only_intra'}),
    'only_spca': (616_635, VARIANT | {'num_block': 12, 'stoken_size': 3 * PAPER_CELLS, 'interaction': 'only_cross'}),
    'parallel': (555_035, VARIANT | {'interaction': 'parallel'}),
    'mixture': (555_035, VARIANT | {'aggregation': 'mixture'}),
    'patch': (555_035, VARIANT | {'aggregation': 'patch'}),
    'blocks4': (336_379, {'num_block': 4, 'stoken_size': PAPER_CELLS}),
    'blocks6': (445_707, {'num_block': 6, 'stoken_size': PAPER_CELLS + PAPER_CELLS[:2]}),
    'blocks10': (664_363, {'num_block': 10, 'stoken_size': 2 * PAPER_CELLS + PAPER_CELLS[:2]}),
    'rounds1': (555_035, {'num_iter': 1}),
    'rounds5': (555_035, {'num_iter': 5}),
    'top144': (555_035, VARIANT | {'top_n': 144}),
    'top576': (555_035, VARIANT | {'top_n': 576}),
    'differentiable': (555_035, VARIANT | {'differentiable': True}),
    'exponential': (555_035, VARIANT | {'association': 'exponential'}),
    'positions': (555_035, VARIANT | {'position_weight': 1.0}),
    'ignored_values': (555_035, VARIANT | {'own_values': 'ignored'}),
}
# Recipes with patches and batches of their own: (LR pixels of a side, images).
OWN_PATCH_AND_BATCH = {
    'sample': (32, 4),
    'release': (32, 8),
    'distill': (24, 8),
    'photo_release': (24, 8),
    'light': (32, 8),
    'l2': (120, 4),
}
# Trained on a teacher's outputs, and the recipe of the same network without one.
DISTILLED = {
    'SPIN_x2_distill': 'SPIN_x2_release',
    'SPIN_x3_distill': 'SPIN_x3_release',
    'SPIN_x4_distill': 'SPIN_x4_release',
    'RCAN_x4_light_distill': 'RCAN_x4_light',
}
# Networks as small as SPIN, for the comparison at equal budget: parameters.
LIGHT = {
    'train_RCAN_x4_light': 1_374_123,
    'train_RCAN_x4_light_distill': 1_374_123,
    'train_SAN_x4_light': 1_347_799,
}
# The other scales of the shipped weights, which start from those of x4: what starts afresh.
AFTER_X4 = {
    'train_SPIN_x2_release': set(),
    'train_SPIN_x2_distill': set(),
    'train_SPIN_x3_release': {'upsample.0.weight', 'upsample.0.bias'},
    'train_SPIN_x3_distill': {'upsample.0.weight', 'upsample.0.bias'},
}
# Training strategies (docs/strategies.md): what they start from, and what else is not the plain recipe's.
STRATEGIES = {
    'train_SPIN_x3_from_x2': ('train_SPIN_x2', {'path:strict_load_g'}),
    'train_SPIN_x4_from_x3': ('train_SPIN_x3_from_x2', {'path:strict_load_g'}),
    'train_SPIN_x4_l2': (
        'train_SPIN_x4',
        {'datasets:train', 'train:pixel_opt', 'train:optim_g', 'train:scheduler', 'train:total_iter'},
    ),
    'train_SPIN_x4_contrastive': ('train_SPIN_x4', {'train:contrastive_opt'}),
    'train_SPIN_x4_perceptual': (
        'train_SPIN_x4',
        {'train:perceptual_opt', 'train:tv_opt', 'train:optim_g', 'train:scheduler', 'train:total_iter'},
    ),
    'train_SPIN_x4_uncertainty1': (
        None,
        {'model_type', 'network_s', 'train:pixel_opt'},
    ),
    'train_SPIN_x4_uncertainty2': (
        'train_SPIN_x4_uncertainty1',
        {'model_type', 'network_s', 'path:pretrain_network_s', 'train:pixel_opt'},
    ),
    'train_SPIN_x4_cosine': (None, {'train:scheduler'}),
    'train_SPIN_x4_multistep': (None, {'train:scheduler', 'train:total_iter'}),
}
# For photographs (docs/photographs.md): the LR images are made by a degradation.
PHOTO = ('train_SPIN_x4_photo', 'train_SPIN_x4_photo_release', 'train_SPIN_x4_gan')
BENCHMARKS = ['Set5', 'Set14', 'B100', 'Urban100', 'Manga109']
SECTIONS = {
    'train': [
        '# general settings',
        '# dataset and data loader settings',
        '# network structures',
        '# path',
        '# training settings',
        '# validation settings',
        '# logging settings',
        '# dist training settings',
    ],
    'test': [
        '# general settings',
        '# dataset and data loader settings',
        '# network structures',
        '# path',
        '# validation settings',
    ],
}

# The keys that BasicSR 1.4.2 and our dataset read; a key that nobody reads would be a silent mistake.
LOADER_KEYS = {'num_worker_per_gpu', 'batch_size_per_gpu', 'dataset_enlarge_ratio', 'prefetch_mode'}
DATASET_KEYS = {
    'PairedImageDataset': {'name', 'type', 'dataroot_gt', 'dataroot_lq', 'filename_tmpl', 'io_backend'},
    'BicubicImageDataset': {'name', 'type', 'dataroot_gt', 'io_backend', 'max_images'},
}
DATASET_KEYS['DegradationDataset'] = DATASET_KEYS['BicubicImageDataset'] | {'degradation', 'gt_usm'}
DATASET_KEYS['DistillationDataset'] = DATASET_KEYS['PairedImageDataset'] | {'dataroot_teacher', 'read_gt'}
CROP_KEYS = {'gt_size', 'use_hflip', 'use_rot'}
TOP_KEYS = {'name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'datasets', 'network_g', 'path', 'val'}
PATH_KEYS = {'pretrain_network_g', 'param_key_g', 'strict_load_g', 'pretrain_network_s', 'resume_state'}

every_file = pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
every_train_file = pytest.mark.parametrize('file', TRAIN, ids=lambda file: file.stem)
every_network = pytest.mark.parametrize('file', [*TRAIN, *OTHERS], ids=lambda file: file.stem)
every_test_file = pytest.mark.parametrize('file', TEST, ids=lambda file: file.stem)


def load(file):
    text = file.read_text(encoding='utf-8') if isinstance(file, Path) else file.text
    return yaml.load(text, Loader=ordered_yaml()[0])


def phase(file):
    return file.stem.partition('_')[0]


def leaves(tree, at=''):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f'{at}:{key}')
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from leaves(value, f'{at}:{index}')
    else:
        yield at, tree


def parts(opt):
    """section:key -> value for the sections that the strategies change in part; other keys as they are."""
    for key, value in opt.items():
        if key in ('datasets', 'path', 'train'):
            yield from ((f'{key}:{name}', part) for name, part in value.items())
        else:
            yield key, value


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def on_meta(network_opt):
    return build_once(yaml.safe_dump(dict(network_opt)))


@functools.cache
def build_once(network_yaml):
    with torch.device('meta'):
        return build_network(yaml.safe_load(network_yaml))


def test_shipped_files_are_all_there():
    kept = {name.removesuffix('.yml') for name, file in OF_RECIPES.items() if file.format.name in KEPT}
    more = {'train_SPIN_x4_sample', 'test_SPIN_x4_sample', 'train_SPIN_x4_release', 'train_SPIN_x4_distill'}
    assert {path.stem for path in SHIPPED} == kept | more | set(AFTER_X4) | set(LIGHT) | set(STRATEGIES) | set(PHOTO)


@pytest.mark.parametrize('name', [name for name, file in OF_RECIPES.items() if file.format.name in KEPT])
def test_shipped_file_is_what_the_recipe_determines(name):
    assert (OPTIONS / name).read_bytes() == OF_RECIPES[name].text().encode(), (
        'spinsr options NAME -o options --overwrite'
    )


@pytest.mark.parametrize('name', NETWORKS)
def test_a_recipe_has_every_scale(name):
    scales = {file.scale for file in OF_RECIPES.values() if file.format.registered == name}
    assert scales in (set(), set(NETWORKS[name].parameters))


@pytest.mark.parametrize('path', sorted(OPTIONS.rglob('*.yml')), ids=lambda path: path.stem)
def test_file_loads_and_builds(path):
    opt = load(path)
    assert isinstance(opt['manual_seed'], int)
    assert [(at, value) for at, value in leaves(opt) if isinstance(value, str) and is_number(value)] == []
    on_meta(opt['network_g'])


def test_every_variant_has_its_file():
    names = {path.stem for path in (OPTIONS / 'ablation').glob('*.yml')}
    assert names == {f'train_SPIN_x4_{name}' for name in ABLATION}


@pytest.mark.parametrize('name', ABLATION)
def test_variant_differs_from_the_recipe_by_its_network_alone(name):
    count, changes = ABLATION[name]
    opt = load(OPTIONS / 'ablation' / f'train_SPIN_x4_{name}.yml')
    recipe = load(OPTIONS / 'train_SPIN_x4.yml')
    assert opt == recipe | {'name': f'train_SPIN_x4_{name}', 'network_g': recipe['network_g'] | changes}
    assert sum(parameter.numel() for parameter in on_meta(opt['network_g']).parameters()) == count


@every_file
def test_sections_are_all_there_and_in_order(file):
    lines = file.text.splitlines()
    assert [line for line in lines if line in SECTIONS['train']] == SECTIONS[phase(file)]
    assert max(map(len, lines)) <= 120


@every_file
def test_keys_are_known(file):
    opt = load(file)
    is_train = phase(file) == 'train'
    more = {'train', 'logger', 'dist_params'} if is_train else set()
    second = {'UncertaintyModel': {'network_s'}, 'AdversarialModel': {'network_d'}}.get(opt['model_type'], set())
    assert set(opt) == TOP_KEYS | more | second
    assert set(opt['path']) <= PATH_KEYS
    for key, dataset_opt in opt['datasets'].items():
        known = DATASET_KEYS[dataset_opt['type']] | (LOADER_KEYS | CROP_KEYS if key == 'train' else set())
        more = getattr(MODEL_REGISTRY.get(opt['model_type']), 'OF_TRAINING_SET', ()) if key == 'train' else ()
        assert set(dataset_opt) <= {*known, *more}, key
    if is_train:
        assert set(opt['val']) == {'val_freq', 'save_img', 'metrics'}
        known = {'print_freq', 'save_checkpoint_freq', 'use_tb_logger', 'wandb'}
        assert known <= set(opt['logger']) <= known | {'keep_last'}
    else:
        assert {'save_img', 'suffix', 'metrics'} <= set(opt['val']) <= {'save_img', 'suffix', 'metrics', 'pbar'}


@every_file
def test_types_are_registered(file):
    opt = load(file)
    assert opt['model_type'] in MODEL_REGISTRY
    assert all(dataset_opt['type'] in DATASET_REGISTRY for dataset_opt in opt['datasets'].values())
    for metric_opt in opt['val']['metrics'].values():
        metric = METRIC_REGISTRY.get(metric_opt.pop('type'))
        assert set(metric_opt) <= set(inspect.signature(metric).parameters)


@every_network
def test_network_is_the_paper_s_and_names_every_argument(file):
    opt = load(file)
    network_opt = opt['network_g']
    signature = inspect.signature(ARCH_REGISTRY.get(network_opt['type']))
    assert set(network_opt) == {'type', *signature.parameters}
    count = sum(parameter.numel() for parameter in on_meta(network_opt).parameters())
    of_recipe = OF_RECIPES.get(f'{file.stem}.yml')
    if not of_recipe or of_recipe.configuration == of_recipe.format.name:
        assert count == LIGHT.get(file.stem, NETWORKS[network_opt['type']].parameters[opt['scale']])


@every_file
def test_scale_and_names_agree(file):
    opt = load(file)
    scale = opt['scale']
    of_recipe = OF_RECIPES.get(f'{file.stem}.yml')
    arch = of_recipe.configuration if of_recipe else bare(opt['network_g']['type'])
    assert opt['name'] == file.stem
    assert re.fullmatch(rf'{phase(file)}_{re.escape(arch)}_x{scale}(_\w+)?', file.stem)
    assert opt['network_g']['upscale'] == scale
    for metric_opt in opt['val']['metrics'].values():
        assert metric_opt['crop_border'] == scale
        assert metric_opt['test_y_channel'] is True
    for dataset_opt in opt['datasets'].values():
        if 'dataroot_lq' in dataset_opt:
            assert re.search(r'[/_]X(\d)((_sub)?\.lmdb)?$', dataset_opt['dataroot_lq']).group(1) == str(scale)
        if 'filename_tmpl' in dataset_opt:
            assert dataset_opt['filename_tmpl'] == '{}' + f'x{scale}'
    names = [dataset_opt['name'] for dataset_opt in opt['datasets'].values()]
    assert len(set(names)) == len(names), 'results are kept by the name of the dataset'


@every_file
def test_basicsr_parses_it(file, tmp_path, monkeypatch):
    path = tmp_path / 'options.yml'
    path.write_text(file.text)
    monkeypatch.setattr(sys, 'argv', ['basicsr', '-opt', str(path)])
    opt, _ = parse_options(str(tmp_path), is_train=phase(file) == 'train')
    assert opt['num_gpu'] == torch.cuda.device_count()
    phases = {dataset_opt['phase'] for dataset_opt in opt['datasets'].values()}
    assert phases == ({'train', 'val'} if phase(file) == 'train' else {'test'})
    assert all(dataset_opt['scale'] == opt['scale'] for dataset_opt in opt['datasets'].values())


@every_network
def test_patches_fit(file):
    opt = load(file)
    gt_size = opt['datasets']['train']['gt_size']
    assert gt_size % opt['scale'] == 0
    # spinsr prepare cuts sub-images of 480x480.
    assert gt_size <= 480


@pytest.mark.parametrize('name', OWN_PATCH_AND_BATCH)
def test_patch_and_batch(name):
    (opt,) = [load(file) for file in TRAIN if file.stem.endswith(f'_x4_{name}') and 'RCAN' not in file.stem]
    train = opt['datasets']['train']
    first = train.get('gt_sizes', [train['gt_size']])[0]
    assert (first // opt['scale'], train['batch_size_per_gpu']) == OWN_PATCH_AND_BATCH[name]


def test_patches_of_the_release_grow_with_the_learning_rate():
    opt = load(OPTIONS / 'train_SPIN_x4_release.yml')
    data, train = opt['datasets']['train'], opt['train']
    assert data['iters'] == train['scheduler']['periods']


@pytest.mark.parametrize('name', ['SPIN_x4_release', 'SPIN_x4_photo_release', *DISTILLED])
def test_patches_grow_to_the_largest_until_the_end(name):
    opt = load(OPTIONS / f'train_{name}.yml')
    data, train = opt['datasets']['train'], opt['train']
    assert max(data['gt_sizes']) == data['gt_size']
    assert sum(data['iters']) == sum(train['scheduler']['periods']) == train['total_iter']


@pytest.mark.parametrize('name', DISTILLED)
def test_distillation_is_another_recipe_from_another_target(name):
    opt, other = (load(OPTIONS / f'train_{stem}.yml') for stem in (name, DISTILLED[name]))
    assert all(opt[key] == other[key] for key in ('network_g', 'path', 'logger', 'scale', 'dist_params'))
    assert opt['val']['metrics'] == other['val']['metrics']
    assert opt['datasets']['val'] == other['datasets']['val']
    assert opt['train']['distill_opt'] == other['train']['pixel_opt'] and 'pixel_opt' not in opt['train']
    assert opt['datasets']['train']['read_gt'] is False
    assert all(opt['train'][key] == other['train'][key] for key in ('ema_decay', 'grad_clip'))


@every_network
def test_optimizer_scheduler_and_loss_build(file):
    train = load(file)['train']
    losses = {key: part for key, part in train.items() if key.endswith('_opt') and key != 'perceptual_opt'}
    assert 'pixel_opt' in losses or file.stem.endswith('_distill')
    assert all(isinstance(build_loss(part), torch.nn.Module) for part in losses.values())
    of_muon = train['optim_g'].pop('type') == 'Muon'
    assert of_muon == file.stem.endswith(('_distill', '_photo_release'))
    adam = train['optim_g']['adam'] if of_muon else train['optim_g']
    adam.pop('params', None)
    lr = adam['lr']
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], **adam)
    kind = train['scheduler'].pop('type')
    if kind == 'MultiStepLR':
        milestones = train['scheduler']['milestones']
        assert milestones == sorted(set(milestones))
        assert max(milestones, default=0) < train['total_iter']
        lr_scheduler.MultiStepRestartLR(optimizer, **train['scheduler'])
    else:
        assert kind == 'CosineAnnealingRestartLR'
        scheduler = lr_scheduler.CosineAnnealingRestartLR(optimizer, **train['scheduler'])
        scheduler.last_epoch = train['total_iter'] - 1
        assert scheduler.get_lr()[0] < lr / 99


@every_test_file
def test_test_file_tests_what_the_train_file_trains(file):
    opt = load(file)
    name = file.stem.replace('test_', 'train_')
    (trained,) = [load(other) for other in TRAIN if other.stem == name]
    assert opt['network_g'] == trained['network_g']
    assert opt['path']['pretrain_network_g'] == f'experiments/{trained["name"]}/models/net_g_latest.pth'
    assert opt['path']['param_key_g'] == ('params_ema' if trained['train']['ema_decay'] > 0 else 'params')
    assert opt['path']['strict_load_g'] is True
    names = [dataset_opt['name'] for _, dataset_opt in sorted(opt['datasets'].items())]
    assert names == (['sample_val'] if file.stem.endswith('_sample') else BENCHMARKS)


@pytest.mark.parametrize('name', AFTER_X4)
def test_recipe_of_another_scale_is_the_one_of_x4_from_its_weights(name):
    opt, x4 = load(OPTIONS / f'{name}.yml'), load(OPTIONS / f'train_SPIN_x4_{name.rpartition("_")[2]}.yml')
    assert opt['path']['pretrain_network_g'] == weights.default_weights('SPIN', 4).name
    assert opt['path']['strict_load_g'] is False
    assert opt['network_g'] == x4['network_g'] | {'upscale': opt['scale']}
    changed = {'total_iter', 'optim_g', 'scheduler'}
    assert {key for key, value in x4['train'].items() if opt['train'][key] != value} == changed
    start = convert.read_checkpoint(weights.default_weights('SPIN', 4))
    state = on_meta(opt['network_g']).state_dict()
    afresh = {key for key, value in state.items() if key not in start or value.shape != start[key].shape}
    assert afresh == AFTER_X4[name]


def test_perceptual_loss_builds(monkeypatch):
    """Except the weights, which torchvision would download."""
    wanted = []
    vgg19 = vgg_arch.vgg.vgg19
    monkeypatch.setattr(vgg_arch.vgg, 'vgg19', lambda pretrained: wanted.append(pretrained) or vgg19(weights=None))
    with torch.device('meta'):
        build_loss(load(OPTIONS / 'train_SPIN_x4_perceptual.yml')['train']['perceptual_opt'])
    assert wanted == [True]


@pytest.mark.parametrize('name', STRATEGIES)
def test_strategy_starts_from_what_another_file_trains(name):
    opt, start = load(OPTIONS / f'{name}.yml'), STRATEGIES[name][0]
    weights = start and f'experiments/{start}/models/net_g_latest.pth'
    estimator = start and weights.replace('net_g', 'net_s')
    network = load(OPTIONS / f'{start}.yml')['network_g'] if start else opt['network_g']
    assert opt['path']['pretrain_network_g'] == weights
    assert opt['path'].get('pretrain_network_s', estimator) == estimator
    assert opt['path']['strict_load_g'] is (opt['network_g'] == network)


@pytest.mark.parametrize('name', STRATEGIES)
def test_strategy_changes_what_it_says_and_nothing_else(name):
    opt, (start, changes) = load(OPTIONS / f'{name}.yml'), STRATEGIES[name]
    plain = load(OPTIONS / f'train_SPIN_x{opt["scale"]}.yml')
    own, others = dict(parts(opt)), dict(parts(plain))
    differ = {key for key in own | others if own.get(key) != others.get(key)}
    assert differ == changes | {'name'} | ({'path:pretrain_network_g'} if start else set())


@pytest.mark.parametrize('name', [*LIGHT, *(f'train_SPIN_x4_{name}' for name in ('sample', 'release', 'distill'))])
def test_starts_from_scratch(name):
    assert load(OPTIONS / f'{name}.yml')['path']['pretrain_network_g'] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ('scale', 'afresh'),
    [
        (3, {'upsample.0.weight', 'upsample.0.bias'}),
        (4, {'upsample.2.weight', 'upsample.2.bias'}),
        (8, {'upsample.2.weight', 'upsample.2.bias', 'upsample.4.weight', 'upsample.4.bias'}),
    ],
    ids=['x3', 'x4', 'x8'],
)
@pytest.mark.parametrize('arch', ['SAN', 'RCAN'])
def test_warm_start_keeps_all_but_the_upsampler(arch, scale, afresh):
    """What the comments in the option files promise."""
    two, other = (load(OPTIONS / f'train_{arch}_x{each}.yml') for each in (2, scale))
    assert two['path']['pretrain_network_g'] is None and two['path']['strict_load_g'] is True
    assert other['path']['pretrain_network_g'] == f'experiments/{two["name"]}/models/net_g_latest.pth'
    assert other['path']['strict_load_g'] is False
    start, state = (on_meta(opt['network_g']).state_dict() for opt in (two, other))
    assert {key for key, value in state.items() if key not in start or value.shape != start[key].shape} == afresh
