"""From file to file: containers, keys, types, and what is said about it."""

import contextlib
import os
import pickle
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors import safe_open

import spinsr
from spinsr.archs import ARCH_REGISTRY
from spinsr.archs.registry import find
from spinsr.convert import (
    convert_file,
    convert_state_dict,
    read_checkpoint,
    to_basicsr,
    to_official,
    write_checkpoint,
)
from spinsr.convert.half import to_half

from .touch import Touch

EACH_ARCH = ['spin_official_tiny_x4', 'san_official_tiny_x3', 'rcan_official_tiny_x2', 'zoo/emt_x3', 'zoo/rlfn_x2']
each_arch = pytest.mark.parametrize('name', EACH_ARCH)
each_ending = pytest.mark.parametrize('ending', ['.pth', '.pt', '.safetensors'])


def same(one, other):
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def saved(content, path):
    torch.save(content, path)
    return path


def ours(official):
    return convert_state_dict(official.weights, official.arch)


@pytest.fixture
def basicsr_file(official, tmp_path):
    """A file as BasicSR's trainer writes it, with other weights in params than in params_ema."""
    ema = ours(official('spin_official_tiny_x4'))
    content = {'params': {name: value + 1 for name, value in ema.items()}, 'params_ema': ema}
    return saved(content, tmp_path / 'net_g_latest.pth'), content


@pytest.fixture
def spin_training_file(official, tmp_path):
    """A file as the authors' trainer of SPIN writes it."""
    weights = official('spin_official_tiny_x4').weights
    content = {
        'epoch': 3,
        'model_state_dict': OrderedDict((f'module.{key}', value) for key, value in weights.items()),
        'optimizer_state_dict': torch.optim.Adam([torch.nn.Parameter(torch.rand(3))]).state_dict(),
        'stat_dict': {'set5': {'best_psnr': {'value': np.float64(38.2), 'epoch': 3}}, 'losses': [np.float32(0.1)]},
    }
    return saved(content, tmp_path / 'model_x4_3.pt')


@each_ending
@each_arch
def test_official_file_becomes_ours(name, ending, official, tmp_path):
    official, target = official(name), tmp_path / f'ours{ending}'
    done = convert_file(saved(official.weights, tmp_path / 'official.pt'), target)
    written = read_checkpoint(target)
    assert same(written if ending == '.safetensors' else written['params'], ours(official))
    net = ARCH_REGISTRY.get(official.arch)(**official.arguments)
    assert done.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert done[:2] + done[3:6] == (official.arch.removesuffix('_spinsr'), int(name[-1]), 'official', (), ())
    assert set(os.listdir(tmp_path)) == {'official.pt', target.name}


@each_ending
@each_arch
def test_there_and_back_through_files_is_the_same_bit_for_bit(name, ending, official, tmp_path):
    official = official(name)
    source = saved(to_official(ours(official), official.arch), tmp_path / 'official.pt')
    convert_file(source, tmp_path / f'ours{ending}')
    done = convert_file(tmp_path / f'ours{ending}', tmp_path / 'back.safetensors', to='official')
    assert same(read_checkpoint(tmp_path / 'back.safetensors'), read_checkpoint(source))
    assert done.form == 'spinsr'


@pytest.mark.parametrize('name', [name for name in EACH_ARCH if not name.startswith(('spin', 'zoo/emt'))])
def test_official_pt_is_a_bare_state_dict_that_old_torch_reads(name, official, tmp_path):
    official = official(name)
    convert_file(saved(ours(official), tmp_path / 'ours.pth'), tmp_path / 'official.pt', to='official')
    assert read_checkpoint(tmp_path / 'official.pt').keys() == official.weights.keys()
    assert (tmp_path / 'official.pt').read_bytes()[:2] != b'PK'  # the zip files of torch since 1.6


def test_official_pth_of_emt_is_what_the_authors_read(official, tmp_path):
    official = official('zoo/emt_x3')
    convert_file(saved(ours(official), tmp_path / 'ours.pth'), tmp_path / 'emt.pth', to='official')
    assert same(read_checkpoint(tmp_path / 'emt.pth')['params'], official.weights)


