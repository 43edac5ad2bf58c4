"""Your own training data: folders of HR images to LMDBs of whole images."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from spinsr.data import image_file
from spinsr.data.leaks import find_leaks
from spinsr.data.lmdb_writer import make_key
from spinsr.data.prepare import SCALES, Source, check_scales, write_lmdbs
from spinsr.utils.text import printable

logger = logging.getLogger(__name__)


def prepare_images(
    folders: Sequence[Path],
    out: Path,
    scales: Sequence[int] = SCALES,
    workers: int = 1,
    min_side: int = 1,
    exclude: Sequence[str] = (),
) -> list[Path]:
    """Makes LMDBs of whole images, HR and LR, with the keys that `make_key` makes of FOLDER_NAME.

    Args:
        folders: Folders of HR images, with different names; not searched recursively. Images are cut to
            multiples of 12 (24 if x8 is asked for), so that the pairs are exact at every scale.
        out: Where train_HR.lmdb, train_LR_bicubic_X2.lmdb, … go.
        scales: Among SCALES.
        workers: Processes; 1 works in this one.
        min_side: Images with a shorter side are skipped: BasicSR needs gt_size.
        exclude: Benchmarks; images that belong to one are skipped. See `find_leaks`.

    Returns:
        The LMDBs.

    Raises:
        ValueError: An image is damaged; no image remains; two folders or two keys are equal; or an output exists and
            holds other images.
        OSError: The output cannot be written.
    """
    scales = check_scales(scales)
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f'folders must have different names, got {", ".join(map(str, folders))}')
    paths = {
        path: make_key(f'{name}_{path.stem}')
        for folder, name in zip(folders, names, strict=True)
        for path in image_file.list_images(folder)
    }
    leaks = find_leaks(list(paths), exclude)
    for path, image in leaks.items():
        logger.info('skipped %s: it is %s', printable(path), printable(image))
    multiple = math.lcm(2, 3, 4, *scales)
    sources, small = [], []
    for path, key in tqdm(paths.items(), desc='Checking', unit='image', disable=None, leave=False):
        height, width = (side - side % multiple for side in image_file.inspect(path))
        if min(height, width) < max(min_side, multiple):
            small.append(path)
        elif path not in leaks:
            sources.append(Source(key, path, (height, width), multiple=multiple))
    for path in small:
        logger.info('skipped %s: smaller than %d', printable(path), max(min_side, multiple))
    logger.info(
        '%d of %d images: %d belong to benchmarks, %d are too small', len(sources), len(paths), len(leaks), len(small)
    )
    if not sources:
        raise ValueError(f'none of {len(paths)} images remains in {", ".join(map(str, folders))}')
    outputs = {1: out / 'train_HR.lmdb'} | {scale: out / f'train_LR_bicubic_X{scale}.lmdb' for scale in scales}
    return write_lmdbs(sources, outputs, None, workers, title='images')
