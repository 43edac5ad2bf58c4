"""The formats: each registered network is detected, measured and built from its weights alone."""

import pytest
import torch
from torch import nn

import spinsr
from spinsr.archs import ARCH_REGISTRY
from spinsr.convert import (
    ArchFormat,
    convert_state_dict,
    detect_arch,
    find_format,
    formats,
    register_format,
    to_official,
)
from spinsr.convert import registry as registry_module
from spinsr.convert.names import NameTable
from spinsr.convert.registry import Source
from spinsr.convert.shapes import arch_args_of, count

from ..networks import NETWORKS, bare, told

each_network = pytest.mark.parametrize('name', NETWORKS)
# A variant has the tensors of the network that it derives from, so that its weights tell that one.
TOLD = [name for name in NETWORKS if not any(map(find_format, ARCH_REGISTRY.get(name).__mro__[1:]))]
each_told_network = pytest.mark.parametrize('name', TOLD)


def small(name, scale=2, **further):
    return ARCH_REGISTRY.get(name)(**{**NETWORKS[name].small, 'upscale': scale, **further})


@each_network
def test_every_network_has_a_format(name):
    assert (format := find_format(name)) is not None, f'{name}: declare an ArchFormat beside the network'
    assert format is find_format(format.name) is find_format(ARCH_REGISTRY.get(name))
    assert format.source.paper


@pytest.mark.parametrize('scale', [2, 3, 4])
@each_told_network
def test_network_scale_and_sizes_are_told_by_the_weights_alone(name, scale, assert_close):
    net = small(name, scale).eval()
    rebuilt = spinsr.load(weights=net.state_dict(), **told(name))
    assert type(rebuilt) is type(net)
    x = torch.rand(1, 3, 9, 14)
    with torch.no_grad():
        assert_close(rebuilt(x), net(x))


@each_network
def test_the_table_has_every_tensor_and_its_way_back(name):
    state_dict = small(name).state_dict()
    format = find_format(name)
    format.table.check(state_dict, 'ours')
    if format.layout is None:
        return
    back = convert_state_dict(to_official(state_dict, name), name)
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], state_dict[key]) for key in back)


@each_told_network
def test_full_size_is_told_by_the_shapes(name):
    with torch.device('meta'):
        state_dict = ARCH_REGISTRY.get(name)(upscale=4).state_dict()
    assert detect_arch(state_dict) == find_format(name).name
    assert arch_args_of(state_dict, name)['upscale'] == 4


# One other network for each; that no two have the same names is seen where each is told by its weights.
@pytest.mark.parametrize(('name', 'asked'), list(zip(TOLD, TOLD[1:] + TOLD[:1], strict=True)))
def test_weights_of_another_network_are_one_clear_error(name, asked):
    with pytest.raises(ValueError, match=f'the file holds {bare(name)} x2 weights$'):
        spinsr.load(asked, weights=small(name).state_dict(), **told(asked))


class Plain(nn.Module):
    """A network of another project, not in BasicSR's registry."""

    def __init__(self, width: int = 4, scale: int = 2):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, 1, 1)
        self.up = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, 1, 1), nn.PixelShuffle(scale))

    def forward(self, x):
        return self.up(self.head(x))


@pytest.fixture
def plain(monkeypatch):
    formats()
    monkeypatch.setattr(registry_module, '_FORMATS', dict(registry_module._FORMATS))
    return register_format(
        ArchFormat(
            arch=Plain,
            names=('head.{end}', 'up.0.{end}'),
            arguments=lambda weights: {
                'width': len(weights['head.weight']),
                'scale': round((len(weights['up.0.weight']) / 3) ** 0.5),
            },
            source=Source('None'),
        )
    )


def test_a_network_of_another_project_is_known_after_its_registration(plain, assert_close):
    net = Plain(5, 3)
    assert detect_arch(net.state_dict()) == 'Plain'
    rebuilt = spinsr.load(weights=net.state_dict())
    x = torch.rand(1, 3, 6, 5)
    assert_close(rebuilt(x), net(x))
    with pytest.raises(ValueError, match='the file holds Plain x3 weights$'):
        spinsr.load('Plain', 2, net.state_dict())


def test_names_are_taken_once(plain):
    register_format(plain)

    class Other(nn.Module):
        pass

    with pytest.raises(ValueError, match='the name Plain is taken'):
        register_format(ArchFormat(arch=Other, name='Plain', names=(), arguments=dict, source=Source('None')))


def test_a_subclass_has_the_format_of_its_base(plain):
    class Variant(Plain):
        pass

    assert find_format(Variant) is plain


def test_equal_names_are_told_apart_by_shapes(plain):
    class Wide(Plain):
        def __init__(self, width: int = 4, scale: int = 2):
            super().__init__(width, scale)
            self.head = nn.Conv2d(3, width, 5, 1, 2)

    register_format(ArchFormat(arch=Wide, names=plain.names, arguments=plain.arguments, source=plain.source))
    assert detect_arch(Wide().state_dict()) == 'Wide'
    assert detect_arch(Plain().state_dict()) == 'Plain'


def test_a_detection_of_its_own_comes_first(plain):
    class Odd(Plain):
        pass

    register_format(
        ArchFormat(
            arch=Odd,
            names=plain.names,
            arguments=plain.arguments,
            source=plain.source,
            detect=lambda weights: 'up.0.bias' in weights and not weights['up.0.bias'].any(),
        )
    )
    odd = Odd().state_dict()
    assert detect_arch(odd) == 'Plain'
    odd['up.0.bias'].zero_()
    assert detect_arch(odd) == 'Odd'


def test_fields_of_a_table():
    table = NameTable(
        (
            ('a.{i}.{part:x|y.z}.{end}', 'b.{part}.{i}.{end}'),
            ('last.{num_block}.{end}', 'last.{end}'),
            'norm.{statistic}',
            ('unused', None),
        ),
        'X',
    )
    assert table.is_official(['a.0.x.bias'])
    assert not table.is_official(['b.x.0.bias'])
    official = {'a.12.y.z.weight': 1, 'norm.running_mean': 2, 'unused': 3, 'last.7.bias': 4}
    ours = table.to_ours(official)
    assert ours == {'b.y.z.12.weight': 1, 'norm.running_mean': 2, 'last.bias': 4}
    assert table.to_official(ours, {'num_block': 7}) == {key: official[key] for key in official if key != 'unused'}
    for name in ('a.x.bias', 'a.0.yyz.bias', 'a.0.x.gain', 'norm.mean', 'a.0.x.bias.'):
        assert not table.fits(name, 'official')


def test_count_takes_the_largest_number():
    assert count(dict.fromkeys(('a.0.b', 'a.2.b', 'a.10', 'c.5.x')), 'a.{}.') == 3
    with pytest.raises(KeyError, match='blocks'):
        count({'a.0.b': 1}, 'blocks.{}.')
