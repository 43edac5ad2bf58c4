"""The embedded sample: photographs that come with scikit-image, for training and validation without a download."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from spinsr.data import image_file
from spinsr.data.prepare import Cut, Source, check_scales, write_benchmark, write_lmdbs

SCALES = (2, 3, 4)
CUT = Cut(crop=240, step=120)
# By what factor a file is shrunk: the two large JPEGs lose their compression artefacts that way, and do not outweigh
# the other images.
TRAINING = {
    'astronaut.png': 1,
    'brick.png': 1,
    'grass.png': 1,
    'gravel.png': 1,
    'hubble_deep_field.jpg': 2,
    'ihc.png': 1,
    'motorcycle_left.png': 1,
    'motorcycle_right.png': 1,
    'retina.jpg': 2,
    'rocket.jpg': 1,
}
VALIDATION = ('chelsea.png', 'coffee.png')


def prepare_sample(out: Path, scales: Sequence[int] = SCALES, workers: int = 1) -> list[Path]:
    """Makes LMDBs for training and a benchmark folder for validation of scikit-image's photographs.

    Args:
        out: Where train_HR_sub.lmdb, train_LR_bicubic_X2_sub.lmdb, … and the benchmark folder val go.
        scales: Among 2, 3, 4, 8.
        workers: Processes; 1 works in this one.

    Returns:
        The LMDBs and the benchmark folder.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: scikit-image lacks a photograph; or an output exists and holds other images.
        OSError: The output cannot be written.
    """
    scales = check_scales(scales)
    folder = photograph_folder()
    training = [_source(folder / name, shrink) for name, shrink in TRAINING.items()]
    validation = [_source(folder / name) for name in VALIDATION]
    paths = {1: out / 'train_HR_sub.lmdb'}
    paths |= {scale: out / f'train_LR_bicubic_X{scale}_sub.lmdb' for scale in scales}
    outputs = write_lmdbs(training, paths, CUT, workers, title='sample train')
    write_benchmark(validation, out / 'val', scales, workers)
    return [*outputs, out / 'val']


def photograph_folder() -> Path:
    """Where scikit-image keeps the photographs of TRAINING and VALIDATION.

    Raises:
        ImportError: scikit-image is not installed.
    """
    # Found, not imported: skimage.data can start downloads.
    package = importlib.util.find_spec('skimage')
    if package is None or package.origin is None:
        raise ImportError('the sample is made of photographs of scikit-image: pip install scikit-image')
    return Path(package.origin).parent / 'data'


def _source(path: Path, shrink: int = 1) -> Source:
    try:
        height, width = image_file.inspect(path)
    except ValueError as error:
        raise ValueError(f'{error}; reinstall scikit-image: pip install --force-reinstall scikit-image') from error
    return Source(path.stem, path, (height // shrink, width // shrink), shrink=shrink)
