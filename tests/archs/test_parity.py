"""Our networks with the authors' weights give the authors' images; tests/parity holds both."""

from pathlib import Path

import pytest
import torch

from spinsr.archs import ARCH_REGISTRY
from spinsr.convert import convert_state_dict

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / 'parity').glob('*_tiny_*.npz'))
IMAGES = [(name, number) for name in NAMES for number in range(3 if name.startswith('spin') else 2)]


@pytest.fixture(params=IMAGES, ids=lambda image: '-'.join(map(str, image)))
def parity(request, official):
    name, number = request.param
    official = official(name)
    assert len(official.images) == (3 if name.startswith('spin') else 2)
    net = ARCH_REGISTRY.get(official.arch)(**official.arguments).eval()
    weights = convert_state_dict(official.weights, official.arch)
    return net, weights, official.images[number], official.results[number]


@pytest.mark.parametrize('backend', ['reference', 'torch'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=['float64', 'float32'])
def test_equals_the_authors_network(parity, backend, dtype, monkeypatch, assert_close):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', backend)
    net, weights, x, expected = parity
    net.to(dtype).load_state_dict(weights)
    with torch.inference_mode():
        y = net(x.to(dtype))
    assert_close(y, expected, dtype)
