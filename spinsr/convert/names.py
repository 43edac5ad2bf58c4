"""What the authors and we call the tensors of each network: one table a network, read in both directions."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from spinsr.archs import emt_arch, rlfn_arch

# Networks that say beside themselves what is to be known of the authors' files.
MODULES = {'EMT': emt_arch, 'RLFN': rlfn_arch}
ARCHS = ('SPIN', 'SAN', 'RCAN', *MODULES)

StateDict = dict[str, Tensor]
# How many names an error shows.
_SHOWN = 5


class Rule(NamedTuple):
    """A row of a table; None where a side has no such tensor, or where it is computed from other tensors."""

    official: str | None
    ours: str | None


_FIELDS = {
    'group': r'\d+',
    'block': r'\d+',
    'stage': r'\d+',
    'layer': r'\d+',
    'number': r'[1-9]\d*',  # of blocks that are numbered from 1
    'attention': r'\d+',  # layers of two kinds
    'mixer': r'\d+',
    'end': 'weight|bias',
    'statistic': 'weight|bias|running_mean|running_var|num_batches_tracked',
    'letter': '[qkv]',  # three tensors of the authors are one of ours, one below the other
    # In the authors' names alone; not in one name of ours but in the network as a whole:
    'groups': r'\d+',  # how many there are
    'blocks': r'\d+',
    'one': '1?',  # empty where there is but one stage
}

_FEED_FORWARD_PARTS = (
    ('norm.norm', 'norm'),
    ('ca.1', 'channel_attention.0'),
    ('ca.3', 'channel_attention.2'),
    ('pa.0', 'pixel_attention.0'),
    ('pa.2', 'pixel_attention.2'),
    ('fc1', 'fc1'),
    ('fc2', 'fc2'),
)

_SPIN = (
    ('first_conv.{end}', 'conv_first.{end}'),
    ('last_conv.{end}', 'conv_last.{end}'),
    ('mid_convs.{block}.{end}', 'convs.{block}.{end}'),
    ('upconv{one}.{end}', 'upsample.0.{end}'),
    ('upconv2.{end}', 'upsample.1.{end}'),
    ('blocks.{block}.inter_layer.0.sp.weight', 'blocks.{block}.cross_attention.to_token.weight'),
    ('blocks.{block}.inter_layer.0.norm.norm.{end}', 'blocks.{block}.cross_attention.norm.{end}'),
    ('blocks.{block}.inter_layer.0.{letter}.weight', 'blocks.{block}.cross_attention.to_qkv.weight'),
    ('blocks.{block}.intra_layer.0.norm.norm.{end}', 'blocks.{block}.intra_attention.norm.{end}'),
    ('blocks.{block}.intra_layer.0.{letter}.weight', 'blocks.{block}.intra_attention.to_qkv.weight'),
    ('blocks.{block}.local_layer.0.norm.{end}', 'blocks.{block}.local_attention.norm.{end}'),
    ('blocks.{block}.local_layer.0.attn.to_{letter}.weight', 'blocks.{block}.local_attention.to_qkv.weight'),
    *(
        (
            f'blocks.{{block}}.{theirs}_layer.1.{part}.{{end}}',
            f'blocks.{{block}}.{ours}_feed_forward.{our_part}.{{end}}',
        )
        for theirs, ours in (('inter', 'cross'), ('intra', 'intra'), ('local', 'local'))
        for part, our_part in _FEED_FORWARD_PARTS
    ),
)

# The first, the last and what lies around them are the same in SAN and RCAN.
_HEAD_AND_TAIL = (
    ('sub_mean.{end}', None),
    ('add_mean.{end}', None),
    (None, 'mean'),
    ('head.0.{end}', 'conv_first.{end}'),
    ('tail.0.{stage}.{end}', 'upsample.{stage}.{end}'),
    ('tail.1.{end}', 'conv_last.{end}'),
)

_SAN = (
    *_HEAD_AND_TAIL,
    ('gamma', 'gamma'),
    ('RG.{group}.rcab.{block}.conv_first.0.{end}', 'groups.{group}.blocks.{block}.conv1.{end}'),
    ('RG.{group}.rcab.{block}.conv_first.2.{end}', 'groups.{group}.blocks.{block}.conv2.{end}'),
    ('RG.{group}.soca.conv_du.0.{end}', 'groups.{group}.attention.attention.0.{end}'),
    ('RG.{group}.soca.conv_du.2.{end}', 'groups.{group}.attention.attention.2.{end}'),
    ('RG.{group}.conv_last.{end}', 'groups.{group}.conv.{end}'),
    ('non_local.non_local.theta.{end}', 'non_local.theta.{end}'),
    ('non_local.non_local.phi.0.{end}', 'non_local.phi.{end}'),
    ('non_local.non_local.g.0.{end}', 'non_local.g.{end}'),
    ('non_local.non_local.W.{end}', 'non_local.out.{end}'),
    # Never used by the authors' forward pass.
    ('RG.{group}.gamma', None),
    ('conv_last.{end}', None),
    ('non_local.soca.conv_du.0.{end}', None),
    ('non_local.soca.conv_du.2.{end}', None),
)

_RCAN = (
    *_HEAD_AND_TAIL,
    ('body.{group}.body.{block}.body.0.{end}', 'body.{group}.residual_group.{block}.rcab.0.{end}'),
    ('body.{group}.body.{block}.body.2.{end}', 'body.{group}.residual_group.{block}.rcab.2.{end}'),
    (
        'body.{group}.body.{block}.body.3.conv_du.0.{end}',
        'body.{group}.residual_group.{block}.rcab.3.attention.1.{end}',
    ),
    (
        'body.{group}.body.{block}.body.3.conv_du.2.{end}',
        'body.{group}.residual_group.{block}.rcab.3.attention.3.{end}',
    ),
    ('body.{group}.body.{blocks}.{end}', 'body.{group}.conv.{end}'),
    ('body.{groups}.{end}', 'conv_after_body.{end}'),
)

_TABLES = {
    'SPIN': _SPIN,
    'SAN': _SAN,
    'RCAN': _RCAN,
    **{arch: module.TENSOR_NAMES for arch, module in MODULES.items()},
}
_RULES = {arch: tuple(Rule(*row) for row in table) for arch, table in _TABLES.items()}

# A second stage is there at x4 only; BasicSR's RCAN has no mean.
_OPTIONAL = ('upsample.1.{end}', 'mean')


def _compile(template: str) -> re.Pattern:
    field = r'\\\{(\w+)\\\}'
    return re.compile(re.sub(field, lambda match: f'(?P<{match[1]}>{_FIELDS[match[1]]})', re.escape(template)))


_PATTERNS = {
    arch: {
        side: [(_compile(getattr(rule, side)), rule) for rule in rules if getattr(rule, side)] for side in Rule._fields
    }
    for arch, rules in _RULES.items()
}


def _find(name: str, arch: str, side: str) -> tuple[Rule, dict[str, str]] | None:
    """The rule of a name, and the fields in it."""
    for pattern, rule in _PATTERNS[arch][side]:
        if match := pattern.fullmatch(name):
            return rule, match.groupdict()
    return None


def canonical(arch: str) -> str:
    """The one of `ARCHS` whose state dicts a registered arch has: 'RCAN_spinsr' is 'RCAN', 'SPINVariant' is 'SPIN'.

    Raises:
        ValueError: Unknown.
    """
    if not is_known(arch):
        raise ValueError(f'arch must be one of {", ".join(ARCHS)}, got {arch!r}')
    return public(arch)


def is_known(arch: str) -> bool:
    """Whether a registered arch has the state dicts of one of `ARCHS`."""
    return public(arch) in ARCHS


def public(arch: str) -> str:
    """The name by which conversion and the shipped weights know a registered arch; an unknown one stays as it is."""
    return 'SPIN' if arch == 'SPINVariant' else arch.removesuffix('_spinsr')


def has_mean(arch: str) -> bool:
    """Whether an arch keeps the mean of the images, which the authors subtract and add in layers."""
    return any(rule.ours == 'mean' for rule in _RULES[arch])


def is_buffer(name: str) -> bool:
    """Whether a tensor of ours is not trained: the mean of the images, or a statistic of batch normalisation."""
    return name.rpartition('.')[2] in ('mean', 'running_mean', 'running_var', 'num_batches_tracked')


def fitting(names: Iterable[str], arch: str) -> int:
    """How many names are those of an arch, in the form that fits better."""
    return max(sum(_find(name, arch, side) is not None for name in names) for side in Rule._fields)


def is_official(names: Iterable[str], arch: str) -> bool:
    """Whether a name is there that only the authors' form has."""
    return any(_find(name, arch, 'official') and not _find(name, arch, 'ours') for name in names)


