import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spinsr.archs import ARCH_REGISTRY
from spinsr.archs.registry import find
from spinsr.convert import convert_state_dict, read_checkpoint, unwrap

from .touch import Touch

NAMES = [
    *(f'spin_official_tiny_x{scale}' for scale in (2, 3, 4)),
    *(f'{arch}_official_tiny_{kind}' for arch in ('san', 'rcan') for kind in ('x2', 'x3', 'x4', 'drift_x2')),
    *('zoo/emt_x2', 'zoo/emt_x3', 'zoo/emt_x4', 'zoo/rlfn_x2'),
]
each_network = pytest.mark.parametrize('name', NAMES)
EACH_ARCH = ['spin_official_tiny_x2', 'san_official_tiny_x2', 'rcan_official_tiny_x2', 'zoo/emt_x2', 'zoo/rlfn_x2']
each_arch = pytest.mark.parametrize('name', EACH_ARCH)
with_mean = pytest.mark.parametrize('name', EACH_ARCH[1:4])


def net_of(official):
    return ARCH_REGISTRY.get(official.arch)(**official.arguments)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@each_network
def test_names_and_shapes_are_those_of_the_network(name, official):
    official = official(name)
    converted, expected = convert_state_dict(official.weights, official.arch), net_of(official).state_dict()
    assert converted.keys() == expected.keys()
    assert {key: value.shape for key, value in converted.items()} == {k: v.shape for k, v in expected.items()}


@each_network
def test_input_stays_as_it_is(name, official):
    official = official(name)
    before = {key: value.clone() for key, value in official.weights.items()}
    convert_state_dict(official.weights, official.arch)
    assert same(official.weights, before)


WRAPPERS = {
    'module': lambda weights: {f'module.{key}': value for key, value in weights.items()},
    'model_state_dict': lambda weights: {'epoch': 3, 'model_state_dict': weights, 'stat_dict': {'best': 1.0}},
    'params': lambda weights: {'params': weights},
    'params_ema': lambda weights: {'params': {}, 'params_ema': weights},
    'both': lambda weights: {'model_state_dict': OrderedDict((f'module.{k}', v) for k, v in weights.items())},
}


@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS.keys())
@each_arch
def test_wrapped_is_bare(name, wrap, official):
    official = official(name)
    bare = convert_state_dict(official.weights, official.arch)
    assert same(convert_state_dict(wrap(official.weights), official.arch), bare)


@pytest.mark.parametrize('wrap', [lambda weights: weights, *WRAPPERS.values()], ids=['bare', *WRAPPERS])
@each_arch
def test_our_own_names_come_back_with_the_same_tensors(name, wrap, official):
    official = official(name)
    own = net_of(official).state_dict()
    converted = convert_state_dict(wrap(own), official.arch)
    assert converted.keys() == own.keys()
    assert all(converted[key] is own[key] for key in own)


@each_arch
def test_conversion_twice_is_conversion_once(name, official):
    official = official(name)
    once = convert_state_dict(official.weights, official.arch)
    assert same(convert_state_dict(once, official.arch), once)


def test_rcan_of_basicsr_comes_back_as_it_is(official):
    official = official('rcan_official_tiny_x2')
    theirs = find('RCAN')(num_in_ch=3, num_out_ch=3, **official.arguments).state_dict()
    assert same(convert_state_dict(theirs, 'RCAN'), theirs)


@pytest.mark.parametrize('arch', ['RCAN', 'RCAN_spinsr'])
def test_rcan_goes_by_both_names(arch, official):
    assert 'mean' in convert_state_dict(official('rcan_official_tiny_x2').weights, arch)


@each_arch
def test_every_unmatched_official_name_is_named(name, official):
    official = official(name)
    strange = {'blocks.0.ghost': torch.zeros(1), 'head.9.weight': torch.zeros(1), 'zzz': torch.zeros(1)}
    with pytest.raises(ValueError, match=r'3 unexpected keys for [A-Z]+: blocks\.0\.ghost, head\.9\.weight, zzz'):
        convert_state_dict(official.weights | strange, official.arch)


@each_arch
def test_every_unmatched_name_beside_our_own_is_named(name, official):
    official = official(name)
    strange = {'ghost.weight': torch.zeros(1), 'conv_first.gain': torch.zeros(1)}
    with pytest.raises(ValueError, match=r'2 unexpected keys for [A-Z]+: conv_first\.gain, ghost\.weight'):
        convert_state_dict(net_of(official).state_dict() | strange, official.arch)


