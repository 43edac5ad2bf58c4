"""The superpixels of SPIN, to look at: arrays of what a block does with an image, and pictures of them.

Blocks, pixels and superpixels are counted from 0, as in a state dict (`blocks.0`) and as arrays are indexed. A grid of
R x C superpixels is numbered row by row. See Sections 3.2 and 3.3 of the paper, and `spinsr.ops` for the equations.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from skimage import color, segmentation
from torch import Tensor, nn

from spinsr import ops
from spinsr.archs.spin_arch import SPIN
from spinsr.data import image_file
from spinsr.inference.upscale import is_out_of_memory, rgb8, separate_alpha
from spinsr.modules.layout import to_image, to_tokens
from spinsr.ops.attention.heads import split_heads

# What the longer side of a picture has, about, if nothing else is asked for.
PICTURE_SIDE = 1000
# Of the colour bar beside a picture of weights, in pixels.
BAR_WIDTH = 24


@dataclasses.dataclass(frozen=True, eq=False)
class Superpixels:
    """What one block of SPIN does with one image of H x W pixels; from `find_superpixels`.

    Attributes:
        image: (H, W, 3), uint8, RGB; what the network saw, in 8 bits.
        block: The block, from 0.
        association: Of the pixels with the K superpixels, B = 1.
        queries, keys: Of SPCA's pixels, (1, N, num_heads * D); None where the network has no SPCA.
        tokens: SPCA's superpixel tokens (1, K, num_heads * D), or None.
        num_heads: Heads of SPCA.
        top_n: Pixels of a superpixel in ISPA; None means as many as `spinsr.ops.top_n` takes.
    """

    image: np.ndarray
    block: int
    association: ops.Association
    queries: Tensor | None
    keys: Tensor | None
    tokens: Tensor | None
    num_heads: int
    top_n: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of superpixels, R and C; K = R * C."""
        return self.association.grid.shape

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """(H, W), int64: the superpixel that each pixel belongs to most; of equals, the one with the lowest number."""
        grid = self.association.grid
        chosen = self._by_pixel.argmax(1)
        return grid.neighbors.cpu().numpy()[grid.labels.cpu().numpy(), chosen].reshape(grid.size)

    @functools.cached_property
    def _by_pixel(self) -> np.ndarray:
        return self.association.by_pixel()[0].cpu().numpy()  # (N, M)

    def boundaries(self) -> np.ndarray:
        """(H, W), bool: the pixels with one of another superpixel above, below, left or right."""
        return segmentation.find_boundaries(self.labels, connectivity=1)

    def mean_colours(self) -> np.ndarray:
        """(H, W, 3), uint8, RGB: each superpixel filled with the mean colour of its pixels."""
        means = color.label2rgb(self.labels, self.image.astype(np.float64), kind='avg', bg_label=-1)
        return np.rint(means).astype(np.uint8)

    def association_of(self, y: int, x: int) -> np.ndarray:
        """(R, C): how far a pixel belongs to each superpixel; sums to 1, 0 out of reach (the 3x3 cells around its own).

        Raises:
            ValueError: The pixel is outside the image.
        """
        pixel, grid = self._pixel(y, x), self.association.grid
        cell = grid.labels[pixel]
        exists = grid.is_neighbor[cell]
        result = np.zeros(grid.num_cells, self._by_pixel.dtype)
        result[grid.neighbors[cell][exists].cpu().numpy()] = self._by_pixel[pixel][exists.cpu().numpy()]
        return result.reshape(grid.shape)

    def top_pixels(self, superpixel: int, n: int | None = None) -> np.ndarray:
        """(H, W), bool: the pixels with the largest association to a superpixel, as `spinsr.ops.top_n` selects them.

        Args:
            superpixel: Its number.
            n: How many; None means as in ISPA: the area of a cell, or the network's `top_n`. There may be fewer: see
                `spinsr.ops.top_n`.

        Raises:
            ValueError: The superpixel does not exist, or `n` is below 1.
        """
        self._check_superpixel(superpixel)
        result = np.zeros(self.association.grid.num_pixels, bool)
        result[ops.top_n(self.association, self.top_n if n is None else n)[0, superpixel].cpu().numpy()] = True
        return result.reshape(self.association.grid.size)

    def attention_of_superpixel(self, superpixel: int) -> np.ndarray:
        """(H, W): what a superpixel gathers from each pixel in SPCA, its first softmax; sums to 1, mean of the heads.

        Raises:
            ValueError: The superpixel does not exist, or the network has no SPCA.
        """
        self._check_superpixel(superpixel)
        _, keys, tokens = self._of_cross_attention()
        weights = _attention(tokens[:, superpixel : superpixel + 1], keys, self.num_heads)
        return weights.reshape(self.association.grid.size)

    def attention_of_pixel(self, y: int, x: int) -> np.ndarray:
        """(R, C): what a pixel gathers from each superpixel in SPCA, its second softmax; sums to 1, mean of the heads.

        Raises:
            ValueError: The pixel is outside the image, or the network has no SPCA.
        """
        pixel = self._pixel(y, x)
        queries, _, tokens = self._of_cross_attention()
        return _attention(queries[:, pixel : pixel + 1], tokens, self.num_heads).reshape(self.shape)

    def _pixel(self, y: int, x: int) -> int:
        height, width = self.association.grid.size
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(f'the pixel must be inside the image of {height}x{width} (HxW), got {y=}, {x=}')
        return y * width + x

    def _of_cross_attention(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.queries is None or self.keys is None or self.tokens is None:
            raise ValueError("the network has no cross-attention of superpixels (interaction 'only_intra')")
        return self.queries, self.keys, self.tokens

    def _check_superpixel(self, superpixel: int) -> None:
        rows, columns = self.shape
        if not 0 <= superpixel < rows * columns:
            raise ValueError(
                f'the superpixel must be 0 to {rows * columns - 1} (block {self.block} has {rows}x{columns}), '
                f'got {superpixel}'
            )


def find_superpixels(image: np.ndarray, net: nn.Module, block: int = 0) -> Superpixels:
    """Runs SPIN up to a block, and keeps what the block makes of the image.

    Args:
        image: uint8 or uint16; grey (H, W) or (H, W, 1), RGB (H, W, 3), or one of these with alpha, which is left out.
        net: SPIN, with weights.
        block: Which of its blocks, from 0.

    Raises:
        TypeError: `net` is not a SPIN, or the image is neither uint8 nor uint16.
        ValueError: The block does not exist, the image has another shape, the network does not accept RGB images, or
            it returns NaN or infinity.
        MemoryError: The image is too large: there are no tiles here, the blocks look at all of it.

    Example:
        >>> from spinsr.inference.load import load
        >>> net = load('SPIN', scale=2, weights=None, num_block=1, stoken_size=(12,))
        >>> found = find_superpixels(np.zeros((24, 40, 3), np.uint8), net)
        >>> found.shape, found.labels.shape
        ((2, 3), (24, 40))
    """
    count = len(_spin(net).blocks)
    if not 0 <= block < count:
        raise ValueError(f'the block must be 0 to {count - 1}, got {block}')
    try:
        return next(itertools.islice(each_block(image, net), block, None))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        height, width = np.shape(image)[:2]
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MemoryError(f'out of memory for the superpixels of a {height}x{width} (HxW) image: {reason}') from error


def each_block(image: np.ndarray, net: nn.Module) -> Iterator[Superpixels]:
    """What `find_superpixels` finds for all blocks in turn, in one run of the network.

    Args:
        image, net: As there.

    Raises:
        TypeError, ValueError: As there.
    """
    net = _spin(net)
    image = np.asarray(image)
    colours, _ = separate_alpha(image)
    white = np.iinfo(colours.dtype).max
    colours = np.broadcast_to(colours, (*colours.shape[:2], 3)).astype(np.float32) / np.float32(white)
    image = rgb8(image)
    parameter = next(net.parameters())
    # Not around the yield: the caller would be in inference mode, too.
    with torch.inference_mode():
        x = torch.from_numpy(colours).permute(2, 0, 1).unsqueeze(0).to(parameter.device, parameter.dtype)
        x = to_tokens(net.conv_first(x))
    blocks = cast(Iterable[Any], net.blocks)
    for index, (block, conv) in enumerate(zip(blocks, net.convs, strict=True)):
        if not x.isfinite().all():
            raise ValueError(f'network output contains NaN or infinity before block={index}')
        with torch.inference_mode():
            association = block.aggregation(x)
            queries = keys = tokens = None
            if hasattr(block, 'cross_attention'):
                queries, keys, _, tokens = block.cross_attention.inputs(x, association)
        heads = block.local_attention.num_heads
        top_n = block.intra_attention.num_pixels if hasattr(block, 'intra_attention') else None
        yield Superpixels(image, index, association, queries, keys, tokens, heads, top_n)
        with torch.inference_mode():
            x = x + to_tokens(conv(to_image(block(x))))


def _spin(net: nn.Module) -> SPIN:
    if not isinstance(net, SPIN):
        raise TypeError(f'superpixels need a SPIN, got {type(net).__name__}')
    if net.conv_first.in_channels != 3:
        raise ValueError(f'the network must accept RGB images, got one for {net.conv_first.in_channels} channels')
    return net


def draw(
    found: Superpixels,
    factor: int | None = None,
    pixel: tuple[int, int] | None = None,
    superpixel: int | None = None,
    top: int | None = None,
) -> dict[str, np.ndarray]:
    """Pictures of the superpixels of a block.

    Args:
        found: The superpixels.
        factor: Side of an image's pixel in the pictures; None makes their longer side about `PICTURE_SIDE`.
        pixel: Row and column of a pixel to look at, too.
        superpixel: A superpixel to look at, too.
        top: How many of its pixels to show; as `n` of `Superpixels.top_pixels`.

    Returns:
        Name -> (factor * H, factor * W, 3), uint8, RGB: `boundaries` and `colours`; with a pixel
        `pixel_<y>_<x>_association` and `pixel_<y>_<x>_attention`; with a superpixel `superpixel_<k>_top` (or
        `superpixel_<k>_top<n>`) and `superpixel_<k>_attention`. `attention` is left out without SPCA. The pictures of
        weights, association and attention, have a colour bar with numbers at the right, which makes them wider.

    Raises:
        ValueError: The pixel or superpixel does not exist, or `factor` or `top` is below 1.
    """
    if factor is None:
        factor = max(1, round(PICTURE_SIDE / max(found.image.shape)))
    if factor < 1:
        raise ValueError(f'factor must be at least 1, got {factor=}')
    labels = found.labels
    pictures = {
        'boundaries': draw_boundaries(enlarge(found.image, factor), labels),
        'colours': enlarge(found.mean_colours(), factor),
    }
    if pixel is not None:
        y, x = pixel
        weights_of = {'association': found.association_of}
        if found.queries is not None:
            weights_of['attention'] = found.attention_of_pixel
        for name, function in weights_of.items():
            weights = function(y, x)
            picture = _heat(found.image, weights.reshape(-1)[labels], weights.max(), factor)
            pictures[f'pixel_{y}_{x}_{name}'] = _add_bar(_draw_ring(picture, y, x, factor), weights.max())
    if superpixel is not None:
        chosen = found.top_pixels(superpixel, top)
        own = labels == superpixel
        dimmed = np.where(chosen[..., None], found.image, found.image // 4)
        name = f'superpixel_{superpixel}'
        pictures[f'{name}_top{top or ""}'] = draw_boundaries(enlarge(dimmed, factor), own)
        if found.queries is not None:
            weights = found.attention_of_superpixel(superpixel)
            heat = _heat(found.image, weights, weights.max(), factor)
            pictures[f'{name}_attention'] = _add_bar(draw_boundaries(heat, own), weights.max())
    return pictures


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """(H, W, ...) -> (factor * H, factor * W, ...): each pixel becomes a square."""
    return image.repeat(factor, 0).repeat(factor, 1)


def draw_boundaries(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draws the boundaries between regions: a white line beside a black one, so that they show on any ground.

    Args:
        picture: (factor * H, factor * W, 3), uint8, RGB; stays as it is.
        labels: (H, W), which region each pixel is in.

    Returns:
        As `picture`.
    """
    before, after = _steps(enlarge(labels, len(picture) // len(labels)))
    drawn = picture.copy()
    drawn[after] = 0
    drawn[before] = 255
    return drawn


def write_pictures(pictures: Mapping[Path, np.ndarray], overwrite: bool = False) -> tuple[list[Path], list[Path]]:
    """Writes PNG files, each whole or not at all.

    Args:
        pictures: File -> (H, W, 3), uint8, RGB. The folders are made.
        overwrite: Replace existing files.

    Returns:
        The files that were written, and the existing ones that were kept.

    Raises:
        OSError: A file cannot be written.
    """
    kept = [] if overwrite else [path for path in pictures if path.exists()]
    done = [path for path in pictures if path not in kept]
    for path in done:
        image_file.write_png(path, pictures[path])
    return done, kept


def _attention(queries: Tensor, keys: Tensor, num_heads: int) -> np.ndarray:
    """Weights of one query, mean of the heads: (1, 1, D), (1, S, D) -> (S,)."""
    queries, keys = (split_heads(x if x.dtype == torch.float64 else x.float(), num_heads) for x in (queries, keys))
    weights = (queries * queries.shape[-1] ** -0.5 @ keys.transpose(-1, -2)).softmax(-1)  # (1, heads, 1, S)
    return weights.mean(1).flatten().cpu().numpy()


def _steps(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that differ from the next one to the right or below, and those that differ from the one before."""
    before, after = np.zeros((2, *labels.shape), bool)
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        ahead, behind = (np.moveaxis(mask, axis, 0) for mask in (before, after))
        ahead[:-1] |= np.moveaxis(differs, axis, 0)
        behind[1:] |= np.moveaxis(differs, axis, 0)
    return before, after


def _draw_ring(picture: np.ndarray, y: int, x: int, factor: int) -> np.ndarray:
    """Rings a pixel of the image, in white beside black."""
    centre = (factor * x + factor // 2, factor * y + factor // 2)
    for radius, colour in ((factor + 4, (255, 255, 255)), (factor + 6, (0, 0, 0))):
        picture = cv2.circle(picture, centre, radius, colour, 2)
    return picture


def _heat(image: np.ndarray, weights: np.ndarray, largest: float, factor: int) -> np.ndarray:
    """Weights over a grey image, black (0) through red to yellow (largest): (H, W, 3), (H, W) -> enlarged picture."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    levels = np.rint(255 * weights / largest).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]
    return enlarge(np.rint(0.35 * grey + 0.65 * colours).astype(np.uint8), factor)


def _add_bar(picture: np.ndarray, largest: float) -> np.ndarray:
    """Puts the colours of `_heat` beside a picture, with the weights 0, largest / 2 and largest in numbers."""
    height, width = max(len(picture), 4 * BAR_WIDTH), picture.shape[1]
    # Over the grey in the middle: over a dark or bright part of the image the colours are a little darker or brighter.
    weights = np.broadcast_to(np.linspace(largest, 0, height, dtype=np.float64)[:, None], (height, BAR_WIDTH))
    bar = _heat(np.full((*weights.shape, 3), 128, np.uint8), weights, largest, 1)
    labels = [f'{weight:.2g}' for weight in (largest, largest / 2, 0)]
    font, size, thickness = cv2.FONT_HERSHEY_SIMPLEX, BAR_WIDTH / 40, 1
    # As wide for every weight, so that the pictures of several blocks have one size.
    (wide, tall), _ = cv2.getTextSize('8.8e-88', font, size, thickness)
    gap = BAR_WIDTH // 3
    result = np.full((height, width + BAR_WIDTH + 3 * gap + wide, 3), 255, np.uint8)
    result[: len(picture), :width] = picture
    left = width + gap
    result[:, left : left + BAR_WIDTH] = bar
    for label, bottom in zip(labels, (tall + 1, (height + tall) // 2, height - 2), strict=True):
        place = left + BAR_WIDTH + gap, bottom
        result = cv2.putText(result, label, place, font, size, (0, 0, 0), thickness, cv2.LINE_AA)
    return result
