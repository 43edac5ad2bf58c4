import sys

import pytest
import spandrel
import torch

from spinsr.archs import ARCH_REGISTRY
from spinsr.convert import formats, get_format, to_basicsr, to_official, write_checkpoint
from spinsr.convert.shapes import arch_args_of
from spinsr.export.spandrel import install

from ..networks import BASICSR, SMALL, told

NETWORKS = {
    'SPIN': {'num_feat': 16, 'num_block': 3, 'stoken_size': (12, 16, 20), 'qk_dim': 12, 'mlp_dim': 20, 'upscale': 3},
    'SAN': {'num_feat': 16, 'num_group': 2, 'num_block': 1, 'squeeze_factor': 4, 'upscale': 2},
    'RCAN': {'num_feat': 10, 'num_group': 2, 'num_block': 3, 'squeeze_factor': 3, 'upscale': 4},
    'RLFN': {'num_feat': 8, 'num_mid': 12, 'num_block': 2, 'num_esa': 4, 'upscale': 2},
    'RDBESA': {'num_feat': 16, 'num_block': 2, 'squeeze_factor': 4, 'upscale': 3},
}
FORMS = {
    'ours': lambda state_dict, arch: state_dict,
    'official': to_official,
    'basicsr': lambda state_dict, arch: to_basicsr(state_dict),
}
# The authors' RCAN is a network of spandrel's own.
CASES = [
    ('SPIN', 'ours', 'SPIN_spinsr'),
    ('SPIN', 'official', 'SPIN_spinsr'),
    ('SAN', 'official', 'SAN_spinsr'),
    ('RLFN', 'official', 'RLFN_spinsr'),
    ('RCAN', 'basicsr', 'RCAN_spinsr'),
    ('RCAN', 'official', 'RCAN'),
]
each_arch = pytest.mark.parametrize('arch', NETWORKS)


def build(arch, **further):
    net = ARCH_REGISTRY.get('RCAN_spinsr' if arch == 'RCAN' else arch)(**NETWORKS[arch] | further).eval()
    with torch.no_grad():
        for value in net.parameters():
            if not value.any():  # SAN's skips start at 0 and would hide what they carry
                value.normal_(0, 0.1)
    return net


@pytest.fixture
def loader():
    registry = spandrel.MAIN_REGISTRY.copy()
    install(registry)
    return spandrel.ModelLoader(registry=registry)


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
@pytest.mark.parametrize(('arch', 'form', 'name'), CASES, ids=['-'.join(case[:2]) for case in CASES])
def test_loader_gives_our_network(arch, form, name, ending, loader, tmp_path, assert_close):
    net, x = build(arch), torch.rand(1, 3, 21, 34)
    content, path = FORMS[form](net.state_dict(), arch), tmp_path / f'net.{ending}'
    write_checkpoint(path, content if ending == 'safetensors' else {'params': content})
    model = loader.load_from_file(path)
    assert (model.architecture.id, model.scale, model.purpose) == (name, NETWORKS[arch]['upscale'], 'SR')
    with torch.no_grad():
        assert_close(model(x.clone()), net(x).clamp(0, 1))  # spandrel's RCAN writes into its input


@pytest.mark.parametrize('name', [name for name in SMALL if name != 'SPINVariant'])  # whose weights tell SPIN
def test_loader_gives_every_network_of_ours(name, assert_close):
    format, registry = get_format(name), spandrel.MAIN_REGISTRY.copy()
    install(registry, {name: told(name)})
    net, x = format.cls(**{**SMALL[name], 'upscale': 2}).eval(), torch.rand(1, 3, 16, 17)
    model = spandrel.ModelLoader(registry=registry).load_from_state_dict(net.state_dict())
    assert (model.architecture.id, model.scale) == (f'{name}_spinsr', 2)
    with torch.no_grad():
        assert_close(model(x), net(x).clamp(0, 1))


@pytest.mark.parametrize(
    ('name', 'expected'), [('SwinIR', 'SwinIR'), ('EDSR', 'EDSR_spinsr'), ('ECBSR', 'ECBSR_spinsr')]
)
def test_loader_gives_basicsrs_networks_that_spandrel_lacks(name, expected, loader, assert_close):
    format, x = get_format(name), torch.rand(1, 3, 16, 20)
    net = format.cls(**{**format.defaults, **BASICSR[name].small, format.scale_keyword: 2}).eval()
    model = loader.load_from_state_dict(net.state_dict())
    assert (model.architecture.id, model.scale) == (expected, 2)
    with torch.no_grad():
        assert_close(model(x), net(x).clamp(0, 1))


@each_arch
def test_grey_networks_are_taken(arch, loader, assert_close):
    grey = {'rgb_mean': (0.5,)} if arch in ('SAN', 'RCAN') else {}
    net, x = build(arch, num_in_ch=1, num_out_ch=1, **grey), torch.rand(1, 1, 13, 9)
    model = loader.load_from_state_dict(net.state_dict())
    assert (model.input_channels, model.output_channels) == (1, 1)
    with torch.no_grad():
        assert_close(model(x), net(x).clamp(0, 1))


def test_arguments_that_no_shape_tells_are_given(assert_close):
    registry = spandrel.MAIN_REGISTRY.copy()
    install(registry, {'SPIN': {'stoken_size': (5, 6, 7)}})
    net, x = build('SPIN', stoken_size=(5, 6, 7)), torch.rand(1, 3, 21, 34)
    with torch.no_grad():
        out = spandrel.ModelLoader(registry=registry).load_from_state_dict(net.state_dict())(x)
        assert_close(out, net(x).clamp(0, 1))


def test_installs_for_every_loader_and_only_once(monkeypatch):
    main = spandrel.MAIN_REGISTRY.copy()
    monkeypatch.setattr(spandrel, 'MAIN_REGISTRY', main)
    before = len(main)
    install()
    install()
    assert len(main) == before + len(formats())


@each_arch
def test_no_other_arch_detects_ours_first(arch, loader):
    first = [support.architecture.id for support in loader.registry.architectures('detection')][: len(formats())]
    assert f'{arch}_spinsr' in first


def test_arch_args_of_an_unknown_arch():
    with pytest.raises(ValueError, match='got HAT'):
        install(spandrel.MAIN_REGISTRY.copy(), {'HAT': {}})


def test_without_spandrel(monkeypatch):
    monkeypatch.setitem(sys.modules, 'spandrel', None)
    with pytest.raises(ImportError, match='pip install spandrel'):
        install()


@each_arch
def test_sizes_are_told_from_shapes(arch):
    args = arch_args_of(build(arch).state_dict(), arch)
    squeeze = args.pop('squeeze_factor', None)
    untold = ('squeeze_factor', 'stoken_size')
    assert args == {key: value for key, value in NETWORKS[arch].items() if key not in untold} | {
        'num_in_ch': 3,
        'num_out_ch': 3,
    }
    if squeeze:  # of those that give the same layer
        assert NETWORKS[arch]['num_feat'] // squeeze == NETWORKS[arch]['num_feat'] // NETWORKS[arch]['squeeze_factor']


def test_incomplete_state_dict_is_named():
    state_dict = build('SPIN').state_dict()
    del state_dict['convs.1.bias']
    with pytest.raises(ValueError, match='lacks 1 tensor: convs.1.bias'):
        arch_args_of(state_dict, 'SPIN')
