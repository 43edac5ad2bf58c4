"""Files and wrappings as they are found: prefixes, damage, bombs, and weights that are not numbers."""

import random
import time
import zipfile

import pytest
import torch

import spinsr
from spinsr.convert import convert_file, convert_state_dict, read_checkpoint, unwrap
from spinsr.convert.checkpoint import WRAPPERS

from ..networks import SMALL


@pytest.fixture(scope='module')
def weights():
    return spinsr.load('RDBESA', 2, None, **SMALL['RDBESA']).state_dict()


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'net.pth'


@pytest.mark.parametrize('key', WRAPPERS)
def test_every_wrapper_is_taken_off(key, weights):
    wrapped = {'epoch': 3, key: weights, 'optimizer': {'lr': 1e-3}}
    assert unwrap(wrapped).keys() == weights.keys()


def test_wrappers_inside_wrappers(weights):
    assert unwrap({'net': {'state_dict': weights, 'epoch': 3}}).keys() == weights.keys()


def test_another_key_is_taken_if_no_other_can_be_meant(weights):
    assert unwrap({'ema': weights, 'epoch': 3}).keys() == weights.keys()
    assert unwrap({'G': {'state_dict': weights}, 'optimizer': {'state': {0: weights}}}).keys() == weights.keys()
    both, nested = {'G': weights, 'D': weights}, {'G': {'state_dict': weights}, 'D': weights}
    for other in (both, nested, {'ema': weights, 'scale': torch.ones(1)}):
        with pytest.raises(TypeError, match='names to tensors'):
            unwrap(other)


def test_averaged_weights_come_first(weights):
    averaged = {name: value + 1 for name, value in weights.items()}
    assert unwrap({'params': weights, 'params-ema': averaged})['fuse.bias'] is averaged['fuse.bias']


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'netG.', 'module._orig_mod.', '_orig_mod.netG.module.'])
def test_prefixes_in_any_order_are_removed(prefix, weights):
    assert unwrap({prefix + name: value for name, value in weights.items()}).keys() == weights.keys()


@pytest.mark.parametrize('prefix', ['model.', 'module.ema_model._orig_mod.'])
def test_prefixes_of_all_names_are_removed_from_those_of_a_known_network(prefix, weights):
    assert unwrap({'state_dict': {prefix + name: value for name, value in weights.items()}}).keys() == weights.keys()


@pytest.mark.parametrize(('prefix', 'other'), [('net_g.', 'net_d.'), ('netG.', 'module.netD.')])
def test_a_discriminator_beside_a_known_network_is_left_out(prefix, other, weights):
    both = {prefix + name: value for name, value in weights.items()} | {f'{other}conv0.weight': torch.zeros(1)}
    assert unwrap(both).keys() == weights.keys()
    with_loss = both | {'vgg.conv0.weight': torch.zeros(1)}
    assert f'{other.removeprefix("module.")}conv0.weight' in unwrap(with_loss)  # what else there is may be needed


@pytest.mark.parametrize(
    'names',
    [('model.0.weight', 'model.1.sub.0.weight'), ('model.conv_first.weight', 'conv_last.weight')],
    ids=['own-names', 'only-some'],
)
def test_names_of_an_unknown_network_keep_their_prefix(names):
    assert tuple(unwrap(dict.fromkeys(names, torch.zeros(1)))) == names


def test_names_that_collide_without_their_prefix_are_refused():
    with pytest.raises(ValueError, match=r'a\.weight and module\.a\.weight are both a\.weight'):
        unwrap({'a.weight': torch.zeros(1), 'module.a.weight': torch.ones(1)})


def test_sparse_tensors_are_refused():
    with pytest.raises(TypeError, match='dense'):
        unwrap({'a': torch.zeros(2, 2).to_sparse()})


def test_a_flipped_bit_of_a_tensor_is_noticed(path, weights):
    torch.save({'params': weights}, path)
    content, values = bytearray(path.read_bytes()), weights['fuse.weight'].numpy().tobytes()
    at = content.find(values) + random.randrange(len(values))
    content[at] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'cannot read checkpoint .*net\.pth: damaged: .* has another checksum'):
        read_checkpoint(path)


def test_a_record_that_torch_would_leave_uninitialized_is_noticed(path, weights):
    torch.save({'params': weights}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        place = file.start_dir
    while b'/data/' not in content[place + 46 : content.find(b'PK\1\2', place + 4)]:
        place = content.index(b'PK\1\2', place + 4)
    content[place + 38] ^= 0x10  # the attribute of a folder
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'damaged: .*/data/\d+ is not as torch\.save wrote it'):
        read_checkpoint(path)


