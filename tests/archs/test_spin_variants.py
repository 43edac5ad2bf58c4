"""SPIN's variants: what each one changes, and that each is as good a network as SPIN itself."""

import io

import pytest
import torch
from torch import Tensor, nn

from spinsr.archs.spin_arch import SPIN
from spinsr.convert import convert_state_dict
from spinsr.ops import DenseAssociation, MixtureAssociation, SparseAssociation, superpixel_grid

SMALL = {'num_feat': 8, 'num_block': 2, 'num_heads': 2, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': (4, 3), 'upscale': 2}
VARIANTS = {
    'only_cross': {'interaction': 'only_cross'},
    'only_intra': {'interaction': 'only_intra'},
    'parallel': {'interaction': 'parallel'},
    'mixture': {'aggregation': 'mixture'},
    'patch': {'aggregation': 'patch'},
    'top_n': {'top_n': 5},
    'one_round': {'num_iter': 1},
    'parallel_mixture': {'interaction': 'parallel', 'aggregation': 'mixture', 'top_n': 20},
    'only_intra_patch': {'interaction': 'only_intra', 'aggregation': 'patch'},
}
SIZES = {'1x1': (1, 1), '1x7': (1, 7), '5x2': (5, 2), '13x11': (13, 11)}
each_variant = pytest.mark.parametrize('variant', VARIANTS.values(), ids=VARIANTS.keys())
each_size = pytest.mark.parametrize('size', SIZES.values(), ids=SIZES.keys())


def network(**arguments) -> SPIN:
    return SPIN(**{**SMALL, **arguments}).double()


def image(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, dtype=torch.float64)


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    y = net(x)
    return list(torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), list(net.parameters())))


@each_size
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
    twin.load_state_dict(convert_state_dict(torch.load(file, weights_only=True), 'SPIN'), strict=True)
    assert torch.equal(net(x), twin(x))


@each_variant
def test_a_variant_is_another_function(variant):
    plain, net, x = network(), network(**variant), image(13, 11)
    net.load_state_dict({name: value for name, value in plain.state_dict().items() if name in net.state_dict()})
    assert not torch.allclose(net(x), plain(x), atol=1e-6)


@each_variant
def test_gradients_repeat_bit_for_bit(variant):
    net, x = network(**variant), image(13, 11)
    assert all(torch.equal(*pair) for pair in zip(gradients(net, x), gradients(net, x), strict=True))


@each_variant
def test_batch_equals_single_images(variant, assert_close):
    net, x = network(**variant), image(13, 11)
    assert_close(net(x), torch.cat([net(one) for one in x.split(1)]))


@each_variant
def test_block_passes_gradcheck_where_the_association_is_fixed(variant, monkeypatch):
    """The association is a constant to autograd, as in the authors' code, but not to finite differences."""
    block = network(**variant, num_heads=1).blocks[0]
    x = torch.rand(1, 5, 4, 8, dtype=torch.float64)
    association = block.aggregation(x)
    monkeypatch.setattr(block.aggregation, 'forward', lambda x: association)
    assert torch.autograd.gradcheck(block, x.requires_grad_(), fast_mode=True)


@each_variant
def test_half_types_and_flat_images_stay_finite(variant):
    net, x = network(**variant).float(), torch.full((1, 3, 9, 7), 0.5, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        y = net(x)
    y.float().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    'name',
    [
        'mixture',
        *(pytest.param(name, marks=pytest.mark.slow) for name in ('parallel', 'only_cross', 'only_intra', 'patch')),
    ],
)
def test_compiles_without_a_graph_break(name, compiled, assert_close):
    net, x = network(**VARIANTS[name], num_block=1, stoken_size=(4,)), image(9, 13)
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
    'equations',
    [{}, {'position_weight': 1.0}, {'differentiable': True}],
    ids=['exponential', 'positions', 'differentiable'],
)
@pytest.mark.parametrize('interaction', ['sequential', 'only_cross'])
def test_exponential_weighs_the_pixels_of_a_patch(interaction, equations):
    patch = {'aggregation': 'patch', 'interaction': interaction}
    less = {'association': 'exponential'} if equations else {}
    torch.manual_seed(0)
    plain = network(**patch, **less)
    net, x = network(**patch, association='exponential', **equations), image(13, 11)
    net.load_state_dict(plain.state_dict())
    found, without = (torch.cat([one.flatten() for one in gradients(each, x)]) for each in (net, plain))
    assert not torch.allclose(found, without, rtol=1e-6)


def test_parallel_has_the_names_of_spin():
    assert list(network(interaction='parallel').state_dict()) == list(network().state_dict())


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


@pytest.mark.parametrize('num_block', [1, 4, 6, 8, 10, 12])
def test_cells_are_those_of_the_paper_in_turn(num_block):
    with torch.device('meta'):
        cells = [block.aggregation.stoken_size for block in SPIN(num_block=num_block).blocks]
    assert cells == ([12, 16, 20, 24] * 3)[:num_block]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'stoken_size': (12, 16, 20)}, r'stoken_size=\(12, 16, 20\), num_block=2'),
        ({'stoken_size': (12, 16, 20, 24), 'num_block': 8}, 'must have num_block numbers, or be left out'),
        ({'stoken_size': None, 'num_block': -1}, r'stoken_size=\(\), num_block=-1'),
        ({'interaction': 'both'}, "sequential, parallel, only_cross, only_intra, got 'both'"),
        ({'aggregation': None}, 'superpixel, mixture, patch, got None'),
        ({'top_n': 0}, 'top_n=0'),
        ({'top_n': 'all'}, "top_n='all'"),
        ({'top_n': 9, 'aggregation': 'patch'}, "no use with patches .*aggregation='patch'"),
        ({'top_n': 9, 'interaction': 'only_cross'}, "interaction='only_cross'"),
        ({'own_values': 'ignored', 'interaction': 'only_cross'}, "own_values has no use .*interaction='only_cross'"),
        ({'differentiable': True, 'interaction': 'only_intra'}, "differentiable has no use .*'only_intra'"),
        ({'differentiable': True, 'aggregation': 'patch'}, 'no use with patches.*differentiable=True'),
        ({'position_weight': 1.0, 'aggregation': 'patch'}, 'no use with patches.*position_weight=1.0'),
        (
            {'association': 'exponential', 'aggregation': 'patch', 'interaction': 'only_intra'},
            "no use with patches.*interaction='only_intra'.*association='exponential'",
        ),
    ],
    ids=lambda value: '-'.join(f'{k}={v}' for k, v in value.items()) if isinstance(value, dict) else '',
)
def test_bad_arguments_are_refused_with_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        network(**arguments)
