import math

import numpy as np
import pytest
import torch
from torch import nn

import spinsr
from spinsr.infer import super_resolve

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
    spinsr.upscale(image, spinsr.load(arch, scale=2, weights=None, **SMALL[arch]))
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
    net = spinsr.load('SPIN', scale=2, weights=None, **SMALL['SPIN'])
    spinsr.upscale(image, net)
    loss = net.train()(torch.rand(1, 3, 5, 7)).mean()
    loss.backward()
    assert math.isfinite(loss.item())


def test_self_ensemble_is_the_mean_of_eight_transformed_outputs(image):
    net = spinsr.load('SPIN', scale=2, weights=None, **SMALL['SPIN']).double()
    x = torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255
    outputs = []
    with torch.inference_mode():
        for turns in range(4):
            for mirrored in (False, True):
                turned = torch.rot90(x.flip(3) if mirrored else x, turns, (2, 3))
                y = torch.rot90(net(turned), -turns, (2, 3))
                outputs.append(y.flip(3) if mirrored else y)
    expected = sum(outputs) / 8
    actual = super_resolve(x, net, self_ensemble=True)
    assert torch.allclose(actual, expected.float(), rtol=0, atol=1e-6)
    assert not torch.allclose(actual, outputs[0].float(), rtol=0, atol=1e-4)
