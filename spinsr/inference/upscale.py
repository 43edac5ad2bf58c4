"""An image through a network: whole or in tiles, once or eight times, in full or half precision."""

import contextlib
import itertools
import logging
import math
import sys
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

from spinsr.data import bicubic
from spinsr.utils import memory

logger = logging.getLogger('spinsr')

PRECISIONS = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}
# In LR pixels. Below it a tile is mostly overlap, and its memory is that of the network itself.
SMALLEST_TILE = 32
# What torch says, in lower case, where it has no exception of its own for it: CPU on Linux, on Windows and macOS; MPS;
# and oneDNN, cuDNN and cuBLAS when they find no room for their workspaces.
OUT_OF_MEMORY = (
    "can't allocate memory",
    'not enough memory',
    'out of memory',
    'invalid buffer size',
    'could not create a primitive',
    'status_alloc_failed',
)


def upscale(
    image: np.ndarray,
    net: nn.Module,
    *,
    tile: int | None = None,
    self_ensemble: bool = False,
    precision: str = 'fp32',
    progress: bool = False,
) -> np.ndarray:
    """Super-resolves one image.

    Args:
        image: uint8 or uint16, RGB (H, W, 3), grey (H, W) or (H, W, 1), RGB with alpha (H, W, 4), or grey with alpha
            (H, W, 2); stays as it is. Grey goes through the network as three equal channels, and the mean of the
            three outputs is taken. Alpha does not go through it: it is enlarged by `spinsr.data.bicubic.upsample`, so
            that opaque stays opaque; the colours are what they would be without alpha.
        net: A network from `load`, or any module from (1, 3, H, W) to (1, 3, scale*H, scale*W) in [0, 1].
        tile: As for `super_resolve`, and so are `self_ensemble`, `precision` and `progress`.

    Returns:
        As the image, with sides scale*H and scale*W: the output times 255 (65535), rounded and clipped.

    Raises:
        TypeError: The image is neither uint8 nor uint16.
        ValueError: The image has another shape; an argument is none of those allowed; or the network gives NaN or
            infinity.
        MemoryError: As `super_resolve`.

    Example:
        >>> from spinsr.inference.load import load
        >>> net = load('SPIN', scale=2, weights=None, num_block=1, stoken_size=(12,))
        >>> upscale(np.zeros((5, 7, 3), np.uint8), net).shape
        (10, 14, 3)
    """
    image = np.asarray(image)
    colours, alpha = separate_alpha(image)
    white = np.iinfo(image.dtype).max

    x = torch.from_numpy(colours.astype(np.float32) / np.float32(white)).permute(2, 0, 1).unsqueeze(0)
    is_grey = x.shape[1] == 1
    y = super_resolve(
        x.expand(-1, 3, -1, -1) if is_grey else x,
        net,
        tile=tile,
        self_ensemble=self_ensemble,
        precision=precision,
        progress=progress,
    )
    if not y.isfinite().all():
        raise ValueError(f'the network must give numbers, got NaN or infinity with {precision=}')
    if is_grey:
        y = y.mean(1, keepdim=True)
    result = (y[0] * white).round().clamp(0, white).permute(1, 2, 0).contiguous().numpy().astype(image.dtype)
    if alpha is not None:
        alpha = bicubic.upsample(alpha, result.shape[0] // image.shape[0])
        result = np.concatenate((result, alpha), axis=2)
    return result.reshape(*result.shape[:2], *image.shape[2:])


def separate_alpha(image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The colours of an image as `upscale` takes it, (H, W, 1 or 3), and its alpha, (H, W, 1), or None.

    Raises:
        TypeError: The image is neither uint8 nor uint16.
        ValueError: The image has another shape.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(f'image must be uint8 or uint16, got {image.dtype}')
    if image.ndim not in (2, 3) or 0 in image.shape or (image.ndim == 3 and image.shape[2] > 4):
        raise ValueError(f'image must have the shape (H, W) or (H, W, 1 to 4), got {image.shape}')
    pixels = image.reshape(*image.shape[:2], -1)
    return (pixels[..., :-1], pixels[..., -1:]) if pixels.shape[2] in (2, 4) else (pixels, None)


def rgb8(image: np.ndarray) -> np.ndarray:
    """An image as `upscale` takes it with 8 bits, three channels and no alpha, (H, W, 3), to be looked at.

    Raises:
        TypeError, ValueError: As `separate_alpha`.
    """
    colours, _ = separate_alpha(image)
    if colours.dtype == np.uint16:
        colours = np.rint(colours / 257).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:2], 3)))


