"""An image through a network: whole or in tiles, once or eight times, in full or half precision."""

import contextlib
import functools
import itertools
import logging
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

from spinsr.data import bicubic, resample
from spinsr.inference import options
from spinsr.inference.options import SMALLEST_TILE, check_options
from spinsr.inference.output_size import OutputSize
from spinsr.inference.precision import resolve
from spinsr.utils import memory

logger = logging.getLogger('spinsr')

PRECISIONS = {name: getattr(torch, dtype) if dtype else None for name, dtype in options.PRECISIONS.items()}
# Networks of others that halve or quarter the image first and do not pad it: by scale, of what the sides are multiples.
_MULTIPLES = {'RRDBNet': {1: 4, 2: 2}}
_ROWS = 64  # of a result that are rounded at once
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
    outscale: float | None = None,
    engine: str = 'torch',
) -> np.ndarray:
    """Super-resolves one image.

    Args:
        image: uint8 or uint16, RGB (H, W, 3), grey (H, W) or (H, W, 1), RGB with alpha (H, W, 4), or grey with alpha
            (H, W, 2); stays unchanged. Grey goes through the network as three equal channels, and the mean of the
            three outputs is taken. Alpha does not go through it: it is enlarged by `spinsr.data.bicubic.upsample`, so
            that opaque stays opaque; the colours are what they would be without alpha.
        net: A network from `load`, or any module from (1, 3, H, W) to (1, 3, scale*H, scale*W) in [0, 1]; or one with
            one channel instead of three, which gets Y, see `super_resolve_colours`.
        tile: As for `super_resolve`, and so are `self_ensemble` and `progress`.
        precision: As for `super_resolve`, or 'auto' for what `spinsr.inference.precision.choose` chooses.
        outscale: Factor of both sides, if it is not that of the network: the result is resampled by
            `spinsr.data.resample.resize`.
        engine: 'torch', or 'onnx' for ONNX Runtime; for many images, `by_engine` once is faster.

    Returns:
        As the image, with sides scale*H and scale*W (or outscale*H and outscale*W, rounded): the output times 255
        (65535), rounded and clipped.

    Raises:
        TypeError: The image is neither uint8 nor uint16.
        ValueError: The image has another shape; an argument is not among those allowed; or the network's output
            contains NaN or infinity.
        MemoryError: As `super_resolve`.
        ImportError, OSError: As `by_engine`.

    Example:
        >>> from spinsr.inference.load import load
        >>> net = load('SPIN', scale=2, weights=None, num_block=1, stoken_size=(12,))
        >>> upscale(np.zeros((5, 7, 3), np.uint8), net).shape
        (10, 14, 3)
    """
    size = OutputSize(outscale=outscale)  # checks it
    check_options(tile, precision, engine)
    net = by_engine(net, engine)
    image = np.asarray(image)
    colours, alpha = separate_alpha(image)
    channels = colours.shape[2] + (alpha is not None)
    precision = resolve(precision, net, 8 * image.dtype.itemsize)
    options = {'tile': tile, 'self_ensemble': self_ensemble, 'precision': precision, 'progress': progress}
    pixels = _Pixels(image.dtype, colours.shape[2], channels, precision)
    if channels_of(net) == 1:
        white = np.iinfo(image.dtype).max
        x = torch.from_numpy(colours.astype(np.float32) / np.float32(white)).permute(2, 0, 1).unsqueeze(0)
        y = super_resolve_colours(x, net, **options)
        pixels.start(y.shape[2], y.shape[3], y.shape[1])
        pixels.put(0, y)
    else:
        # Bytes become floating-point numbers tile by tile; torch has few operations on uint16.
        if colours.dtype == np.uint8:
            colours = np.require(colours, requirements=['C', 'W'])
        else:
            colours = colours.astype(np.float32) / np.float32(65535)
        x = torch.from_numpy(colours)
        x = x.permute(2, 0, 1).unsqueeze(0)
        _run(x.expand(-1, 3, -1, -1), net, pixels, **options)
    result = pixels.values
    if alpha is not None:
        result[..., -1:] = bicubic.upsample(alpha, result.shape[0] // image.shape[0])
    result = result.reshape(*result.shape[:2], *image.shape[2:])
    return result if outscale is None else resample.resize(result, *size.of(image.shape[0], image.shape[1], 1))


def super_resolve_colours(x: Tensor, net: nn.Module, **options: Any) -> Tensor:
    """Puts an image through a network of three channels, or of one.

    A network of one channel gets Y, as BasicSR trains it with `color: y` (BT.601, studio range); Cb and Cr are enlarged
    bicubically.

    Args:
        x: (1, 3, H, W), RGB, or (1, 1, H, W), grey; float, [0, 1]; stays unchanged.
        net: As for `upscale`.
        **options: As for `super_resolve`.

    Returns:
        (1, C, scale*H, scale*W), float32, on the CPU; neither rounded nor clipped.

    Raises:
        ValueError, MemoryError: As `super_resolve`.
    """
    if channels_of(net) != 1:
        return super_resolve(x, net, **options)
    matrix = torch.tensor([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]).double()
    offset = torch.tensor([16.0, 128.0, 128.0]).double()[:, None, None]
    ycbcr = torch.einsum('ij,bjhw->bihw', matrix, x.double().expand(-1, 3, -1, -1)) + offset
    y = super_resolve((ycbcr[:, :1] / 255).float(), net, **options).double() * 255
    if x.shape[1] == 1:
        return ((y - 16) / 219).float()
    scale = y.shape[2] // x.shape[2]
    # In steps of 1/257, which is finer than what any image distinguishes.
    chroma = (ycbcr[0, 1:].permute(1, 2, 0) * 257).round().numpy().astype(np.uint16)
    chroma = torch.from_numpy(bicubic.upsample(chroma, scale).astype(np.float64) / 257).permute(2, 0, 1).unsqueeze(0)
    return torch.einsum('ij,bjhw->bihw', matrix.inverse(), torch.cat((y, chroma), 1) - offset).float()


def by_engine(net: nn.Module, engine: str) -> nn.Module:
    """The network, or one that does the same with another engine.

    Args:
        net: As for `upscale`.
        engine: 'torch', or 'onnx': ONNX Runtime on the CPU, in float32. The network is exported at its first image of
            each size, for some networks once for all sizes, and kept in a cache (`onnx_engine.cache_folder`). Its
            weights are read for the name of the file: for many images, call this once and pass what it returns.

    Raises:
        ValueError: The network is not on the CPU in float32, or cannot be exported.
        ImportError: onnx, onnxruntime, onnxscript or platformdirs is not installed.
    """
    if engine == 'torch':
        return net
    from spinsr.inference.onnx_engine import OnnxNetwork

    replaced = OnnxNetwork(net)
    _originals[replaced] = net
    return replaced


def channels_of(net: nn.Module) -> int:
    """1 for a network that takes images of one channel and not RGB, else 3."""
    try:
        return _probe(net)[0]
    except ValueError:
        return 3


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

    If memory runs out, the image is processed again from the start in tiles half as large, and so on. The result then
    depends on the memory: the output of a network that looks further than the overlap of the tiles (the attention of
    SPIN and SAN spans the whole image) differs slightly in tiles.

    For networks with windows of a fixed size (SwinIR and its kind: `window_size` in some module), and those that need
    even sides (BasicSR's RRDBNet x2, x1), the image is extended by reflection to a multiple, as BasicSR's SwinIRModel
    does; the result is cropped.

    Args:
        x: (1, C, H, W), float, [0, 1]; stays unchanged.
        net: As for `upscale`; it returns to the mode that it was in, and several threads may share it.
        tile: Side of the square tiles, in LR pixels, at least 32. Tiles overlap by a quarter, at most 32 pixels, and
            are blended across the middle of it. None takes the whole image at once.
        self_ensemble: Take the mean over the 8 dihedral transforms of the image (of each tile), each output transformed
            back (the `+` of RCAN+ and SAN+).
        precision: 'fp32' computes in the network's own type, 'bf16' and 'fp16' under autocast; 'auto' is 'fp32' here,
            because the result is not rounded to 8 bits.
        progress: Show a bar over the tiles, on stderr, if there are several and it is a terminal.
        smaller_tiles: If memory runs out, continue in smaller tiles; otherwise that is an error.

    Returns:
        (1, C, scale*H, scale*W), float32, on the CPU; neither rounded nor clipped.

    Raises:
        ValueError: `tile` or `precision` is not among those allowed, or the scale of the network is not a whole number.
        MemoryError: Memory does not hold the result, or not even the smallest tiles that are allowed; the message says
            which was tried.
    """
    floats = _Floats()
    _run(
        x,
        net,
        floats,
        tile=tile,
        self_ensemble=self_ensemble,
        precision=precision,
        progress=progress,
        smaller_tiles=smaller_tiles,
    )
    return floats.values


def _run(
    x: Tensor,
    net: nn.Module,
    result: '_Floats | _Pixels',
    *,
    tile: int | None,
    self_ensemble: bool,
    precision: str,
    progress: bool,
    smaller_tiles: bool = True,
) -> None:
    """`super_resolve` into a result; x may be uint8 too, 0 … 255."""
    check_options(tile, precision)
    precision = resolve(precision, net, bits=32)
    height, width = x.shape[2:]
    multiple = _multiple(net)
    padded = _continue_by_reflection(x, multiple)
    longest, smallest = max(padded.shape[2:]), _round_up(SMALLEST_TILE, multiple)
    side = longest if tile is None else min(_round_up(tile, multiple), longest)
    reference = next(net.parameters(), x if x.is_floating_point() else torch.empty(0))

    def run(part: Tensor) -> Tensor:
        if part.dtype == torch.uint8:
            part = part.float() / torch.tensor(255.0)
        return _outputs_mean(part.to(reference.device, reference.dtype), net, self_ensemble)

    tried = []
    with (
        _evaluating(net),
        torch.inference_mode(),
        torch.autocast(reference.device.type, PRECISIONS[precision], enabled=precision != 'fp32'),
    ):
        while True:
            try:
                _in_tiles(padded, run, side, progress, result, (height, width))
                return
            except _NoRoomForResultError as error:
                before = f' (tried: {", ".join(tried)})' if tried else ''
                raise MemoryError(f'out of memory for a {height}x{width} image: {error}{before}') from None
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Not in the except block: until that is left, the error keeps every tensor of the failed attempt.
            result.clear()
            tried.append('whole image' if side == longest else f'{side}-px tiles')
            if side <= smallest or not smaller_tiles:
                raise MemoryError(f'out of memory for a {height}x{width} image (tried: {", ".join(tried)})')
            side = max(_round_up(side // 2, multiple), smallest)
            _empty_cache(reference.device)
            logger.warning('out of memory for a %dx%d image (%s); trying %d-px tiles', height, width, tried[-1], side)


def check_result(height: int, width: int, size: int, more: int = 0) -> None:
    """Makes sure that memory holds the result before hours of work.

    Args:
        height: Of the image, for the message.
        width: Of the image, for the message.
        size: Of the result, in bytes.
        more: Bytes that writing it takes beside it.

    Raises:
        MemoryError: It does not.
    """
    available = memory.available()
    if available is None or size + more <= available:
        try:
            np.empty(size + more, np.uint8)  # a limit of the process
            return
        except MemoryError:
            available = None
    left = '' if available is None else f', {available / 2**30:.2f} GiB are available'
    raise MemoryError(
        f'out of memory for a {height}x{width} image: the result takes {(size + more) / 2**30:.2f} GiB{left}'
    )


def scale_of(net: nn.Module) -> int:
    """Upscaling factor of a network, found by enlarging a small image.

    Raises:
        ValueError: It takes neither RGB nor grey images, or does not enlarge both sides by the same whole number.
    """
    return _probe(net)[1]


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


def _probe(net: nn.Module) -> tuple[int, int]:
    """Channels and scale of a network, found by enlarging a small image, once for each network."""
    net = _originals.get(net, net)  # another engine would export it for the small image
    found = _probed.get(net)
    if found is not None:
        return found
    reason = None
    for channels in (3, 1):
        try:
            scale = super_resolve(torch.zeros(1, channels, 8, 8), net).shape[2] // 8
        except MemoryError:
            raise
        except Exception as error:  # networks of others fail in their own ways
            reason = reason or error
        else:
            return _probed.setdefault(net, (channels, scale))
    if isinstance(reason, ValueError):
        raise reason
    text = (str(reason) or type(reason).__name__).splitlines()[0]
    raise ValueError(f'the network must take RGB or grey images: {text}') from reason


def _outputs_mean(x: Tensor, net: nn.Module, self_ensemble: bool) -> Tensor:
    """The network's output, or the mean over the dihedral transforms, float32, on the CPU."""
    if not self_ensemble:
        y = net(x).float()
    else:
        outputs = (_back(net(transformed).float(), *how) for transformed, how in _dihedral(x))
        y = functools.reduce(torch.add, outputs) / 8
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


class _NoRoomForResultError(Exception):
    pass


class _Floats:
    """The network's output as it is, (B, C, H, W), float32."""

    _values: Tensor | None = None

    @property
    def values(self) -> Tensor:
        assert self._values is not None
        return self._values

    def start(self, height: int, width: int, channels: int) -> None:
        self.size = channels, height, width
        self._values = None

    def put(self, top: int, rows: Tensor) -> None:
        """Takes rows that are final, (B, C, rows, W)."""
        if rows.shape[1:] == self.size:
            self._values = rows
            return
        if self._values is None:
            shape = len(rows), *self.size
            self._values = _allocated(lambda: rows.new_empty(shape), math.prod(shape) * 4)
        self.values[:, :, top : top + rows.shape[2]] = rows

    def clear(self) -> None:
        self._values = None


class _Pixels:
    """The network's output times 255 or 65535, rounded and clipped: (H, W, colours and perhaps alpha)."""

    _values: np.ndarray | None = None

    def __init__(self, dtype: np.dtype, colours: int, channels: int, precision: str) -> None:
        self.dtype, self.colours, self.channels, self.precision = dtype, colours, channels, precision
        self.white = int(np.iinfo(dtype).max)

    @property
    def values(self) -> np.ndarray:
        assert self._values is not None
        return self._values

    def start(self, height: int, width: int, channels: int) -> None:
        shape = height, width, self.channels
        self._values = _allocated(lambda: np.empty(shape, self.dtype), math.prod(shape) * self.dtype.itemsize)

    def put(self, top: int, rows: Tensor) -> None:
        """Takes rows that are final, (1, C, rows, W)."""
        for start in range(0, rows.shape[2], _ROWS):
            part = rows[0, :, start : start + _ROWS]
            if not part.isfinite().all():
                raise ValueError(f'network output contains NaN or Inf (precision={self.precision!r})')
            if self.colours == 1 and part.shape[0] > 1:
                part = part.mean(0, keepdim=True)
            part = (part * self.white).round_().clamp_(0, self.white).permute(1, 2, 0).numpy()
            self.values[top + start : top + start + len(part), :, : self.colours] = part

    def clear(self) -> None:
        self._values = None


def _allocated(make: Callable[[], Any], size: int) -> Any:
    try:
        return make()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    raise _NoRoomForResultError(f'the result takes {size / 2**30:.2f} GiB')


def _in_tiles(
    x: Tensor,
    run: Callable[[Tensor], Tensor],
    side: int,
    progress: bool,
    result: _Floats | _Pixels,
    size: tuple[int, int],
) -> None:
    """Puts (1, C, H, W) through a network by tiles of one size; one tile is the image itself.

    Args:
        result: Gets the rows as soon as no further tile adds to them, so that memory holds those of a row of tiles.
        size: Height and width of the image in x, which can be extended at the bottom and at the right.
    """
    height, width = (min(side, length) for length in x.shape[2:])
    tops, lefts = tile_starts(x.shape[2], height), tile_starts(x.shape[3], width)
    tiles = tqdm(
        itertools.product(range(len(tops)), lefts),
        'Tiles',
        total=len(tops) * len(lefts),
        unit='tile',
        leave=False,
        disable=None if progress and len(tops) * len(lefts) > 1 else True,
    )
    band = None
    for row, left in tiles:
        top = tops[row]
        y = run(x[:, :, top : top + height, left : left + width])
        scale = y.shape[2] // height
        if band is None:
            result.start(scale * size[0], scale * size[1], y.shape[1])
            if len(tops) * len(lefts) == 1:
                result.put(0, y[..., : scale * size[0], : scale * size[1]])
                return
            band = y.new_zeros(*y.shape[:2], scale * height, scale * x.shape[3])
            rows, columns = (_weights(*sizes, scale) for sizes in zip(x.shape[2:], (height, width), strict=True))
        y *= rows[top][:, None] * columns[left]
        band[..., scale * left : scale * (left + width)] += y
        if left == lefts[-1]:
            following = tops[row + 1] if row + 1 < len(tops) else x.shape[2]
            done = scale * (min(following, size[0]) - top)
            if done > 0:
                result.put(scale * top, band[:, :, :done, : scale * size[1]])
            if row + 1 < len(tops):
                moved = scale * (following - top)
                band[:, :, :-moved] = band[:, :, moved:].clone()
                band[:, :, -moved:] = 0


def _overlap(side: int) -> int:
    return min(side // 4, 32)


def tile_starts(length: int, side: int) -> list[int]:
    """Where the tiles of `super_resolve` begin along one axis: spread evenly, all inside, with at least the overlap."""
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
    starts = tile_starts(length, side)
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


def _multiple(net: nn.Module) -> int:
    """Of what the sides of an image must be a multiple."""
    multiples = []
    for module in net.modules():
        window = getattr(module, 'window_size', None)
        if isinstance(window, int):
            multiples.append(window)
        known = _MULTIPLES.get(type(module).__name__)
        if known:
            multiples.append(known.get(getattr(module, 'scale', 0), 1))
    return math.lcm(*multiples)


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


_modes: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # network -> [users, (module, was training) …]
_modes_lock = threading.Lock()
_probed: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # network -> channels, scale
_originals: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # network of `by_engine` -> that of torch


@contextlib.contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode; the last of several threads puts each module back into the mode that it was in before the first."""
    with _modes_lock:
        users = _modes.setdefault(net, [0, ()])
        if not users[0]:
            users[1] = [(weakref.ref(module), module.training) for module in net.modules()]
            net.eval()
        users[0] += 1
    try:
        yield
    finally:
        with _modes_lock:
            users[0] -= 1
            if not users[0]:
                for reference, was_training in users[1]:
                    if (module := reference()) is not None:
                        module.training = was_training
                users[1] = ()


def _empty_cache(device: torch.device) -> None:
    if device.type in ('cuda', 'mps', 'xpu'):
        getattr(torch, device.type).empty_cache()
