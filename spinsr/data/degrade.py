"""Degrades an image as `spinsr.data.degradation` describes: the same seed gives the same LR image.

Kernels and noise are BasicSR's. They draw from the global generators, which are seeded here and restored after it.
"""

import hashlib
import math
import random

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from spinsr import compat

compat.install()

import basicsr.data.degradations as basicsr  # noqa: E402

from spinsr.data.degradation import LARGEST_KERNEL, Degradation, Stage  # noqa: E402
from spinsr.utils.random_state import seeded  # noqa: E402


def degrade(image: np.ndarray, scale: int, degradation: Degradation, seed: int) -> np.ndarray:
    """Makes the LR image.

    Args:
        image: (H, W, 3), uint8, RGB. H and W must be divisible by scale (see `spinsr.data.bicubic.mod_crop`).
        scale: A positive integer.
        degradation: What happens to the image.
        seed: From 0 to below 2^64; it determines everything that is drawn.

    Returns:
        (H / scale, W / scale, 3), uint8, RGB; a new array.

    Raises:
        TypeError: The image is not uint8.
        ValueError: It does not have three channels, or a side is not divisible by scale.

    Example:
        >>> from spinsr.data.degradation import PRESETS
        >>> degrade(np.full((8, 12, 3), 7, np.uint8), 4, PRESETS['light'], seed=0).shape
        (2, 3, 3)
    """
    if image.dtype != np.uint8:
        raise TypeError(f'the image must be a uint8 array, got {image.dtype}')
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'the image must be (H, W, 3), got shape {image.shape}')
    height, width = (side // scale for side in image.shape[:2])
    if (height * scale, width * scale) != image.shape[:2] or not height or not width:
        raise ValueError(
            f'the sides must be divisible by the scale (mod_crop does that), got {image.shape[0]}x{image.shape[1]} '
            f'(HxW) and {scale=}'
        )
    with seeded(seed):
        # BGR, in which OpenCV compresses and weighs the channels of grey.
        out = _degrade(image[..., ::-1].astype(np.float32) / 255.0, (height, width), degradation)
    return _to_uint8(out)[..., ::-1].copy()


def seed_of(name: str) -> int:
    """A seed that depends on the name of an image alone, for degraded images that are the same in every validation.

    Example:
        >>> seed_of('baby') == seed_of('baby'), seed_of('baby') == seed_of('bird')
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big')


def _degrade(out: np.ndarray, size: tuple[int, int], how: Degradation) -> np.ndarray:
    """(H, W, 3), BGR, float32, [0, 1] -> size, and 3."""
    first, second = how.first, how.second
    out = _blur(out, first)
    out = _resize(out, _scaled(out.shape[:2], first), how)
    out = _jpeg(_noise(out, first), first)

    out = _blur(out, second)
    out = _resize(out, _scaled(size, second), how)
    out = _noise(out, second)
    # In Real-ESRGAN too, the sinc filter belongs to the resize: JPEG comes before or after both of them.
    if random.random() < 0.5:
        return _jpeg(_final_sinc(_resize(out, size, how), how), second)
    return _final_sinc(_resize(_jpeg(out, second), size, how), how)


def _blur(image: np.ndarray, stage: Stage) -> np.ndarray:
    if random.random() >= stage.blur_prob:
        return image
    size = random.randrange(stage.kernel_size[0], stage.kernel_size[1] + 1, 2)
    if random.random() < stage.sinc_prob:
        return _filter(image, _sinc(size, lowest=math.pi / 3 if size < 13 else math.pi / 5))
    names, weights = zip(*stage.kernel_prob.items(), strict=True)
    kernel = basicsr.random_mixed_kernels(
        names,
        weights,
        size,
        stage.blur_sigma,
        stage.blur_sigma,
        (-math.pi, math.pi),
        stage.betag_range,
        stage.betap_range,
    )
    return _filter(image, kernel)


def _final_sinc(image: np.ndarray, how: Degradation) -> np.ndarray:
    if random.random() >= how.final_sinc_prob:
        return image
    return _filter(image, _sinc(random.randrange(7, LARGEST_KERNEL + 1, 2), lowest=math.pi / 3))


def _sinc(size: int, lowest: float) -> np.ndarray:
    # BasicSR divides by zero in the middle, and fills it in afterwards.
    with np.errstate(divide='ignore', invalid='ignore'):
        return basicsr.circular_lowpass_kernel(random.uniform(lowest, math.pi), size)


def _filter(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.clip(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101), 0, 1)


def _scaled(size: tuple[int, ...], stage: Stage) -> tuple[int, int]:
    """A size times a random factor."""
    (low, high), kind = stage.resize_range, random.choices(('up', 'down', 'keep'), stage.resize_prob)[0]
    factor = {'up': random.uniform(1, high), 'down': random.uniform(low, 1), 'keep': 1}[kind]
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def _resize(image: np.ndarray, size: tuple[int, int], how: Degradation) -> np.ndarray:
    mode = random.choice(how.resize_modes)
    if image.shape[:2] == size:
        return image
    batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    smooth = mode != 'area'  # area has an antialiasing filter by itself
    out = F.interpolate(batch, size, mode=mode, **({'antialias': how.antialias} if smooth else {}))
    return np.ascontiguousarray(out[0].clamp(0, 1).numpy().transpose(1, 2, 0))


def _noise(image: np.ndarray, stage: Stage) -> np.ndarray:
    if random.random() >= stage.noise_prob:
        return image
    if random.random() < stage.gaussian_noise_prob:
        return basicsr.random_add_gaussian_noise(image, stage.noise_range, stage.gray_noise_prob)
    return basicsr.random_add_poisson_noise(image, stage.poisson_scale_range, stage.gray_noise_prob)


def _jpeg(image: np.ndarray, stage: Stage) -> np.ndarray:
    """Not BasicSR's: with current OpenCV, its quality is of a wrong type, and each image gives a warning."""
    if random.random() >= stage.jpeg_prob:
        return image
    quality = random.randint(*stage.jpeg_range)
    _, data = cv2.imencode('.jpg', _to_uint8(image), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded.astype(np.float32) / 255.0


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255.0).astype(np.uint8)
