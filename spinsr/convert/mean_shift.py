"""The layers with which authors subtract and add the mean of the images: folded into a buffer and two convolutions.

With S, s the weight and bias of `sub_mean` and A, a those of `add_mean`,

    mean = -S^-1 s      conv_first.weight = head.weight S      conv_last = A tail + a - mean

which is exact. On the way back S and A are the identity. `fold` and `unfold` are hooks of an `ArchFormat` whose table
has the rows of `ROWS`, and whose network has `conv_first`, `conv_last` and the buffer `mean`.

`take_frozen` and `put_frozen` make hooks for networks whose authors never train these layers: S and A are the identity.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def rows(infix: str = '') -> tuple[tuple[str | None, str | None], ...]:
    """The rows of a table; `infix` is what the authors' names have between layer and tensor, as '.shifter'."""
    return (f'sub_mean{infix}.{{end}}', None), (f'add_mean{infix}.{{end}}', None), (None, 'mean')


ROWS = rows()
# What many networks subtract unless told otherwise.
DIV2K_MEAN = 255.0 * torch.tensor((0.4488, 0.4371, 0.4040), dtype=torch.float32)


def fold(ours: dict[str, Tensor], official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict, from the renamed tensors and the authors' state dict. Where layers drifted: float64.

    Raises:
        ValueError: A layer is missing, or `sub_mean` is singular.
    """
    sub, sub_bias, add, add_bias = layers = _layers(official, '')
    if _only_shift(*layers):
        return ours | {'mean': -sub_bias.view(1, -1, 1, 1)}
    sub, sub_bias, add, add_bias = (value.double() for value in (sub.flatten(1), sub_bias, add.flatten(1), add_bias))
    try:
        mean = -torch.linalg.solve(sub, sub_bias)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]  # documented
        raise ValueError(f'sub_mean.weight must be invertible to be folded, got {sub.tolist()}') from error
    first, last, last_bias = (
        take(ours, name).double() for name in ('conv_first.weight', 'conv_last.weight', 'conv_last.bias')
    )
    return ours | {
        'mean': mean.view(1, -1, 1, 1),
        'conv_first.weight': torch.einsum('oihw,ij->ojhw', first, sub),
        # A pixel shuffle that follows finds the pixels of a channel side by side.
        'conv_last.weight': torch.einsum('po,okihw->pkihw', add, last.unflatten(0, (len(mean), -1))).flatten(0, 1),
        'conv_last.bias': (add @ last_bias.view(len(mean), -1) + (add_bias - mean)[:, None]).flatten(),
    }


def take_frozen(infix: str = '') -> Callable[[dict[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]:
    """Makes the hook `from_official`: it takes the mean, and refuses layers that do more than shift by it.

    Args:
        infix: As for `rows`.
    """

    def hook(ours: dict[str, Tensor], official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        layers = _layers(official, infix)
        if not _only_shift(*layers):
            raise ValueError(
                f'sub_mean{infix} and add_mean{infix} must subtract and add the same mean and do nothing else: this '
                'network never trains them'
            )
        return ours | {'mean': -layers[1].view(1, -1, 1, 1)}

    return hook


def put_frozen(infix: str = '') -> Callable[[dict[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]:
    """Makes the hook `to_official`, the inverse of `take_frozen`."""
    return lambda official, ours: _put(official, take(ours, 'mean'), infix)


def _layers(official: Mapping[str, Tensor], infix: str) -> list[Tensor]:
    """S, s, A, a."""
    return [take(official, f'{name}_mean{infix}.{end}') for name in ('sub', 'add') for end in ('weight', 'bias')]


def _only_shift(sub: Tensor, sub_bias: Tensor, add: Tensor, add_bias: Tensor) -> bool:
    identity = torch.eye(len(sub_bias), dtype=sub.dtype, device=sub.device).view_as(sub)
    return torch.equal(sub, identity) and torch.equal(add, identity) and torch.equal(add_bias, -sub_bias)


def _put(official: dict[str, Tensor], mean: Tensor, infix: str) -> dict[str, Tensor]:
    identity = torch.eye(mean.numel(), dtype=mean.dtype, device=mean.device)[..., None, None]
    for name, bias in (('sub_mean', -mean.flatten()), ('add_mean', mean.flatten())):
        official = official | {f'{name}{infix}.weight': identity, f'{name}{infix}.bias': bias}
    return official


def unfold(official: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict, from the renamed tensors and ours.

    Raises:
        ValueError: `mean` is missing.
    """
    return _put(official, take(ours, 'mean'), '')


def unfold_div2k(official: dict[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `unfold`, with the mean of DIV2K in a range of 0..255 where ours has none, as BasicSR's files."""
    return unfold(official, {'mean': DIV2K_MEAN.to(next(iter(ours.values()))), **ours})


def has_drifted(official: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> bool:
    """Whether `fold` had to compute tensors."""
    bias = ours.get('conv_last.bias')
    return bias is not None and 'sub_mean.bias' in official and not any(bias is value for value in official.values())


def take(state_dict: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor that must be there.

    Raises:
        ValueError: It is missing.
    """
    if name not in state_dict:
        raise ValueError(f'the state dict lacks {name}')
    return state_dict[name]
