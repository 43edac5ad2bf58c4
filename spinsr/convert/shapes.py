"""The arguments of a network, from the shapes in its state dict."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from spinsr.convert.names import some, unexpected
from spinsr.convert.registry import ArchFormat, get_format, valueless


def count(state_dict: Mapping[str, Tensor], template: str) -> int:
    """How many parts are numbered from 0: one more than the largest number in the place of `{}`.

    Raises:
        KeyError: No name begins like the template.

    Example:
        >>> count({'blocks.0.weight': ..., 'blocks.7.weight': ...}, 'blocks.{}.')
        8
    """
    pattern = re.compile(re.escape(template).replace(r'\{\}', r'(\d+)'))
    numbers = [int(match[1]) for name in state_dict if (match := pattern.match(name))]
    if not numbers:
        raise KeyError(template.format(0) + '*')
    # Every part has a tensor; a number out of a damaged file must not make a network of a billion blocks.
    return min(1 + max(numbers), len(state_dict))


def images(state_dict: Mapping[str, Tensor], first: str = 'conv_first.weight') -> dict[str, int]:
    """`num_in_ch`, `num_out_ch` (as many) and `num_feat`, from the weight of the first convolution."""
    shape = state_dict[first].shape
    if len(shape) != 4:
        raise ValueError(f'{first} must have four dimensions, got {tuple(shape)}')
    num_feat, channels = shape[:2]
    return {'num_in_ch': channels, 'num_out_ch': channels, 'num_feat': num_feat}


def shuffle(state_dict: Mapping[str, Tensor], last: str = 'conv_last.weight', first: str = 'conv_first.weight') -> int:
    """The scale of a network that ends in one convolution and a pixel shuffle: scale^2 times the image's channels."""
    return math.isqrt(len(state_dict[last]) // state_dict[first].shape[1])


def stages(state_dict: Mapping[str, Tensor], template: str = 'upsample.{}.weight') -> int:
    """The scale of a network whose stages of factor f are convolutions to f^2 times the channels that they take."""
    shapes = [state_dict[template.format(stage)].shape for stage in _numbers(state_dict, template)]
    if not shapes:
        raise KeyError(template.format(0))
    return math.prod(math.isqrt(shape[0] // shape[1]) for shape in shapes)


def ratio(part: int, whole: int) -> float:
    """The ratio of two widths from which `int(ratio * whole)` makes the first.

    Example:
        >>> ratio(72, 36), int(ratio(79, 50) * 50)
        (2.0, 79)
    """
    value = part / whole
    return value if int(value * whole) == part else math.nextafter(value, math.inf)


def mean_of_grey(state_dict: Mapping[str, Tensor], first: str = 'conv_first.weight') -> dict[str, Any]:
    """`rgb_mean` where the default, which is for three channels, does not fit; the numbers are in the state dict."""
    channels = state_dict[first].shape[1]
    return {} if channels == 3 else {'rgb_mean': (0.0,) * channels}


def _numbers(state_dict: Mapping[str, Tensor], template: str) -> list[int]:
    pattern = re.compile(re.escape(template).replace(r'\{\}', r'(\d+)'))
    return sorted(int(match[1]) for name in state_dict if (match := pattern.fullmatch(name)))


def arch_args_of(
    state_dict: Mapping[str, Tensor],
    arch: str | type[nn.Module],
    cls: type[nn.Module] | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The arguments with which a network takes a state dict of ours with strict=True.

    Arguments that no shape tells (`ArchFormat.untold`) are left out.

    Args:
        state_dict: In our form, from `convert_state_dict`.
        arch: A network with an `ArchFormat`.
        cls: The class to build, where it is a subclass of the format's.
        given: Arguments that are known already; they are not among the returned ones.

    Raises:
        ValueError: Unknown arch; tensors are missing, unknown or have another shape than in the network.
        TypeError: The class does not take a given argument.
    """
    arguments = read_arguments(state_dict, get_format(arch), cls, given)[0]
    return {key: value for key, value in arguments.items() if key not in (given or {})}


def read_arguments(
    state_dict: Mapping[str, Tensor],
    format: ArchFormat,
    cls: type[nn.Module] | None = None,
    given: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], int]:
    """As `arch_args_of`, and how many numbers the network learns."""
    try:
        arguments = format.arguments(state_dict)
    except KeyError as error:
        raise ValueError(f'the {format.name} state dict lacks {some([error.args[0]])}') from error
    except (ValueError, IndexError, ArithmeticError) as error:
        raise ValueError(f'{format.name} does not have tensors of these shapes: {error}') from error
    try:
        if format.implied:
            arguments |= format.implied({**arguments, **(given or {})})
        net = valueless(cls or format.cls, {**format.untold, **arguments, **(given or {})})
    except (ValueError, ArithmeticError, RuntimeError) as error:
        if given:
            raise
        raise ValueError(f'{format.name} does not have tensors of these shapes: {error}') from error
    for name, expected in net.state_dict().items():
        if name in state_dict and state_dict[name].shape != expected.shape:
            found = tuple(state_dict[name].shape)
            raise ValueError(f'{name} must have the shape {tuple(expected.shape)} in {format.name}, got {found}')
        if name in state_dict and expected.is_floating_point() and not state_dict[name].is_floating_point():
            raise ValueError(f'{name} must hold floating-point numbers, got {state_dict[name].dtype}')
    # Not a comparison of names: a network may accept files without a tensor, as those with a mean of the images.
    missing, strange = net.load_state_dict({name: value.to('meta') for name, value in state_dict.items()}, strict=False)
    if missing:
        raise ValueError(
            f'the {format.name} state dict lacks {len(missing)} tensor{"s" * (len(missing) > 1)}: {some(missing)}'
        )
    if strange:
        raise ValueError(f'{unexpected(strange)} for {format.name}: {some(strange)}')
    return arguments, sum(parameter.numel() for parameter in net.parameters())
