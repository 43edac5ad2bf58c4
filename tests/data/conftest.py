"""Images for the data tests."""

from pathlib import Path

import numpy as np
import pytest

from spinsr.data import image_file


@pytest.fixture(scope='session')
def photo():
    """(height, width, seed) -> (H, W, 3) uint8: smooth, with noise and edges, so that LR depends on every detail."""

    def make(height: int, width: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width]
        waves = 90 * np.sin(x / 7 + seed) * np.cos(y / 11) + 60 * ((x // 16 + y // 16) % 2)
        noise = rng.integers(-40, 40, (height, width, 3))
        return np.clip(waves[..., None] + noise + 100, 0, 255).astype(np.uint8)

    return make


@pytest.fixture(scope='session')
def write_photo(photo):
    """(path, height, width, seed) -> the image written there."""

    def write(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
        image = photo(height, width, seed)
        image_file.write_png(path, image)
        return image

    return write


@pytest.fixture
def truncate():
    """Leaves the first half of a file."""

    def cut(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])

    return cut


@pytest.fixture
def corrupt():
    """Flips a bit in the middle of a file."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return flip
