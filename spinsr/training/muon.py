"""Muon, an optimizer that orthogonalizes the update of every matrix, with Adam for all other tensors.

K. Jordan et al., 'Muon: An optimizer for hidden layers in neural networks' (2024),
https://kellerjordan.github.io/posts/muon. torch.optim.Muon (torch >= 2.9) takes 2-D tensors alone. This one flattens
convolutions, orthogonalizes all matrices of a shape together, and has Adam for the rest in the same optimizer, so that
schedulers, gradient scaling and a saved state see one optimizer. The arithmetic is that of torch.optim.Muon and
torch.optim.AdamW, in float32 where torch.optim.Muon takes bfloat16.
"""

import difflib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

# torch's annotations mark its operations on lists of tensors as private.
# pyright: reportPrivateImportUsage=false
import torch
from torch import Tensor, nn

from spinsr.training.freezing import matches
from spinsr.training.option_files import OptionError, nearest
from spinsr.utils.validation import FLAG, NAMES, SECTION, Rule, is_number

# Of the polynomial a x + b x^3 + c x^5, which moves every singular value in (0, 1] towards 1 in a few steps.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
# Smaller norms are replaced by this one before the division.
_SMALLEST_NORM = 1e-7
_MUON = {'lr': 0.01, 'momentum': 0.95, 'nesterov': True, 'weight_decay': 0.0}
_ADAM = {'lr': 0.001, 'betas': (0.9, 0.99), 'eps': 1e-8, 'weight_decay': 0.0}
# Where a file names no tensors for Adam, these are taken as far as the network has them.
_FIRST_AND_LAST = ('conv_first', 'conv_last')

_ABOVE_0 = Rule(lambda value: is_number(value) and 0 < value < math.inf, 'a number above 0')
_NOT_NEGATIVE = Rule(lambda value: is_number(value) and 0 <= value < math.inf, 'a number of at least 0')
_BELOW_1 = Rule(lambda value: is_number(value) and 0 <= value < 1, 'a number from 0 to below 1')
_BETAS = Rule(
    lambda value: isinstance(value, list | tuple) and len(value) == 2 and all(map(_BELOW_1.holds, value)),
    'a list of two numbers from 0 to below 1',
)
_RULES = {
    'lr': _ABOVE_0,
    'momentum': _BELOW_1,
    'nesterov': FLAG,
    'weight_decay': _NOT_NEGATIVE,
    'adam': SECTION,
}
_ADAM_RULES = {
    'lr': _ABOVE_0,
    'betas': _BETAS,
    'eps': _ABOVE_0,
    'weight_decay': _NOT_NEGATIVE,
    'params': NAMES,
}


