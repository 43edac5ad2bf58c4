"""Random damage to a checkpoint: it is refused, or what is read is what was written."""

import io
import random

import pytest
import torch

from spinsr.training import checkpoints
from spinsr.utils.errors import CheckpointError

pytestmark = pytest.mark.slow

FLIPS = 400


def content(rng):
    moments = {'step': torch.tensor(3.0), 'exp_avg': torch.rand(40), 'exp_avg_sq': torch.rand(40)}
    return {
        'epoch': 1,
        'iter': 4,
        'optimizers': [{'state': {0: moments}, 'param_groups': [{'lr': rng.random(), 'params': [0]}]}],
        'schedulers': [{'last_epoch': 4}],
    }


def flat(value, key=''):
    """All leaves of nested containers, as text and bytes."""
    if isinstance(value, torch.Tensor):
        return {key: (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())}
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: (type(value), len(value))} | {
            name: leaf for inner, part in items for name, leaf in flat(part, f'{key}/{inner!r}').items()
        }
    return {key: (type(value), value)}


def damaged(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        kind = rng.random()
        # The directory is at the end, and a tenth of the file.
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(len(data) * 4 // 5, len(data))
        if kind < 0.9:
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 0.95:
            del data[at : at + rng.randint(1, 64)]
        else:
            data = data[:at] or data
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize('sealed', [True, False], ids=['with-digest', 'without'])
@pytest.mark.parametrize('which', ['4.state', 'net_g_4.pth'])
def test_damage_is_refused_or_harmless(tmp_path, capsys, sealed, which):
    rng = random.Random(0)
    network, state = {'params': {'w': torch.rand(50)}}, content(rng)
    digest = checkpoints.write(tmp_path / 'net_g_4.pth', network)
    if sealed or which != '4.state':
        state[checkpoints.NETWORKS] = {'net_g_4.pth': digest}
    if sealed:
        checkpoints.write(tmp_path / '4.state', state)
    else:
        plain = io.BytesIO()
        torch.save(state, plain)
        (tmp_path / '4.state').write_bytes(plain.getvalue())
    expected = flat(state), flat(network)
    whole = (tmp_path / which).read_bytes()
    refused = other = 0
    for _ in range(FLIPS):
        data = damaged(whole, rng)
        if data == whole:
            continue
        (tmp_path / which).write_bytes(data)
        try:
            read = checkpoints.read_state(tmp_path / '4.state', tmp_path)
            weights = torch.load(tmp_path / 'net_g_4.pth', weights_only=True)
        except CheckpointError as error:
            refused += 1
            assert '\n' not in str(error)
        else:
            other += (flat(read), flat(weights)) != expected
    with capsys.disabled():
        print(f'\n{FLIPS} damaged files: {refused} refused, {other} accepted with another content')
    assert other == 0 and refused
