import logging

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import spinsr
from spinsr.archs import ARCH_REGISTRY
from spinsr.archs.rcan_arch import RCAN

from ..networks import SMALL

each_arch = pytest.mark.parametrize('arch', SMALL)


@pytest.fixture
def image():
    return np.random.randint(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def wrapping_arch(monkeypatch):
    class Wrapping(torch.nn.Module):
        def __init__(self, upscale=2):
            super().__init__()
            self.model = RCAN(**SMALL['RCAN'], upscale=upscale)

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Wrapping', Wrapping)
    return 'Wrapping'


def same(net, other):
    one, two = net.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@each_arch
def test_load_builds_a_network_that_upscales(arch, image):
    net = spinsr.load(arch, scale=3, weights=None, **SMALL[arch])
    out = spinsr.upscale(image, net)
    assert (out.shape, out.dtype) == ((15, 21, 3), np.uint8)
    assert not net.training


def test_rcan_is_the_one_of_spinsr():
    assert type(spinsr.load('RCAN', scale=2, weights=None, **SMALL['RCAN'])).__module__ == 'spinsr.archs.rcan_arch'


@pytest.mark.parametrize(
    ('arch', 'arguments'),
    [('EDSR', {'num_block': 1}), ('SRVGGNetCompact', {'num_conv': 1}), ('SRVGGNetCompact_basicsr', {'num_conv': 1})],
    ids=['needs-colours', 'has-a-suffix', 'with-its-suffix'],
)
def test_other_archs_of_basicsr_load_too(arch, arguments, image):
    net = spinsr.load(arch, scale=2, num_feat=8, weights=None, **arguments)
    assert spinsr.upscale(image, net).shape == (10, 14, 3)


def test_untrained_network_is_said_to_be_untrained(caplog):
    with caplog.at_level(logging.WARNING, logger='spinsr'):
        spinsr.load('SPIN', scale=2, weights=None, **SMALL['SPIN'])
    assert 'SPIN has no weights' in caplog.text


def test_unknown_arch_is_refused_with_the_name():
    with pytest.raises(ValueError, match="got 'SPINN'; did you mean 'SPIN'"):
        spinsr.load('SPINN', weights=None)
    # That of another package is not taken for a misspelt one of BasicSR.
    with pytest.raises(ValueError, match=r"got 'MyNet'; known: .*--import MODULE"):
        spinsr.load('MyNet', weights=None)


def test_unknown_scale_is_refused_with_the_value():
    with pytest.raises(ValueError, match='5'):
        spinsr.load('SPIN', scale=5, weights=None)


def test_unknown_argument_is_refused_with_the_name():
    with pytest.raises(TypeError, match='num_feats'):
        spinsr.load('SPIN', num_feats=16, weights=None)


@pytest.mark.parametrize(
    ('arch', 'key'), [*((arch, 'params_ema') for arch in SMALL), ('SPIN', None), ('SPIN', 'params')]
)
def test_weights_come_back_from_a_file(arch, key, tmp_path, image):
    net, path = spinsr.load(arch, scale=2, weights=None, **SMALL[arch]), tmp_path / 'net.pth'
    torch.save({key: net.state_dict()} if key else net.state_dict(), path)
    other = spinsr.load(arch, scale=2, weights=path, **SMALL[arch])
    assert same(net, other)
    assert np.array_equal(spinsr.upscale(image, net), spinsr.upscale(image, other))


def test_ema_weights_come_first(tmp_path):
    plain, ema = (spinsr.load('SPIN', scale=2, weights=None, **SMALL['SPIN']) for _ in range(2))
    torch.save({'params': plain.state_dict(), 'params_ema': ema.state_dict()}, tmp_path / 'net.pth')
    net = spinsr.load('SPIN', scale=2, weights=str(tmp_path / 'net.pth'), **SMALL['SPIN'])
    assert same(net, ema)
    assert not same(net, plain)


def test_weights_may_be_a_state_dict():
    net = spinsr.load('SPIN', scale=2, weights=None, **SMALL['SPIN'])
    assert same(net, spinsr.load('SPIN', scale=2, weights=net.state_dict(), **SMALL['SPIN']))


def test_weights_of_another_basicsr_arch(tmp_path):
    arguments = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1}
    net = spinsr.load('EDSR', scale=2, weights=None, **arguments)
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    assert same(net, spinsr.load('EDSR', scale=2, weights=tmp_path / 'net.pth', **arguments))


