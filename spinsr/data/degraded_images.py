"""Degraded LR images as files: to see what a degradation does, and what training is validated on."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from spinsr import compat
from spinsr.data import image_file
from spinsr.data.bicubic import mod_crop
from spinsr.data.degradation import PRESETS
from spinsr.utils.text import printable


def prepare_degraded(
    folders: Sequence[Path], out: Path, scales: Sequence[int], presets: Sequence[str], overwrite: bool = False
) -> list[Path]:
    """Writes `out`/NAME/LR_<preset>/X<scale>/<image>x<scale>.png for each image of each folder.

    The degradation of an image depends on its name alone: the files are the LR images of DegradationDataset in
    validation.

    Args:
        folders: Folders of HR images; NAME is the folder's name, or its parent's if it is called HR.
        out: Where the folders go.
        scales: Scales, at least 1.
        presets: Names of presets.
        overwrite: Overwrite existing files, which are otherwise skipped.

    Returns:
        The folders of the LR images.

    Raises:
        ImportError: BasicSR is not installed.
        ValueError: A scale is below 1, a folder holds no images, or an image is damaged or smaller than the scale.
        OSError: The output cannot be written.
    """
    compat.require_basicsr()
    from spinsr.data.degrade import degrade, seed_of

    if min(scales) < 1:
        raise ValueError(f'scales must be at least 1, got {list(scales)}')
    written = []
    for folder in folders:
        paths = image_file.list_images(folder)
        absolute = folder.resolve()
        name = absolute.parent.name if absolute.name == 'HR' else absolute.name
        targets = {(preset, scale): out / name / f'LR_{preset}' / f'X{scale}' for preset in presets for scale in scales}
        for path in tqdm(paths, desc=printable(name), unit='image', disable=None):
            image = image_file.read(path)
            for (preset, scale), target in targets.items():
                file = target / f'{path.stem}x{scale}.png'
                if overwrite or not file.exists():
                    lr = degrade(mod_crop(image, scale), scale, PRESETS[preset], seed_of(path.stem))
                    image_file.write_png(file, lr)
        written += targets.values()
    return written
