"""Every registered network of spinsr, at every scale, on small and odd images; tests/networks.py lists them."""

import copy
import io
import pickle
import shutil

import pytest
import torch
from torch import Tensor, nn

from spinsr.archs import ARCH_REGISTRY

from ..networks import NETWORKS

REGISTERED = sorted(name for name, cls in ARCH_REGISTRY if cls.__module__.startswith('spinsr.archs.'))
SCALES = [(name, scale) for name in REGISTERED for scale in (NETWORKS[name].parameters if name in NETWORKS else [4])]
WITH_MEAN = ['EMT', 'RCAN_spinsr', 'SAN']

SIZES = {'1x1': (1, 1), '1x7': (1, 7), '5x1': (5, 1), '2x2': (2, 2), '3x4': (3, 4), '23x37': (23, 37)}
each_arch = pytest.mark.parametrize('name', REGISTERED)
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


def test_the_names():
    assert {'SPIN', 'SAN', 'RCAN_spinsr'} <= set(REGISTERED)


def test_basicsr_keeps_its_own_rcan():
    assert ARCH_REGISTRY.get('RCAN').__module__ == 'basicsr.archs.rcan_arch'


@each_size
@each_scale
def test_output_has_the_size_and_the_input_stays(name, scale, size):
    net, x = build(name, scale), torch.rand(2, 3, *size)
    before = x.clone()
    y = net(x)
    assert y.shape == (2, 3, scale * size[0], scale * size[1])
    assert y.isfinite().all()
    assert torch.equal(x, before)


