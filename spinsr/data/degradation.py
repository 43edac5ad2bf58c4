"""What photographs go through before they reach a network, as data: ranges and probabilities, with presets.

The model is the two-stage degradation of Real-ESRGAN (Wang et al., ICCV workshops 2021): blur, resize, noise and JPEG,
twice, then a sinc filter, which makes the ringing of sharpened images. The names of the fields are those of its option
files. `strong` has the published values; `light` is our choice for photographs in good condition.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from spinsr.utils.text import nearest
from spinsr.utils.validation import FLAG, Rule, as_whole, is_number, is_whole

# The kernels of BasicSR's random_mixed_kernels.
KERNELS = ('iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso')
RESIZE_MODES = ('area', 'bilinear', 'bicubic')
# Up to this size the cutoff frequencies of the sinc filters are those of Real-ESRGAN.
LARGEST_KERNEL = 21

Range = tuple[float, float]


@dataclass(frozen=True)
class Stage:
    """One pass of blur, resize, noise and JPEG; the values of a range are drawn uniformly.

    Attributes:
        blur_prob: Probability of the blur.
        kernel_prob: Weight of each blur kernel, by its name (`KERNELS`).
        kernel_size: Smallest and largest side of the kernels in pixels, odd.
        blur_sigma: Standard deviation of the kernels in pixels.
        betag_range: Exponent of the generalized Gaussian kernels; 1 is a Gaussian.
        betap_range: Exponent of the plateau kernels.
        sinc_prob: Probability that the blur is a sinc filter instead of one of the kernels.
        resize_prob: Weights of enlarging, shrinking and keeping the size.
        resize_range: Smallest and largest factor; in the second stage relative to the size of LR.
        noise_prob: Probability of noise.
        gaussian_noise_prob: Probability that the noise is Gaussian; else it is Poisson's.
        noise_range: Standard deviation of the Gaussian noise, in units of 1 / 255.
        poisson_scale_range: Factor of the Poisson noise.
        gray_noise_prob: Probability that the noise is equal in all channels.
        jpeg_prob: Probability of JPEG compression.
        jpeg_range: JPEG quality, 1 to 100.
    """

    blur_prob: float = 1.0
    kernel_prob: Mapping[str, float] = field(
        default_factory=lambda: dict(zip(KERNELS, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True))
    )
    kernel_size: tuple[int, int] = (7, 21)
    blur_sigma: Range = (0.2, 3.0)
    betag_range: Range = (0.5, 4.0)
    betap_range: Range = (1.0, 2.0)
    sinc_prob: float = 0.1
    resize_prob: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Range = (0.15, 1.5)
    noise_prob: float = 1.0
    gaussian_noise_prob: float = 0.5
    noise_range: Range = (1.0, 30.0)
    poisson_scale_range: Range = (0.05, 3.0)
    gray_noise_prob: float = 0.4
    jpeg_prob: float = 1.0
    jpeg_range: tuple[int, int] = (30, 95)


@dataclass(frozen=True)
class Degradation:
    """The whole degradation: `spinsr.data.degrade` applies it.

    Attributes:
        first: The stage at the size of HR.
        second: The stage at about the size of LR.
        final_sinc_prob: Probability of a sinc filter at the end, before or after the last JPEG compression.
        resize_modes: The interpolations, one of which each resize draws (`RESIZE_MODES`).
        antialias: Shrink with an antialiasing filter; without one, bilinear and bicubic alias as in Real-ESRGAN.
    """

    first: Stage
    second: Stage
    final_sinc_prob: float
    resize_modes: tuple[str, ...] = RESIZE_MODES
    antialias: bool = False


PRESETS: Mapping[str, Degradation] = MappingProxyType(
    {
        'light': Degradation(
            Stage(
                blur_prob=0.5,
                blur_sigma=(0.2, 1.2),
                sinc_prob=0.0,
                resize_prob=(0.0, 0.3, 0.7),
                resize_range=(0.7, 1.0),
                noise_prob=0.5,
                noise_range=(0.5, 4.0),
                poisson_scale_range=(0.02, 0.3),
                jpeg_prob=0.3,
                jpeg_range=(60, 95),
            ),
            Stage(
                blur_prob=0.2,
                blur_sigma=(0.2, 0.6),
                sinc_prob=0.0,
                resize_prob=(0.0, 0.0, 1.0),
                resize_range=(1.0, 1.0),
                noise_prob=0.3,
                noise_range=(0.5, 3.0),
                poisson_scale_range=(0.02, 0.2),
                jpeg_prob=0.9,
                jpeg_range=(60, 95),
            ),
            final_sinc_prob=0.1,
            antialias=True,
        ),
        'strong': Degradation(
            Stage(),
            Stage(
                blur_prob=0.8,
                blur_sigma=(0.2, 1.5),
                resize_prob=(0.3, 0.4, 0.3),
                resize_range=(0.3, 1.2),
                noise_range=(1.0, 25.0),
                poisson_scale_range=(0.05, 2.5),
            ),
            final_sinc_prob=0.8,
        ),
    }
)
_STAGES = ('first', 'second')


def from_options(options: str | Mapping[str, Any] | None) -> Degradation:
    """The degradation of an option file.

    Args:
        options: The name of a preset; or a section: `preset`, and what differs from it, as in
            `{preset: strong, final_sinc_prob: 0.5, second: {jpeg_range: [60, 95]}}`.

    Raises:
        ValueError: The preset or a key is unknown, or a value is out of range.

    Example:
        >>> from_options({'preset': 'light', 'first': {'noise_prob': 0}}).first.noise_prob
        0
    """
    for key, problem in problems(options):
        raise ValueError(f'degradation{f":{key}" if key else ""}: {problem}')
    if isinstance(options, str):
        return PRESETS[options]
    assert options is not None
    preset = PRESETS[options['preset']]
    changes = {key: _plain(value) for key, value in options.items() if key not in ('preset', *_STAGES)}
    for name in _STAGES:
        own = {key: _plain(value) for key, value in (options.get(name) or {}).items()}
        changes[name] = dataclasses.replace(getattr(preset, name), **own)
    return dataclasses.replace(preset, **changes)


def problems(options: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a section `degradation`: the key below it ('' for the section), and the rule with the value.

    Args:
        options: As for `from_options`.
    """
    names = ', '.join(PRESETS)
    if isinstance(options, str):
        if options not in PRESETS:
            yield '', f'unknown preset {options!r}; known: {names}'
        return
    if not isinstance(options, Mapping):
        yield '', f'must be a preset ({names}) or a section, got {options!r}'
        return
    if 'preset' not in options:
        yield '', f"the section needs the key 'preset': {names}"
    elif not isinstance(options['preset'], str) or options['preset'] not in PRESETS:
        yield 'preset', f'must be one of {names}, got {options["preset"]!r}'
    yield from _broken(options, _RULES, '', ('preset', *_STAGES))
    for name in _STAGES:
        part = options.get(name, {})
        if isinstance(part, Mapping):
            yield from _broken(part, _STAGE_RULES, f'{name}:')
        else:
            yield name, f'must be a section (key: value), got {part!r}'