def test_official_pt_of_spin_is_what_the_authors_read(official, tmp_path):
    official = official('spin_official_tiny_x4')
    convert_file(saved(ours(official), tmp_path / 'ours.pth'), tmp_path / 'model_x4_0.pt', to='official')
    checkpoint = read_checkpoint(tmp_path / 'model_x4_0.pt')
    assert same(checkpoint['model_state_dict'], {f'module.{key}': value for key, value in official.weights.items()})
    assert checkpoint['epoch'] == 0
    scores = checkpoint['stat_dict']
    scores['set5']['psnrs'].append(1.0)
    scores['set5']['best_psnr']['value'] = 1.0
    assert scores['u100'] == {
        'psnrs': [],
        'ssims': [],
        'best_psnr': {'value': 0.0, 'epoch': 0},
        'best_ssim': {'value': 0.0, 'epoch': 0},
    }
    assert convert_file(tmp_path / 'model_x4_0.pt', tmp_path / 'again.pth').keys == ('model_state_dict',)
    assert same(read_checkpoint(tmp_path / 'again.pth')['params'], ours(official))


def test_training_file_of_spin(spin_training_file, official, tmp_path):
    done = convert_file(spin_training_file, tmp_path / 'ours.safetensors')
    assert same(read_checkpoint(tmp_path / 'ours.safetensors'), ours(official('spin_official_tiny_x4')))
    assert done.keys == ('model_state_dict',)
    assert done.left_out == ('epoch', 'optimizer_state_dict', 'stat_dict')


@pytest.mark.parametrize(
    ('ending', 'to', 'key', 'expected', 'left_out'),
    [
        ('.pth', 'spinsr', None, ('params', 'params_ema'), ()),
        ('.pth', 'spinsr', 'params', ('params',), ('params_ema',)),
        ('.pt', 'spinsr', 'params_ema', ('params_ema',), ('params',)),
        ('.safetensors', 'spinsr', None, ('params_ema',), ('params',)),
        ('.safetensors', 'spinsr', 'params', ('params',), ('params_ema',)),
        ('.pth', 'official', None, ('params_ema',), ('params',)),
        ('.pth', 'official', 'params', ('params',), ('params_ema',)),
    ],
)
def test_keys_of_basicsr(basicsr_file, tmp_path, ending, to, key, expected, left_out):
    source, content = basicsr_file
    done = convert_file(source, tmp_path / f'out{ending}', to=to, key=key)
    assert (done.keys, done.left_out) == (expected, left_out)
    written = read_checkpoint(tmp_path / f'out{ending}')
    if len(expected) > 1:
        assert written.keys() == content.keys()
        assert all(same(written[name], content[name]) for name in content)
    else:
        single = written if ending == '.safetensors' else written['model_state_dict' if to == 'official' else 'params']
        assert same(convert_state_dict(single, 'SPIN'), content[expected[0]])


def test_key_that_is_not_there_is_refused(spin_training_file, tmp_path):
    with pytest.raises(ValueError, match=r'model_x4_3\.pt: the file does not have params_ema, but model_state_dict'):
        convert_file(spin_training_file, tmp_path / 'ours.pth', key='params_ema')


def test_key_of_a_bare_state_dict_is_refused(official, tmp_path):
    source = saved(official('spin_official_tiny_x4').weights, tmp_path / 'a.pt')
    with pytest.raises(ValueError, match='the file does not have params, but a bare state dict'):
        convert_file(source, tmp_path / 'ours.pth', key='params')


def test_metadata(basicsr_file, tmp_path):
    convert_file(basicsr_file[0], tmp_path / 'ours.safetensors')
    with safe_open(tmp_path / 'ours.safetensors', 'pt') as file:
        assert file.metadata() == {
            'arch': 'SPIN',
            'scale': '4',
            'form': 'spinsr',
            'source_key': 'params_ema',
            'spinsr': spinsr.__version__,
        }


def test_what_is_written_loads_by_name(basicsr_file, tmp_path):
    convert_file(basicsr_file[0], tmp_path / 'ours.safetensors')
    arguments = {'num_feat': 16, 'num_block': 2, 'qk_dim': 8, 'mlp_dim': 24, 'stoken_size': (4, 6)}
    net = spinsr.load('SPIN', 4, tmp_path / 'ours.safetensors', **arguments)
    assert same(net.state_dict(), basicsr_file[1]['params_ema'])