@pytest.mark.parametrize('name', ['spin_official_tiny_x4', 'san_official_tiny_drift_x2', 'rcan_official_tiny_drift_x2'])
def test_official_weights_are_converted(name, official, tmp_path, image, assert_close):
    official = official(name)
    torch.save(official.weights, tmp_path / 'official.pt')
    arguments = dict(official.arguments)
    net = spinsr.load(
        official.arch.removesuffix('_spinsr'), arguments.pop('upscale'), tmp_path / 'official.pt', **arguments
    )
    with torch.inference_mode():
        assert_close(net(official.images[0]), official.results[0], torch.float32)


def test_weights_of_another_scale_are_refused_with_the_file(tmp_path):
    path = tmp_path / 'x2.pth'
    torch.save(spinsr.load('SPIN', scale=2, weights=None, **SMALL['SPIN']).state_dict(), path)
    with pytest.raises(ValueError, match=r'x2\.pth does not fit SPIN x3: the file holds SPIN x2 weights$'):
        spinsr.load('SPIN', scale=3, weights=path, **SMALL['SPIN'])


def test_weights_of_another_scale_are_refused_as_a_state_dict():
    weights = spinsr.load('SAN', scale=2, weights=None, **SMALL['SAN']).state_dict()
    with pytest.raises(ValueError, match='the state dict does not fit SAN x4: '):
        spinsr.load('SAN', scale=4, weights=weights, **SMALL['SAN'])


def test_weights_of_an_unknown_network_are_refused_with_some_of_their_names(tmp_path):
    torch.save({f'layers.{index}.weight': torch.zeros(1) for index in range(100)}, tmp_path / 'other.pth')
    with pytest.raises(
        ValueError, match=r'other\.pth does not fit SPIN x2: 100 unexpected keys for SPIN: layers'
    ) as error:
        spinsr.load('SPIN', scale=2, weights=tmp_path / 'other.pth', **SMALL['SPIN'])
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_an_arch_that_refuses_its_arguments_is_named():
    with pytest.raises(ValueError, match='RRDBNet x2 cannot be built: .'):
        spinsr.load('RRDBNet', 2, None, num_in_ch=3, num_out_ch=3, num_feat=-8)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        spinsr.load('SPIN', scale=2, weights=tmp_path / 'nowhere.pth', **SMALL['SPIN'])


def test_default_weights_are_those_of_the_package(tmp_path, monkeypatch):
    net = spinsr.load('SPIN', scale=2, weights=None, **SMALL['SPIN'])
    monkeypatch.setattr('spinsr.weights.FOLDER', tmp_path)
    save_file(net.state_dict(), tmp_path / 'SPIN_x2.safetensors')
    assert same(net, spinsr.load('SPIN', scale=2, **SMALL['SPIN']))


def test_missing_default_weights_are_named_with_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr('spinsr.weights.FOLDER', tmp_path)
    (tmp_path / 'SPIN_x4.safetensors').touch()
    with pytest.raises(ValueError, match=r'no weights for SAN x3 \(shipped: SPIN_x4\)'):
        spinsr.load('SAN', scale=3)


def test_archs_that_call_it_scale_load_too():
    net = spinsr.load('RRDBNet', 2, None, num_in_ch=3, num_out_ch=3, num_feat=8, num_block=1, num_grow_ch=4)
    assert spinsr.upscale(np.zeros((4, 6, 3), np.uint8), net).shape == (8, 12, 3)


