"""PSNR, SSIM and Y against BasicSR's, to the last digit, and cases computed by hand."""

import numpy as np
import pytest

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.metrics.metric_util import to_y_channel

from spinsr.evaluation.psnr_ssim import luma, psnr, ssim


@pytest.mark.parametrize('rounded', [True, False], ids=['uint8', 'float32'])
@pytest.mark.parametrize('y', [True, False], ids=['y', 'rgb'])
def test_equal_to_basicsr(y, rounded):
    random = np.random.default_rng(0)
    hr = random.integers(0, 256, (41, 53, 3), dtype=np.uint8)
    sr = np.clip(hr + random.normal(0, 9, hr.shape), 0, 255).astype(np.float32)
    if rounded:
        sr = np.rint(sr).astype(np.uint8)
    pair = [luma(image) for image in (sr, hr)] if y else [sr, hr]
    theirs = (sr[..., ::-1], hr[..., ::-1])
    assert psnr(*pair) == calculate_psnr(*theirs, 0, test_y_channel=y)
    assert ssim(*pair) == calculate_ssim(*theirs, 0, test_y_channel=y)
    assert np.array_equal(luma(sr), to_y_channel(theirs[0])[..., 0])


def test_known_values():
    image = np.full((11, 12, 3), (255, 0, 0), np.uint8)
    assert luma(image)[0, 0] == pytest.approx(16 + 65.481, abs=1e-4)
    assert (psnr(image, image), ssim(image, image)) == (float('inf'), 1)
    assert psnr(np.full((2, 2), 10), np.full((2, 2), 15)) == pytest.approx(20 * np.log10(255 / 5))
