"""The weights that travel in the wheel, and what they are worth."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from skimage import data

import spinsr
from spinsr import weights
from spinsr.data.bicubic import downsample, mod_crop, upsample
from spinsr.weights.models import CLEAN, MODELS, PHOTO, RCAN_LIGHT

every_model = pytest.mark.parametrize('model', MODELS, ids=lambda model: model.file.split('.')[0])


def load(model):
    return spinsr.load(model=model.name, scale=model.scale)


def psnr(image, hr):
    return -10 * np.log10(np.square(image.astype(float) - hr).mean() / 255**2)


def test_spin_x4_is_the_default():
    assert weights.default_weights() == weights.FOLDER / 'SPIN_x4.safetensors'
    assert weights.default_weights() in [model.path for model in MODELS]


@every_model
def test_file_names_its_network_and_holds_finite_float32(model):
    load(model)
    with safe_open(model.path, 'pt') as file:
        about = file.metadata()
        values = [file.get_tensor(key) for key in file.keys()]
    assert (about['arch'], about['scale']) == (model.arch, str(model.scale))
    assert about['source_key'] == 'params_ema'
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in values)
    assert model.path.stat().st_size < 6e6


@pytest.mark.slow
@pytest.mark.parametrize(
    'model', [model for model in MODELS if model.trained_for == CLEAN], ids=lambda model: model.file
)
def test_is_clearly_better_than_bicubic(model):
    net, scale = load(model), model.scale
    hr = mod_crop(data.coffee()[100:300, 200:400], scale)
    lr = downsample(hr, scale)
    assert psnr(spinsr.upscale(lr, net), hr) > psnr(upsample(lr, scale), hr) + 0.8


@pytest.mark.slow
def test_light_rcan_is_as_good_as_spin():
    hr = mod_crop(data.coffee()[100:300, 200:400], RCAN_LIGHT.scale)
    lr = downsample(hr, RCAN_LIGHT.scale)
    light, spin = (psnr(spinsr.upscale(lr, spinsr.load(model=name)), hr) for name in (RCAN_LIGHT.name, 'spin'))
    assert light == pytest.approx(spin, abs=0.2)


@pytest.mark.slow
def test_photo_is_better_than_spin_on_a_jpeg():
    hr = data.coffee()[100:300, 200:400]
    file = io.BytesIO()
    Image.fromarray(downsample(hr, PHOTO.scale)).save(file, 'JPEG', quality=60)
    lr = np.asarray(Image.open(file))
    photo, spin = (psnr(spinsr.upscale(lr, spinsr.load(model=name)), hr) for name in ('photo', 'spin'))
    assert photo > max(spin, psnr(upsample(lr, PHOTO.scale), hr)) + 0.2


@pytest.mark.slow
@every_model
def test_adds_no_colour_and_no_shift(model):
    net, scale = load(model), model.scale
    grey = np.full((20, 30, 3), 128, np.uint8)
    assert np.abs(spinsr.upscale(grey, net).astype(int) - 128).max() <= 2
    lr = downsample(mod_crop(data.chelsea()[:200, 50:300], scale), scale)
    back = downsample(spinsr.upscale(lr, net), scale)
    assert np.abs(back.astype(float) - lr).mean() < 2
    assert np.abs((back.astype(float) - lr).mean((0, 1))).max() < 0.5