def test_a_half_type_names_what_it_cannot_hold_and_only_that():
    assert to_half({'a': torch.full((16, 16), float('nan'))}, 'fp16')['a'].isnan().all()
    for dtype, value, message in (('fp16', 7e4, '7e.04, which fp16 cannot; use bf16 or'), ('bf16', 1e300, 'use fp32')):
        with pytest.raises(ValueError, match=message):
            to_half({'a': torch.full((16, 16), value, dtype=torch.float64)}, dtype)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('name', ['rcan_official_tiny_drift_x2', 'rcan_official_tiny_x2'])
def test_types_stay(name, dtype, official, tmp_path):
    weights = {key: value.to(dtype) for key, value in official(name).weights.items()}
    convert_file(saved(weights, tmp_path / 'official.pt'), tmp_path / 'ours.pth')
    assert {value.dtype for value in read_checkpoint(tmp_path / 'ours.pth')['params'].values()} == {dtype}


@pytest.mark.parametrize('name', ['rcan_official_tiny_drift_x2', 'san_official_tiny_drift_x2'])
def test_drifted_mean_is_folded_and_rounded_and_said(name, official, tmp_path):
    official = official(name)
    done = convert_file(saved(official.weights, tmp_path / 'official.pt'), tmp_path / 'ours.pth')
    assert done.notes[-1].startswith('the mean has drifted in training')
    net = ARCH_REGISTRY.get(official.arch)(**official.arguments).double()
    outputs = []
    for weights in (ours(official), read_checkpoint(tmp_path / 'ours.pth')['params']):
        net.load_state_dict(weights)
        with torch.no_grad():
            outputs.append(net(official.images[0].double()))
    assert 0 < (outputs[0] - outputs[1]).abs().max() < 1e-6


@pytest.mark.parametrize('name', ['rcan_official_tiny_drift_x2', 'san_official_tiny_drift_x2'])
def test_official_file_to_official_changes_the_container_alone(name, official, tmp_path):
    official = official(name)
    done = convert_file(saved(official.weights, tmp_path / 'a.pt'), tmp_path / 'a.safetensors', to='official')
    assert same(read_checkpoint(tmp_path / 'a.safetensors'), official.weights)
    assert done.notes == ()


@pytest.mark.parametrize(
    ('name', 'there', 'back'),
    [
        ('spin_official_tiny_x4', (), ()),
        ('san_official_tiny_x3', ('never uses are dropped',), ('never uses are zeros',)),
        ('rcan_official_tiny_x2', (), ()),
    ],
    ids=['SPIN', 'SAN', 'RCAN'],
)
def test_notes(name, there, back, official, tmp_path):
    notes = convert_file(saved(official(name).weights, tmp_path / 'official.pt'), tmp_path / 'ours.pth').notes
    assert len(notes) == len(there)
    assert all(part in note for part, note in zip(there, notes, strict=True))
    notes = convert_file(tmp_path / 'ours.pth', tmp_path / 'back.pt', to='official').notes
    assert len(notes) == len(back)
    assert all(part in note for part, note in zip(back, notes, strict=True))


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_rcan_to_basicsr_and_back(ending, official, tmp_path):
    official = official('rcan_official_tiny_x2')
    source, target = saved({'params': ours(official)}, tmp_path / 'ours.pth'), tmp_path / f'theirs{ending}'
    convert_file(source, target, to='basicsr')
    written = read_checkpoint(target)
    written = written if ending == '.safetensors' else written['params']
    find('RCAN')(3, 3, **official.arguments).load_state_dict(written)
    assert same(written, to_basicsr(official.weights))
    done = convert_file(target, tmp_path / 'again.pth')
    assert done.form == 'basicsr'
    assert same(read_checkpoint(tmp_path / 'again.pth')['params'], written)
    assert 'mean' in convert_file(target, tmp_path / 'official.pt', to='official').notes[0]


@pytest.mark.parametrize('name', EACH_ARCH[:2])
def test_basicsr_has_only_rcan(name, official, tmp_path):
    with pytest.raises(ValueError, match='does not have the form basicsr; networks that have it: RCAN'):
        convert_file(saved(official(name).weights, tmp_path / 'a.pt'), tmp_path / 'b.pth', to='basicsr')
    assert os.listdir(tmp_path) == ['a.pt']


