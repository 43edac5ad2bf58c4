"""Our networks with the authors' weights give the authors' images; tests/parity holds both."""

import pytest
import torch

from spinsr.archs import ARCH_REGISTRY
from spinsr.convert import convert_state_dict

from ..conftest import LARGE_PARITY_FILES, PARITY

NAMES = sorted(path.stem for path in PARITY.glob('*_tiny_*.npz'))
IMAGES = [(name, number) for name in NAMES for number in range(3 if name.startswith('spin') else 2)]
ZOO = sorted({f'zoo/{path.stem}' for path in (PARITY / 'zoo').glob('*.npz')} | set(LARGE_PARITY_FILES))


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


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=['float64', 'float32'])
@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize('name', ZOO)
def test_equals_the_authors_network_of_the_zoo(name, number, dtype, official, assert_close):
    official = official(name)
    assert len(official.images) == 2
    net = ARCH_REGISTRY.get(official.arch)(**official.arguments).eval().to(dtype)
    net.load_state_dict(convert_state_dict(official.weights, official.arch))
    with torch.inference_mode():
        y = net(official.images[number].to(dtype))
    assert_close(y, official.results[number], dtype)
