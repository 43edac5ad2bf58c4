"""Pictures of the page: data URIs, crops worth looking at, error maps."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from spinsr.evaluation import psnr_ssim

# Pictures whose longer side is above this are shrunk to it, crops never.
LONGEST = 1200
# The pictures of one image for the slider are lossless up to so many bytes together, else JPEG.
LOSSLESS_BYTES = 1_000_000
JPEG_QUALITY = 90
CROP_SIDE, CROPS = 64, 3
# Error on Y, in steps of 8 bits, that is drawn as the brightest.
BRIGHTEST = 64


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The part of (H, W, ...)."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def luma(image: np.ndarray) -> np.ndarray:
    """Y of BT.601 in studio range as the metrics take it, not rounded: (H, W, 3) uint8, RGB -> (H, W), float64."""
    return psnr_ssim.luma(image).astype(np.float64)


def choose_crops(bicubic: np.ndarray, hr: np.ndarray | None = None) -> list[Box]:
    """The squares where there is most to see: bicubic's largest mean squared error on Y, or without HR its variance.

    The first is the best of all, each other one the best of those that overlap none before it. A square has `CROP_SIDE`
    pixels a side, less where the image has less.

    Args:
        bicubic, hr: (H, W, 3), uint8, RGB.

    Returns:
        At most `CROPS`; fewer where the image has no room, or nothing to see.
    """
    side = min(CROP_SIDE, *bicubic.shape[:2])
    y = luma(bicubic)
    if hr is not None:
        value = _means((y - luma(hr)) ** 2, side)
    else:
        value = _means(y**2, side) - _means(y, side) ** 2
    boxes: list[Box] = []
    while len(boxes) < CROPS:
        top, left = (int(i) for i in np.unravel_index(value.argmax(), value.shape))
        # Rounding leaves a variance of about 1e-12 where all pixels are equal.
        if value[top, left] < 1e-6:
            break
        boxes.append(Box(top, left, side, side))
        value[max(top - side + 1, 0) : top + side, max(left - side + 1, 0) : left + side] = -1
    return boxes


def _means(values: np.ndarray, side: int) -> np.ndarray:
    """The mean of each square: (H, W) -> (H - side + 1, W - side + 1), by its upper left pixel."""
    sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2


def draw_error(image: np.ndarray, hr: np.ndarray) -> np.ndarray:
    """|image - HR| on Y, from black (0) through red to yellow (`BRIGHTEST` and more): uint8, RGB, (H, W, 3)."""
    levels = np.rint(np.abs(luma(image) - luma(hr)) * (255 / BRIGHTEST)).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1])


def shrink(image: np.ndarray) -> np.ndarray:
    """The image with a longer side of at most `LONGEST`."""
    longest = max(image.shape[:2])
    if longest <= LONGEST:
        return image
    height, width = (max(1, round(side * LONGEST / longest)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def encode_together(images: Sequence[np.ndarray]) -> tuple[list[str], bool]:
    """Pictures that are compared with each other, all lossless (WebP), or all JPEG where that takes too much.

    Returns:
        Data URIs, and whether they are lossless.
    """
    files = []
    for image in images:
        files.append(_file(image, 'WEBP', lossless=True, method=2))
        if sum(map(len, files)) > LOSSLESS_BYTES:
            return [encode_jpeg(image) for image in images], False
    return [_uri(data, 'webp') for data in files], True


def encode_jpeg(image: np.ndarray) -> str:
    """JPEG with full colour resolution as a data URI."""
    return _uri(_file(image, 'JPEG', quality=JPEG_QUALITY, subsampling=0), 'jpeg')


def encode_png(image: np.ndarray) -> str:
    """PNG as a data URI."""
    return _uri(_file(image, 'PNG'), 'png')


def _file(image: np.ndarray, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind, **options)
    return data.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
