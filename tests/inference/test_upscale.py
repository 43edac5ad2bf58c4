import logging
import math
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

import spinsr
from spinsr.data import bicubic, resample
from spinsr.inference import upscale as upscaling
from spinsr.inference.upscale import scale_of, super_resolve
from spinsr.utils import memory

from ..networks import SMALL, settled

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


def test_outscale_resamples_the_output_of_the_network(image):
    whole = spinsr.upscale(image, Twice())
    height, width = image.shape[0] * 3 // 2, image.shape[1] * 3 // 2
    found = spinsr.upscale(image, Twice(), outscale=1.5)
    assert abs(found.shape[0] - height) <= 1 and abs(found.shape[1] - width) <= 1
    assert np.array_equal(found, resample.resize(whole, *found.shape[:2]))
    with pytest.raises(ValueError, match='outscale must be positive .*, got 0'):
        spinsr.upscale(image, Twice(), outscale=0)


def test_read_only_and_flipped_images(image):
    flipped = image[::-1, ::-1]
    flipped.flags.writeable = False
    assert np.array_equal(spinsr.upscale(flipped, Twice()), flipped.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize('dtype', [np.float32, np.int16, np.int64])
def test_other_types_are_refused_with_the_type(dtype):
    with pytest.raises(TypeError, match=f'must be uint8 or uint16, got {np.dtype(dtype)}'):
        spinsr.upscale(np.zeros((4, 4, 3), dtype), Twice())


@pytest.mark.parametrize(
    'shape',
    [(4,), (4, 4, 0), (4, 4, 5), (1, 4, 4, 3), (0, 4, 3), (4, 0)],
    ids=lambda shape: 'x'.join(map(str, shape)),
)
def test_other_shapes_are_refused_with_the_shape(shape):
    with pytest.raises(ValueError) as error:
        spinsr.upscale(np.zeros(shape, np.uint8), Twice())
    assert str(error.value) == f'image must have the shape (H, W) or (H, W, 1 to 4), got {shape}'


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


@pytest.mark.parametrize('channels', [None, 1, 2, 3, 4], ids=['grey', 'grey_1', 'grey_alpha', 'rgb', 'rgba'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_depth_and_channels_stay(dtype, channels):
    shape = (5, 7) if channels is None else (5, 7, channels)
    image = np.random.randint(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    out = spinsr.upscale(image, Twice())
    expected = image.repeat(2, 0).repeat(2, 1)
    if channels in (2, 4):
        expected[..., -1] = bicubic.upsample(image[..., -1], 2)
    assert out.dtype == dtype
    assert np.array_equal(out, expected)


def test_16_bits_are_rounded_and_clipped():
    image = np.full((1, 1, 3), 1000, np.uint16)
    assert (spinsr.upscale(image, Twice(1.0006)) == 1001).all()
    assert (spinsr.upscale(image, Twice(100.0)) == 65535).all()


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('value', [0, 1], ids=['transparent', 'opaque'])
def test_flat_alpha_stays_exactly_as_it_is(value, dtype):
    image = np.zeros((5, 7, 4), dtype)
    image[..., 3] = value * np.iinfo(dtype).max
    assert (spinsr.upscale(image, Twice())[..., 3] == image[0, 0, 3]).all()


def test_grey_is_the_mean_of_the_three_outputs():
    class Tinted(Twice):
        def forward(self, x):
            return super().forward(x) * torch.tensor([0.5, 1.0, 0.6])[:, None, None]

    net = Tinted()
    out = spinsr.upscale(np.full((2, 3), 100, np.uint8), net)
    assert net.seen.shape == (1, 3, 2, 3)
    assert (out == 70).all()


def test_nan_is_an_error_and_not_an_image(image):
    with pytest.raises(ValueError, match=r"contains NaN or Inf \(precision='fp32'\)"):
        spinsr.upscale(image, Twice(math.nan))


class Local(nn.Module):
    """Looks two pixels far; keeps the sizes that it was given."""

    def __init__(self, scale: int = 2):
        super().__init__()
        self.scale = scale
        self.convs = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 3 * scale**2, 3, 1, 1))
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape[2:]))
        return nn.functional.pixel_shuffle(self.convs(x), self.scale)


