"""Two weights files of one network -> their weighted mean, as in ESRGAN's network interpolation."""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from spinsr._version import __version__
from spinsr.convert.checkpoint import ENDINGS, read_checkpoint, unwrap, wrapped_in, write_checkpoint
from spinsr.convert.registry import ArchFormat, StateDict, get_format
from spinsr.convert.shapes import read_arguments
from spinsr.convert.state_dicts import convert_state_dict, detect_arch
from spinsr.utils.atomic_write import check_target
from spinsr.utils.text import printable


class Blend(NamedTuple):
    """What `blend_files` wrote.

    Attributes:
        arch: Public name of the network.
        scale: Upscaling factor.
        tensors: How many tensors were blended.
        differing: How many of them differ between the two files.
        keys: Which state dict of each file was taken, as 'params_ema'; '' for a bare one.
    """

    arch: str
    scale: int
    tensors: int
    differing: int
    keys: tuple[str, str]


def blend(first: StateDict, second: StateDict, alpha: float) -> StateDict:
    """(1 - alpha) * first + alpha * second, tensor by tensor, computed in float64.

    Args:
        first: A state dict; the result has its types.
        second: Another one with the same names and shapes.
        alpha: In [0, 1]; at 0 and 1 the result is one of the two, bit for bit.

    Raises:
        ValueError: `alpha` is out of its range, names or shapes differ, or tensors of integers differ.

    Example:
        >>> blend({'weight': torch.zeros(2)}, {'weight': torch.ones(2)}, 0.25)
        {'weight': tensor([0.2500, 0.2500])}
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f'alpha must be from 0 to 1, got {alpha}')
    if odd := sorted(first.keys() ^ second.keys()):
        raise ValueError(f'both must have the same tensors; only one has {printable(odd[0])}')
    return {name: _blend(name, value, second[name], alpha) for name, value in first.items()}


def _blend(name: str, first: Tensor, second: Tensor, alpha: float) -> Tensor:
    if first.shape != second.shape:
        shapes = f'{tuple(first.shape)} and {tuple(second.shape)}'
        raise ValueError(f'{printable(name)} must have the same shape in both, got {shapes}')
    if not first.is_floating_point() or not second.is_floating_point():
        if not torch.equal(first, second):
            raise ValueError(f'{printable(name)} holds integers, which cannot be blended, and differs')
        return first.clone()
    if alpha in (0, 1):
        return (second if alpha else first).to(first.dtype, copy=True)
    return torch.lerp(first.double(), second.double(), alpha).to(first.dtype)


def blend_files(
    first: str | os.PathLike,
    second: str | os.PathLike,
    target: str | os.PathLike,
    alpha: float = 0.5,
    arch: str | None = None,
    overwrite: bool = False,
) -> Blend:
    """`blend` of two files in any form, written in ours; `params_ema` is preferred to `params`.

    Args:
        first, second: .pth, .pt or .safetensors files of one network at one scale.
        target: The file to write, .pth, .pt or .safetensors.
        alpha: Share of `second`, in [0, 1].
        arch: A network with an `ArchFormat`; None to detect it.
        overwrite: Replace `target` if it exists.

    Returns:
        What was written.

    Raises:
        ValueError: A file cannot be read or holds weights of another network; the networks, scales or shapes differ;
            `alpha` is out of its range; another ending.
        FileExistsError: `target` exists, and `overwrite` is not set.
        OSError: A file is missing, or `target` cannot be written.
        ImportError: A .safetensors file, and the package safetensors is not installed.
    """
    target = Path(target)
    check_target(target, overwrite, ENDINGS, 'a checkpoint')
    if not 0 <= alpha <= 1:
        raise ValueError(f'alpha must be from 0 to 1, got {alpha}')
    read = [_read(source, arch) for source in (first, second)]
    (format, one, scale, key), (other_format, other, other_scale, other_key) = read
    if (format.name, scale) != (other_format.name, other_scale):
        found = f'{format.name} x{scale} and {other_format.name} x{other_scale}'
        raise ValueError(f'both files must hold the same network at the same scale, got {found}')
    blended = blend(one, other, alpha)
    metadata = {'arch': format.name, 'scale': str(scale), 'form': 'spinsr', 'blend_alpha': str(alpha)}
    content = blended if target.suffix == '.safetensors' else {'params': blended}
    write_checkpoint(target, content, metadata | {'spinsr': __version__}, overwrite)
    differing = sum(not torch.equal(value, other[name]) for name, value in one.items())
    return Blend(format.name, scale, len(blended), differing, (key, other_key))


def _read(source: str | os.PathLike, arch: str | None) -> tuple[ArchFormat, StateDict, int, str]:
    """The network in a file, its weights in our form, its scale, and the key under which they were."""
    checkpoint = read_checkpoint(source)
    try:
        state_dict = unwrap(checkpoint)
        format = get_format(detect_arch(state_dict) if arch is None else arch)
        ours = convert_state_dict(state_dict, format.name)
        arguments, _ = read_arguments(ours, format)
    except (ValueError, TypeError) as error:
        raise ValueError(f'{printable(os.fspath(source))}: {error}') from error
    return format, ours, arguments[format.scale_keyword], next(iter(wrapped_in(checkpoint)), '')
