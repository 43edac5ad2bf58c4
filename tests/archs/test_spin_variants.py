"""SPINVariant: what each switch changes, which combinations it refuses, and option files from before it existed."""

import inspect
import io
import logging

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import spinsr
from spinsr.analysis.superpixels import draw, find_superpixels
from spinsr.archs.spin_arch import SPIN
from spinsr.archs.spin_variants_arch import SPINVariant
from spinsr.check import memory
from spinsr.convert import convert_state_dict
from spinsr.ops import DenseAssociation, MixtureAssociation, SparseAssociation, superpixel_grid
from spinsr.training import option_files

from ..networks import NETWORKS

SMALL = {'num_feat': 8, 'num_block': 2, 'num_heads': 2, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': (4, 3), 'upscale': 2}
VARIANTS = {
    'only_cross': {'interaction': 'only_cross'},
    'only_intra': {'interaction': 'only_intra'},
    'parallel': {'interaction': 'parallel'},
    'mixture': {'aggregation': 'mixture'},
    'patch': {'aggregation': 'patch'},
    'top_n': {'top_n': 5},
    'parallel_mixture': {'interaction': 'parallel', 'aggregation': 'mixture', 'top_n': 20},
    'only_intra_patch': {'interaction': 'only_intra', 'aggregation': 'patch'},
    'exponential_patch': {'aggregation': 'patch', 'association': 'exponential'},
    'differentiable': {'differentiable': True},
    'exponential': {'association': 'exponential'},
    'positions': {'position_weight': 2.5},
    'ignored_values': {'own_values': 'ignored'},
}


@pytest.mark.parametrize(('training', 'dtype'), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast_keeps_the_sum_of_features_except_in_training(training, dtype):
    net = SPIN(**SMALL).train(training)
    seen = []
    net.blocks[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    with torch.autocast('cpu', torch.bfloat16):
        net(torch.rand(1, 3, 9, 11))
        net(torch.rand(1, 3, 9, 11).bfloat16())
    assert seen == [dtype, dtype]


def each_of(*names: str):
    return pytest.mark.parametrize('variant', [VARIANTS[name] for name in names], ids=names)


each_variant = each_of(*VARIANTS)


def network(**arguments) -> SPINVariant:
    return SPINVariant(**{**SMALL, **arguments}).double()


def image(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, dtype=torch.float64)


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    y = net(x)
    return list(torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), list(net.parameters())))


def test_without_switches_it_is_spin():
    torch.manual_seed(0)
    net, x = network(), image(13, 11)
    torch.manual_seed(0)
    spin = SPIN(**SMALL).double()
    assert list(net.state_dict()) == list(spin.state_dict())
    assert torch.equal(net(x), spin(x))


@pytest.mark.parametrize('size', [(1, 1), (13, 11)], ids=['1x1', '13x11'])
@each_variant
def test_backends_agree_on_image_and_gradients(variant, size, monkeypatch, assert_close):
    net, x = network(**variant), image(*size)
    y, found = net(x), gradients(net, x)
    assert y.shape == (2, 3, 2 * size[0], 2 * size[1])
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
    assert_close(y, net(x))
    assert_close(found, gradients(net, x))


@each_variant
def test_every_parameter_matters_and_loads_into_its_like(variant):
    net, x = network(**variant), image(9, 13)
    assert all(gradient.any() for gradient in gradients(net, x))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    twin = network(**variant)
    twin.load_state_dict(convert_state_dict(torch.load(file, weights_only=True), 'SPINVariant'), strict=True)
    assert torch.equal(net(x), twin(x))


@each_of(*(name for name in VARIANTS if name != 'differentiable'))
def test_a_variant_is_another_function(variant):
    plain, net, x = network(), network(**variant), image(13, 11)
    net.load_state_dict({name: value for name, value in plain.state_dict().items() if name in net.state_dict()})
    assert not torch.allclose(net(x), plain(x), atol=1e-6)


def test_differentiable_changes_the_gradients_and_not_the_image():
    plain, net, x = network(), network(differentiable=True), image(13, 11)
    net.load_state_dict(plain.state_dict())
    assert torch.equal(net(x), plain(x))
    assert not torch.allclose(gradients(net, x)[0], gradients(plain, x)[0], rtol=1e-4)


@each_of('mixture', 'exponential_patch')
def test_gradients_repeat_bit_for_bit(variant):
    net, x = network(**variant), image(13, 11)
    assert all(torch.equal(*pair) for pair in zip(gradients(net, x), gradients(net, x), strict=True))


@each_of('mixture', 'exponential_patch')
def test_batch_equals_single_images(variant, assert_close):
    net, x = network(**variant), image(13, 11)
    assert_close(net(x), torch.cat([net(one) for one in x.split(1)]))


@each_of('parallel_mixture', 'only_intra_patch')
def test_block_passes_gradcheck_where_the_association_is_fixed(variant, monkeypatch):
    """The association is a constant to autograd, as in the authors' code, but not to finite differences."""
    block = network(**variant, num_heads=1).blocks[0]
    x = torch.rand(1, 5, 4, 8, dtype=torch.float64)
    association = block.aggregation(x)
    monkeypatch.setattr(block.aggregation, 'forward', lambda x: association)
    assert torch.autograd.gradcheck(block, x.requires_grad_(), fast_mode=True)


@each_of('mixture', 'exponential_patch', 'differentiable', 'exponential', 'positions')
def test_half_types_and_flat_images_stay_finite(variant):
    net, x = network(**variant).float(), torch.full((1, 3, 9, 7), 0.5, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        y = net(x)
    y.float().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.slow
@each_of('mixture', 'parallel', 'only_cross', 'only_intra', 'patch')
def test_compiles_without_a_graph_break(variant, compiled, assert_close):
    net, x = network(**variant, num_block=1, stoken_size=(4,)), image(9, 13)
    faster = compiled(net)
    assert_close(faster(x), net(x))
    assert_close(gradients(faster, x), gradients(net, x))


@pytest.mark.parametrize(
    ('arguments', 'kind', 'reach'),
    [({}, SparseAssociation, 1), ({'aggregation': 'mixture'}, MixtureAssociation, None)]
    + [({'aggregation': 'patch'}, SparseAssociation, 0)],
    ids=['superpixel', 'mixture', 'patch'],
)
def test_aggregation_chooses_the_reach(arguments, kind, reach, monkeypatch):
    aggregation, x = network(**arguments).blocks[0].aggregation, torch.rand(1, 9, 13, 8)
    assert isinstance(aggregation(x), kind)
    assert aggregation(x).grid.reach == reach
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
    assert isinstance(aggregation(x), DenseAssociation)


def test_parallel_adds_what_each_branch_adds(assert_close):
    block, x = network(interaction='parallel').blocks[0], torch.rand(1, 9, 13, 8, dtype=torch.float64)
    association = block.aggregation(x)
    across = x + block.cross_attention(x, association)
    across = across + block.cross_feed_forward(across)
    inside = x + block.intra_attention(x, association)
    inside = inside + block.intra_feed_forward(inside)
    y = x + (across - x) + (inside - x)
    y = y + block.local_attention(y)
    assert_close(block(x), y + block.local_feed_forward(y))


@pytest.mark.parametrize(
    'equations', [{'position_weight': 1.0}, {'differentiable': True}], ids=['positions', 'differentiable']
)
@pytest.mark.parametrize('interaction', ['sequential', 'only_cross'])
def test_exponential_weighs_the_pixels_of_a_patch(interaction, equations):
    patch = {'aggregation': 'patch', 'interaction': interaction, 'association': 'exponential'}
    plain, net, x = network(**patch), network(**patch, **equations), image(13, 11)
    net.load_state_dict(plain.state_dict())
    found, without = (torch.cat([one.flatten() for one in gradients(each, x)]) for each in (net, plain))
    assert not torch.allclose(found, without, rtol=1e-6)


@pytest.mark.parametrize(('kept', 'gone'), [('cross', 'intra'), ('intra', 'cross')])
def test_only_one_attention_leaves_the_other_out(kept, gone):
    names = [name for name in network().state_dict() if not name.split('.')[2:3] or f'{gone}_' not in name]
    assert list(network(interaction=f'only_{kept}').state_dict()) == names


def test_a_patch_sees_no_pixel_of_another_patch_in_ispa():
    block = network(aggregation='patch', interaction='only_intra', stoken_size=(4, 4)).blocks[0]
    x = torch.rand(1, 8, 12, 8, dtype=torch.float64)
    grid, other = superpixel_grid(8, 12, 4, x.device), x.clone()
    other.flatten(1, 2)[:, grid.labels == 4] += 1
    outs = [block.intra_attention(one, block.aggregation(one)).flatten(1, 2) for one in (x, other)]
    changed = (outs[0] != outs[1]).any(2)[0]
    assert torch.equal(changed, grid.labels == 4)


def test_superpixels_can_be_drawn():
    net = network(association='exponential', position_weight=2.5, own_values='ignored').float()
    pixels = np.random.default_rng(0).integers(0, 256, (17, 21, 3), np.uint8)
    found = find_superpixels(pixels, net, block=1)
    shares = found.association_of(8, 10)
    assert shares.sum() == pytest.approx(1)
    assert found.labels[8, 10] == shares.argmax()
    assert all(np.isfinite(picture).all() for picture in draw(found, pixel=(8, 10), superpixel=2).values())


@pytest.mark.slow
def test_memory_is_estimated_with_the_gradients_of_the_association():
    section = {'type': 'SPINVariant', **SMALL}
    constant, through = (
        memory.training_bytes({**section, 'differentiable': flag}, 1, 24, 24) for flag in (False, True)
    )
    # Two blocks of three rounds, 9 weights of 4 bytes a pixel each.
    assert through - constant > 2 * 3 * 9 * 4 * 24**2


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'interaction': 'both'}, "sequential, parallel, only_cross, only_intra, got interaction='both'"),
        ({'aggregation': None}, 'superpixel, mixture, patch, got aggregation=None'),
        ({'top_n': 0}, 'top_n=0'),
        ({'differentiable': 'no'}, "true or false, got differentiable='no'"),
        ({'association': 'linear'}, "association='linear'"),
        ({'position_weight': -0.5}, 'position_weight=-0.5'),
        ({'position_weight': '1e0'}, "position_weight='1e0'"),
        ({'own_values': 'some'}, "own_values='some'"),
        ({'differentiable': True, 'aggregation': 'mixture'}, 'differentiable=True'),
        ({'top_n': 9, 'aggregation': 'patch'}, "^top_n would have no effect .*aggregation='patch'"),
        ({'top_n': 9, 'interaction': 'only_cross'}, "^top_n would .*interaction='only_cross'"),
        ({'own_values': 'ignored', 'interaction': 'only_cross'}, "^own_values would .*interaction='only_cross'"),
        ({'differentiable': True, 'interaction': 'only_intra'}, "^differentiable would .*interaction='only_intra'"),
        ({'differentiable': True, 'aggregation': 'patch'}, '^differentiable would .*remove it$'),
        (
            {'aggregation': 'patch', 'interaction': 'only_intra', 'association': 'exponential', 'position_weight': 1.0},
            "^association and position_weight would .*association='exponential'; remove them$",
        ),
    ],
    ids=lambda value: '-'.join(f'{k}={v}' for k, v in value.items()) if isinstance(value, dict) else '',
)
def test_bad_arguments_are_refused_with_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)


