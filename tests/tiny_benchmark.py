"""Benchmark folders that are scored in milliseconds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from spinsr.data import image_file
from spinsr.data.bicubic import downsample, mod_crop

SIZES = {'baby': (37, 42), 'bird': (41, 38)}


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: waves and noise; the channels differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 80 * np.sin(x / 5 + seed) * np.cos(y / 7)
    return np.clip(waves[..., None] + rng.integers(60, 160, (height, width, 3)), 0, 255).astype(np.uint8)


def write_benchmark(
    folder: Path, sizes: Mapping[str, tuple[int, int]] = SIZES, scales: Sequence[int] = ()
) -> dict[str, np.ndarray]:
    """Writes HR, and LR of some scales; returns the HR images by name."""
    hr = {name: photo(*size, seed) for seed, (name, size) in enumerate(sizes.items())}
    for name, image in hr.items():
        image_file.write_png(folder / 'HR' / f'{name}.png', image)
        for scale in scales:
            lr = downsample(mod_crop(image, scale), scale)
            image_file.write_png(folder / 'LR_bicubic' / f'X{scale}' / f'{name}x{scale}.png', lr)
    return hr
