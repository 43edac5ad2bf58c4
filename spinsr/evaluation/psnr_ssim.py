"""PSNR, SSIM and Y, equal to BasicSR's `calculate_psnr`, `calculate_ssim` and `to_y_channel` to the last digit.

That needs their precision (Y is float32) and their order of sums: blue, green, red.
"""

import cv2
import numpy as np

# Side of SSIM's window, which must lie inside the image, and its standard deviation, in pixels.
SSIM_WINDOW, _SIGMA = 11, 1.5
# BT.601 in studio range: weights of blue, green and red in [0, 1], and the offset.
_WEIGHTS, _OFFSET = (24.966, 128.553, 65.481), 16.0
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def luma(image: np.ndarray) -> np.ndarray:
    """Y of BT.601 in studio range, not rounded.

    Args:
        image: (H, W, 3), RGB, 0 … 255.

    Returns:
        (H, W), float32, 16 … 235.
    """
    bgr = image[..., ::-1].astype(np.float32) / 255.0
    return ((np.dot(bgr, _WEIGHTS) + _OFFSET) / 255.0).astype(np.float32) * 255.0


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, of a peak of 255; infinite for equal images.

    Args:
        image, reference: (H, W) or (H, W, 3), 0 … 255.
    """
    error = np.mean((_bgr(image) - _bgr(reference)) ** 2)
    return float('inf') if error == 0 else float(10.0 * np.log10(255.0 * 255.0 / error))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004), the mean over the channels; at most 1.

    The window is a Gaussian of 11 x 11 pixels with sigma 1.5, at the positions where it lies inside the image.

    Args:
        image, reference: (H, W) or (H, W, 3), 0 … 255; sides of at least `SSIM_WINDOW`.
    """
    channels = zip(np.moveaxis(_bgr(image), -1, 0), np.moveaxis(_bgr(reference), -1, 0), strict=True)
    return float(np.mean([_ssim_of_channel(*pair) for pair in channels]))


def _ssim_of_channel(x: np.ndarray, y: np.ndarray) -> float:
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    variance_x = _local_mean(x**2) - mean_x**2
    variance_y = _local_mean(y**2) - mean_y**2
    covariance = _local_mean(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return (likeness / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))).mean()


def _local_mean(x: np.ndarray) -> np.ndarray:
    window = cv2.getGaussianKernel(SSIM_WINDOW, _SIGMA)
    inside = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))
    return cv2.filter2D(x, -1, np.outer(window, window))[inside, inside]


def _bgr(image: np.ndarray) -> np.ndarray:
    """(H, W, 1 or 3), float64, the channels in BasicSR's order."""
    return (image[..., None] if image.ndim == 2 else image[..., ::-1]).astype(np.float64)
