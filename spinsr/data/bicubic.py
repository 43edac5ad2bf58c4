"""Bicubic resizing of 8-bit images (enlarging: of 16 bits too), equal bit for bit to MATLAB's `imresize` on uint8.

The LR images of the super-resolution literature (Set5, Set14, B100, Urban100, Manga109, DIV2K) were made by MATLAB:
Keys' cubic kernel (a = -1/2), stretched by the scale when it shrinks (antialiasing), symmetric borders, height first,
and the values rounded and clipped to uint8 after each of the two passes.

For an integer scale every kernel weight is a rational number, so the sums are computed here in integers: there is no
floating-point noise, the result does not depend on the position in the image, and ties are rounded as they should be.
A consequence: the LR of a crop that starts at a multiple of the scale equals, two LR pixels away from its edges, the
crop of the LR of the whole image.
"""

import math

import numpy as np

# Half of the kernel's width in LR pixels: as many, next to the edge of a crop, can differ from the whole image's LR.
SUPPORT = 2


def downsample(image: np.ndarray, scale: int) -> np.ndarray:
    """Shrinks an image as MATLAB's `imresize(image, 1 / scale)` does.

    Args:
        image: (H, W, C) or (H, W), uint8, any channel order. H and W must be divisible by scale (see `mod_crop`).
        scale: A positive integer.

    Returns:
        (H / scale, W / scale, C) or (H / scale, W / scale), uint8; a new array.

    Raises:
        TypeError: The image is not a uint8 array, or the scale is not an integer.
        ValueError: Wrong number of dimensions, an empty image, scale < 1, or a side that is not divisible by scale.

    Example:
        >>> downsample(np.full((8, 12, 3), 7, np.uint8), 4).shape
        (2, 3, 3)
    """
    _check_divisible(image, scale)
    return _shrink(_shrink(image, scale, axis=0), scale, axis=1)


