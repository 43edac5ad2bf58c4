"""Random damage to weights files: each is refused in one line, or what is loaded is what was written."""

import io
import os
import pickle
import random
import zipfile

import pytest
import torch
from safetensors.torch import save as save_safetensors

import spinsr
from spinsr.convert import convert_file, read_checkpoint

from .test_states import damaged

pytestmark = pytest.mark.slow

FLIPS, MUTATIONS = 300, 300
NETWORK = {'num_feat': 8, 'num_mid': 12, 'num_block': 2, 'num_esa': 4}


def weights():
    return spinsr.load('RLFN', 2, None, **NETWORK).state_dict()


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize('name', ['net.pth', 'net.safetensors'])
def test_damaged_bytes(name, tmp_path, capsys):
    rng, expected, path = random.Random(0), weights(), tmp_path / name
    whole = save_safetensors(expected) if name.endswith('.safetensors') else saved({'params': expected})
    refused = other = 0
    for _ in range(FLIPS):
        data = damaged(whole, rng)
        path.write_bytes(data)
        try:
            net = spinsr.load(weights=path)
        except (ValueError, TypeError) as error:
            refused += 1
            assert '\n' not in str(error)
            continue
        assert all(value.isfinite().all() for value in net.state_dict().values())
        other += not equal(net.state_dict(), expected)
    with capsys.disabled():
        print(f'\n{name}: {FLIPS} damaged files, {refused} refused, {other} loaded with other numbers')
    assert refused
    # .safetensors has no checksum: a finite number that becomes another finite number cannot be noticed.
    assert other == 0 or name.endswith('.safetensors')


CHANGES = (
    lambda value: value * float('nan'),
    lambda value: value + float('inf'),
    lambda value: value[None],
    lambda value: value.flatten(),
    lambda value: value[:0],
    lambda value: value.to(torch.int32),
    lambda value: value.to(torch.complex64),
    lambda value: value.half(),
    lambda value: value.double(),
    lambda value: torch.cat([value, value]),
)


def mutated(state_dict, rng):
    """A state dict with one to three things wrong, or only unusual."""
    state_dict = dict(state_dict)
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(sorted(state_dict, key=str))
        value = state_dict.get(key)
        kind = rng.randrange(10)
        if kind == 0:
            del state_dict[key]
        elif kind == 1:
            state_dict[rng.choice(['a', '', key + '.x', '\x1b[31m', 'body.block_999999999.c5.weight'])] = value
        elif kind == 2:
            state_dict[rng.choice([3, None, (1, 2), b'weight'])] = value
        elif kind == 3:
            state_dict[key] = rng.choice([None, 3, 'text', [1.0], {'a': 1}, float('nan')])
        elif isinstance(value, torch.Tensor):
            state_dict[key] = rng.choice(CHANGES)(value)
    return state_dict


def test_mutated_state_dicts(tmp_path, capsys):
    rng, whole = random.Random(0), weights()
    refused = 0
    for number in range(MUTATIONS):
        content = mutated(whole, rng)
        if rng.random() < 0.5:
            content = {rng.choice(['params', 'params_ema', 'state_dict', 'model', 'net', 'strange']): content}
        path = tmp_path / 'net.pth'
        path.write_bytes(saved(content))
        target = tmp_path / f'{number}.safetensors'
        try:
            net = spinsr.load(weights=path)
            convert_file(path, target)
        except (ValueError, TypeError) as error:
            refused += 1
            assert str(error).isprintable(), error
            assert not target.exists()
            continue
        assert all(value.isfinite().all() for value in net.state_dict().values())
        assert equal(spinsr.load(weights=target).state_dict(), net.state_dict())
    with capsys.disabled():
        print(f'\n{MUTATIONS} mutated state dicts: {refused} refused, {MUTATIONS - refused} loaded')
    assert 0 < refused < MUTATIONS


class Hostile:
    """Pickled, it is a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('layout', ['zip', 'legacy', 'pickle', 'inside'])
@pytest.mark.parametrize('function', ['system', 'eval', 'exec', 'mkdir'])
def test_no_code_of_a_file_runs(function, layout, tmp_path):
    mark, path = tmp_path / 'mark', tmp_path / 'net.pth'
    code = f'__import__("os").mkdir({str(mark)!r})'
    hostile = {
        'system': Hostile(os.system, f'mkdir {mark}'),
        'eval': Hostile(eval, code),
        'exec': Hostile(exec, code),
        'mkdir': Hostile(os.mkdir, str(mark)),
    }[function]
    if layout == 'pickle':
        path.write_bytes(pickle.dumps(hostile))
    elif layout == 'inside':
        path.write_bytes(saved({'params': {**weights(), 'more': hostile}}))
    else:
        path.write_bytes(saved({'params': hostile}, _use_new_zipfile_serialization=layout == 'zip'))
    with pytest.raises(ValueError, match='net.pth') as caught:
        read_checkpoint(path)
    assert '\n' not in str(caught.value)
    assert not mark.exists()


def test_archives_of_other_things(tmp_path):
    """A ZIP file that is not a checkpoint, an empty one, and one with strange names."""
    path = tmp_path / 'net.pth'
    for names in ([], ['a.txt'], ['../data.pkl'], ['archive/data.pkl'], ['archive/data.pkl', 'archive/data/0']):
        with zipfile.ZipFile(path, 'w') as archive:
            for name in names:
                archive.writestr(name, b'x')
        with pytest.raises(ValueError, match='net.pth') as caught:
            read_checkpoint(path)
        assert '\n' not in str(caught.value)