@pytest.mark.parametrize(
    ('name', 'arch'),
    [
        (name, other)
        for name in EACH_ARCH
        for other in ('SPIN', 'SAN', 'RCAN', 'RLFN')
        if not name.startswith((other.lower(), f'zoo/{other.lower()}'))
    ],
)
def test_weights_of_another_arch_are_refused(name, arch, official):
    official = official(name)
    with pytest.raises(ValueError, match=f'(unexpected keys? for {arch}|the state dict lacks)'):
        convert_state_dict(official.weights, arch)


@pytest.mark.parametrize('letter', ['q', 'k', 'v'])
@pytest.mark.parametrize(
    'template',
    ['inter_layer.0.{}', 'intra_layer.0.{}', 'local_layer.0.attn.to_{}'],
    ids=['cross', 'intra', 'local'],
)
def test_missing_projection_is_named(template, letter, official):
    weights = dict(official('spin_official_tiny_x2').weights)
    name = f'blocks.1.{template.format(letter)}.weight'
    del weights[name]
    with pytest.raises(ValueError, match=f'lacks {name}'):
        convert_state_dict(weights, 'SPIN')


def test_two_official_names_for_one_are_refused(official):
    weights = dict(official('rcan_official_tiny_x2').weights)
    weights['body.0.body.9.bias'] = weights['body.0.body.2.bias']
    with pytest.raises(ValueError, match=r'body\.0\.body\.9\.bias and another name for body\.0\.conv\.bias'):
        convert_state_dict(weights, 'RCAN')


@pytest.mark.parametrize('missing', ['sub_mean.weight', 'sub_mean.bias', 'add_mean.weight', 'add_mean.bias'])
@with_mean
def test_missing_mean_shift_is_named(name, missing, official):
    official = official(name)
    weights = {key: value for key, value in official.weights.items() if key != missing}
    with pytest.raises(ValueError, match=f'lacks {missing}'):
        convert_state_dict(weights, official.arch)


def test_projections_are_stacked_in_the_order_of_the_network(official):
    weights = official('spin_official_tiny_x2').weights
    stacked = convert_state_dict(weights, 'SPIN')['blocks.1.intra_attention.to_qkv.weight']
    parts = [weights[f'blocks.1.intra_layer.0.{letter}.weight'].flatten(1) for letter in 'qkv']
    assert torch.equal(stacked, torch.cat(parts))


@with_mean
def test_plain_mean_shift_becomes_the_buffer_and_nothing_else(name, official):
    official = official(name)
    converted = convert_state_dict(official.weights, official.arch)
    assert torch.equal(converted['mean'].flatten(), -official.weights['sub_mean.bias'])
    first, last = ('head', 'tail.0') if official.arch == 'EMT' else ('head.0', 'tail.1')
    assert converted['conv_first.weight'] is official.weights[f'{first}.weight']
    assert converted['conv_last.bias'] is official.weights[f'{last}.bias']


@pytest.mark.parametrize('name', ['san_official_tiny_drift_x2', 'rcan_official_tiny_drift_x2'])
def test_drifted_mean_shift_is_folded_exactly(name, official, assert_close):
    official = official(name)
    weights = {key: value.double() for key, value in official.weights.items()}
    converted = convert_state_dict(official.weights, official.arch)
    sub, add = weights['sub_mean.weight'].flatten(1), weights['add_mean.weight'].flatten(1)
    x = torch.randn(3, dtype=torch.float64)

    mean = converted['mean'].flatten()
    head, first = weights['head.0.weight'][..., 1, 1], converted['conv_first.weight'][..., 1, 1]
    assert not torch.equal(sub, torch.eye(3).double())
    assert_close(first @ (x - mean), head @ (sub @ x + weights['sub_mean.bias']))
    # The authors pad the shifted image with zeros; so must be what the shift is of.
    assert_close(sub @ mean, -weights['sub_mean.bias'])

    features = torch.randn(weights['tail.1.weight'].shape[1], dtype=torch.float64)
    tail, last = weights['tail.1.weight'][..., 0, 2], converted['conv_last.weight'][..., 0, 2]
    expected = add @ (tail @ features + weights['tail.1.bias']) + weights['add_mean.bias']
    assert_close(last @ features + converted['conv_last.bias'] + mean, expected)