@pytest.mark.parametrize(
    ('name', 'lacks', 'message'),
    [
        ('spin_official_tiny_x4', 'last_conv.bias', 'lacks 1 tensor: conv_last.bias'),
        ('spin_official_tiny_x4', 'blocks.1.inter_layer.0.sp.weight', r'blocks\.1\.cross_attention\.to_token'),
        ('spin_official_tiny_x4', 'mid_convs.1.weight', r'lacks 1 tensor: convs\.1\.weight'),
        ('spin_official_tiny_x4', 'upconv1.bias', r'lacks 1 tensor: upsample\.0\.bias'),
        ('san_official_tiny_x3', 'RG.1.rcab.0.conv_first.2.bias', r'groups\.1\.blocks\.0\.conv2\.bias'),
        ('rcan_official_tiny_x2', 'body.0.body.2.weight', r'lacks 1 tensor: body\.0\.conv\.weight'),
        ('rcan_official_tiny_x2', 'tail.0', r'lacks upsample\.0\.weight'),
        ('rcan_official_tiny_x2', 'body.0.', r'lacks body\.0\.residual_group\.0'),
        ('rcan_official_tiny_x2', 'body.1.body.0', r'lacks 8 tensors: body\.1\.residual_group\.0\..*, …$'),
        ('zoo/emt_x3', 'body.0.sa_list.1.proj.0.bias', r'lacks 1 tensor: body\.0\.sa_list\.1\.proj\.0\.bias$'),
        ('zoo/rlfn_x2', 'block_1.esa.conv_f', r'lacks 2 tensors: body\.block_1\.esa\.conv_skip\.weight, '),
    ],
)
def test_incomplete_weights_are_refused(name, lacks, message, official, tmp_path):
    weights = {key: value for key, value in official(name).weights.items() if not key.startswith(lacks)}
    with pytest.raises(ValueError, match=message):
        convert_file(saved(weights, tmp_path / 'a.pt'), tmp_path / 'b.pth')


@pytest.mark.parametrize('interaction', ['only_cross', 'only_intra'])
def test_variants_of_spin_change_their_container_alone(interaction, tmp_path):
    arguments = {'num_feat': 8, 'num_block': 1, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': (4,)}
    weights = spinsr.load('SPINVariant', 2, None, **arguments, interaction=interaction).state_dict()
    source = saved({'params': weights}, tmp_path / 'a.pth')
    convert_file(source, tmp_path / 'b.safetensors')
    net = spinsr.load(weights=tmp_path / 'b.safetensors', stoken_size=(4,))
    assert type(net).__name__ == 'SPINVariant'
    assert same(net.state_dict(), weights)
    with pytest.raises(ValueError, match='the file holds SPINVariant x2 weights$'):
        spinsr.load('SPIN', 2, tmp_path / 'b.safetensors')
    with pytest.raises(ValueError, match='SPINVariant does not have an official form'):
        convert_file(source, tmp_path / 'c.pth', to='official')


def test_an_attention_that_some_blocks_have_is_not_left_out(official, tmp_path):
    weights = {key: value for key, value in ours(official(EACH_ARCH[0])).items() if '1.cross_' not in key}
    with pytest.raises(ValueError, match=r'lacks 18 tensors: blocks\.1\.cross_attention'):
        convert_file(saved(weights, tmp_path / 'a.pt'), tmp_path / 'b.pth')


@pytest.mark.parametrize('name', EACH_ARCH)
@pytest.mark.parametrize('arch', ['SPIN', 'SAN', 'RCAN', 'EMT', 'RLFN'])
def test_arch_may_be_named(name, arch, official, tmp_path):
    right = arch.lower() in name
    with contextlib.nullcontext() if right else pytest.raises(ValueError, match=f'not the weights of {arch}: '):
        assert convert_file(saved(official(name).weights, tmp_path / 'a.pt'), tmp_path / 'b.pth', arch).arch == arch


def test_arch_settles_what_the_names_leave_open(tmp_path):
    source = saved({'conv_first.weight': torch.zeros(1)}, tmp_path / 'a.pt')
    with pytest.raises(ValueError, match=r'fit .*DITN, .*RCAN, .* and \w+ equally well: name the network'):
        convert_file(source, tmp_path / 'b.pth')
    with pytest.raises(ValueError, match='SAN does not have tensors of these shapes: conv_first.weight'):
        convert_file(source, tmp_path / 'b.pth', 'SAN')


def test_unknown_form_and_arch_are_refused(official, tmp_path):
    source = saved(official('spin_official_tiny_x4').weights, tmp_path / 'a.pt')
    with pytest.raises(ValueError, match="to must be one of spinsr, official, basicsr, got 'ours'"):
        convert_file(source, tmp_path / 'b.pth', to='ours')
    with pytest.raises(ValueError, match="network with an ArchFormat, got 'Unheard'"):
        convert_file(source, tmp_path / 'b.pth', arch='Unheard')


def test_existing_file_stays_unless_told_otherwise(basicsr_file, tmp_path):
    target = tmp_path / 'ours.pth'
    target.write_bytes(b'precious')
    with pytest.raises(FileExistsError, match=r'ours\.pth exists; --overwrite replaces it'):
        convert_file(basicsr_file[0], target)
    assert target.read_bytes() == b'precious'
    convert_file(basicsr_file[0], target, overwrite=True)
    assert read_checkpoint(target).keys() == {'params', 'params_ema'}


def test_target_is_refused_before_the_source_is_read(tmp_path):
    with pytest.raises(ValueError, match=r'must end in .*, got .*b\.onnx'):
        convert_file(tmp_path / 'nowhere.pth', tmp_path / 'b.onnx')


@each_ending
def test_file_may_be_converted_in_place_when_told(ending, official, tmp_path):
    official, path = official('rcan_official_tiny_x2'), tmp_path / f'net{ending}'
    write_checkpoint(path, official.weights)
    with pytest.raises(FileExistsError):
        convert_file(path, path)
    convert_file(path, path, overwrite=True)
    written = read_checkpoint(path)
    assert same(written if ending == '.safetensors' else written['params'], ours(official))
    assert os.listdir(tmp_path) == [path.name]


def test_failure_leaves_the_old_file_and_nothing_else(basicsr_file, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, 'No space left on device')

    target = tmp_path / 'ours.pth'
    target.write_bytes(b'precious')
    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match=r'ours\.pth cannot be written: No space left on device'):
        convert_file(basicsr_file[0], target, overwrite=True)
    assert target.read_bytes() == b'precious'
    assert set(os.listdir(tmp_path)) == {'ours.pth', 'net_g_latest.pth'}


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / 'a.pth', {'a': torch.zeros(1)})
    assert os.listdir(tmp_path) == []


