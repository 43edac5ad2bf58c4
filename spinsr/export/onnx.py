"""Networks as ONNX files, for runtimes without PyTorch.

A network whose tables depend on the size of the image is traced with constants, and its file takes one size. The others
take batches of images of any size that follows the same path through the network (`ArchFormat.onnx`); SPIN's index maps
are then part of the graph (`spinsr.ops.common.symbolic`).

Half types are for storage: the file holds large weights in fp16 or bf16 and casts them to float32 when it is loaded.
ONNX Runtime has no convolutions in bf16 on the CPU, and runtimes that compute in fp16 convert a float32 graph
themselves.
"""

import contextlib
import copy
import importlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from spinsr._version import __version__
from spinsr.convert.half import HALF_TYPES, SMALLEST, to_half
from spinsr.ops import resolve_backend
from spinsr.ops.common import symbolic
from spinsr.utils import memory
from spinsr.utils.atomic_write import check_target, write_bytes

SIZE = (64, 64)
# Largest difference between PyTorch and ONNX Runtime, on outputs in [0, 1], and the images in which to look for it.
TOLERANCE = 1e-4
IMAGES = 3
# Numbers; larger tables are left to the runtime, which computes them from small ones when it loads the file.
LARGEST_TABLE = 2**13
# Where a graph takes any size it is compared at these (B, H, W), which are odd, even and no multiple of anything.
_SIZES = ((2, 29, 38), (1, 16, 53))


class OnnxFile(NamedTuple):
    """What `to_onnx` wrote.

    Attributes:
        size: Height and width of the images that the file takes, in LR pixels; None where it takes any, in batches.
        sides: Where it takes any, the least and the largest side; a largest of None means no limit.
        difference: Largest difference between PyTorch and ONNX Runtime on the images that were compared.
        set_aside: Generated images that were not counted because two pixels have equal rank up to rounding.
        num_bytes: Size of the file.
        rounding: Largest difference that rounding the weights to a half type makes to PyTorch's output; 0 without one.
    """

    size: tuple[int, int] | None
    sides: tuple[int, int | None] | None
    difference: float
    set_aside: int
    num_bytes: int
    rounding: float = 0.0


def export_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    *,
    size: Sequence[int] | None = None,
    opset: int = 18,
    dtype: str = 'fp32',
    overwrite: bool = False,
) -> OnnxFile:
    """`to_onnx` of a checkpoint, whose network, scale and sizes are told from its names and shapes.

    Args:
        source: A .pth, .pt or .safetensors file: the authors', BasicSR's or ours.
        target: The file to write.
        arch: A network with an `ArchFormat`; None to detect it.
        arch_args: Arguments of the network that no shape tells (`ArchFormat.untold`), where not the default.
        size, opset, dtype, overwrite: As for `to_onnx`.

    Returns:
        What was written.

    Raises:
        ValueError, TypeError, OSError, ImportError: As `to_onnx` and `spinsr.load`.
    """
    from spinsr.inference.load import resolve

    _check(Path(target), size, opset, dtype, overwrite)
    net = resolve(arch, None, source, **dict(arch_args or {})).build()
    return to_onnx(net, target, size=size, opset=opset, dtype=dtype, overwrite=overwrite)


def to_onnx(
    net: nn.Module,
    path: str | os.PathLike,
    *,
    size: Sequence[int] | None = None,
    opset: int = 18,
    dtype: str = 'fp32',
    overwrite: bool = False,
) -> OnnxFile:
    """Writes a network as an ONNX file, after its output in ONNX Runtime was compared with that of PyTorch.

    The file maps `image`, (B, C, H, W) float32, RGB in [0, 1], to `upscaled`, (B, C, scale*H, scale*W); B is 1 in a
    file of one size. Its metadata name the network and its arguments.

    Args:
        net: On the CPU, in float32, as from `spinsr.load`; it is put into eval mode.
        path: The file to write, ending in .onnx, in an existing folder.
        size: Height and width that the file will take, in LR pixels; None means any size where the network's format
            allows it (`ArchFormat.onnx`), else 64 x 64.
        opset: Version of ONNX's operators, at least 18, and one that the installed torch and ONNX Runtime know.
        dtype: How large weights are stored: 'fp32', or 'fp16' or 'bf16' for half the size; computed in float32.
        overwrite: Replace `path` if it exists.

    Returns:
        What was written.

    Raises:
        ValueError: A wrong ending, size, opset or dtype, another ops backend than 'torch', a network that cannot be
            translated, or a file that would compute something else; then nothing is written.
        FileExistsError: `path` exists, and `overwrite` is not set.
        MemoryError: Memory ran out.
        OSError: The file cannot be written.
        ImportError: onnx, onnxruntime or onnxscript is not installed.
    """
    path = Path(path)
    _check(path, size, opset, dtype, overwrite)
    net = net.eval()
    sides = sides_of(net)
    sides = None if size else sides
    height, width = size or SIZE
    channels = channels_of(net)
    shapes = [(1, height, width)]
    if sides:
        shapes += [(batch, max(rows, sides[0]), max(columns, sides[0])) for batch, rows, columns in _SIZES]
    with torch.no_grad():
        plain, net = net, net if dtype == 'fp32' else _rounded(net, dtype)
        content = _translate(net, channels, (height, width), sides, opset, {**_metadata(plain), 'dtype': dtype})
        if dtype != 'fp32':
            content = _store_in_half(content, dtype)
        found = [_differences(net, content, opset, channels, shape) for shape in shapes]
        image = sample_image(channels, shapes[0])
        rounding = (net(image) - plain(image)).abs().max().item() if dtype != 'fp32' else 0.0
    if not all(differences[-1] <= TOLERANCE for differences in found):
        least = max(min(differences) for differences in found)
        raise ValueError(
            f'the ONNX file would differ from PyTorch by {least:.2g}, which must be at most {TOLERANCE}; '
            'it was not written'
        )
    write_bytes(path, content)
    return OnnxFile(
        size=None if sides else (height, width),
        sides=sides,
        difference=max(differences[-1] for differences in found),
        set_aside=sum(len(differences) - 1 for differences in found),
        num_bytes=len(content),
        rounding=rounding,
    )


