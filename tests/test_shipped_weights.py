"""The weights that travel in the wheel, and what they are worth."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from skimage import data

import spinsr
from spinsr import weights
from spinsr.data.bicubic import downsample, mod_crop, upsample

FILES = list(weights.shipped().values())
every_file = pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)


def load(path):
    arch, scale = path.stem.split('_x')
    return spinsr.load(arch, int(scale)), int(scale)


def psnr(image, hr):
    return -10 * np.log10(np.square(image.astype(float) - hr).mean() / 255**2)


def test_spin_x4_is_the_default():
    assert weights.default_weights() == weights.FOLDER / 'SPIN_x4.safetensors'
    assert weights.default_weights() in FILES


@every_file
def test_file_names_its_network_and_holds_finite_float32(path):
    _, scale = load(path)
    with safe_open(path, 'pt') as file:
        about = file.metadata()
        values = [file.get_tensor(key) for key in file.keys()]
    assert (about['arch'], about['scale']) == (path.stem.split('_x')[0], str(scale))
    assert about['source_key'] == 'params_ema'
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in values)
    assert path.stat().st_size < 3e6


@pytest.mark.slow
@every_file
def test_is_clearly_better_than_bicubic(path):
    net, scale = load(path)
    hr = mod_crop(data.coffee()[100:300, 200:400], scale)
    lr = downsample(hr, scale)
    assert psnr(spinsr.upscale(lr, net), hr) > psnr(upsample(lr, scale), hr) + 0.8


@pytest.mark.slow
@every_file
def test_adds_no_colour_and_no_shift(path):
    net, scale = load(path)
    grey = np.full((20, 30, 3), 128, np.uint8)
    assert np.abs(spinsr.upscale(grey, net).astype(int) - 128).max() <= 2
    lr = downsample(mod_crop(data.chelsea()[:200, 50:300], scale), scale)
    back = downsample(spinsr.upscale(lr, net), scale)
    assert np.abs(back.astype(float) - lr).mean() < 2
    assert np.abs((back.astype(float) - lr).mean((0, 1))).max() < 0.5