@each_size
@each_arch
def test_backends_give_the_same_image(name, size, monkeypatch, assert_close):
    net, x = away_from_zero(build(name).double()), torch.rand(2, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        y = net(x)
        monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
        assert_close(y, net(x))


@each_arch
def test_non_contiguous_input(name, assert_close):
    net, x = away_from_zero(build(name)), torch.rand(13, 9, 3, 2).permute(3, 2, 1, 0)
    before = x.clone()
    assert_close(net(x), net(x.contiguous()))
    assert torch.equal(x, before)


@pytest.mark.parametrize('size', [(1, 1), (9, 14)], ids=['1x1', '9x14'])
@pytest.mark.parametrize('value', [0.0, 0.5, 1.0])
@each_arch
def test_flat_image_has_finite_output_and_gradients(name, value, size):
    net, x = build(name), torch.full((1, 3, *size), value, requires_grad=True)
    y = net(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@each_arch
def test_every_parameter_is_in_the_graph(name):
    net = build(name)
    net(torch.rand(1, 3, 9, 14)).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


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
def test_autocast_stays_finite(name, size, dtype):
    net, x = away_from_zero(build(name)), torch.rand(2, 3, *size, requires_grad=True)
    with torch.autocast('cpu', dtype):
        y = net(x)
        loss = (y.float() - 0.5).abs().mean()
    loss.backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert [n for n, p in net.named_parameters() if not p.grad.isfinite().all()] == []


@HALF_TYPES
@each_arch
def test_autocast_stays_near_float32(name, dtype):
    net, x = away_from_zero(build(name)), torch.rand(2, 3, 9, 14)
    with torch.inference_mode():
        exact = net(x)
        with torch.autocast('cpu', dtype):
            y = net(x)
    assert (y - exact).norm() < 0.02 * exact.norm()


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


@each_arch
def test_output_without_gradients_is_the_output_with_them(name, assert_close):
    net, x = away_from_zero(build(name).double()), torch.rand(2, 3, 13, 17, dtype=torch.float64)
    y = net(x)
    with torch.inference_mode():
        assert_close(net(x), y)


@each_arch
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


@each_arch
def test_unknown_keyword_is_a_type_error(name):
    with pytest.raises(TypeError, match='num_feats'):
        build(name, num_feats=16)


BAD_ARGUMENTS = [
    ('SPIN', {'num_feat': 15}, 'num_feat=15.*num_heads=2'),
    ('SPIN', {'qk_dim': 7}, 'qk_dim=7'),
    ('SPIN', {'num_feat': 6}, 'num_feat=6'),
    ('SPIN', {'num_heads': 0}, 'num_heads=0'),
    ('SPIN', {'stoken_size': (4,)}, r'stoken_size=\(4,\), num_block=2'),
    ('SPIN', {'stoken_size': (4, 0)}, r'stoken_size=\(4, 0\)'),
    ('SPIN', {'num_iter': 0}, 'num_iter=0'),
    ('SPIN', {'num_iter': 2.5}, 'whole numbers of at least 1, .*num_iter=2.5'),
    ('SPIN', {'num_block': 2.0}, 'num_block must be a whole number, got num_block=2.0'),
    ('SPIN', {'num_block': 2, 'stoken_size': '12'}, "whole numbers of at least 1, got stoken_size='12'"),
    ('SPIN', {'num_block': 2, 'stoken_size': (12, 16.5)}, r'whole numbers of at least 1, got stoken_size=\(12, 16.5\)'),
    ('SPIN', {'differentiable': 'no'}, "differentiable must be true or false, got 'no'"),
    ('SPIN', {'num_out_ch': 1}, 'num_in_ch=3, num_out_ch=1'),
    ('SPIN', {'upscale': 5}, 'upscale.*5'),
    ('SPIN', {'upscale': 8}, 'upscale.*8'),
    ('SAN', {'upscale': 0}, 'upscale.*0'),
    ('SAN', {'upscale': 5}, 'upscale.*5'),
    ('SAN', {'num_feat': 7, 'squeeze_factor': 4}, 'num_feat=7'),
    ('SAN', {'squeeze_factor': 17}, 'squeeze_factor=17'),
    ('SAN', {'squeeze_factor': 0}, 'squeeze_factor=0'),
    ('SAN', {'num_out_ch': 1}, 'num_out_ch=1'),
    ('SAN', {'rgb_mean': (0.5,)}, r'rgb_mean=\(0.5,\)'),
    ('RCAN_spinsr', {'upscale': 0}, '(upscale|scale).*0'),
    ('RCAN_spinsr', {'upscale': 5}, '(upscale|scale).*5'),
    ('RCAN_spinsr', {'squeeze_factor': 17}, 'squeeze_factor=17'),
    ('RCAN_spinsr', {'squeeze_factor': 0}, 'squeeze_factor=0'),
    ('RCAN_spinsr', {'num_in_ch': 1}, 'num_in_ch=1'),
    ('RCAN_spinsr', {'rgb_mean': (0.5,)}, r'rgb_mean=\(0.5,\)'),
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
    nn.init.zeros_(twin.conv_first.weight)
    assert net.conv_first.weight.any()


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
    files = {'SAN': 'san_official_tiny_x2', 'RCAN_spinsr': 'rcan_official_tiny_x2', 'EMT': 'zoo/emt_x2'}
    weights = official(files[name]).weights
    assert torch.equal(build(name).mean.flatten(), -weights['sub_mean.bias'])


@pytest.mark.parametrize('name', WITH_MEAN)
def test_mean_is_a_buffer_and_no_parameter(name):
    net = build(name, img_range=2, rgb_mean=(0.25, 0.5, 1))
    assert net.state_dict()['mean'].flatten().tolist() == [0.5, 1, 2]
    assert 'mean' not in dict(net.named_parameters())
    assert net.double().mean.dtype == torch.float64


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
def test_weights_of_basicsrs_rcan_load_and_give_its_image(scale):
    theirs = ARCH_REGISTRY.get('RCAN')(num_in_ch=3, num_out_ch=3, **NETWORKS['RCAN_spinsr'].small, upscale=scale)
    ours = build('RCAN_spinsr', scale)
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


def test_gamma_of_san_weighs_the_share_source_skip():
    net, x = away_from_zero(build('SAN')), torch.rand(1, 3, 9, 14)
    before = net(x)
    nn.init.constant_(net.gamma, 2)
    assert not torch.allclose(net(x), before, atol=1e-3)


@each_arch
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=['fp16', 'bf16'])
def test_runs_with_half_weights(name, dtype):
    net = build(name).to(dtype).eval()
    with torch.no_grad():
        output = net(torch.rand(1, 3, 13, 17).to(dtype))
    assert output.dtype == dtype
    assert output.isfinite().all()


COMPILED_SIZES = pytest.mark.parametrize(
    'sizes',
    [
        pytest.param([(9, 14)], id='one_size'),
        pytest.param([(9, 14), (12, 7)], id='two_sizes', marks=pytest.mark.slow),
    ],
)


def compare(compiled, net, sizes, assert_close) -> None:
    for size in sizes:
        x = torch.rand(2, 3, *size, dtype=torch.float64)
        assert_close(compiled(x), net(x))
        assert_close(gradients(compiled, x), gradients(net, x))
        with torch.no_grad():
            assert_close(compiled(x), net(x))


@each_arch
@COMPILED_SIZES
def test_compiles_without_a_graph_break(name, sizes, compiled, assert_close):
    net = away_from_zero(build(name)).double()
    compare(compiled(net), net, sizes, assert_close)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler on the CPU')
@each_arch
def test_compiles_to_the_same_result(name, compiled, assert_close):
    net = away_from_zero(build(name)).double()
    compare(compiled(net, backend='inductor'), net, [(9, 14)], assert_close)


@each_arch
def test_compiles_under_autocast(name, compiled):
    net, x = build(name), torch.rand(1, 3, 9, 14)
    with torch.autocast('cpu', torch.bfloat16):
        out = compiled(net)(x)
        plain = net(x)
    assert (out.float() - plain.float()).abs().mean() < 0.02


@each_arch
def test_exports(name, assert_close):
    # No other test has 10x15: the exporter is the first to ask for its tables, and must leave none of its own behind.
    net, x = away_from_zero(build(name)).double().eval(), torch.rand(1, 3, 10, 15, dtype=torch.float64)
    exported = torch.export.export(net, (x,)).module()
    other = torch.rand_like(x)
    with torch.no_grad():
        assert_close(exported(other), net(other))
    gradients(net, x)
