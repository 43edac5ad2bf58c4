"""SPIN with its equations as the paper prints them: each switch, and all at once."""

import numpy as np
import pytest
import torch

from spinsr.analysis.superpixels import draw, find_superpixels
from spinsr.archs import ARCH_REGISTRY
from spinsr.check import memory

SMALL = {
    'num_feat': 16,
    'num_block': 2,
    'num_heads': 2,
    'qk_dim': 8,
    'mlp_dim': 24,
    'stoken_size': (4, 6),
    'upscale': 2,
}
SWITCHES = {
    'differentiable': {'differentiable': True},
    'exponential': {'association': 'exponential'},
    'positions': {'position_weight': 2.5},
    'ignored_values': {'own_values': 'ignored'},
}
SWITCHES['all'] = {key: value for switches in SWITCHES.values() for key, value in switches.items()}
SIZES = {'1x1': (1, 1), '1x7': (1, 7), '9x14': (9, 14)}
each_switch = pytest.mark.parametrize('switches', SWITCHES.values(), ids=SWITCHES.keys())
each_size = pytest.mark.parametrize('size', SIZES.values(), ids=SIZES.keys())


def build(**switches):
    torch.manual_seed(0)
    return ARCH_REGISTRY.get('SPIN')(**SMALL, **switches)


def results(net, x):
    """The image, and the gradients of the parameters."""
    net.zero_grad()
    y = net(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return [y.detach(), *(parameter.grad for parameter in net.parameters())]


@each_switch
def test_weights_are_those_of_the_default(switches):
    state_dict = build().state_dict()
    net = build(**switches)
    assert list(net.state_dict()) == list(state_dict)
    net.load_state_dict(state_dict, strict=True)


@pytest.mark.parametrize('name', ['exponential', 'positions', 'ignored_values'])
def test_switch_changes_the_image(name):
    x = torch.rand(1, 3, 9, 14)
    assert not torch.allclose(build()(x), build(**SWITCHES[name])(x), atol=1e-6)


def test_differentiable_changes_the_gradients_and_not_the_image():
    x = torch.rand(1, 3, 9, 14, dtype=torch.float64)
    (image, *constant), (same, *through) = (results(build(differentiable=flag).double(), x) for flag in (False, True))
    assert torch.equal(image, same)
    assert not torch.allclose(constant[0], through[0], rtol=1e-4)


@each_size
@each_switch
def test_backends_agree_on_the_image_and_every_gradient(switches, size, monkeypatch, assert_close):
    net, x = build(**switches).double(), torch.rand(2, 3, *size, dtype=torch.float64)
    sparse = [result.clone() for result in results(net, x)]
    with torch.inference_mode():
        assert_close(net(x), sparse[0])
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
    assert_close(sparse, results(net, x))


@pytest.mark.parametrize('value', [0.0, 0.5])
@each_switch
def test_flat_image_has_finite_output_and_gradients(switches, value):
    assert all(result.isfinite().all() for result in results(build(**switches), torch.full((1, 3, 9, 14), value)))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_autocast_and_half_weights_stay_finite(dtype):
    net, x = build(**SWITCHES['all']), torch.rand(2, 3, 9, 14)
    with torch.autocast('cpu', dtype):
        assert all(result.isfinite().all() for result in results(net, x))
    with torch.no_grad():
        assert net.to(dtype)(x.to(dtype)).isfinite().all()


def test_batch_equals_single_images(assert_close):
    net, x = build(**SWITCHES['all']).double(), torch.rand(3, 3, 9, 14, dtype=torch.float64)
    assert_close(net(x), torch.cat([net(one) for one in x.split(1)]))


@pytest.mark.slow
def test_compiles_without_a_graph_break(compiled, assert_close):
    net, x = build(**SWITCHES['all']).double(), torch.rand(2, 3, 9, 14, dtype=torch.float64)
    expected = [result.clone() for result in results(net, x)]
    assert_close(results(compiled(net), x), expected)


def test_exports(assert_close):
    net, x = build(**SWITCHES['all']).double().eval(), torch.rand(1, 3, 9, 14, dtype=torch.float64)
    exported = torch.export.export(net, (x,)).module()
    other = torch.rand_like(x)
    with torch.no_grad():
        assert_close(exported(other), net(other))


def test_superpixels_can_be_drawn():
    net = build(**SWITCHES['all'])
    image = np.random.default_rng(0).integers(0, 256, (17, 21, 3), np.uint8)
    found = find_superpixels(image, net, block=1)
    shares = found.association_of(8, 10)
    assert shares.sum() == pytest.approx(1)
    assert found.labels[8, 10] == shares.argmax()
    assert all(np.isfinite(picture).all() for picture in draw(found, pixel=(8, 10), superpixel=2).values())


def test_memory_is_estimated_with_the_gradients_of_the_association():
    section = {'type': 'SPIN', **SMALL}
    constant, through = (
        memory.training_bytes({**section, 'differentiable': flag}, 1, 24, 24) for flag in (False, True)
    )
    # Two blocks of three rounds, 9 weights of 4 bytes a pixel each.
    assert through - constant > 2 * 3 * 9 * 4 * 24**2


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'association': 'linear'}, "got kind='linear'"),
        ({'position_weight': -0.5}, 'position_weight=-0.5'),
        ({'position_weight': '1e0'}, "position_weight='1e0'"),
        ({'own_values': 'some'}, "own_values='some'"),
    ],
    ids=['association', 'position_weight', 'text', 'own_values'],
)
def test_bad_arguments_are_refused_by_the_constructor(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)
