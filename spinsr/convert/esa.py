"""The authors' names of enhanced spatial attention, which RLFN, RFDN, BSRN and Omni-SR share."""

from collections.abc import Iterable

NAMES = {'conv1': 'conv_in', 'conv_f': 'conv_skip', 'conv2': 'conv_stride', 'conv3': 'conv_coarse', 'conv4': 'conv_out'}
# Where the coarse view has three convolutions.
COARSE = {'conv_max': 'conv_coarse.0', 'conv3': 'conv_coarse.2', 'conv3_': 'conv_coarse.4'}


def rows(
    theirs: str, ours: str, layers: Iterable[str] = (), coarse: bool = False, tensor: str = '{end}'
) -> tuple[tuple[str, str], ...]:
    """The rows of a table.

    Args:
        theirs: How the authors' names begin, as 'B{number}.esa'.
        ours: How our names begin.
        layers: Which layers, by the authors' names; all by default.
        coarse: Whether the coarse view has three convolutions.
        tensor: What follows the name of a layer.
    """
    names = NAMES | COARSE if coarse else NAMES
    return tuple((f'{theirs}.{layer}.{tensor}', f'{ours}.{names[layer]}.{tensor}') for layer in layers or names)