@pytest.mark.parametrize('part', ['sub_mean.weight', 'sub_mean.bias', 'add_mean.weight', 'add_mean.bias'])
@with_mean
def test_drift_of_one_part_alone_is_seen(name, part, official):
    official = official(name)
    weights = official.weights | {part: official.weights[part] * 1.01}
    converted = convert_state_dict(weights, official.arch)
    assert converted['conv_last.bias'].dtype == torch.float64
    last = 'tail.0' if official.arch == 'EMT' else 'tail.1'
    assert not torch.equal(converted['conv_last.bias'].float(), weights[f'{last}.bias'])


def test_drifted_mean_shift_is_folded_through_the_pixel_shuffle(official, assert_close):
    """EMT adds the mean after it; what is added does not touch what comes before."""
    official = official('zoo/emt_x2')
    add, bias = torch.randn(3, 3), torch.randn(3)
    weights = official.weights | {'add_mean.weight': add[..., None, None], 'add_mean.bias': bias}
    net = net_of(official).double().eval()
    net.load_state_dict(convert_state_dict(weights, 'EMT'))
    before = 255 * official.results[0] - official.weights['add_mean.bias'].double()[:, None, None]
    expected = (torch.einsum('oi,bihw->bohw', add.double(), before) + bias.double()[:, None, None]) / 255
    with torch.no_grad():
        # The buffer and the weights are float32, so 255 levels are known to 1e-5.
        torch.testing.assert_close(net(official.images[0].double()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    'kernel', ['body.0.sa_list.2.token_mixer.mask', 'body.1.mlp_list.0.fc1.mask', 'body.1.mlp_list.3.fc2.mask']
)
def test_fixed_kernels_of_emt_must_be_the_authors(kernel, official):
    weights = official('zoo/emt_x2').weights
    with pytest.raises(ValueError, match=f'{kernel} must hold the fixed kernels'):
        convert_state_dict(weights | {kernel: 1.01 * weights[kernel]}, 'EMT')
    with pytest.raises(ValueError, match=f'lacks {kernel}'):
        convert_state_dict({key: value for key, value in weights.items() if key != kernel}, 'EMT')


@with_mean
def test_singular_mean_shift_is_refused(name, official):
    official = official(name)
    weights = official.weights | {'sub_mean.weight': torch.zeros(3, 3, 1, 1)}
    with pytest.raises(ValueError, match='sub_mean.weight must be invertible'):
        convert_state_dict(weights, official.arch)


def test_dead_parameters_of_san_are_dropped(official):
    weights = official('san_official_tiny_x2').weights
    dead = {'RG.0.gamma', 'RG.1.gamma', 'conv_last.weight', 'conv_last.bias'}
    dead |= {key for key in weights if key.startswith('non_local.soca.')}
    assert dead <= weights.keys()
    assert len(dead) > 4
    without = convert_state_dict({key: value for key, value in weights.items() if key not in dead}, 'SAN')
    converted = convert_state_dict(weights, 'SAN')
    assert same(converted, without)
    assert torch.equal(converted['conv_last.weight'], weights['tail.1.weight'])


@pytest.mark.parametrize('scale', [3, 4])
@pytest.mark.parametrize('arch', ['spin', 'san', 'rcan'])
def test_x2_warm_starts_the_other_scales(arch, scale, official):
    two, other = official(f'{arch}_official_tiny_x2'), official(f'{arch}_official_tiny_x{scale}')
    start, shapes = convert_state_dict(two.weights, two.arch), net_of(other).state_dict()
    assert start.keys() <= shapes.keys()
    unequal = {key.split('.')[0] for key in start if start[key].shape != shapes[key].shape}
    assert unequal == ({'upsample'} if scale == 3 else set())
    assert {key.split('.')[0] for key in shapes.keys() - start.keys()} == ({'upsample'} if scale == 4 else set())


def test_unknown_arch_is_refused_with_the_name():
    with pytest.raises(ValueError, match="network with an ArchFormat, got 'Unheard'"):
        convert_state_dict({}, 'Unheard')


@pytest.mark.parametrize('value', [None, 3, [torch.zeros(1)], torch.zeros(1)], ids=['none', 'number', 'list', 'tensor'])
def test_what_is_no_mapping_is_refused(value):
    with pytest.raises(TypeError, match=f'names to tensors, got {type(value).__name__}'):
        convert_state_dict(value, 'SPIN')


def test_what_is_no_tensor_is_named():
    with pytest.raises(TypeError, match="names to tensors, got 'epoch': int"):
        unwrap({'weight': torch.zeros(1), 'epoch': 3})


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'weights.pth'


def test_reads_what_torch_saves(path):
    weights = OrderedDict(a=torch.rand(3), b=torch.rand(2, 2, dtype=torch.float64))
    torch.save(weights, path)
    assert same(read_checkpoint(path), weights)
    assert same(read_checkpoint(str(path)), weights)


def rename_in_pickle(path, old, new):
    """Rewrites the pickle inside a file of torch.save."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, 'w') as file:
        for name, content in parts.items():
            file.writestr(name, content.replace(old, new) if name.endswith('data.pkl') else content)


@pytest.mark.parametrize('numpy_core', [b'numpy._core', b'numpy.core'], ids=['by_numpy_2', 'by_numpy_1'])
def test_reads_the_training_files_of_spin(path, numpy_core, official):
    weights = official('spin_official_tiny_x2').weights
    parameter = torch.nn.Parameter(torch.rand(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    checkpoint = {
        'epoch': 3,
        'model_state_dict': OrderedDict((f'module.{key}', value) for key, value in weights.items()),
        'optimizer_state_dict': optimizer.state_dict(),
        'scheduler_state_dict': {'milestones': {250000: 1}, 'last_epoch': 3},
        'stat_dict': {'best_psnr': {'value': np.float64(38.2), 'epoch': 3}, 'losses': [np.float32(0.1), 0.2]},
    }
    torch.save(checkpoint, path)
    own = np.float64(0).__reduce__()[0].__module__  # numpy._core.multiarray since NumPy 2
    rename_in_pickle(path, own.encode(), numpy_core + b'.multiarray')
    assert same(convert_state_dict(read_checkpoint(path), 'SPIN'), convert_state_dict(weights, 'SPIN'))


def test_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match='no such weights file: .*weights.pth'):
        read_checkpoint(path)


def test_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such weights file'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    'content',
    # The last one is a pickle that asks for something that is not in it, for which Python says a number only.
    [b'', b'garbage', b'\x00' * 1000, b'PK\x03\x04garbage', b'<html>404</html>', b'\x80\x02j5n k\n.'],
    ids=lambda c: repr(c[:8]),
)
@pytest.mark.parametrize('suffix', ['.pth', '.pt'])
def test_garbage_is_refused_with_the_file(tmp_path, content, suffix):
    path = tmp_path / f'weights{suffix}'
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf'cannot read checkpoint .*weights\{suffix}: damaged, or (not written by|more than) '
    ):
        read_checkpoint(path)


@pytest.mark.parametrize('share', [0.1, 0.5, 0.99])
def test_truncated_file_is_refused_with_the_file(path, share):
    torch.save({'weight': torch.rand(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        ValueError, match='cannot read checkpoint .*weights.pth: damaged, or not written by torch.save$'
    ):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'save', [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, 2))], ids=['torch', 'pickle']
)
def test_code_in_a_file_is_refused_and_never_runs(path, tmp_path, save):
    save({'params': {'weight': torch.rand(3)}, 'note': Touch(tmp_path / 'touched')}, path)
    with pytest.raises(ValueError, match='cannot read checkpoint .*weights.pth'):
        read_checkpoint(path)
    assert not (tmp_path / 'touched').exists()


def test_safetensors(tmp_path):
    weights = {'a': torch.rand(3), 'b': torch.rand(2, 2)}
    save_file(weights, tmp_path / 'weights.safetensors')
    assert same(read_checkpoint(tmp_path / 'weights.safetensors'), weights)


def test_damaged_safetensors_are_refused_with_the_file(tmp_path):
    path = tmp_path / 'weights.safetensors'
    path.write_bytes(b'garbage')
    with pytest.raises(
        ValueError, match='cannot read checkpoint .*weights.safetensors: damaged, or not a .safetensors file$'
    ):
        read_checkpoint(path)


def test_safetensors_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    path = tmp_path / 'weights.safetensors'
    path.write_bytes(b'')
    with pytest.raises(ImportError, match='pip install safetensors'):
        read_checkpoint(path)


def test_empty_state_dict_is_refused():
    with pytest.raises(ValueError, match='must not be empty'):
        convert_state_dict({}, 'SPIN')