def downsample_window(image: np.ndarray, scale: int, rows: slice, columns: slice) -> np.ndarray:
    """A part of `downsample(image, scale)`, equal bit for bit, at the cost of that part.

    Args:
        image: (H, W, C) or (H, W), uint8, as for `downsample`.
        scale: A positive integer.
        rows: LR rows, start and stop given, 0 <= start < stop <= H / scale.
        columns: LR columns, likewise.

    Returns:
        (rows.stop - rows.start, columns.stop - columns.start, …), uint8.

    Raises:
        TypeError: As `downsample`.
        ValueError: As `downsample`; or the window is empty or reaches beyond the image.

    Example:
        >>> image = np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)
        >>> window = downsample_window(image, 4, slice(5, 8), slice(0, 2))
        >>> np.array_equal(window, downsample(image, 4)[5:8, 0:2])
        True
    """
    _check_divisible(image, scale)
    wide = []
    for part, side in zip((rows, columns), image.shape, strict=False):
        if not 0 <= part.start < part.stop <= side // scale:
            raise ValueError(f'the window must lie in 0 … {side // scale} and not be empty, got {part}')
        wide.append(slice(max(part.start - SUPPORT, 0), min(part.stop + SUPPORT, side // scale)))
    hr = image[tuple(slice(part.start * scale, part.stop * scale) for part in wide)]
    trim = (slice(p.start - w.start, p.stop - w.start) for p, w in zip((rows, columns), wide, strict=True))
    return downsample(hr, scale)[tuple(trim)]


def upsample(image: np.ndarray, scale: int) -> np.ndarray:
    """Enlarges an image as MATLAB's `imresize(image, scale)` does.

    Args:
        image: (H, W, C) or (H, W), uint8 or uint16, any channel order.
        scale: A positive integer.

    Returns:
        (H * scale, W * scale, C) or (H * scale, W * scale), of the image's type; a new array.

    Raises:
        TypeError: The image is not an array of these types, or the scale is not an integer.
        ValueError: Wrong number of dimensions, an empty image, or scale < 1.

    Example:
        >>> upsample(np.full((2, 3), 7, np.uint8), 3).shape
        (6, 9)
    """
    _check(image, scale, (np.uint8, np.uint16))
    return _enlarge(_enlarge(image, scale, axis=0), scale, axis=1)


def mod_crop(image: np.ndarray, scale: int) -> np.ndarray:
    """Cuts rows at the bottom and columns at the right until both sides are divisible by scale.

    Args:
        image: (H, W, C) or (H, W), any dtype.
        scale: A positive integer.

    Returns:
        A view of the image, (H - H % scale, W - W % scale, …).

    Raises:
        ValueError: The image is smaller than scale, so nothing would be left.
    """
    height, width = image.shape[:2]
    if height < scale or width < scale:
        raise ValueError(f'an image must have sides of at least the scale, got {height}x{width} (HxW) and {scale=}')
    return image[: height - height % scale, : width - width % scale]


def _check(image: np.ndarray, scale: int, types: tuple[type, ...] = (np.uint8,)) -> None:
    if not isinstance(image, np.ndarray) or image.dtype not in types:
        allowed = ' or '.join(one.__name__ for one in types)
        raise TypeError(f'the image must be a {allowed} array, got {getattr(image, "dtype", type(image).__name__)}')
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f'the image must be (H, W, C) or (H, W) and not empty, got shape {image.shape}')
    if not isinstance(scale, (int, np.integer)) or isinstance(scale, bool):
        raise TypeError(f'scale must be an integer, got {scale!r}')
    if scale < 1:
        raise ValueError(f'scale must be at least 1, got {scale=}')


def _check_divisible(image: np.ndarray, scale: int) -> None:
    _check(image, scale)
    if image.shape[0] % scale or image.shape[1] % scale:
        raise ValueError(
            f'the sides must be divisible by the scale (mod_crop does that), got {image.shape[0]}x{image.shape[1]} '
            f'(HxW) and {scale=}'
        )


def _cubic(numerator: int, scale: int) -> int:
    """Keys' kernel at x = numerator / (2 scale), times 2 (2 scale)^3: an integer."""
    a, n = abs(numerator), 2 * scale
    if a <= n:
        return 3 * a**3 - 5 * n * a**2 + 2 * n**3
    if a < 2 * n:
        return -(a**3) + 5 * n * a**2 - 8 * n**2 * a + 4 * n**3
    return 0


def _taps(offsets_and_numerators: list[tuple[int, int]], scale: int) -> dict[int, int]:
    """Kernel weights as coprime integers by input offset, without the zeros; their sum is the denominator."""
    weights = {offset: _cubic(numerator, scale) for offset, numerator in offsets_and_numerators}
    divisor = math.gcd(*weights.values())
    return {offset: weight // divisor for offset, weight in weights.items() if weight}


def _shrink(image: np.ndarray, scale: int, axis: int) -> np.ndarray:
    # Output pixel i is centred on input position scale * i + (scale - 1) / 2; the kernel is scale times as wide.
    taps = _taps([(k, 2 * k - scale + 1) for k in range(-2 * scale, 3 * scale)], scale)
    return _weigh(image, taps, step=scale, size=image.shape[axis] // scale, axis=axis)


def _enlarge(image: np.ndarray, scale: int, axis: int) -> np.ndarray:
    size = image.shape[axis]
    result = np.empty(tuple(n * scale if d == axis else n for d, n in enumerate(image.shape)), image.dtype)
    for phase in range(scale):
        # Output pixel scale * i + phase is centred on input position i + (phase + 1/2) / scale - 1/2.
        taps = _taps([(k, 2 * phase + 1 - scale - 2 * scale * k) for k in range(-2, 3)], scale)
        result[_along(axis, slice(phase, None, scale))] = _weigh(image, taps, step=1, size=size, axis=axis)
    return result


def _weigh(image: np.ndarray, taps: dict[int, int], step: int, size: int, axis: int) -> np.ndarray:
    """Weighted means of pixels at step * i + offset, i = 0 … size - 1, rounded (half up) and clipped to their type."""
    total = sum(taps.values())
    white = np.iinfo(image.dtype).max
    largest = 2 * white * sum(abs(weight) for weight in taps.values()) + total
    dtype = np.int32 if largest < 2**31 else np.int64
    before = max(0, -min(taps))
    after = max(0, step * (size - 1) + max(taps) + 1 - image.shape[axis])
    padded = np.pad(image, [(before, after) if d == axis else (0, 0) for d in range(image.ndim)], mode='symmetric')
    result = np.zeros(tuple(size if d == axis else n for d, n in enumerate(image.shape)), dtype)
    product = np.empty_like(result)
    for offset, weight in taps.items():
        start = before + offset
        pixels = padded[_along(axis, slice(start, start + step * (size - 1) + 1, step))]
        result += np.multiply(pixels, dtype(weight), out=product, dtype=dtype)
    # Half away from zero: only the rounding of values that are not clipped to 0 matters.
    result *= 2
    result += total
    result //= 2 * total
    return np.clip(result, 0, white).astype(image.dtype)


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (slice(None),) * axis + (part,)