def super_resolve(
    x: Tensor,
    net: nn.Module,
    *,
    tile: int | None = None,
    self_ensemble: bool = False,
    precision: str = 'fp32',
    progress: bool = False,
    smaller_tiles: bool = True,
) -> Tensor:
    """Puts one image through a network, without gradients, in eval mode.

    An image for which memory runs out is done again from the start, in tiles half as large as before, and so on. How
    much of it there is decides then on the result: a network that looks at more than a tile's overlap (the attention
    of SPIN and SAN looks at the whole image) gives something slightly else in tiles.

    Networks with windows of a fixed size (SwinIR and its kind: `window_size` in some module) get the image continued
    by reflection to a multiple of it, as BasicSR's SwinIRModel does; the result is cropped.

    Args:
        x: (1, C, H, W), float, [0, 1]; stays as it is.
        net: As for `upscale`; goes back to the mode it was in.
        tile: Side of the square tiles, in LR pixels, at least 32. Tiles overlap by a quarter, at most 32 pixels, and
            are blended across the middle of it. None takes the whole image at once.
        self_ensemble: Take the mean over the 8 dihedral transforms of the image (of each tile), each output transformed
            back (the `+` of RCAN+ and SAN+).
        precision: 'fp32' computes in the network's own type, 'bf16' and 'fp16' under autocast.
        progress: Show a bar over the tiles, on stderr, if there are several and it is a terminal.
        smaller_tiles: Where memory runs out, go on in smaller tiles; else that is an error.

    Returns:
        (1, C, scale*H, scale*W), float32, on the CPU; neither rounded nor clipped.

    Raises:
        ValueError: `tile` or `precision` is none of those allowed, or the network does not enlarge by a whole number.
        MemoryError: Memory does not suffice, for the smallest tiles that are allowed; the message says what was tried.
    """
    check_options(tile, precision)
    height, width = x.shape[2:]
    window = _window(net)
    padded = _continue_by_reflection(x, window)
    longest, smallest = max(padded.shape[2:]), _round_up(SMALLEST_TILE, window)
    side = longest if tile is None else min(_round_up(tile, window), longest)
    reference = next(net.parameters(), x)

    def run(part: Tensor) -> Tensor:
        return _outputs_mean(part.to(reference.device, reference.dtype), net, self_ensemble)

    tried = []
    with (
        _evaluating(net),
        torch.inference_mode(),
        torch.autocast(reference.device.type, PRECISIONS[precision], enabled=precision != 'fp32'),
    ):
        while True:
            try:
                y = _in_tiles(padded, run, side, progress)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = (str(error) or type(error).__name__).splitlines()[0]
            # Not in the except block: until that is left, the error keeps every tensor of the failed attempt.
            tried.append('whole' if side == longest else f'in tiles of {side}')
            if side <= smallest or not smaller_tiles:
                raise MemoryError(f'memory runs out for {height}x{width} (HxW) pixels {", ".join(tried)}: {reason}')
            side = max(_round_up(side // 2, window), smallest)
            _empty_cache(reference.device)
            logger.warning('memory ran out for %dx%d (HxW) pixels %s; tiles of %d', height, width, tried[-1], side)
    scale = y.shape[2] // padded.shape[2]
    return y[..., : scale * height, : scale * width]


def check_options(tile: int | None, precision: str) -> None:
    """Checks arguments of `super_resolve` that need no network.

    Raises:
        ValueError: `tile` or `precision` is none of those allowed.
    """
    if tile is not None and tile < SMALLEST_TILE:
        raise ValueError(f'tile must be at least {SMALLEST_TILE}, got {tile=}')
    if precision not in PRECISIONS:
        raise ValueError(f'precision must be one of {", ".join(PRECISIONS)}, got {precision!r}')


def scale_of(net: nn.Module) -> int:
    """By how much a network enlarges an RGB image, found by enlarging a small one.

    Raises:
        ValueError: It takes no RGB image, or does not enlarge both sides by the same whole number.
    """
    try:
        return super_resolve(torch.zeros(1, 3, 8, 8), net).shape[2] // 8
    except ValueError:
        raise
    except Exception as error:  # networks of others fail in their own ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f'the network must take RGB images: {reason}') from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch has an exception of its own for it only on CUDA."""
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(part in text for part in OUT_OF_MEMORY)


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Makes memory run out with an error, before the kernel kills the process.

    Linux hands out more memory than there is, so on the CPU `super_resolve` would never hear that its tiles are too
    large. In this context the process may take as much as was available when it began (main memory without swap; less
    where a container has less). That is a limit for all of the process, so it is for programs, not for libraries;
    nothing happens on other systems. Other processes that grow meanwhile are not reckoned with.
    """
    if not sys.platform.startswith('linux'):
        yield
        return
    import resource  # does not exist on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = psutil.Process().memory_info().data + memory.available()
    limit = limit if soft == resource.RLIM_INFINITY else min(limit, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _outputs_mean(x: Tensor, net: nn.Module, self_ensemble: bool) -> Tensor:
    """The network's output, or the mean over the dihedral transforms, float32, on the CPU."""
    if not self_ensemble:
        y = net(x).float()
    else:
        y = sum(_back(net(transformed).float(), *how) for transformed, how in _dihedral(x)) / 8
    height, width = x.shape[2:]
    scale = y.shape[2] // height
    if scale < 1 or y.shape[2:] != (scale * height, scale * width):
        sizes = f'{tuple(y.shape[2:])} of {(height, width)}'
        raise ValueError(f'the network must enlarge both sides by the same whole number, got {sizes}')
    return y.cpu()


def _dihedral(x: Tensor) -> Iterator[tuple[Tensor, tuple[bool, tuple[int, ...]]]]:
    """The 8 transforms of an image, each with what it did: transposed or not, then the flipped dimensions."""
    for transposed in (False, True):
        for flipped in ((), (2,), (3,), (2, 3)):
            yield (x.transpose(2, 3) if transposed else x).flip(flipped).contiguous(), (transposed, flipped)


def _back(y: Tensor, transposed: bool, flipped: tuple[int, ...]) -> Tensor:
    y = y.flip(flipped)
    return y.transpose(2, 3) if transposed else y


def _in_tiles(x: Tensor, run: Callable[[Tensor], Tensor], side: int, progress: bool) -> Tensor:
    """(1, C, H, W) -> (1, C, scale*H, scale*W), by tiles of which all have one size; one tile is the image itself."""
    height, width = (min(side, length) for length in x.shape[2:])
    tiles = list(itertools.product(_starts(x.shape[2], height), _starts(x.shape[3], width)))
    if len(tiles) == 1:
        return run(x)
    out = None
    for top, left in tqdm(tiles, 'Tiles', unit='tile', leave=False, disable=None if progress else True):
        y = run(x[:, :, top : top + height, left : left + width])
        if out is None:
            scale = y.shape[2] // height
            out = y.new_zeros(1, y.shape[1], scale * x.shape[2], scale * x.shape[3])
            rows, columns = (_weights(*sizes, scale) for sizes in zip(x.shape[2:], (height, width), strict=True))
        y *= rows[top][:, None] * columns[left]
        out[:, :, scale * top : scale * (top + height), scale * left : scale * (left + width)] += y
    return out


def _overlap(side: int) -> int:
    return min(side // 4, 32)


def _starts(length: int, side: int) -> list[int]:
    """Where the tiles begin along one axis: spread evenly, all inside, with at least the overlap in common."""
    if side >= length:
        return [0]
    steps = math.ceil((length - side) / (side - _overlap(side)))
    return [round(k * (length - side) / steps) for k in range(steps + 1)]


def _weights(length: int, side: int, scale: int) -> dict[int, Tensor]:
    """The share of each tile in the result along one axis, by where it begins; over all tiles exactly 1 everywhere.

    Two tiles are blended across the middle half of the overlap, where both have seen what is around.

    Returns:
        Start in LR pixels -> (scale * side,), float32.
    """
    starts = _starts(length, side)
    ramp = _overlap(side) / 2
    position = (torch.arange(scale * length, dtype=torch.float64) + 0.5) / scale
    # rises[k] goes from 0 to 1 between tile k - 1 and tile k, so that the differences are shares.
    middles = [(start + before + side) / 2 for before, start in itertools.pairwise(starts)]
    rises = [((position - middle) / ramp + 0.5).clamp(0, 1) for middle in middles]
    # Smoothstep. In steps of 2**-12 every weight, and every product of a row's and a column's, is exact in float32.
    rises = [((3 - 2 * rise) * rise**2 * 4096).round() / 4096 for rise in rises]
    rises = [torch.ones_like(position), *rises, torch.zeros_like(position)]
    shares = [rise - following for rise, following in itertools.pairwise(rises)]
    return {
        start: share[scale * start : scale * (start + side)].float()
        for start, share in zip(starts, shares, strict=True)
    }


def _window(net: nn.Module) -> int:
    """Of what the sides of an image must be a multiple."""
    sizes = (getattr(module, 'window_size', None) for module in net.modules())
    return math.lcm(*(size for size in sizes if isinstance(size, int)))


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _continue_by_reflection(x: Tensor, multiple: int) -> Tensor:
    """Adds rows at the bottom and columns at the right until both sides are multiples; also of an image of 1 pixel."""
    for dim in (2, 3):
        length = x.shape[dim]
        added = torch.arange(_round_up(length, multiple))
        period = max(2 * (length - 1), 1)
        index = (added % period - (length - 1)).abs().neg() + length - 1
        if len(added) > length:
            x = x.index_select(dim, index.to(x.device))
    return x


@contextlib.contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)


def _empty_cache(device: torch.device) -> None:
    if device.type in ('cuda', 'mps'):
        getattr(torch, device.type).empty_cache()
