"""Resampling of images of 8 and 16 bits to any size, by Pillow's Lanczos filter.

Pillow widens the filter when it shrinks, so nothing aliases; OpenCV's Lanczos does not, and its area mean blurs at
ratios close to 1. Pillow resizes 8-bit channels in fixed-point numbers and has no 16-bit colours: 16 bits, and colours
that are weighted by alpha, go through its float32 mode, channel by channel.
"""

import numpy as np
from numpy.typing import DTypeLike
from PIL import Image


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resamples an image.

    Colours are weighted by alpha, so those of transparent pixels do not bleed into visible ones. Pixels whose new alpha
    is 0 get the unweighted mean.

    Args:
        pixels: uint8 or uint16; grey (H, W), grey with alpha (H, W, 2), RGB (H, W, 3) or RGB with alpha (H, W, 4).
        height: Of the result, at least 1.
        width: Of the result, at least 1.

    Returns:
        (height, width, …), of the image's type; the image itself if it has this size.

    Raises:
        ValueError: A side is below 1.

    Example:
        >>> resize(np.full((8, 12, 3), 7, np.uint8), 5, 3).shape
        (5, 3, 3)
    """
    if min(height, width) < 1:
        raise ValueError(f'height and width must be at least 1, got {height=}, {width=}')
    if pixels.shape[:2] == (height, width):
        return pixels
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    result = np.empty((height, width, channels.shape[2]), pixels.dtype)
    has_alpha = channels.shape[2] in (2, 4)
    white = np.iinfo(pixels.dtype).max
    colours = channels.shape[2] - has_alpha
    alpha = channels[..., -1] if has_alpha else None
    if alpha is not None and alpha.min() < white:
        small = _resized(alpha, height, width, np.float32)
        result[..., -1] = _rounded(small, white)
        weights = alpha / np.float32(white)
        # Lanczos overshoots next to edges: a weight near 0 would blow the colours up.
        is_visible = small > white / 1024
        divisor = np.where(is_visible, small / white, 1)
        for channel in range(colours):
            weighted = _resized(channels[..., channel] * weights, height, width, np.float32)
            plain = _resized(channels[..., channel], height, width, np.float32)
            result[..., channel] = _rounded(np.where(is_visible, weighted / divisor, plain), white)
    else:
        for channel in range(channels.shape[2]):
            part = _resized(channels[..., channel], height, width, pixels.dtype)
            result[..., channel] = part if part.dtype == pixels.dtype else _rounded(part, white)
    return result.reshape(height, width, *pixels.shape[2:])


def memory_to_resize(pixels: np.ndarray, scale: int) -> int:
    """Bytes that `resize` takes, at the most, beside an image that is `scale` times as large as this one."""
    height, width = pixels.shape[:2]
    is_plain = pixels.dtype == np.uint8 and (pixels.ndim == 2 or pixels.shape[2] == 3)
    return scale**2 * height * width * (2 if is_plain else 16)


def _resized(channel: np.ndarray, height: int, width: int, dtype: DTypeLike) -> np.ndarray:
    """One channel, resampled in uint8 where that is asked for, else in float32."""
    channel = np.ascontiguousarray(channel, np.uint8 if dtype == np.uint8 else np.float32)
    return np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.LANCZOS))


def _rounded(values: np.ndarray, white: int) -> np.ndarray:
    return np.clip(np.rint(values), 0, white)
