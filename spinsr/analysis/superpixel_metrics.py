"""How good superpixels are: SPIN's beside SLIC's and a regular grid with as many regions.

Measures of a label map against the image that was divided. None compares with a ground-truth segmentation: the
benchmarks of super-resolution have none.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
from skimage import feature, measure, morphology, segmentation
from torch import nn

from spinsr.analysis.superpixels import each_block

# Of the diagonal: how far a boundary may be from a contour that it finds (Stutz et al. 2018).
_TOLERANCE = 0.0025
_LUMA = np.array([0.299, 0.587, 0.114])


class Quality(NamedTuple):
    """The measures of one label map.

    Attributes:
        regions: Different labels.
        parts: Connected parts (of 4-neighbours) of all regions together; `regions` where each is in one piece.
        explained_variation, boundary_contrast, contour_recall, boundary_density: See the functions.
    """

    regions: int
    parts: int
    explained_variation: float
    boundary_contrast: float
    contour_recall: float
    boundary_density: float


def explained_variation(image: np.ndarray, labels: np.ndarray) -> float:
    """How much of the image is left when each region has its mean colour: 1 all of it, 0 nothing.

    EV = sum_k |S_k| |mu_k - mu|^2 / sum_n |I_n - mu|^2 (Moore et al., CVPR 2008; Stutz et al., CVIU 2018), mu_k the
    mean colour of a region, mu that of the image. It rises with the number of regions, and does not ask what an object
    is.

    Args:
        image: (H, W, 3), RGB.
        labels: (H, W), integers.

    Returns:
        In [0, 1]; 1 for an image of one colour.

    Example:
        >>> image = np.zeros((2, 4, 3)); image[:, 2:] = 1
        >>> explained_variation(image, np.array([[0, 0, 1, 1]] * 2)), explained_variation(image, np.zeros((2, 4), int))
        (1.0, 0.0)
    """
    pixels = image.reshape(-1, image.shape[-1]).astype(np.float64)
    pixels = pixels - pixels.mean(0)
    total = (pixels**2).sum()
    if total == 0:
        return 1.0
    _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(index.reshape(-1), channel) for channel in pixels.T], 1)
    return float((sums**2 / sizes[:, None]).sum() / total)


def boundary_contrast(image: np.ndarray, labels: np.ndarray) -> float:
    """How much more the image changes across the boundaries of regions than elsewhere.

    The mean distance in colour of two neighbouring pixels (right, below) of different regions, over that of any two
    neighbouring pixels. Boundaries that know nothing of the image have about 1. It has no parameter; it does not say
    whether a boundary is where an object ends, nor whether a contour was missed.

    Args:
        image: (H, W, 3), RGB.
        labels: (H, W), integers.

    Returns:
        0 or more; 1 without boundaries, or for an image of one colour.
    """
    steps, crossing = [], []
    for axis in (0, 1):
        steps.append(np.linalg.norm(np.diff(image.astype(np.float64), axis=axis), axis=2).reshape(-1))
        crossing.append((np.diff(labels, axis=axis) != 0).reshape(-1))
    change, across = np.concatenate(steps), np.concatenate(crossing)
    if not across.any() or not change.any():
        return 1.0
    return float(change[across].mean() / change.mean())


def contour_recall(image: np.ndarray, labels: np.ndarray) -> float:
    """How many of the image's contours have a boundary of a region beside them.

    The boundary recall of the literature (Martin et al. 2004), with the contours of Canny's detector (luma, sigma 1,
    thresholds 0.1 and 0.2) in place of those that people drew: texture counts as well as objects do. A boundary is two
    pixels wide, and may be round(0.0025 * diagonal) pixels away (Stutz et al. 2018). Longer boundaries find more: see
    `boundary_density`.

    Args:
        image: (H, W, 3), RGB, uint8.
        labels: (H, W), integers.

    Returns:
        In [0, 1]; 1 for an image without contours.
    """
    contours = feature.canny(image @ _LUMA / 255)
    if not contours.any():
        return 1.0
    reach = round(_TOLERANCE * np.hypot(*labels.shape))
    boundaries = segmentation.find_boundaries(labels, connectivity=1)
    near = morphology.dilation(boundaries, np.ones((2 * reach + 1, 2 * reach + 1)))
    return float(near[contours].mean())


def boundary_density(labels: np.ndarray) -> float:
    """The part of the pixels, in [0, 1], that lie at a boundary: how long and ragged the boundaries are."""
    return float(segmentation.find_boundaries(labels, connectivity=1).mean())


def evaluate(image: np.ndarray, labels: np.ndarray) -> Quality:
    """All measures of a label map (H, W) of an image (H, W, 3), uint8, RGB.

    Raises:
        ValueError: They do not have the same size.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f'image and labels must have the same size, got {image.shape=}, {labels.shape=}')
    return Quality(
        len(np.unique(labels)),
        # Label 0 would be taken for the background.
        int(np.max(np.asarray(measure.label(labels + 1, connectivity=1)))),
        explained_variation(image, labels),
        boundary_contrast(image, labels),
        contour_recall(image, labels),
        boundary_density(labels),
    )