class Constant(Local):
    def forward(self, x):
        return super().forward(x) * 0 + 0.75


sizes = pytest.mark.parametrize('size', [(70, 101), (32, 33), (20, 97), (97, 20), (64, 128)], ids=str)


@sizes
@pytest.mark.parametrize('scale', [1, 2, 3])
def test_tiles_of_a_local_network_equal_the_whole(scale, size):
    x, net = torch.rand(1, 3, *size), Local(scale)
    whole = super_resolve(x, net)
    net.sizes.clear()
    tiled = super_resolve(x, net, tile=32)
    assert len(net.sizes) > 1
    assert set(net.sizes) == {tuple(min(side, 32) for side in size)}
    assert torch.allclose(tiled, whole, rtol=0, atol=1e-6)


@sizes
@pytest.mark.parametrize('tile', [32, 45, 64])
def test_shares_of_the_tiles_add_up_to_one(tile, size):
    assert (super_resolve(torch.rand(1, 3, *size), Constant(), tile=tile) == 0.75).all()


def test_tiles_are_blended_smoothly():
    class Moody(Local):
        """A tile's grey is how often it was asked before."""

        def forward(self, x):
            return super().forward(x) * 0 + len(self.sizes)

    y = super_resolve(torch.rand(1, 3, 32, 120), Moody(), tile=64)
    row = y[0, 0, 0]
    assert (row[0], row[-1]) == (1, 3)
    steps = row.diff()
    assert (steps >= 0).all()
    assert steps.max() < 0.12  # 16 pixels a ramp: 1.5 / 16 where it is steepest


@pytest.mark.parametrize('arch', SMALL)
@pytest.mark.parametrize('tile', [40, 41, 1000])
def test_a_tile_that_holds_the_image_is_the_whole_image(arch, tile):
    x, net = torch.rand(1, 3, 24, 40), spinsr.load(arch, scale=2, weights=None, **SMALL[arch])
    assert torch.equal(super_resolve(x, net, tile=tile), super_resolve(x, net))


def test_self_ensemble_goes_with_tiles():
    x, net = torch.rand(1, 3, 33, 70), Local()
    tiled = super_resolve(x, net, tile=32, self_ensemble=True)
    assert torch.allclose(tiled, super_resolve(x, net, self_ensemble=True), rtol=0, atol=1e-6)
    assert not torch.allclose(tiled, super_resolve(x, net), rtol=0, atol=1e-3)


class Small(Local):
    """Raises `error` for more pixels than `room`."""

    def __init__(self, error: Exception, room: int):
        super().__init__()
        self.error, self.room = error, room

    def forward(self, x):
        y = super().forward(x)
        if x.shape[2] * x.shape[3] > self.room:
            raise self.error
        return y


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB'),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.'),
        RuntimeError('MPS backend out of memory (MPS allocated: 9 GB)'),
        RuntimeError('Invalid buffer size: 9 GB'),
        RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED'),
        RuntimeError('could not create a primitive'),
        MemoryError(),
    ],
    ids=['cuda', 'linux', 'windows', 'mps', 'mps_buffer', 'cudnn', 'onednn', 'python'],
)
def test_tiles_are_halved_until_memory_suffices(error, caplog):
    x, net = torch.rand(1, 3, 100, 150), Small(error, 38 * 38)
    with caplog.at_level(logging.WARNING, logger='spinsr'):
        y = super_resolve(x, net)
    assert net.sizes[:4] == [(100, 150), (75, 75), (37, 37), (37, 37)]
    net.room = 10**9
    assert torch.equal(y, super_resolve(x, net, tile=37))
    assert caplog.messages == [
        'out of memory for a 100x150 image (whole image); trying 75-px tiles',
        'out of memory for a 100x150 image (75-px tiles); trying 37-px tiles',
    ]


