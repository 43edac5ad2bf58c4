"""The weights that travel in the wheel: a file for an arch and a scale, SPIN_x4.safetensors."""

import os
from pathlib import Path

from spinsr.utils.text import printable

# What files of weights end in.
ENDINGS = ('.pth', '.pt', '.safetensors')
FOLDER = Path(__file__).parent
# What is built where neither a network nor weights are named.
DEFAULT_ARCH, DEFAULT_SCALE = 'SPIN', 4


def shipped() -> dict[str, Path]:
    """The weights that spinsr ships, name -> path: SPIN_x4.safetensors, …."""
    return {path.name: path for path in sorted(FOLDER.glob('*.safetensors'))}


def require_file(path: str | os.PathLike) -> None:
    """Makes sure that a weights file exists.

    Raises:
        FileNotFoundError: It does not.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no such weights file: {printable(os.fspath(path))}')


def default_weights(arch: str = DEFAULT_ARCH, scale: int = DEFAULT_SCALE) -> Path:
    """The file of the weights that spinsr ships for an arch and a scale.

    Raises:
        ValueError: spinsr ships none; the message lists the shipped ones.
    """
    files = shipped()
    name = f'{arch}_x{scale}.safetensors'
    if name not in files:
        there = ', '.join(path.stem for path in files.values()) or 'none yet'
        raise ValueError(f'spinsr ships no weights for {arch} x{scale} (shipped: {there}); give a weights file')
    return files[name]
