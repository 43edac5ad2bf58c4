"""Every registered network of spinsr, at every scale, on small and odd images; tests/networks.py lists them."""

import copy
import io
import pickle
import shutil

import pytest
import torch
from torch import Tensor, nn

from spinsr.archs import ARCH_REGISTRY
from spinsr.archs.registry import find
from spinsr.convert.registry import find_configuration, formats, valueless

from ..networks import CONFIGURATIONS, NETWORKS

REGISTERED = sorted(name for name, cls in ARCH_REGISTRY if cls.__module__.startswith('spinsr.archs.'))
SCALES = [(name, scale) for name in REGISTERED for scale in (NETWORKS[name].parameters if name in NETWORKS else [4])]
WITH_MEAN = ['CARN', 'ELAN', 'EMT', 'RCAN_spinsr', 'SAN']

SIZES = {'1x1': (1, 1), '1x7': (1, 7), '5x1': (5, 1), '2x2': (2, 2), '3x4': (3, 4), '23x37': (23, 37)}
each_arch = pytest.mark.parametrize('name', REGISTERED)


def fast_for(*names: str):
    """Each arch; the named ones in the fast suite, the others in the slow one."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        'name', [name if name in names else pytest.param(name, marks=slow) for name in REGISTERED]
    )


each_scale = pytest.mark.parametrize(('name', 'scale'), SCALES, ids=[f'{name}-x{scale}' for name, scale in SCALES])
each_size = pytest.mark.parametrize('size', SIZES.values(), ids=SIZES.keys())
HALF_TYPES = pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])


def build(name: str, scale: int = 2, **arguments) -> nn.Module:
    if name not in NETWORKS:
        pytest.fail(f'{name} is registered but not tested: add it to tests/networks.py')
    return ARCH_REGISTRY.get(name)(**{**NETWORKS[name].small, 'upscale': scale, **arguments})


def away_from_zero(net: nn.Module) -> nn.Module:
    """Gives weights that start at zero, and would hide what comes before them, other values."""
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    y = net(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return [parameter.grad for parameter in net.parameters()]


def test_basicsr_keeps_its_own_rcan():
    assert find('RCAN').__module__ == 'basicsr.archs.rcan_arch'


@each_scale
def test_output_has_the_size(name, scale):
    assert build(name, scale)(torch.rand(2, 3, 5, 3)).shape == (2, 3, 5 * scale, 3 * scale)


@each_size
@each_arch
def test_backends_with_and_without_gradients_give_the_same_image(name, size, monkeypatch, assert_close):
    net, x = away_from_zero(build(name).double()), torch.rand(2, 3, *size, dtype=torch.float64)
    before, y = x.clone(), net(x)
    with torch.inference_mode():
        assert_close(net(x), y)
        monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
        assert_close(net(x), y)
    assert y.shape == (2, 3, 2 * size[0], 2 * size[1])
    assert torch.equal(x, before)


@each_arch
def test_non_contiguous_input(name, assert_close):
    net, x = away_from_zero(build(name)), torch.rand(13, 9, 3, 2).permute(3, 2, 1, 0)
    before = x.clone()
    assert_close(net(x), net(x.contiguous()))
    assert torch.equal(x, before)


@pytest.mark.parametrize(('value', 'size'), [(0.5, (1, 1)), (0.0, (9, 14))], ids=['1x1', '9x14'])
@each_arch
def test_flat_image_has_finite_output_and_gradients(name, value, size):
    net, x = build(name), torch.full((1, 3, *size), value, requires_grad=True)
    y = net(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@each_arch
def test_every_parameter_matters(name):
    # Batch normalisation takes away what a bias adds, except in eval mode.
    net = away_from_zero(build(name)).eval()
    gradients(net, torch.rand(2, 3, 9, 14))
    # The same number added to all keys of a softmax changes nothing.
    idle = {'non_local.phi.bias'}
    assert [n for n, p in net.named_parameters() if n not in idle and not p.grad.any()] == []


@HALF_TYPES
@pytest.mark.parametrize('size', [(1, 1), (9, 14)], ids=['1x1', '9x14'])
@each_arch
def test_autocast_stays_near_float32_with_finite_gradients(name, size, dtype):
    net, x = away_from_zero(build(name)), torch.rand(2, 3, *size, requires_grad=True)
    with torch.autocast('cpu', dtype):
        y = net(x)
        loss = (y.float() - 0.5).abs().mean()
    loss.backward()
    with torch.no_grad():
        exact = net(x)
    assert (y - exact).norm() < 0.02 * exact.norm()
    assert x.grad.isfinite().all()
    assert [n for n, p in net.named_parameters() if not p.grad.isfinite().all()] == []


@each_arch
def test_batch_equals_single_images(name, assert_close):
    net, x = away_from_zero(build(name).double()).eval(), torch.rand(3, 3, 9, 14, dtype=torch.float64)
    assert_close(net(x), torch.cat([net(one) for one in x.split(1)]))


@each_arch
def test_training_works_after_inference_at_the_same_size(name):
    net, x = build(name), torch.rand(1, 3, 19, 29)  # a size of this test alone, whose maps are built in inference mode
    with torch.inference_mode():
        net.eval()(x)
    assert all(gradient.isfinite().all() for gradient in gradients(net.train(), x))


# Only gathers and scatters are likely to differ from run to run.
@fast_for('SPIN')
def test_gradients_are_deterministic_on_several_threads(name):
    net, x = away_from_zero(build(name)), torch.rand(2, 3, 33, 37)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = ([g.clone() for g in gradients(net, x)] for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@each_scale
def test_number_of_parameters(name, scale):
    if name not in NETWORKS:
        build(name)
    with torch.device('meta'):
        net = ARCH_REGISTRY.get(name)(upscale=scale)
    assert sum(parameter.numel() for parameter in net.parameters()) == NETWORKS[name].parameters[scale]


@pytest.mark.parametrize('name', CONFIGURATIONS)
def test_number_of_parameters_of_a_configuration(name):
    format, arguments = find_configuration(name)
    for scale, parameters in CONFIGURATIONS[name].items():
        net = valueless(format.cls, {**arguments, format.scale_keyword: scale})
        assert sum(parameter.numel() for parameter in net.parameters()) == parameters


def test_every_configuration_is_counted():
    named = {name for format in formats() for name, arguments in format.configurations.items() if arguments}
    assert named == set(CONFIGURATIONS)


@each_arch
def test_unknown_keyword_is_a_type_error(name):
    with pytest.raises(TypeError, match='num_feats'):
        build(name, num_feats=16)


BAD_ARGUMENTS = [
    ('SPIN', {'num_in_ch': 1}, 'num_in_ch=1, num_out_ch=3'),
    ('SPIN', {'num_feat': 15}, 'num_feat=15.*num_heads=2'),
    ('SPIN', {'num_feat': 6}, 'num_feat=6'),
    ('SPIN', {'qk_dim': 7}, 'qk_dim=7'),
    ('SPIN', {'num_heads': 0}, 'num_heads=0'),
    ('SPIN', {'num_block': 2.0}, 'num_block=2.0'),
    ('SPIN', {'num_block': -1, 'stoken_size': None}, 'num_block=-1'),
    ('SPIN', {'stoken_size': (4,)}, r'stoken_size=\(4,\), num_block=2'),
    ('SPIN', {'stoken_size': (4, 0)}, r'stoken_size=\(4, 0\)'),
    ('SPIN', {'stoken_size': (12, 16.5)}, r'stoken_size=\(12, 16.5\)'),
    ('SPIN', {'stoken_size': '12'}, "stoken_size='12'"),
    ('SPIN', {'stoken_size': 12}, 'stoken_size=12'),
    ('SPIN', {'num_iter': 0}, 'num_iter=0'),
    ('SPIN', {'upscale': 8}, 'upscale.*8'),
    ('SAN', {'num_out_ch': 1}, 'num_out_ch=1'),
    ('SAN', {'num_feat': 7}, 'num_feat=7'),
    ('SAN', {'squeeze_factor': 17}, 'squeeze_factor=17'),
    ('SAN', {'squeeze_factor': 0}, 'squeeze_factor=0'),
    ('SAN', {'rgb_mean': (0.5,)}, r'rgb_mean=\(0.5,\), num_in_ch=3'),
    ('SAN', {'upscale': 5}, 'upscale.*5'),
    ('RCAN_spinsr', {'num_in_ch': 1}, 'num_in_ch=1'),
    ('RCAN_spinsr', {'squeeze_factor': 17}, 'squeeze_factor=17'),
    ('RCAN_spinsr', {'rgb_mean': (0.5,)}, r'rgb_mean=\(0.5,\), num_in_ch=3'),
    ('RCAN_spinsr', {'upscale': 0}, 'upscale.*0'),
]


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    BAD_ARGUMENTS,
    ids=[f'{name}-{"-".join(f"{k}={v}" for k, v in arguments.items())}' for name, arguments, _ in BAD_ARGUMENTS],
)
def test_bad_arguments_are_refused_with_the_value(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)


@each_arch
def test_state_dict_loads_under_weights_only(name):
    net, file = build(name), io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    state_dict = torch.load(file, weights_only=True)
    other = build(name)
    other.load_state_dict(state_dict, strict=True)
    x = torch.rand(1, 3, 5, 7)
    assert torch.equal(net(x), other(x))


@pytest.mark.parametrize(
    'copied', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=['deepcopy', 'pickle']
)
@each_arch
def test_copies_work(name, copied):
    net, x = build(name), torch.rand(1, 3, 5, 7)
    twin = copied(net)
    assert torch.equal(twin(x), net(x))
    name, value = max(twin.named_parameters(), key=lambda item: item[1].numel())
    nn.init.zeros_(value)
    assert net.get_parameter(name).any()


@pytest.mark.parametrize('name', WITH_MEAN)
def test_state_dict_without_a_mean_keeps_the_mean(name):
    net = build(name)
    twin = copy.deepcopy(net)
    twin.mean.fill_(7)
    state_dict = {key: value for key, value in net.state_dict().items() if key != 'mean'}
    twin.load_state_dict(state_dict, strict=True)
    assert twin.mean.flatten().tolist() == [7, 7, 7]
    assert 'mean' not in state_dict


@pytest.mark.parametrize('name', WITH_MEAN)
def test_any_other_missing_name_is_still_an_error(name):
    net = build(name)
    state_dict = {key: value for key, value in net.state_dict().items() if key != 'conv_first.bias'}
    with pytest.raises(RuntimeError, match='conv_first.bias'):
        net.load_state_dict(state_dict)


@pytest.mark.parametrize('name', WITH_MEAN)
def test_mean_is_the_authors_bit_for_bit(name, official):
    files = {
        'CARN': 'zoo/carn_multi_x2',
        'ELAN': 'zoo/elan_light_x2',
        'EMT': 'zoo/emt_x2',
        'RCAN_spinsr': 'rcan_official_tiny_x2',
        'SAN': 'san_official_tiny_x2',
    }
    weights = official(files[name]).weights
    bias = 'sub_mean.shifter.bias' if name == 'CARN' else 'sub_mean.bias'
    assert torch.equal(build(name).mean.flatten(), -weights[bias])


@pytest.mark.parametrize('name', WITH_MEAN)
def test_mean_is_a_buffer_and_not_a_parameter(name):
    net = build(name, img_range=2, rgb_mean=(0.25, 0.5, 1))
    assert net.state_dict()['mean'].flatten().tolist() == [0.5, 1, 2]
    assert 'mean' not in dict(net.named_parameters())
    assert net.double().mean.dtype == torch.float64


@pytest.mark.parametrize('scale', [3, 8])
def test_weights_of_basicsrs_rcan_load_and_give_its_image(scale):
    arguments = {'num_feat': 12, 'num_group': 1, 'num_block': 3, 'squeeze_factor': 5, 'res_scale': 0.5}
    theirs = find('RCAN')(num_in_ch=3, num_out_ch=3, **arguments, upscale=scale)
    ours = build('RCAN_spinsr', scale, **arguments)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(2, 3, 9, 14)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


def test_spin_adds_the_bilinear_image(assert_close):
    net, x = build('SPIN', 3), torch.rand(1, 3, 5, 7)
    nn.init.zeros_(net.conv_last.weight)
    nn.init.zeros_(net.conv_last.bias)
    assert_close(net(x), nn.functional.interpolate(x, scale_factor=3, mode='bilinear'))


@pytest.mark.parametrize('name', WITH_MEAN)
def test_the_mean_is_subtracted_and_added(name, assert_close):
    net, x = build(name), torch.rand(1, 3, 5, 7)
    nn.init.zeros_(net.conv_last.weight)
    nn.init.zeros_(net.conv_last.bias)
    assert_close(net(x), (net.mean / net.img_range).expand(1, 3, 10, 14))


@pytest.mark.parametrize('name', WITH_MEAN)
def test_img_range_is_a_unit(name, assert_close):
    """Weights that undo the range of 0..255 make the network with a range of 0..1."""
    net, other = (away_from_zero(build(name, img_range=img_range)).double().eval() for img_range in (255.0, 1.0))
    state_dict = net.state_dict()
    state_dict['mean'] = state_dict['mean'] / 255
    state_dict['conv_first.weight'] = state_dict['conv_first.weight'] * 255
    state_dict['conv_last.weight'], state_dict['conv_last.bias'] = (
        state_dict[f'conv_last.{end}'] / 255 for end in ('weight', 'bias')
    )
    other.load_state_dict(state_dict)
    x = torch.rand(1, 3, 9, 14, dtype=torch.float64)
    assert_close(other(x), net(x))


@pytest.mark.parametrize('name', ['SPIN', 'SAN', 'RCAN_spinsr'])
def test_images_of_one_channel(name, assert_close):
    """The same as three equal channels whose weights share those of the one."""
    mean = {'rgb_mean': (0.5,)} if name in WITH_MEAN else {}
    net = away_from_zero(build(name, num_in_ch=1, num_out_ch=1, **mean)).double()
    wide = build(name, **{key: 3 * value for key, value in mean.items()}).double()
    state_dict = net.state_dict()
    state_dict['conv_first.weight'] = state_dict['conv_first.weight'].expand(-1, 3, -1, -1) / 3
    state_dict['conv_last.weight'] = state_dict['conv_last.weight'].expand(3, -1, -1, -1)
    state_dict['conv_last.bias'] = state_dict['conv_last.bias'].expand(3)
    if mean:
        state_dict['mean'] = state_dict['mean'].expand(-1, 3, -1, -1)
    wide.load_state_dict(state_dict)
    x = torch.rand(2, 1, 9, 14, dtype=torch.float64)
    assert_close(wide(x.expand(-1, 3, -1, -1)), net(x).expand(-1, 3, -1, -1))


@pytest.mark.parametrize('num_block', [1, 6, 12])
def test_cells_are_those_of_the_paper_in_turn(num_block):
    with torch.device('meta'):
        net = ARCH_REGISTRY.get('SPIN')(num_block=num_block)
    assert [block.aggregation.stoken_size for block in net.blocks] == ([12, 16, 20, 24] * 3)[:num_block]


def test_gamma_of_san_weighs_the_share_source_skip():
    net, x = away_from_zero(build('SAN')), torch.rand(1, 3, 9, 14)
    before = net(x)
    nn.init.constant_(net.gamma, 2)
    assert not torch.allclose(net(x), before, atol=1e-3)


@HALF_TYPES
@each_arch
def test_runs_with_half_weights(name, dtype):
    net = build(name).to(dtype).eval()
    with torch.no_grad():
        output = net(torch.rand(1, 3, 13, 17).to(dtype))
    assert output.dtype == dtype
    assert output.isfinite().all()


def compare(compiled, net, sizes, assert_close) -> None:
    for size in sizes:
        x = torch.rand(2, 3, *size, dtype=torch.float64)
        assert_close(compiled(x), net(x))
        assert_close(gradients(compiled, x), gradients(net, x))
        with torch.no_grad():
            assert_close(compiled(x), net(x))


@pytest.mark.slow
@each_arch
def test_compiles_without_a_graph_break(name, compiled, assert_close):
    net, x = away_from_zero(build(name)).double(), torch.rand(2, 3, 9, 14, dtype=torch.float64)
    with torch.no_grad():
        assert_close(compiled(net, backend='eager')(x), net(x))


# These have operators of their own, or are what the others consist of.
@pytest.mark.slow
@pytest.mark.parametrize('name', ['SPIN', 'SAN', 'RCAN_spinsr'])
def test_compiles_with_gradients_and_at_two_sizes(name, compiled, assert_close):
    net = away_from_zero(build(name)).double()
    compare(compiled(net), net, [(9, 14), (12, 7)], assert_close)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler on the CPU')
# What inductor makes of the others depends on it alone, as long as the graph has no break.
@pytest.mark.parametrize('name', ['SPIN', 'SAN', 'RCAN_spinsr'])
def test_compiles_to_the_same_result(name, compiled, assert_close):
    # Without gradients: compiling the backward pass of SPIN takes minutes, and a test of training does it.
    net, x = away_from_zero(build(name)).double(), torch.rand(2, 3, 9, 14, dtype=torch.float64)
    with torch.no_grad():
        assert_close(compiled(net, backend='inductor')(x), net(x))


# Only these two leave autocast inside.
@pytest.mark.slow
@pytest.mark.parametrize('name', ['SPIN', 'SAN'])
def test_compiles_under_autocast(name, compiled):
    net, x = build(name), torch.rand(1, 3, 9, 14)
    with torch.autocast('cpu', torch.bfloat16):
        out = compiled(net)(x)
        plain = net(x)
    assert (out.float() - plain.float()).abs().mean() < 0.02


@fast_for('RCAN_spinsr')
def test_exports(name, assert_close):
    # No other test has 10x15: the exporter is the first to ask for its tables, and must leave none of its own behind.
    net, x = away_from_zero(build(name)).double().eval(), torch.rand(1, 3, 10, 15, dtype=torch.float64)
    exported = torch.export.export(net, (x,)).module()
    other = torch.rand_like(x)
    with torch.no_grad():
        assert_close(exported(other), net(other))
    gradients(net, x)