@each_ending
def test_tensors_are_written_whole_and_alone(ending, tmp_path):
    base = torch.rand(1000, 8)
    content = {'row': base[3], 'column': base[:, 1], 'same': base[3], 'parameter': torch.nn.Parameter(base[4:6])}
    write_checkpoint(tmp_path / f'a{ending}', content)
    written = read_checkpoint(tmp_path / f'a{ending}')
    assert same(written, {key: value.detach() for key, value in content.items()})
    assert (tmp_path / f'a{ending}').stat().st_size < 10_000
    written['row'][0] = 7
    assert written['same'][0] != 7


@pytest.mark.parametrize('value', [{'b': torch.zeros(1)}, 3], ids=['nested', 'number'])
def test_safetensors_hold_tensors_alone(value, tmp_path):
    with pytest.raises(TypeError, match="names to tensors, got 'a': (dict|int)"):
        write_checkpoint(tmp_path / 'a.safetensors', {'a': value})


def test_writing_safetensors_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(ImportError, match=r'writing .*a\.safetensors needs .* pip install safetensors'):
        write_checkpoint(tmp_path / 'a.safetensors', {'a': torch.zeros(1)})


@pytest.mark.parametrize(
    'content',
    [torch.zeros(3), [torch.zeros(3)], {'params': {'conv_first.weight': 3}}, {'epoch': 3, 'optimizer': {}}],
    ids=['tensor', 'list', 'number', 'state'],
)
def test_what_is_no_state_dict_is_refused_with_the_file(content, tmp_path):
    with pytest.raises(ValueError, match=r'a\.pth: a state dict must map names to tensors, got '):
        convert_file(saved(content, tmp_path / 'a.pth'), tmp_path / 'b.pth')


@pytest.mark.parametrize(
    'save', [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))], ids=['torch', 'pickle']
)
def test_code_in_a_file_never_runs(save, official, tmp_path, recwarn):
    path = tmp_path / 'a.pth'
    save({'params': official('spin_official_tiny_x4').weights, 'note': Touch(tmp_path / 'touched')}, path)
    with pytest.raises(ValueError, match=r'cannot read checkpoint .*a\.pth: damaged, or more than tensors'):
        convert_file(path, tmp_path / 'b.pth')
    assert os.listdir(tmp_path) == ['a.pth']
    assert not recwarn.list  # a command says one line
