"""Networks as ncnn files, by pnnx: for phones and for programs without Python.

ncnn knows convolutions, pooling and element-wise operations, but neither the gathering nor the sorting by which SPIN
selects pixels. Networks whose graph is the same at every size (`ArchFormat.onnx`) are converted; a layer that ncnn
lacks is an error.
"""

import importlib
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest import mock

import torch
from torch import nn

from spinsr.convert.registry import find_format
from spinsr.export.onnx import TOLERANCE, channels_of, sample_image
from spinsr.ops import resolve_backend
from spinsr.utils.atomic_write import check_target, write_bytes
from spinsr.utils.text import printable

# (B, H, W) of the images with which the network is traced, and of those at which it is compared.
_TRACED = ((1, 64, 64), (1, 40, 72))
_COMPARED = ((1, 64, 64), (1, 29, 38))


class NcnnFile(NamedTuple):
    """What `to_ncnn` wrote.

    Attributes:
        least: Least side of the images that the files take, in LR pixels.
        difference: Largest difference between PyTorch and ncnn on the images that were compared.
        num_bytes: Size of both files.
    """

    least: int
    difference: float
    num_bytes: int


def export_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> NcnnFile:
    """`to_ncnn` of a checkpoint, whose network, scale and sizes are told from its names and shapes.

    Args:
        source: A .pth, .pt or .safetensors file: the authors', BasicSR's or ours.
        target: The file to write; see `to_ncnn`.
        arch: A network with an `ArchFormat`; None to detect it.
        arch_args: Arguments of the network that no shape tells (`ArchFormat.untold`), where not the default.
        overwrite: As for `to_ncnn`.

    Raises:
        ValueError, TypeError, OSError, ImportError: As `to_ncnn` and `spinsr.load`.
    """
    from spinsr.inference.load import resolve

    _check(Path(target), overwrite)
    return to_ncnn(resolve(arch, None, source, **dict(arch_args or {})).build(), target, overwrite=overwrite)


def to_ncnn(net: nn.Module, path: str | os.PathLike, *, overwrite: bool = False) -> NcnnFile:
    """Writes a network as an ncnn .param and .bin file, after its output in ncnn was compared with that of PyTorch.

    The files map `in0`, (C, H, W) float32, RGB in [0, 1], to `out0`, (C, scale*H, scale*W).

    Args:
        net: On the CPU, in float32, as from `spinsr.load`; it is put into eval mode.
        path: The file to write, ending in .param, in an existing folder; the .bin file is written beside it.
        overwrite: Replace both if they exist.

    Raises:
        ValueError: A network whose tables depend on the size, or with a layer that ncnn lacks, or files that would
            compute something else; then nothing is written.
        FileExistsError: One of the files exists, and `overwrite` is not set.
        OSError: The files cannot be written.
        ImportError: pnnx or ncnn is not installed.
    """
    path = Path(path)
    _check(path, overwrite)
    name, least = type(net).__name__, _least_side(net)
    net, channels = net.eval(), channels_of(net)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        param, weights = _convert(net, channels, Path(folder))
        if missing := _unknown_layers(param.read_text()):
            raise ValueError(f'{name} cannot be converted to ncnn, which has no layer {", ".join(missing)}')
        difference = max(_difference(net, param, weights, sample_image(channels, shape)) for shape in _COMPARED)
        if not difference <= TOLERANCE:
            raise ValueError(
                f'the ncnn files would differ from PyTorch by {difference:.2g}, which must be at most {TOLERANCE}; '
                'they were not written'
            )
        contents = param.read_bytes(), weights.read_bytes()
    write_bytes(path.with_suffix('.bin'), contents[1])
    write_bytes(path, contents[0])
    return NcnnFile(least, difference, sum(map(len, contents)))


def _check(path: Path, overwrite: bool) -> None:
    check_target(path, overwrite, ('.param',), 'an ncnn file')
    check_target(path.with_suffix('.bin'), overwrite, ('.bin',), 'an ncnn file')
    if (backend := resolve_backend()) != 'torch':
        raise ValueError(f"export needs the ops backend 'torch', got {backend!r}; unset SPINSR_OPS_BACKEND")
    try:
        import ncnn  # noqa: F401
        import pnnx  # noqa: F401  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise ImportError('export to ncnn needs pnnx and ncnn: pip install "spinsr[ncnn]"') from error


def _least_side(net: nn.Module) -> int:
    """The least side of the images that follow one path through the network.

    Raises:
        ValueError: Each size has its own path, or its own tables, which are constants of what pnnx reads.
    """
    format = find_format(type(net))
    sides = format.onnx.sides if format else None
    if sides is None or callable(sides):
        name = format.name if format else type(net).__name__
        raise ValueError(f'{name} cannot be converted to ncnn: its tables depend on the size of the image')
    return sides[0]


def _convert(net: nn.Module, channels: int, folder: Path) -> tuple[Path, Path]:
    """The network's .param and .bin files, in a folder for temporary files."""
    import pnnx  # pyright: ignore[reportMissingImports]

    traced = folder / 'net.pt'
    try:
        # The reference ops are the plain formulas; the others write strips into a result, which ncnn does not know.
        with mock.patch.dict(os.environ, SPINSR_OPS_BACKEND='reference'), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            cast(torch.jit.ScriptModule, torch.jit.trace(net, sample_image(channels, _TRACED[0]))).save(traced)
    except Exception as error:  # whatever torch raises for this network
        raise ValueError(f'{type(net).__name__} cannot be traced: {printable(str(error))}') from error
    shapes = [f'[{batch},{channels},{height},{width}]f32' for batch, height, width in _TRACED]
    # Beside the files for ncnn it writes others into the working directory.
    command = [pnnx.EXEC_PATH, str(traced), f'inputshape={shapes[0]}', f'inputshape2={shapes[1]}', 'fp16=0']
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors='replace')
    param, weights = (folder / f'net.ncnn.{ending}' for ending in ('param', 'bin'))
    if done.returncode or not param.is_file():
        last = printable(next(reversed(done.stderr.strip().splitlines()), ''))
        raise ValueError(f'pnnx cannot convert {type(net).__name__}: exit status {done.returncode}; {last}')
    return param, weights


def _unknown_layers(param: str) -> list[str]:
    """The types of layers that pnnx could not express in ncnn's: they keep the names of PyTorch, with points."""
    types = {line.split(maxsplit=1)[0] for line in param.splitlines()[2:] if line.strip()}
    return sorted(type for type in types if re.search(r'\.|::', type))


def _difference(net: nn.Module, param: Path, weights: Path, image: torch.Tensor) -> float:
    """Largest difference between PyTorch and ncnn for one image."""
    ncnn: Any = importlib.import_module('ncnn')  # without annotations
    runtime = ncnn.Net()
    for option in ('use_vulkan_compute', 'use_fp16_packed', 'use_fp16_storage', 'use_fp16_arithmetic'):
        setattr(runtime.opt, option, False)
    if runtime.load_param(str(param)) or runtime.load_model(str(weights)):
        raise ValueError(f'ncnn {ncnn.__version__} cannot load what pnnx made of {type(net).__name__}')
    extractor = runtime.create_extractor()
    extractor.input('in0', ncnn.Mat(image[0].numpy()).clone())  # a Mat of an array does not keep the array
    status, out = extractor.extract('out0')
    expected = net(image)[0]
    found = torch.tensor(out.numpy()) if not status else torch.empty(0)
    if found.shape != expected.shape:
        raise ValueError(f'ncnn returns {tuple(found.shape)} where PyTorch returns {tuple(expected.shape)}')
    return (found - expected).abs().max().item()