def _check(path: Path, size: Sequence[int] | None, opset: int, dtype: str, overwrite: bool) -> None:
    check_target(path, overwrite, ('.onnx',), 'an ONNX file')
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f'size must be a height and a width of at least 1, got {tuple(size)}')
    if opset < 18:
        raise ValueError(f'opset must be at least 18, got {opset}')
    if dtype not in ('fp32', *HALF_TYPES):
        raise ValueError(f'dtype must be one of fp32, {", ".join(HALF_TYPES)}, got {dtype!r}')
    check_backend()
    for package in ('onnx', 'onnxruntime', 'onnxscript'):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f'export to ONNX needs the package {package}: pip install {package}') from error


def check_backend() -> None:
    """Refuses ops that cannot be exported.

    Raises:
        ValueError: Another ops backend than 'torch' is in force.
    """
    if (backend := resolve_backend()) != 'torch':
        raise ValueError(f"export needs the ops backend 'torch', got {backend!r}; unset SPINSR_OPS_BACKEND")


def sides_of(net: nn.Module) -> tuple[int, int | None] | None:
    """Least and largest side of the images that follow one path through the network; None: each size has its own.

    Raises:
        ValueError: The network's format says that it cannot be exported.
    """
    from spinsr.convert.registry import find_format

    format = find_format(type(net))
    if format and format.onnx.refused:
        raise ValueError(f'{format.name} cannot be exported to ONNX: {format.onnx.refused}')
    sides = format.onnx.sides if format else None
    if callable(sides):
        return sides(net) if symbolic.SUPPORTED else None
    return sides


def _metadata(net: nn.Module) -> dict[str, str]:
    """What the file says about itself."""
    from spinsr.archs.pretrained import arguments_of
    from spinsr.convert.registry import find_format

    metadata = {'spinsr': __version__, 'input': 'image in [0, 1], RGB where it has 3 channels'}
    if format := find_format(type(net)):
        arguments = arguments_of(net) or format.arguments(net.state_dict())
        metadata |= {
            'arch': format.name,
            'scale': str(arguments[format.scale_keyword]),
            'arguments': json.dumps(arguments),
            'paper': format.source.paper,
        }
    return metadata


def _rounded(net: nn.Module, dtype: str) -> nn.Module:
    """A copy, in float32, whose large tensors have the values of a half type."""
    net = copy.deepcopy(net)
    net.load_state_dict({name: value.float() for name, value in to_half(net.state_dict(), dtype).items()})
    return net


def _store_in_half(content: bytes, dtype: str) -> bytes:
    """The same graph, with the large constants that lose nothing by it stored in a half type and cast when loaded.

    What the translation computed from several weights is no longer a number of the half type, and stays in float32.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(content)
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or numpy_helper.to_array(tensor).size < SMALLEST:
            continue
        value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        half = value.to(HALF_TYPES[dtype])
        if torch.equal(half.float(), value):
            kind = onnx.TensorProto.FLOAT16 if dtype == 'fp16' else onnx.TensorProto.BFLOAT16
            stored, raw = f'{tensor.name}_{dtype}', half.view(torch.int16).numpy().tobytes()
            casts.append(onnx.helper.make_node('Cast', [stored], [tensor.name], to=onnx.TensorProto.FLOAT))
            tensor.CopyFrom(onnx.helper.make_tensor(stored, kind, value.shape, raw, raw=True))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString()


def channels_of(net: nn.Module) -> int:
    """The channels of the images that the network takes."""
    from spinsr.convert.registry import find_format

    format = find_format(type(net))
    told = format.arguments(net.state_dict()).get('num_in_ch') if format else None
    return told or next(m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d))


def sample_image(channels: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Random images (B, H, W), the same for the same seed, with coarse and fine structure as photographs have."""
    generator, (batch, *size) = torch.Generator().manual_seed(seed), shape
    coarse = torch.rand(batch, channels, 5, 7, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=size, mode='bicubic').clamp(0, 1)
    return 0.9 * smooth + 0.1 * torch.rand(batch, channels, *size, generator=generator)