def test_the_switches_of_older_option_files_are_those_of_the_variant():
    keys = inspect.signature(SPINVariant).parameters.keys() - inspect.signature(SPIN).parameters.keys()
    assert keys == set(option_files.SPIN_SWITCHES)


@pytest.mark.parametrize(
    ('network_g', 'type_now'),
    [
        ({'type': 'SPIN', 'aggregation': 'patch'}, 'SPINVariant'),
        ({'type': 'SPIN', 'num_iter': 5}, 'SPIN'),
        ({'type': 'EDSR', 'top_n': 5}, 'EDSR'),
    ],
    ids=['switch', 'without', 'other'],
)
def test_an_older_option_file_gets_the_variant(network_g, type_now, tmp_path, caplog):
    path = tmp_path / 'old.yml'
    path.write_text(yaml.safe_dump({'name': 'old', 'network_g': network_g, 'network_s': None}))
    with caplog.at_level(logging.WARNING, logger='spinsr'):
        _, options = option_files.load(path)
    assert options['network_g'] == network_g | {'type': type_now}
    assert ('use SPINVariant (type: SPINVariant)' in caplog.text) == (network_g['type'] != type_now)


def test_load_gives_spin_with_a_switch_as_the_variant_with_the_shipped_weights(caplog):
    with caplog.at_level(logging.WARNING, logger='spinsr'):
        net = spinsr.load('SPIN', 2, position_weight=1.0)
    assert 'position_weight; use SPINVariant' in caplog.text
    state_dict = spinsr.load('SPIN', 2).state_dict()
    assert all(torch.equal(value, state_dict[name]) for name, value in net.state_dict().items())
    assert type(net) is SPINVariant


def test_weights_of_the_authors_load_into_a_variant(official):
    spin = official('spin_official_heads2_x2')
    net = SPINVariant(**spin.arguments, interaction='parallel')
    net.load_state_dict(convert_state_dict(spin.weights, 'SPINVariant'))


def test_the_network_under_test_has_every_switch():
    assert set(option_files.SPIN_SWITCHES) - set(NETWORKS['SPINVariant'].small) == {'aggregation'}