@pytest.mark.parametrize('records', [1, 20], ids=['one', 'many'])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(records, path):
    size = 2**24 // records
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        for record in range(records):
            file.writestr(f'net/data/{record}', bytes(size))
    start = time.process_time()
    with pytest.raises(ValueError, match=r'its records claim 16,7\d+,\d+ bytes, the file has \d+'):
        read_checkpoint(path)
    assert time.process_time() - start < 0.1


def test_a_tensor_that_claims_more_than_the_file_is_refused(path):
    torch.save({'params': {'a': torch.zeros(1).expand(2**28)}}, path)
    with pytest.raises(ValueError, match='claims 1,073,741,824 bytes'):
        read_checkpoint(path)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')], ids=['nan', 'inf', '-inf'])
def test_weights_that_are_not_numbers_are_named(value, weights, path):
    broken = {**weights, 'fuse.bias': weights['fuse.bias'].clone()}
    broken['fuse.bias'][3] = value
    torch.save({'params': broken}, path)
    for refuse in (
        lambda: convert_state_dict(broken, 'RDBESA'),
        lambda: convert_file(path, path.with_name('out.pth')),
        lambda: spinsr.load(weights=path),
    ):
        with pytest.raises(ValueError, match=r'fuse\.bias holds NaN or infinity'):
            refuse()


def test_numbers_that_float32_cannot_hold_are_named(weights):
    with pytest.raises(ValueError, match=r'fuse\.bias holds a number that float32 cannot hold'):
        convert_state_dict({**weights, 'fuse.bias': torch.full((16,), 1e300, dtype=torch.float64)}, 'RDBESA')


def test_weights_of_8_bits(weights):
    bias = weights['fuse.bias'].to(torch.float8_e4m3fn)
    assert convert_state_dict({**weights, 'fuse.bias': bias}, 'RDBESA')['fuse.bias'] is bias
    with pytest.raises(ValueError, match=r'fuse\.bias holds NaN'):
        convert_state_dict({**weights, 'fuse.bias': (bias.float() * torch.nan).to(bias.dtype)}, 'RDBESA')


def test_tensors_without_data_are_refused(weights, path):
    torch.save({'params': {**weights, 'fuse.bias': weights['fuse.bias'].to('meta')}}, path)
    with pytest.raises(ValueError, match='is on the meta device: the file lacks its data'):
        read_checkpoint(path)


def test_weights_that_are_not_numbers_of_other_networks_are_named():
    arguments = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1}
    state_dict = spinsr.load('EDSR', 2, None, **arguments).state_dict()
    state_dict['conv_last.bias'][0] = float('nan')
    with pytest.raises(ValueError, match=r'conv_last\.bias holds NaN'):
        spinsr.load('EDSR', 2, state_dict, **arguments)


def test_tensors_with_extra_dimensions_are_named(weights, path):
    torch.save({'params': {**weights, 'fuse.weight': weights['fuse.weight'][..., None]}}, path)
    for refuse in (lambda: convert_file(path, path.with_name('out.pth')), lambda: spinsr.load(weights=path)):
        with pytest.raises(ValueError, match=r'fuse\.weight must have the shape \(16, 32, 1, 1\) .* got .*1, 1, 1\)'):
            refuse()


@pytest.mark.parametrize('dtype', [torch.int32, torch.complex64], ids=['integers', 'complex'])
def test_tensors_of_other_numbers_are_named(dtype, weights, path):
    torch.save({'params': {**weights, 'fuse.weight': weights['fuse.weight'].to(dtype)}}, path)
    for refuse in (lambda: convert_file(path, path.with_name('out.pth')), lambda: spinsr.load(weights=path)):
        with pytest.raises(ValueError, match=rf'fuse\.weight must hold floating-point numbers, got {dtype}'):
            refuse()


def test_official_linear_layers_with_extra_dimensions_are_named(official, path):
    weights = dict(official('spin_official_tiny_x2').weights)
    for letter in 'qkv':
        weights[f'blocks.0.intra_layer.0.{letter}.weight'] = weights[f'blocks.0.intra_layer.0.{letter}.weight'][
            ..., None
        ]
    torch.save(weights, path)
    with pytest.raises(ValueError, match=r'blocks\.0\.intra_attention\.to_qkv\.weight must have the shape'):
        convert_file(path, path.with_name('out.pth'))


def test_names_with_control_sequences_are_escaped(weights):
    with pytest.raises(ValueError, match=r'1 unexpected key for RDBESA: evil\\x1b\[2J\\nname$'):
        convert_state_dict({**weights, 'evil\x1b[2J\nname': torch.zeros(1)}, 'RDBESA')


def test_a_number_of_blocks_out_of_a_damaged_name_builds_no_giant(weights, path):
    torch.save({'params': {**weights, 'blocks.999999999.distill.bias': torch.zeros(16)}}, path)
    with pytest.raises(ValueError, match='RDBESA'):
        convert_file(path, path.with_name('out.pth'))