def _translate(
    net: nn.Module,
    channels: int,
    size: tuple[int, int],
    sides: tuple[int, int | None] | None,
    opset: int,
    metadata: Mapping[str, str],
) -> bytes:
    """The network as the bytes of an ONNX file."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript import optimizer

    shapes = None
    if sides:
        shapes = {2 + i: torch.export.Dim(name, min=sides[0], max=sides[1]) for i, name in enumerate(('H', 'W'))}
        shapes = ({0: torch.export.Dim('B', min=1), **shapes},)
        size = max(size[0], sides[0]), max(size[1], sides[0])
    # A batch of 1 would become a constant of the graph, and equal sides could become one.
    image = sample_image(channels, (2, size[0], size[1] + 1) if sides else (1, *size))
    try:
        with _quiet():
            # Not optimised: onnxscript's patterns of several nodes are compared with every node at every node, which
            # takes longer than all else for a graph of this size.
            program = torch.onnx.export(
                net,
                (image,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=shapes,
                input_names=['image'],
                output_names=['upscaled'],
                custom_translation_table={torch.ops.aten.sort.stable: _stable_sort()},
                optimize=False,
                verbose=False,
            )
            assert program is not None  # as it is without the argument f
            optimizer.inline(program.model)
            optimizer.fold_constants(program.model, output_size_limit=LARGEST_TABLE)
            optimizer.remove_unused_nodes(program.model)
            # Each node has the lines of Python that it came from, with the folders of this machine: most of the file.
            ClearMetadataAndDocStringPass()(program.model)
    except Exception as error:  # whatever torch and onnxscript raise for this network
        require_memory(error)
        raise ValueError(f'{type(net).__name__} cannot be translated to ONNX: {first_line(error)}') from error
    model = program.model_proto
    written = next(entry.version for entry in model.opset_import if not entry.domain)
    if written != opset:
        raise ValueError(f'opset must be one that torch {torch.__version__} can write, got {opset}; it wrote {written}')
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def first_line(error: BaseException) -> str:
    """What an error says first, or its class where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def require_memory(error: BaseException) -> None:
    """Tells lack of memory, which smaller images avoid, from other errors of torch's exporter and of ONNX Runtime.

    Raises:
        MemoryError: The error means that memory ran out.
    """
    cause: BaseException | None = error  # torch wraps what it meets
    while cause is not None:
        if memory.ran_out(cause) or 'allocat' in first_line(cause).lower():
            raise MemoryError(f'out of memory for ONNX: {first_line(cause)}') from error
        cause = cause.__cause__


def _stable_sort() -> Any:
    """aten.sort.stable in ONNX, whose TopK puts the lower index first among equals."""
    from onnxscript import opset18

    op = cast(Any, opset18)  # whose annotations do not take what its functions return

    def sort(x, stable=True, dim=-1, descending=False):
        length = op.Reshape(op.Gather(op.Shape(x), op.Constant(value_int=dim)), op.Constant(value_ints=[1]))
        return op.TopK(x, length, axis=dim, largest=int(descending), sorted=1)

    return sort


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the logs of torch and onnxscript."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _differences(net: nn.Module, content: bytes, opset: int, channels: int, shape: tuple[int, int, int]) -> list[float]:
    """Largest difference between PyTorch and ONNX Runtime for one image after another, up to the first that agrees.

    A network may rank pixels. Where two have equal log-odds up to rounding, the runtimes may take one or the other, and
    the images differ there without an error in either. A wrong translation differs for every image.
    """
    import onnxruntime

    runtime = f'ONNX Runtime {onnxruntime.__version__}'
    try:
        session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    except Exception as error:  # the runtime has many classes
        require_memory(error)
        raise ValueError(f'{runtime} does not take opset {opset}: {first_line(error)}') from error
    differences = []
    for seed in range(IMAGES):
        image = sample_image(channels, shape, seed)
        try:
            out = np.asarray(session.run(None, {'image': image.numpy()})[0])
        except Exception as error:
            require_memory(error)
            rule = f'{runtime} cannot run what torch {torch.__version__} wrote'
            raise ValueError(f'{rule}: {first_line(error)}') from error
        expected = net(image)
        if out.shape != tuple(expected.shape):
            raise ValueError(f'the ONNX file returns {out.shape} where PyTorch returns {tuple(expected.shape)}')
        differences.append((torch.from_numpy(out) - expected).abs().max().item())
        if differences[-1] <= TOLERANCE:
            break
    return differences
