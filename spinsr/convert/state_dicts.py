"""State dicts: the authors' form -> ours and back, ours -> other forms, and which network a state dict belongs to.

What differs from network to network is in its `ArchFormat`.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from spinsr.convert.checkpoint import check_finite, unwrap
from spinsr.convert.names import some
from spinsr.convert.registry import ArchFormat, StateDict, formats, get_format
from spinsr.convert.shapes import read_arguments


def convert_state_dict(state_dict: Mapping, arch: str) -> StateDict:
    """Converts an official state dict to ours; one that is ours already comes back as it is.

    Args:
        state_dict: Names to tensors, bare or wrapped as `unwrap` accepts.
        arch: A network with an `ArchFormat`, by public or registered name.

    Returns:
        A new dict that the arch loads with strict=True. Tensors are the input's where nothing is computed; where a
        drifted MeanShift is folded the folded tensors are float64.

    Raises:
        ValueError: Unknown arch, an empty state dict, a name that belongs to neither form, NaN or infinity, or what the
            network's own hook refuses. Other missing names are left to load_state_dict.
        TypeError: Not a mapping of names to tensors.
    """
    format, state_dict = _checked(state_dict, arch)
    check_finite(state_dict)
    if not format.table.is_official(state_dict):
        format.table.check(state_dict, 'ours')
        return state_dict
    converted = format.table.to_ours(state_dict)
    return format.from_official(converted, state_dict) if format.from_official else converted


def to_official(state_dict: Mapping, arch: str) -> StateDict:
    """Converts our state dict to the authors' form; one that is theirs already comes back as it is.

    The inverse of `convert_state_dict`, tensor for tensor, with two exceptions: a drifted MeanShift comes back as the
    identity with the folded convolutions, the same function; parameters that the authors' network has and never uses
    come back as zeros.

    Args:
        state_dict: As for `convert_state_dict`.
        arch: A network with an `ArchFormat`, by public or registered name.

    Returns:
        A new dict that the authors' network loads with strict=True. Tensors are the input's, or views of them.

    Raises:
        ValueError: Unknown arch, an empty state dict, a name that belongs to neither form, or a missing tensor from
            which something is computed. Other missing names are not looked for.
        TypeError: Not a mapping of names to tensors.
    """
    format, state_dict = _checked(state_dict, arch)
    if format.table.is_official(state_dict):
        format.table.check(state_dict, 'official')
        return state_dict
    try:
        arguments = format.arguments(state_dict) if format.table.needs_arguments else {}
        converted = format.table.to_official(state_dict, arguments)
        return format.to_official(converted, state_dict) if format.to_official else converted
    except KeyError as error:
        raise ValueError(f'the {format.name} state dict lacks {some([error.args[0]])}') from error


def to_form(state_dict: Mapping, arch: str, form: str) -> StateDict:
    """Converts a state dict, in whichever form, to a further form of its network (`ArchFormat.forms`).

    Raises:
        ValueError: As `convert_state_dict`; the network does not have this form, or the form cannot hold the weights.
        TypeError: Not a mapping of names to tensors.
    """
    format = get_format(arch)
    if form not in format.forms:
        having = ', '.join(other.name for other in formats() if form in other.forms) or 'no network'
        raise ValueError(f'{format.name} does not have the form {form}; networks that have it: {having}')
    return format.forms[form].from_ours(convert_state_dict(state_dict, format.name))


def to_basicsr(state_dict: Mapping) -> StateDict:
    """Converts weights, in whichever form, to the state dict of BasicSR's own implementation of the network.

    Raises:
        ValueError: As `to_form` and `detect_arch`.
        TypeError: Not a mapping of names to tensors.
    """
    return to_form(state_dict, detect_arch(state_dict), 'basicsr')


def form_of(state_dict: Mapping[str, Tensor], format: ArchFormat) -> str:
    """'official', 'spinsr', or one of the format's further forms."""
    if format.table.is_official(state_dict):
        return 'official'
    return next((name for name, form in format.forms.items() if form.fits(state_dict)), 'spinsr')


def detect_arch(state_dict: Mapping) -> str:
    """The public name of the network that a state dict belongs to, in the authors' form or in ours.

    The network to which most names belong; among several, the one that also has the shapes.

    Args:
        state_dict: As for `convert_state_dict`.

    Raises:
        ValueError: No network has more than half the names, or several fit equally well.
        TypeError: Not a mapping of names to tensors.
    """
    state_dict = unwrap(state_dict)
    for format in formats():
        if format.detect and format.detect(state_dict):
            return format.name
    counts = {format.name: format.table.count(state_dict) for format in formats() if not format.detect}
    most = max(counts.values())
    if 2 * most <= len(state_dict):
        raise ValueError(f'the weights do not belong to a known network: {_content(state_dict)}; known: {_known()}')
    candidates = [name for name, count in counts.items() if count == most]
    if len(candidates) > 1:
        candidates = [name for name in candidates if _has_the_shapes(state_dict, name)] or candidates
    if len(candidates) > 1:
        *first, last = candidates
        raise ValueError(f'the names fit {", ".join(first)} and {last} equally well: name the network')
    return candidates[0]


def belongs_to(state_dict: Mapping[str, Tensor], format: ArchFormat) -> bool:
    """Whether more than half the names of a bare state dict belong to a network."""
    if format.detect:
        return format.detect(state_dict)
    return 2 * format.table.count(state_dict) > len(state_dict)


def _has_the_shapes(state_dict: StateDict, arch: str) -> bool:
    try:
        read_arguments(convert_state_dict(state_dict, arch), get_format(arch))
    except ValueError:
        return False
    return True


def _checked(state_dict: Mapping, arch: str) -> tuple[ArchFormat, StateDict]:
    format, state_dict = get_format(arch), unwrap(state_dict)
    if not state_dict:
        raise ValueError('the state dict must not be empty')
    return format, state_dict


def _content(names: Iterable[str]) -> str:
    return some(sorted(names)) or 'no names'


def _known() -> str:
    return ', '.join(format.name for format in formats())