def test_an_image_that_fails_in_the_middle_is_done_again_from_the_start():
    class Tired(Local):
        def forward(self, x):
            if len(self.sizes) == 3:
                self.sizes.append('out of memory')
                raise torch.OutOfMemoryError
            return super().forward(x)

    x, net = torch.rand(1, 3, 100, 150), Tired()
    y = super_resolve(x, net, tile=80)
    assert net.sizes[:5] == [(80, 80)] * 3 + ['out of memory', (40, 40)]
    assert torch.equal(y, super_resolve(x, net, tile=40))


def test_below_the_smallest_tile_the_error_says_what_was_tried():
    with pytest.raises(MemoryError) as error:
        super_resolve(torch.rand(1, 3, 100, 100), Small(torch.OutOfMemoryError('CUDA out of memory\nmore'), 9))
    expected = 'out of memory for a 100x100 image (tried: whole image, 50-px tiles, 32-px tiles)'
    assert str(error.value) == expected


@pytest.mark.parametrize(('tile', 'tried'), [(None, 'whole image'), (50, '50-px tiles')])
def test_without_smaller_tiles_the_first_try_is_the_last(tile, tried):
    net = Small(torch.OutOfMemoryError('CUDA out of memory'), 9)
    with pytest.raises(MemoryError) as error:
        super_resolve(torch.rand(1, 3, 100, 100), net, tile=tile, smaller_tiles=False)
    assert str(error.value) == f'out of memory for a 100x100 image (tried: {tried})'
    assert len(net.sizes) == 1


def test_other_errors_of_the_network_are_not_tried_again():
    net = Small(RuntimeError('mat1 and mat2 shapes cannot be multiplied'), 9)
    with pytest.raises(RuntimeError, match='mat1'):
        super_resolve(torch.rand(1, 3, 100, 100), net)
    assert len(net.sizes) == 1


SWINIR = {'upsampler': 'pixelshuffledirect', 'embed_dim': 8, 'depths': (2,), 'num_heads': (2,)}


@pytest.mark.parametrize('size', [(16, 16), (17, 30), (5, 3), (1, 1)], ids=str)
def test_networks_with_windows_get_whole_windows(size):
    net = spinsr.load('SwinIR', 2, None, window_size=8, **SWINIR)
    x = torch.rand(1, 3, *size)
    image = (x[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    assert spinsr.upscale(image, net).shape == (2 * size[0], 2 * size[1], 3)
    pads = [(0, -side % 8) for side in size]
    # NumPy reflects again and again where an image is smaller than what is added, torch does not.
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), *pads], mode='reflect' if min(size) > 1 else 'edge')
    with torch.inference_mode():
        expected = net(torch.from_numpy(padded))[..., : 2 * size[0], : 2 * size[1]]
    assert torch.equal(super_resolve(x, net), expected)


def test_networks_with_windows_get_tiles_of_whole_windows():
    net = spinsr.load('SwinIR', 2, None, window_size=7, img_size=56, **SWINIR)
    seen = set()
    net.register_forward_pre_hook(lambda _, inputs: seen.add(tuple(inputs[0].shape[2:])))
    assert super_resolve(torch.rand(1, 3, 50, 60), net, tile=33).shape == (1, 3, 100, 120)
    assert seen == {(35, 35)}


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_computes_in_half_and_gives_float32(precision):
    x, net = torch.rand(1, 3, 20, 30), Local()
    seen = []
    net.convs[0].register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    y = super_resolve(x, net, precision=precision)
    assert seen == [{'bf16': torch.bfloat16, 'fp16': torch.float16}[precision]]
    assert y.dtype == torch.float32
    full = super_resolve(x, net)
    assert 0 < (y - full).abs().max() < {'bf16': 2e-2, 'fp16': 2e-3}[precision]


