import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

import spinsr

SMALL = {
    'SPIN': {'num_feat': 16, 'num_block': 1, 'qk_dim': 8, 'mlp_dim': 24, 'stoken_size': (4,)},
    'SAN': {'num_feat': 16, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4},
    'RCAN': {'num_feat': 16, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4},
}
each_arch = pytest.mark.parametrize('arch', SMALL)


class Twice(nn.Module):
    """Every pixel doubled, times a factor; has no scale or arguments like ours."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        self.seen = x
        return self.dropout(x.repeat_interleave(2, 2).repeat_interleave(2, 3) * self.factor)


@pytest.fixture
def image():
    return np.random.randint(0, 256, (5, 7, 3), dtype=np.uint8)


def same(net, other):
    one, two = net.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@each_arch
def test_load_builds_a_network_that_upscales(arch, image):
    net = spinsr.load(arch, scale=3, **SMALL[arch])
    out = spinsr.upscale(image, net)
    assert (out.shape, out.dtype) == ((15, 21, 3), np.uint8)
    assert not net.training


def test_rcan_is_the_one_of_spinsr():
    assert type(spinsr.load('RCAN', scale=2, **SMALL['RCAN'])).__module__ == 'spinsr.archs.rcan_arch'


def test_other_archs_of_basicsr_load_too(image):
    net = spinsr.load('EDSR', scale=2, num_in_ch=3, num_out_ch=3, num_feat=8, num_block=1)
    assert spinsr.upscale(image, net).shape == (10, 14, 3)


def test_untrained_network_is_said_to_be_untrained(caplog):
    with caplog.at_level(logging.WARNING, logger='spinsr'):
        spinsr.load('SPIN', scale=2, **SMALL['SPIN'])
    assert 'SPIN has no weights' in caplog.text


def test_unknown_arch_is_refused_with_the_name():
    with pytest.raises(ValueError, match="SPIN, SAN, RCAN .* got 'SPINN'"):
        spinsr.load('SPINN')


def test_unknown_scale_is_refused_with_the_value():
    with pytest.raises(ValueError, match='5'):
        spinsr.load('SPIN', scale=5)


def test_unknown_argument_is_refused_with_the_name():
    with pytest.raises(TypeError, match='num_feats'):
        spinsr.load('SPIN', num_feats=16)


@pytest.mark.parametrize('key', [None, 'params', 'params_ema'], ids=['bare', 'params', 'params_ema'])
@each_arch
def test_weights_come_back_from_a_file(arch, key, tmp_path, image):
    net, path = spinsr.load(arch, scale=2, **SMALL[arch]), tmp_path / 'net.pth'
    torch.save({key: net.state_dict()} if key else net.state_dict(), path)
    other = spinsr.load(arch, scale=2, weights=path, **SMALL[arch])
    assert same(net, other)
    assert np.array_equal(spinsr.upscale(image, net), spinsr.upscale(image, other))


def test_ema_weights_come_first(tmp_path):
    plain, ema = (spinsr.load('SPIN', scale=2, **SMALL['SPIN']) for _ in range(2))
    torch.save({'params': plain.state_dict(), 'params_ema': ema.state_dict()}, tmp_path / 'net.pth')
    net = spinsr.load('SPIN', scale=2, weights=str(tmp_path / 'net.pth'), **SMALL['SPIN'])
    assert same(net, ema)
    assert not same(net, plain)


def test_weights_may_be_a_state_dict():
    net = spinsr.load('SPIN', scale=2, **SMALL['SPIN'])
    assert same(net, spinsr.load('SPIN', scale=2, weights=net.state_dict(), **SMALL['SPIN']))


def test_weights_of_another_basicsr_arch(tmp_path):
    arguments = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1}
    net = spinsr.load('EDSR', scale=2, **arguments)
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
    torch.save(spinsr.load('SPIN', scale=2, **SMALL['SPIN']).state_dict(), path)
    with pytest.raises(ValueError, match=r'(?s)x2\.pth does not fit SPIN with upscale=3: .*upsample\.0'):
        spinsr.load('SPIN', scale=3, weights=path, **SMALL['SPIN'])


def test_weights_of_another_scale_are_refused_as_a_state_dict():
    weights = spinsr.load('SAN', scale=2, **SMALL['SAN']).state_dict()
    with pytest.raises(ValueError, match='the state dict does not fit SAN with upscale=4: '):
        spinsr.load('SAN', scale=4, weights=weights, **SMALL['SAN'])


def test_weights_of_another_arch_are_refused_with_their_names(tmp_path):
    torch.save(spinsr.load('SAN', scale=2, **SMALL['SAN']).state_dict(), tmp_path / 'san.pth')
    with pytest.raises(ValueError, match='belong to no SPIN: .*gamma'):
        spinsr.load('SPIN', scale=2, weights=tmp_path / 'san.pth', **SMALL['SPIN'])


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        spinsr.load('SPIN', scale=2, weights=tmp_path / 'nowhere.pth', **SMALL['SPIN'])


def test_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'spinsr' has no attribute 'upscal'"):
        spinsr.upscal  # noqa: B018


def test_network_sees_rgb_in_zero_to_one_and_the_image_comes_back(image):
    net = Twice()
    out = spinsr.upscale(image, net)
    expected = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    assert torch.equal(net.seen, expected)
    assert np.array_equal(out, image.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    ('factor', 'expected'), [(0.509, 51), (0.511, 51), (0.505, 50), (3.0, 255), (-1.0, 0)], ids=str
)
def test_output_is_rounded_and_clipped(factor, expected):
    out = spinsr.upscale(np.full((1, 1, 3), 100, np.uint8), Twice(factor))
    assert (out == expected).all()


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16], ids=['float64', 'bfloat16'])
def test_network_of_another_type(dtype, image):
    net = Twice().to(dtype)
    out = spinsr.upscale(image, net)
    assert net.seen.dtype == dtype
    assert abs(out.astype(int) - image.repeat(2, 0).repeat(2, 1)).max() <= (0 if dtype == torch.float64 else 1)


@pytest.mark.parametrize('training', [True, False])
def test_mode_of_the_network_stays(training, image):
    net = Twice().train(training)
    out = spinsr.upscale(image, net)
    assert net.training == net.dropout.training == training
    assert np.array_equal(out, image.repeat(2, 0).repeat(2, 1))  # and nothing was dropped


def test_mode_of_the_network_stays_after_an_error(image):
    net = Twice().train()
    net.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        spinsr.upscale(image, net)
    assert net.training


@each_arch
def test_image_stays_as_it_is(arch, image):
    before = image.copy()
    spinsr.upscale(image, spinsr.load(arch, scale=2, **SMALL[arch]))
    assert np.array_equal(image, before)


def test_read_only_and_flipped_images(image):
    flipped = image[::-1, ::-1]
    flipped.flags.writeable = False
    assert np.array_equal(spinsr.upscale(flipped, Twice()), flipped.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize('dtype', [np.float32, np.uint16, np.int64])
def test_other_types_are_refused_with_the_type(dtype):
    with pytest.raises(TypeError, match=f'must be uint8, got {np.dtype(dtype)}'):
        spinsr.upscale(np.zeros((4, 4, 3), dtype), Twice())


@pytest.mark.parametrize(
    'shape', [(4, 4), (4, 4, 1), (4, 4, 4), (1, 4, 4, 3), (0, 4, 3)], ids=lambda shape: 'x'.join(map(str, shape))
)
def test_other_shapes_are_refused_with_the_shape(shape):
    with pytest.raises(ValueError) as error:
        spinsr.upscale(np.zeros(shape, np.uint8), Twice())
    assert str(error.value) == f'image must have the shape (H, W, 3), got {shape}'


def test_trained_gradients_stay_possible_after_upscaling(image):
    net = spinsr.load('SPIN', scale=2, **SMALL['SPIN'])
    spinsr.upscale(image, net)
    loss = net.train()(torch.rand(1, 3, 5, 7)).mean()
    loss.backward()
    assert math.isfinite(loss.item())