class Muon(torch.optim.Optimizer):
    """Muon for groups with `use_muon: True`, Adam for those with `use_muon: False`, decoupled weight decay for both.

    For a matrix W with gradient G, momentum m and learning rate lr:

        B <- m B + (1 - m) G
        U  = (1 - m) G + m B with Nesterov's momentum, else B
        W <- (1 - lr weight_decay) W - lr sqrt(max(1, rows / columns)) orthogonalize(U)

    A tensor (out, in, kh, kw) is the matrix (out, in kh kw).

    Args:
        params: Param groups; of a group without `use_muon` it is True. A Muon group may set `lr` (0.01), `momentum`
            (0.95), `nesterov` (True) and `weight_decay` (0); an Adam group `lr` (0.001), `betas` ((0.9, 0.99)), `eps`
            (1e-8) and `weight_decay` (0).

    Raises:
        ValueError: A Muon group has a tensor of less than two dimensions.

    Example:
        >>> weight, bias = torch.ones(2, 3, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> optimizer = Muon([{'params': [weight]}, {'params': [bias], 'use_muon': False}])
        >>> (weight.sum() + bias.sum()).backward()
        >>> optimizer.step()
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]]) -> None:
        super().__init__(params, {'use_muon': True})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as the constructor takes it."""
        for name, default in (_MUON if param_group.get('use_muon', True) else _ADAM).items():
            param_group.setdefault(name, default)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group['use_muon'] and (flat := [tuple(p.shape) for p in group['params'] if p.ndim < 2]):
            self.param_groups.pop()
            raise ValueError(f'Muon takes tensors of two or more dimensions, got {flat[0]}: use_muon must be False')

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every tensor that has a gradient.

        Args:
            closure: Computes the loss again, with its gradient.

        Returns:
            What the closure returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group['params'] if p.grad is not None]
            if params:
                (self._step_muon if group['use_muon'] else self._step_adam)(params, group)
        return loss

    def _step_muon(self, params: list[Tensor], group: Mapping[str, Any]) -> None:
        lr, momentum = group['lr'], group['momentum']
        grads = [p.grad for p in params if p.grad is not None]
        buffers = self._state_of(params, 'momentum_buffer')
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, buffers, momentum) if group['nesterov'] else buffers
        if group['weight_decay']:
            torch._foreach_mul_(params, 1 - lr * group['weight_decay'])
        alike = defaultdict(list)
        for p, update in zip(params, updates, strict=True):
            matrix = update.flatten(1)  # (out, in, kh, kw) -> (out, in * kh * kw)
            alike[matrix.shape, matrix.dtype, matrix.device].append((p, matrix))
        for (shape, _, _), pairs in alike.items():
            result = orthogonalize(torch.stack([matrix for _, matrix in pairs]))  # (B, rows, columns)
            changes = [matrix.reshape(p.shape) for (p, _), matrix in zip(pairs, result, strict=True)]
            scale = max(1, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_([p for p, _ in pairs], changes, alpha=-lr * scale)

    def _step_adam(self, params: list[Tensor], group: Mapping[str, Any]) -> None:
        lr, (beta1, beta2) = group['lr'], group['betas']
        alike = defaultdict(list)
        for p in params:
            self.state[p]['step'] = step = self.state[p].get('step', 0) + 1
            alike[step].append(p)
        for step, part in alike.items():
            grads = [p.grad for p in part if p.grad is not None]
            means, squares = self._state_of(part, 'exp_avg'), self._state_of(part, 'exp_avg_sq')
            torch._foreach_lerp_(means, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            divisors = torch._foreach_sqrt(squares)
            torch._foreach_div_(divisors, (1 - beta2**step) ** 0.5)
            torch._foreach_add_(divisors, group['eps'])
            if group['weight_decay']:
                torch._foreach_mul_(part, 1 - lr * group['weight_decay'])
            torch._foreach_addcdiv_(part, means, divisors, -lr / (1 - beta1**step))

    def _state_of(self, params: Iterable[Tensor], name: str) -> list[Tensor]:
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [self.state[p][name] for p in params]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Moves the singular values of matrices to about 1 (0.7 to 1.2) by five Newton-Schulz steps.

    X <- a X + b (X X^T) X + c (X X^T)^2 X, from X divided by its Frobenius norm.

    Args:
        matrices: (B, M, N); half types are computed in float32.

    Returns:
        (B, M, N), in the type of the matrices.
    """
    a, b, c = _COEFFICIENTS
    x = matrices if matrices.dtype == torch.float64 else matrices.float()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=_SMALLEST_NORM)
    for _ in range(_STEPS):
        gram = torch.bmm(x, x.mT)  # (B, min(M, N), min(M, N))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def problems(
    options: Mapping[str, Any], named: Iterable[tuple[str, Tensor]] | None = None
) -> Iterator[tuple[str, str]]:
    """What is wrong with the section optim_g of an option file: the key, as 'adam:lr', and the rule with the value.

    Args:
        options: The section, with or without its `type`.
        named: (name, tensor) of what is trained, on any device; without it the names in `adam: params` are not checked.
    """
    adam = options.get('adam')
    found = list(_wrong({key: value for key, value in options.items() if key != 'type'}, _RULES, ''))
    if 'lr' not in options:
        found.append(('', "Muon needs the keyword 'lr'"))
    if isinstance(adam, Mapping):
        found += _wrong(adam, _ADAM_RULES, 'adam:')
    yield from found
    if found or named is None:
        return
    named = list(named)
    names = {name for name, _ in named}
    for entry in (adam or {}).get('params') or ():
        if not any(matches(name, entry) for name in names):
            parts = {part for name in names for part in _modules(name)}
            close = difflib.get_close_matches(entry, sorted(names | parts), n=1)
            hint = f'; did you mean {close[0]!r}?' if close else ''
            yield 'adam:params', f'{entry!r} matches no parameter of the network{hint}'
            return
    if not split(named, options)[0]:
        yield 'adam:params', 'must leave matrices to Muon, and all parameters go to Adam; use type: AdamW'


def _wrong(part: Mapping[str, Any], rules: Mapping[str, Rule], where: str) -> Iterator[tuple[str, str]]:
    for key, value in part.items():
        if key not in rules:
            yield f'{where}{key}', f'Muon has no keyword {key!r}; {nearest(key, rules)}'
        elif not rules[key].holds(value):
            yield f'{where}{key}', f'must be {rules[key].wanted}, got {value!r}'


def split(
    named: Iterable[tuple[str, Tensor]], options: Mapping[str, Any]
) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    """Divides tensors into those of Muon and those of Adam.

    Adam has every tensor with at most one dimension larger than 1, and what `adam: params` names: a module
    (`conv_first`), a parameter, or a pattern of either (`*.relative_position_bias_table`).

    Args:
        named: (name, tensor), as `named_parameters` gives them; those of several networks may have the same names.
        options: The section optim_g.

    Returns:
        Those of Muon and those of Adam.
    """
    listed = (options.get('adam') or {}).get('params')
    listed = _FIRST_AND_LAST if listed is None else listed
    parts: tuple[list, list] = ([], [])
    for name, tensor in named:
        is_matrix = sum(size > 1 for size in tensor.shape) >= 2
        parts[0 if is_matrix and not any(matches(name, entry) for entry in listed) else 1].append((name, tensor))
    return parts


def _modules(name: str) -> Iterator[str]:
    """The modules around a parameter: a and a.b of a.b.weight."""
    while name := name.rpartition('.')[0]:
        yield name


def build(named: Iterable[tuple[str, nn.Parameter]], options: Mapping[str, Any]) -> Muon:
    """The optimizer of a section optim_g; its first group is Muon's.

    Args:
        named: (name, parameter) of the networks; those without requires_grad are left out.
        options: The section, with or without its `type`.

    Raises:
        OptionError: A key or value is wrong, or a name matches no parameter.
    """
    named = list(named)
    for key, problem in problems(options, named):
        raise OptionError(f'train:optim_g{":" if key else ""}{key}: {problem}')
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    matrices, others = ([parameter for _, parameter in part] for part in split(trained, options))
    adam = {key: value for key, value in (options.get('adam') or {}).items() if key != 'params'}
    own = {key: value for key, value in options.items() if key not in ('type', 'adam')}
    groups = [{'params': matrices, 'use_muon': True, **own}]
    if others:
        groups.append({'params': others, 'use_muon': False, **adam})
    return Muon(groups)