@each_arch
@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_of_our_networks(arch, precision, image):
    net = settled(spinsr.load(arch, scale=2, weights=None, **SMALL[arch]))
    full = spinsr.upscale(image, net).astype(int)
    assert abs(spinsr.upscale(image, net, precision=precision) - full).max() <= 3


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'tile': 31}, 'tile must be at least 32, got tile=31'),
        ({'precision': 'half'}, "precision must be one of auto, fp32, bf16, fp16, got 'half'"),
    ],
    ids=['tile', 'precision'],
)
def test_wrong_options_are_refused_with_the_value(options, message, image):
    with pytest.raises(ValueError) as error:
        spinsr.upscale(image, Twice(), **options)
    assert str(error.value) == message


@pytest.mark.parametrize('scale', [1, 2, 3, 4])
def test_scale_of_a_network(scale):
    assert scale_of(Local(scale)) == scale


def test_a_network_that_does_not_enlarge_by_a_whole_number_is_refused():
    net = nn.Upsample(scale_factor=1.5)
    with pytest.raises(ValueError, match=r'same whole number, got \(6, 9\) of \(4, 6\)'):
        super_resolve(torch.rand(1, 3, 4, 6), net)


def test_a_network_that_takes_no_rgb_has_no_scale():
    with pytest.raises(ValueError, match='the network must take RGB or grey images: '):
        scale_of(nn.Conv2d(1, 1, 3))


def test_scale_of_a_network_that_gives_several_images_is_refused():
    with pytest.raises(ValueError, match='the network must take RGB or grey images: '):
        scale_of(nn.MaxPool2d(2, return_indices=True))


