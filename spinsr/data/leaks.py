"""Training images that are images of a benchmark: a network that has seen them cannot be measured on it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from spinsr.data import image_file

# B100 is the validation part of BSDS500 (which was the test part of BSDS300).
B100 = frozenset(
    """
    3096 8023 12084 14037 16077 19021 21077 24077 33039 37073 38082 38092 41033 41069 42012 42049 43074 45096
    54082 55073 58060 62096 65033 66053 69015 69020 69040 76053 78004 85048 86000 86016 86068 87046 89072 97033
    101085 101087 102061 103070 105025 106024 108005 108070 108082 109053 119082 123074 126007 130026 134035
    143090 145086 147091 148026 148089 156065 157055 159008 160068 163085 167062 167083 170057 175032 175043
    182053 189080 196073 197017 208001 210088 216081 219090 220075 223061 227092 229036 236037 241004 241048
    253027 253055 260058 271035 285079 291000 295087 296007 296059 299086 300091 302008 304034 304074 306005
    351093 361010 376043 385039
    """.split()
)
# Names of images, by benchmark, for benchmarks that are recognised without their images.
NAMES: Mapping[str, frozenset[str]] = {'B100': B100}

# Side of the thumbnails that are compared, and the largest distance between those of one picture (RMS in 0 … 255): JPEG
# and a slight crop cause up to 9, similar pictures differ by 20 and more.
_SIDE = 16
_SAME = 12.0


def find_leaks(paths: Sequence[Path], benchmarks: Iterable[str]) -> dict[Path, str]:
    """Finds the images that belong to benchmarks.

    Args:
        paths: Image files.
        benchmarks: Folders of benchmark images (or with a folder HR of them), and names in NAMES. Images of folders are
            recognised by what they show, turned or mirrored too, and also in another compression or cropped by a few
            pixels; those of NAMES by the name of the file.

    Returns:
        Image -> the benchmark's image, for those that are one.

    Raises:
        ValueError: A benchmark is neither a name in NAMES nor a folder with images; or an image cannot be read.
    """
    leaks: dict[Path, str] = {}
    folders = []
    for benchmark in benchmarks:
        if benchmark in NAMES:
            leaks |= {path: f'{path.stem} of {benchmark}' for path in paths if path.stem in NAMES[benchmark]}
        elif Path(benchmark).is_dir():
            folders.append(Path(benchmark))
        else:
            raise ValueError(f'a benchmark must be a folder, or one of {", ".join(NAMES)}, got {benchmark}')
    known = [
        (file, thumbnail)
        for folder in folders
        for file in image_file.list_images(folder / 'HR' if (folder / 'HR').is_dir() else folder)
        for thumbnail in _turned(_thumbnail(file))
    ]
    if known:
        table = np.stack([thumbnail for _, thumbnail in known])
        for path in paths:
            distance = np.sqrt(((table - _thumbnail(path)) ** 2).mean((1, 2)))
            nearest = int(distance.argmin())
            if distance[nearest] < _SAME:
                leaks.setdefault(path, str(known[nearest][0]))
    return leaks


def _thumbnail(path: Path) -> np.ndarray:
    """(_SIDE, _SIDE), float64: grey, each value the mean of its area."""
    grey = image_file.read(path).astype(np.float32).mean(2)
    return cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)


def _turned(thumbnail: np.ndarray) -> list[np.ndarray]:
    """The 8 dihedral transforms."""
    return [np.rot90(part, turns) for part in (thumbnail, thumbnail[:, ::-1]) for turns in range(4)]