def check(names: Iterable[str], arch: str, side: str) -> None:
    """Refuses names that a form does not have.

    Raises:
        ValueError: There are such names; the first are named.
    """
    _find_all(names, arch, side)


def _find_all(names: Iterable[str], arch: str, side: str) -> dict[str, tuple[Rule, dict[str, str]]]:
    found = {name: _find(name, arch, side) for name in names}
    if unmatched := sorted(name for name in found if found[name] is None):
        shown = ', '.join(unmatched[:_SHOWN]) + ', …' * (len(unmatched) > _SHOWN)
        raise ValueError(f'{len(unmatched)} names belong to no {arch}: {shown}')
    return found


def missing(names: Iterable[str], arch: str) -> list[str]:
    """What our form lacks if there are as many groups, blocks and stages as its names speak of, and at least one."""
    found = _find_all(names, arch, 'ours')
    every = {field: set(_FIELDS[field].split('|')) for field in ('end', 'statistic')}
    seen = _values(fields for _, fields in found.values()) | every
    seen |= {field: set(map(str, range(count))) for field, count in _counts(seen).items()}
    seen['number'] = set(map(str, range(1, 1 + max(map(int, seen.get('number', {'1'}))))))
    # A network may have layers of one kind alone.
    seen = {'attention': set(), 'mixer': set()} | seen
    return [
        name
        for rule in _RULES[arch]
        if rule.ours and rule.ours not in _OPTIONAL
        for name in _expand(rule.ours, seen)
        if name not in found
    ]