def slic(image: np.ndarray, regions: int, connected: bool = True) -> np.ndarray:
    """SLIC (Achanta et al. 2012, scikit-image's, compactness 10) with a number of regions as near as it gets.

    SLIC starts from a grid and may join regions, so that it returns another number than it is asked for: the one to
    ask for is found by bisection between 1 and four times `regions`, until within 2 %, or the nearest seen.

    Args:
        image: (H, W, 3), uint8, RGB.
        regions: How many.
        connected: Small pieces that have come apart are joined to a neighbour, as the method has it.

    Returns:
        (H, W), integers.

    Raises:
        ValueError: `regions` is below 1.
    """
    if regions < 1:
        raise ValueError(f'regions must be at least 1, got {regions=}')
    low, high = 1, 4 * regions
    best, least = None, None
    while low <= high and (least is None or least > regions // 50):
        asked = regions if best is None else (low + high) // 2
        labels = segmentation.slic(image, asked, start_label=0, enforce_connectivity=connected)
        excess = len(np.unique(labels)) - regions
        if least is None or abs(excess) < least:
            best, least = labels, abs(excess)
        low, high = (low, asked - 1) if excess > 0 else (asked + 1, high)
    assert best is not None
    return best


def grid(height: int, width: int, rows: int, columns: int) -> np.ndarray:
    """(H, W), integers: rows x columns rectangles, as equal as they can be; what any method should beat."""
    down, right = (np.arange(n) * count // n for n, count in ((height, rows), (width, columns)))
    return down[:, None] * columns + right


def compare(image: np.ndarray, net: nn.Module) -> Iterator[dict[str, Any]]:
    """Each block of SPIN beside the baselines at the same number of regions.

    A region is what has the largest association to one superpixel. Its pixels need not be connected: `parts` says so,
    and SLIC is there with (`slic`) and without (`slic, free`) its last step, which connects.

    Args:
        image: (H, W, 3), uint8, RGB.
        net: SPIN, with weights.

    Yields:
        'block' (from 0), 'cell' (its side in pixels), 'method' ('grid', 'slic', 'slic, free' or 'spin'), and what
        `Quality` holds.
    """
    divided = functools.cache(functools.partial(slic, image))  # blocks with cells of one size often agree
    for found in each_block(image, net):
        regions = len(np.unique(found.labels))
        maps = {
            'grid': grid(image.shape[0], image.shape[1], *found.shape),
            'slic': divided(regions),
            'slic, free': divided(regions, connected=False),
            'spin': found.labels,
        }
        cell = cast(Any, net).blocks[found.block].aggregation.stoken_size
        for method, labels in maps.items():
            yield {'block': found.block, 'cell': cell, 'method': method, **evaluate(image, labels)._asdict()}
