"""The modules around the ops: both backends, at sizes where a cell, a window or a side is short."""

import pytest
import torch

from spinsr import ops
from spinsr.modules.spin import (
    IntraSuperpixelAttention,
    LocalAttention,
    SuperpixelAggregation,
    SuperpixelCrossAttention,
)

SIZES = {'one_pixel': (1, 1), 'one_row': (1, 7), 'one_column': (5, 1), 'below_cell': (3, 3), 'odd': (9, 13)}
MODULES = {
    'cross': lambda heads: SuperpixelCrossAttention(8, heads, 4),
    'intra': lambda heads: IntraSuperpixelAttention(8, heads, 4),
    'local': lambda heads: LocalAttention(8, heads, 4, 4),
}


def results(net, x, monkeypatch, backend):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', backend)
    x = x.detach().requires_grad_()
    arguments = () if isinstance(net, LocalAttention) else (SuperpixelAggregation(4)(x),)
    out = net(x, *arguments)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    with torch.no_grad():
        inferred = net(x, *arguments)
    return inferred, out, *torch.autograd.grad(out, [x, *net.parameters()], upstream)


@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize('heads', [1, 2], ids=['one_head', 'two_heads'])
@pytest.mark.parametrize('module', MODULES.values(), ids=MODULES.keys())
def test_backends_agree_on_output_and_every_gradient(module, heads, size, monkeypatch, assert_close):
    net, x = module(heads).double(), torch.randn(2, *size, 8, dtype=torch.float64)
    assert_close(results(net, x, monkeypatch, 'torch'), results(net, x, monkeypatch, 'reference'))


def test_fewer_pixels_a_superpixel_change_the_result():
    x = torch.randn(1, 9, 13, 8)
    all_pixels, four = IntraSuperpixelAttention(8, 1, 4), IntraSuperpixelAttention(8, 1, 4, num_pixels=4)
    four.load_state_dict(all_pixels.state_dict())
    association = SuperpixelAggregation(4)(x)
    assert not torch.allclose(all_pixels(x, association), four(x, association))


@pytest.mark.parametrize('num_iter', [1, 3])
def test_aggregation_hands_on_its_arguments(num_iter):
    x = torch.randn(1, 9, 13, 8)
    association = SuperpixelAggregation(4, num_iter)(x)
    assert association.grid.cell == 4
    assert torch.equal(association.dense().sum(1) > 0.99, torch.ones(1, 117, dtype=torch.bool))
    assert f'(stoken_size=4, num_iter={num_iter}, reach=1, differentiable=False, ' in repr(
        SuperpixelAggregation(4, num_iter)
    )


@pytest.mark.parametrize(
    'switches',
    [{'differentiable': True}, {'kind': 'exponential'}, {'position_weight': 2.5}],
    ids=lambda switches: next(iter(switches)),
)
def test_aggregation_hands_on_its_switches(switches):
    x = torch.randn(1, 9, 13, 8, requires_grad=True)
    association, expected = SuperpixelAggregation(4, **switches)(x), ops.associate(x, 4, **switches)
    assert torch.equal(association.weights, expected.weights)
    assert association.kind == expected.kind
    assert association.weights.requires_grad == expected.weights.requires_grad


def test_values_of_ignored_pixels_change_the_result():
    x = torch.randn(1, 9, 13, 8)
    all_values, ignored = (IntraSuperpixelAttention(8, 1, 4, 3, own_values) for own_values in ('all', 'ignored'))
    ignored.load_state_dict(all_values.state_dict())
    association = SuperpixelAggregation(4)(x)
    differs = (all_values(x, association) != ignored(x, association)).any(-1).flatten()
    selected = torch.zeros(117, dtype=torch.bool).index_fill(0, ops.top_n(association, 3).flatten(), True)
    assert torch.equal(differs, selected)