def without_an_attention(name: str, names: Iterable[str]) -> bool:
    """Whether a variant of SPIN lacks a name of ours: no block has this attention of superpixels, but the other."""
    own = re.match(r'blocks\.\d+\.(cross|intra)_', name)
    there = {match[1] for other in names if (match := re.match(r'blocks\.\d+\.(cross|intra)_', other))}
    return own is not None and there == {'cross', 'intra'} - {own[1]}


def _values(all_fields: Iterable[Mapping[str, str]]) -> dict[str, set[str]]:
    seen: dict[str, set[str]] = {}
    for fields in all_fields:
        for field, value in fields.items():
            seen.setdefault(field, set()).add(value)
    return seen


def _counts(seen: Mapping[str, set[str]]) -> dict[str, int]:
    return {field: 1 + max(map(int, seen.get(field, {'0'}))) for field in ('group', 'block', 'layer')}


def _expand(template: str, seen: Mapping[str, set[str]]) -> Iterator[str]:
    fields = re.findall(r'\{(\w+)\}', template)
    for values in itertools.product(*(sorted(seen.get(field, {'0'})) for field in fields)):
        yield template.format(**dict(zip(fields, values, strict=True)))


def to_ours(state_dict: Mapping[str, Tensor], arch: str) -> StateDict:
    """Renames from the authors' names to ours, with q, k and v in one; what is None in the table is left out.

    Raises:
        ValueError: A name that the authors' form does not have, one of q, k, v that is missing, or two names for one.
    """
    renamed: StateDict = {}
    pieces: dict[str, list[tuple[str, Tensor | None]]] = {}
    for name, (rule, fields) in _find_all(state_dict, arch, 'official').items():
        if not rule.ours:
            continue
        ours = rule.ours.format(**fields)
        if 'letter' in fields:
            siblings = [rule.official.format(**fields | {'letter': letter}) for letter in 'qkv']
            pieces[ours] = [(sibling, state_dict.get(sibling)) for sibling in siblings]
        elif ours in renamed:
            raise ValueError(f'the {arch} state dict has {name} and another name for {ours}')
        else:
            renamed[ours] = state_dict[name]
    for ours, parts in pieces.items():
        for sibling, value in parts:
            if value is None:
                raise ValueError(f'the {arch} state dict lacks {sibling}')
        renamed[ours] = torch.cat([value.flatten(1) for _, value in parts])
    return renamed


def to_official(state_dict: Mapping[str, Tensor], arch: str) -> StateDict:
    """Renames from our names to the authors', with q, k and v apart; what is None in the table is left out.

    Raises:
        ValueError: A name that our form does not have.
    """
    found = _find_all(state_dict, arch, 'ours')
    counts = _counts(_values(fields for _, fields in found.values()))
    whole = {
        'groups': counts['group'],
        'blocks': counts['block'],
        'one': '1' if 'upsample.1.weight' in state_dict else '',
    }
    renamed: StateDict = {}
    for name, (rule, fields) in found.items():
        value = state_dict[name]
        if rule.official and '{letter}' in rule.official:
            qk_dim = (value.shape[0] - value.shape[1]) // 2  # v has as many rows as there are channels
            for letter, part in zip('qkv', value.split([qk_dim, qk_dim, value.shape[1]]), strict=True):
                renamed[rule.official.format(**fields, letter=letter)] = part
        elif rule.official:
            renamed[rule.official.format(**fields, **whole)] = value
    return renamed