@pytest.mark.parametrize('scale', [1, 2, 4])
@pytest.mark.parametrize('arch', [None, 'RRDBNet'])
def test_weights_of_rrdbnet_are_refused_with_the_arguments_they_need(scale, arch):
    sizes = {'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}
    net = spinsr.load('RRDBNet', scale, None, **sizes)
    wanted = f'RRDBNet x{scale} weights; pass --arch RRDBNet --scale {scale} --arch-args num_feat=8 num_block=1 num_gr'
    with pytest.raises(ValueError, match=wanted):
        spinsr.load(arch, weights={'params': net.state_dict()})
    weights = {f'generator.{name}': value for name, value in net.state_dict().items()}
    assert same(spinsr.load('RRDBNet', scale, weights, **sizes), net)


def test_damaged_weights_of_rrdbnet_name_the_damage():
    sizes = {'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}
    state_dict = spinsr.load('RRDBNet', 4, None, **sizes).state_dict()
    del state_dict['conv_hr.bias']
    with pytest.raises(ValueError, match=r'pass .* num_feat=8 .*\(.*\)$'):
        spinsr.load('RRDBNet', 4, state_dict, num_feat=12)
    with pytest.raises(ValueError, match='conv_hr.bias') as caught:
        spinsr.load('RRDBNet', 4, state_dict, **sizes)
    assert 'pass' not in str(caught.value)


@pytest.mark.parametrize('prefix', ['', 'generator.'])
def test_a_network_of_another_project_keeps_the_names_of_one_of_spinsr_inside(prefix, wrapping_arch):
    net = spinsr.load(wrapping_arch, 2, None)
    weights = {prefix + name: value for name, value in net.state_dict().items()}
    assert same(spinsr.load(wrapping_arch, 2, weights), net)


def test_arch_without_a_scale_is_refused():
    with pytest.raises(ValueError, match='VGGStyleDiscriminator takes neither upscale nor scale'):
        spinsr.load('VGGStyleDiscriminator', 2, None)


@pytest.mark.parametrize(
    ('arch', 'scale', 'content'),
    [
        ('SAN', 4, 'the file holds SPIN x4 weights'),
        ('SPIN', 2, 'the file holds SPIN x4 weights'),
        ('RCAN', 4, 'the file holds SPIN x4 weights'),
    ],
)
def test_weights_of_another_network_are_named_for_what_they_are(tmp_path, arch, scale, content):
    path = tmp_path / 'net.pth'
    torch.save({'params': spinsr.load('SPIN', 4, None, **SMALL['SPIN']).state_dict()}, path)
    with pytest.raises(ValueError, match=rf'net\.pth does not fit {arch} x{scale}: {content}$'):
        spinsr.load(arch, scale, path, **SMALL[arch])


def test_unknown_arch_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="got 'spin'; did you mean 'SPIN'"):
        spinsr.load('spin')


def test_without_a_name_the_weights_tell_the_network(tmp_path, image):
    net = spinsr.load('RDBESA', 3, None, **SMALL['RDBESA'])
    torch.save({'model': {f'module.{key}': value for key, value in net.state_dict().items()}}, tmp_path / 'net.pth')
    other = spinsr.load(weights=tmp_path / 'net.pth')
    assert type(other) is type(net)
    assert np.array_equal(spinsr.upscale(image, net), spinsr.upscale(image, other))


@pytest.mark.parametrize('name', ['spin_official_tiny_x4', 'rcan_official_tiny_drift_x2', 'zoo/rlfn_x2'])
def test_without_a_name_the_authors_weights_tell_the_network(name, official, assert_close):
    official = official(name)
    cells = {'stoken_size': official.arguments['stoken_size']} if official.arch == 'SPIN' else {}
    net = spinsr.load(weights=official.weights, **cells)
    with torch.inference_mode():
        assert_close(net(official.images[0]), official.results[0], torch.float32)


def test_without_a_name_unknown_weights_are_refused():
    with pytest.raises(ValueError, match='the state dict: the weights do not belong to a known network: a, b'):
        spinsr.load(weights={'a': torch.zeros(1), 'b': torch.zeros(1)})


def test_arguments_that_no_shape_tells_are_named_where_the_defaults_do_not_fit():
    weights = spinsr.load('EMT', 2, None, **SMALL['EMT']).state_dict()
    with pytest.raises(ValueError, match='the state dict does not tell num_heads, window_size, shift_size'):
        spinsr.load(weights=weights)


def test_without_anything_it_is_spin_x4(monkeypatch, tmp_path):
    monkeypatch.setattr('spinsr.weights.FOLDER', tmp_path)
    with pytest.raises(ValueError, match='no weights for SPIN x4'):
        spinsr.load()


def test_a_given_argument_that_contradicts_the_weights_is_refused():
    weights = spinsr.load('RDBESA', 2, None, **SMALL['RDBESA']).state_dict()
    with pytest.raises(ValueError, match=r'RDBESA: .* must have the shape'):
        spinsr.load('RDBESA', weights=weights, num_feat=24)


def test_a_published_configuration_has_a_name():
    assert spinsr.load('RLFN-S', 2, None, num_block=1).conv_first.out_channels == 48
    with pytest.raises(ValueError, match='RLFN-S'):
        spinsr.load('RLFN-T', 2, None)


def test_a_model_is_loaded_by_its_name():
    net = spinsr.load(model='spin', scale=2)
    assert (type(net).__name__, net.upscale) == ('SPIN', 2)
    with pytest.raises(ValueError, match='leave weights out'):
        spinsr.load(model='spin', weights=None)
    with pytest.raises(ValueError, match="unknown model 'spinn'; did you mean 'spin'"):
        spinsr.load(model='spinn')