@pytest.mark.parametrize('shape', [(70, 45, 3), (45, 70), (33, 100, 4), (113, 40, 3)], ids=str)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_tiles_are_rounded_band_by_band_as_the_whole_is(shape, dtype):
    image = np.random.randint(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    net, white = Local(2), np.iinfo(dtype).max
    colours = image.reshape(*shape[:2], -1)[..., :3]
    x = torch.from_numpy(colours.astype(np.float32) / np.float32(white)).permute(2, 0, 1)[None].expand(-1, 3, -1, -1)
    y = super_resolve(x, net, tile=32)[0]
    y = y.mean(0, keepdim=True) if len(shape) == 2 else y
    expected = (y * white).round().clamp(0, white).permute(1, 2, 0).numpy().astype(dtype).squeeze()
    found = spinsr.upscale(image, net, tile=32)
    assert np.array_equal(found[..., :3] if len(shape) == 3 else found, expected)


def test_bytes_become_the_floats_that_numpy_makes():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    seen = []

    class Seen(nn.Upsample):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    spinsr.upscale(values, Seen(scale_factor=2))
    assert np.array_equal(seen[-1][0, 0].numpy(), values[..., 0].astype(np.float32) / np.float32(255))


def test_a_result_that_does_not_fit_is_said_once_and_no_smaller_tiles_are_tried(monkeypatch):
    def refuse(*_):
        raise MemoryError

    net = Local(2)
    scale_of(net)
    net.sizes.clear()
    monkeypatch.setattr(np, 'empty', refuse)
    with pytest.raises(MemoryError, match=r'^out of memory for a 80x90 image: the result takes 0\.00 GiB$'):
        spinsr.upscale(np.zeros((80, 90, 3), np.uint8), net, tile=40)
    assert len(net.sizes) == 1
    net = Small(torch.OutOfMemoryError('CUDA out of memory'), 60 * 60)
    with pytest.raises(MemoryError, match=r'the result takes 0\.00 GiB \(tried: whole image\)$'):
        spinsr.upscale(np.zeros((80, 90, 3), np.uint8), net)
    assert net.sizes[-2:] == [(80, 90), (45, 45)]


@pytest.mark.parametrize('size', [(7, 9), (8, 5), (1, 1)], ids=str)
@pytest.mark.parametrize('scale', [1, 2, 4])
def test_networks_that_halve_the_image_first_get_a_multiple(size, scale):
    net = spinsr.load('RRDBNet', scale, None, num_feat=4, num_block=1, num_grow_ch=4)
    out = spinsr.upscale(np.random.randint(0, 256, (*size, 3), np.uint8), net)
    assert out.shape == (scale * size[0], scale * size[1], 3)


class OneChannel(nn.Module):
    """Nearest neighbours, and only of one channel."""

    def forward(self, x):
        assert x.shape[1] == 1
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_a_network_of_one_channel_gets_y_and_the_colours_stay(dtype):
    white = np.iinfo(dtype).max
    image = np.broadcast_to(np.array([200, 30, 90], np.float64) / 255 * white, (6, 8, 3)).round().astype(dtype)
    net = OneChannel()
    assert (scale_of(net), upscaling.channels_of(net)) == (2, 1)
    out = spinsr.upscale(image, net)
    assert out.shape == (12, 16, 3)
    assert abs(out.astype(int) - image[0, 0].astype(int)).max() <= white // 255


def test_a_network_of_one_channel_sees_the_y_of_basicsr():
    from basicsr.utils.color_util import rgb2ycbcr

    image = np.random.randint(0, 256, (6, 8, 3), np.uint8)
    seen = []

    class Seen(OneChannel):
        def forward(self, x):
            y = super().forward(x)
            seen.append(x)
            return y

    out = spinsr.upscale(image, Seen())
    expected = rgb2ycbcr(image.astype(np.float32) / 255, y_only=True)
    assert np.allclose(seen[-1][0, 0].numpy(), expected, atol=1e-6)
    y = rgb2ycbcr(out.astype(np.float32) / 255, y_only=True)
    assert abs(y - expected.repeat(2, 0).repeat(2, 1)).max() < 0.1


def test_grey_through_a_network_of_one_channel_stays_exact():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(spinsr.upscale(image, OneChannel()), image.repeat(2, 0).repeat(2, 1))


def test_threads_share_a_network_and_every_module_gets_its_mode_back():
    entered, leave = threading.Barrier(3), threading.Event()

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.modes = nn.BatchNorm2d(3), []

        def forward(self, x):
            if x.shape[2] > 8:
                entered.wait(10)
                leave.wait(10)
            self.modes.append(self.training or self.frozen.training)
            return nn.functional.interpolate(x, scale_factor=2)

    net = Slow().train()
    net.frozen.eval()
    scale_of(net)
    threads = [
        threading.Thread(target=super_resolve, args=(torch.rand(1, 3, 9, size), net), daemon=True) for size in (9, 10)
    ]
    for thread in threads:
        thread.start()
    entered.wait(10)
    assert not net.training
    super_resolve(torch.rand(1, 3, 8, 8), net)  # one that ends while others run
    assert not net.training
    leave.set()
    for thread in threads:
        thread.join(10)
    assert net.training and not net.frozen.training
    assert not any(net.modes)


@pytest.mark.skipif(sys.platform != 'linux', reason='needs Linux')
class TestLimitedMemory:
    def test_memory_runs_out_with_an_error_and_the_limit_goes_again(self, monkeypatch):
        import resource

        before = resource.getrlimit(resource.RLIMIT_DATA)
        monkeypatch.setattr(memory, 'available', lambda: 100 * 2**20)
        net = Local()
        seen = []

        def take(module, inputs):
            seen.append(torch.empty(15000 * inputs[0][0, 0].numel()).nbytes)

        net.register_forward_pre_hook(take)
        with upscaling.limited_memory():
            super_resolve(torch.rand(1, 3, 64, 64), net)
        # 4096 pixels would have taken 245 MB.
        assert seen[0] == 15000 * 4 * 32 * 32
        assert resource.getrlimit(resource.RLIMIT_DATA) == before

    def test_a_lower_limit_stays(self):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        lower = 8 * 2**30
        resource.setrlimit(resource.RLIMIT_DATA, (lower, hard))
        try:
            with upscaling.limited_memory():
                assert resource.getrlimit(resource.RLIMIT_DATA)[0] <= lower
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