def _broken(
    part: Mapping[str, Any], rules: Mapping[str, Rule], where: str, others: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    for key, value in part.items():
        if key in others:
            continue
        if key not in rules:
            yield f'{where}{key}', f'unknown key; {nearest(key, (*rules, *others))}'
        elif not rules[key].holds(as_whole(value)):
            yield f'{where}{key}', f'must be {rules[key].wanted}, got {value!r}'


def _plain(value: Any) -> Any:
    value = as_whole(value)
    return tuple(value) if isinstance(value, list) else value


def _span(least: float, most: float = float('inf'), *, above: bool = False, widens: bool = False) -> Rule:
    """Two numbers from `least` to `most`, the first not larger than the second.

    Args:
        least: The smallest.
        most: The largest.
        above: `least` itself is not allowed.
        widens: The first must be smaller than the second, as BasicSR's kernels need it.
    """

    def holds(value: Any) -> bool:
        if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(is_number, value)):
            return False
        low, high = value
        return (
            (low > least or (low == least and not above))
            and high <= most
            and math.isfinite(high)
            and (low < high or (low == high and not widens))
        )

    order = 'smaller than' if widens else 'at most'
    bounds = f'{"above" if above else "of at least"} {least}' + ('' if most == float('inf') else f' and at most {most}')
    return Rule(holds, f'two numbers {bounds}, the first {order} the second')


def _around_one(value: Any) -> bool:
    # BasicSR draws below or above 1 with equal probability.
    return _span(0, above=True).holds(value) and value[0] <= 1 <= value[1]


_PROBABILITY = Rule(lambda value: is_number(value) and 0 <= value <= 1, 'a number from 0 to 1')
_AROUND_1 = Rule(_around_one, 'two numbers above 0, the first at most 1 and the second at least 1')


def _is_weight(value: Any) -> bool:
    return is_number(value) and 0 <= value < float('inf')


def _are_weights(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(key in KERNELS and _is_weight(weight) for key, weight in value.items())
        and sum(value.values()) > 0
    )


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(is_whole(size) and size % 2 == 1 for size in value)
        and 3 <= value[0] <= value[1] <= LARGEST_KERNEL
    )


_STAGE_RULES = {
    'blur_prob': _PROBABILITY,
    'kernel_prob': Rule(_are_weights, f'a section of weights of at least 0, not all 0, for {", ".join(KERNELS)}'),
    'kernel_size': Rule(_are_sizes, f'two odd numbers from 3 to {LARGEST_KERNEL}, the first at most the second'),
    'blur_sigma': _span(0, above=True, widens=True),
    'betag_range': _AROUND_1,
    'betap_range': _AROUND_1,
    'sinc_prob': _PROBABILITY,
    'resize_prob': Rule(
        lambda value: (
            isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_weight, value)) and sum(value) > 0
        ),
        'three weights of at least 0, not all 0: of enlarging, shrinking and keeping the size',
    ),
    'resize_range': Rule(
        lambda value: _AROUND_1.holds(value) and value[1] <= 4,
        'two numbers above 0, the first at most 1 and the second from 1 to 4',
    ),
    'noise_prob': _PROBABILITY,
    'gaussian_noise_prob': _PROBABILITY,
    'noise_range': _span(0, 255),
    'poisson_scale_range': _span(0),
    'gray_noise_prob': _PROBABILITY,
    'jpeg_prob': _PROBABILITY,
    'jpeg_range': Rule(
        lambda value: _span(1, 100).holds(value) and all(map(is_whole, value)),
        'two whole numbers from 1 to 100, the first at most the second',
    ),
}
_RULES = {
    'final_sinc_prob': _PROBABILITY,
    'resize_modes': Rule(
        lambda value: isinstance(value, list | tuple) and bool(value) and all(mode in RESIZE_MODES for mode in value),
        f'a list of {", ".join(RESIZE_MODES)}',
    ),
    'antialias': FLAG,
}
