import pytest
import torch
from torch import nn

from spinsr.modules.layout import to_image, to_tokens
from spinsr.modules.spin import project

WIDTHS = (3, 5, 4)
SHAPES = {'one_pixel': (1, 1, 1), 'one_row': (1, 1, 7), 'odd': (1, 5, 9), 'batch': (3, 4, 3)}


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())
def test_equals_normalisation_and_linear_layer(shape, backend, forward_backward, assert_close):
    norm, linear = nn.LayerNorm(6, eps=1e-3).double(), nn.Linear(6, sum(WIDTHS), bias=False).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(*shape, 6, dtype=torch.float64)
    out = forward_backward(lambda x: torch.cat(project(x, norm, linear, WIDTHS), -1), x)
    assert_close(out, forward_backward(lambda x: linear(norm(x)).flatten(1, 2), x))


def test_weights_get_the_same_gradients(backend, assert_close):
    norm, linear = nn.LayerNorm(6).double(), nn.Linear(6, sum(WIDTHS), bias=False).double()
    parameters, x = [*norm.parameters(), *linear.parameters()], torch.randn(2, 5, 9, 6, dtype=torch.float64)
    upstream = torch.randn(2, 45, sum(WIDTHS), dtype=torch.float64)
    split = torch.cat(project(x, norm, linear, WIDTHS), -1)
    whole = linear(norm(x)).flatten(1, 2)
    assert_close(*(torch.autograd.grad(out, parameters, upstream) for out in (split, whole)))


def test_slices_have_the_widths(backend):
    parts = project(torch.randn(2, 5, 9, 6), nn.LayerNorm(6), nn.Linear(6, sum(WIDTHS), bias=False), WIDTHS)
    assert [part.shape for part in parts] == [(2, 45, width) for width in WIDTHS]


def test_layouts_are_each_others_inverse(backend):
    x = torch.randn(2, 6, 5, 9)
    tokens = to_tokens(x)
    assert torch.equal(to_image(tokens), x)
    assert tokens.shape == (2, 5, 9, 6)
    assert tokens.is_contiguous() == (backend == 'torch')
