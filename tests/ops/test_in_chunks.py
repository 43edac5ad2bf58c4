"""The ops that work in chunks on the CPU, against their references, for several sizes of the chunks."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from spinsr.evaluation.complexity import OpCounter
from spinsr.ops import (
    associate,
    gated_feed_forward,
    intra_superpixel_attention,
    norm_project,
    superpixel_cross_attention,
    top_n,
    upsampling_tail,
    window_attention,
)
from spinsr.ops.attention import attention, by_hand
from spinsr.ops.attention.fused import add_attended_rows
from spinsr.ops.common import chunking, precision
from spinsr.ops.common.chunking import chunk_type, on_cpu

EPS = 1e-3  # large enough for a wrong one to be seen
HALF_TYPES = pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])


class Op(NamedTuple):
    """An op, its reference, functions of the same differentiable inputs, and these."""

    run: Callable[..., Tensor]
    formula: Callable[..., Tensor]
    inputs: list[Tensor]


def op_of(function, inputs) -> Op:
    """`function` of a backend and the inputs."""
    return Op(*(lambda *inputs, b=backend: function(b, *inputs) for backend in ('torch', 'reference')), inputs)


def weights(dtype, *shapes):
    """Random weights that keep the size of what they are applied to."""
    return [torch.randn(shape, dtype=dtype) / torch.Size(shape[1:]).numel() ** 0.5 for shape in shapes]


def projection(join, with_norm=False):
    """`join` makes one tensor of the slices."""
    widths = (3, 5, 4)

    def run(backend, x, norm_weight, norm_bias, weight):
        norm = norm_weight, norm_bias
        return join(norm_project(x, norm, weight, widths, EPS, with_norm=with_norm, backend=backend))

    return lambda case, dtype: op_of(run, [case.tokens(6, dtype), *weights(dtype, (6,), (6,), (sum(widths), 6))])


def feed_forward(case, dtype) -> Op:
    c, squeezed, hidden = 6, 2, 5
    channel_gate = (squeezed, c), (squeezed,), (c, squeezed), (c,)
    pixel_gate = (squeezed, c), (squeezed,), (1, squeezed), (1,)
    shapes = (c,), (c,), *channel_gate, *pixel_gate, (hidden, 2 * c), (hidden,), (c, hidden), (c,)

    def run(backend, x, *tensors):
        parts = tensors[:2], tensors[2:6], tensors[6:10], tensors[10:12], tensors[12:]
        return gated_feed_forward(x, *parts, EPS, backend=backend)

    return op_of(run, [case.tokens(c, dtype), *weights(dtype, *shapes)])


def tail(*factors, slope=0.3):
    def run(backend, x, *tensors):
        stages = list(zip(tensors[2::2], tensors[3::2], strict=True))
        return upsampling_tail(x, stages, tensors[:2], slope, backend=backend)

    def make(case, dtype) -> Op:
        stages = [shape for f in factors for shape in ((3 * f**2, 3, 3, 3), (3 * f**2,))]
        x = case.features(3, dtype).permute(0, 3, 1, 2)
        return op_of(run, [x, *weights(dtype, (2, 3, 3, 3), (2,), *stages)])

    return make


def cross(num_heads, qk, values):
    def run(backend, *inputs):
        return superpixel_cross_attention(*inputs, num_heads, backend=backend)

    def make(case, dtype) -> Op:
        num_cells = max(1, case.height // case.cell) * max(1, case.width // case.cell)
        tokens = case._replace(height=1, width=num_cells).tokens(qk, dtype)
        return op_of(run, [*(case.tokens(c, dtype) for c in (qk, qk, values)), tokens])

    return make


def intra(num_heads, qk, values, n=None, own_values='all'):
    def make(case, dtype) -> Op:
        indices = top_n(associate(case.features(3), case.cell), n)

        def run(backend, *qkv):
            return intra_superpixel_attention(*qkv, indices, num_heads, own_values=own_values, backend=backend)

        return op_of(run, [case.tokens(c, dtype) for c in (qk, qk, values)])

    return make


def windows(num_heads, overlap):
    def make(case, dtype) -> Op:
        def run(backend, *qkv):
            return window_attention(*qkv, case.cell, overlap, num_heads, backend=backend)

        return op_of(run, [case.features(c, dtype) for c in (4, 4, 6)])

    return make


LAYER_OPS = {
    'projection': projection(lambda parts: torch.cat(parts, -1)),
    'projection-with_norm': projection(lambda parts: torch.cat(parts, -1), with_norm=True),
    'projection-norm_and_one': projection(lambda parts: parts[0].sum(-1, keepdim=True) * parts[-1], with_norm=True),
    'projection-one_unused': projection(lambda parts: parts[0].sum(-1, keepdim=True) * parts[2]),
    'feed_forward': feed_forward,
    'tail-x2-no_activation': tail(2, slope=1.0),
    'tail-x3': tail(3),
    'tail-x4': tail(2, 2),
}
# Channels of queries, values: the fused kernels want one width, so narrower and wider values are tested.
ATTENTION_OPS = {
    'cross-one_head-wide_v': cross(1, 4, 6),
    'cross-two_heads-narrow_v': cross(2, 8, 4),
    'intra-one_head-wide_v': intra(1, 4, 6),
    'intra-two_heads-narrow_v': intra(2, 8, 4),
    'intra-ignored_values': intra(2, 4, 6, n=3, own_values='ignored'),
    'windows-one_head': windows(1, overlap=2),
    'windows-two_heads-no_overlap': windows(2, overlap=0),
}
OPS = LAYER_OPS | ATTENTION_OPS
# One of each kind.
KINDS = {
    'projection': OPS['projection'],
    'projection-with_norm': OPS['projection-with_norm'],
    'feed_forward': OPS['feed_forward'],
    'tail': OPS['tail-x4'],
    'cross': OPS['cross-two_heads-narrow_v'],
    'intra': OPS['intra-two_heads-narrow_v'],
}
LAYERS = pytest.mark.parametrize('name', ['projection', 'projection-with_norm', 'feed_forward', 'tail'])
ATTENTION = pytest.mark.parametrize('name', ['cross', 'intra'])
# The layers have no cells: of the cases those that differ without them.
WITHOUT_CELLS = ['one_pixel', 'one_row', 'one_column', 'odd', 'non_divisible_batch', 'non_contiguous']
MEDIUM = ['odd', 'non_divisible_batch', 'non_contiguous']


@pytest.fixture(params=OPS.values(), ids=OPS.keys())
def any_op(request):
    return request.param


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request):
    return request.param


def graph(function, inputs):
    """Output and leaves of a graph."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    return function(*leaves), leaves


@pytest.mark.parametrize('op', LAYER_OPS.values(), ids=LAYER_OPS.keys())
@pytest.mark.parametrize(
    ('size', 'name'),
    [*((size, name) for size in ('few', 'uncut') for name in WITHOUT_CELLS), ('several', 'non_divisible_batch')],
)
def test_value_and_every_gradient_of_layers(op, size, name, cut_by, one_case, forward_backward, assert_close):
    cut_by(size)
    run, formula, inputs = op(one_case(name), torch.float64)
    assert_close(forward_backward(run, *inputs), forward_backward(formula, *inputs))


@pytest.mark.parametrize('op', ATTENTION_OPS.values(), ids=ATTENTION_OPS.keys())
def test_value_and_every_gradient_of_attention(op, case, chunk_size, forward_backward, assert_close):
    run, formula, inputs = op(case, torch.float64)
    assert_close(forward_backward(run, *inputs), forward_backward(formula, *inputs))


@pytest.mark.parametrize('op', ATTENTION_OPS.values(), ids=ATTENTION_OPS.keys())
@pytest.mark.parametrize('name', MEDIUM)
def test_attention_with_several_groups_a_chunk(op, name, cut_by, one_case, forward_backward, assert_close):
    cut_by('several')
    run, formula, inputs = op(one_case(name), torch.float64)
    assert_close(forward_backward(run, *inputs), forward_backward(formula, *inputs))


def test_in_float32(any_op, one_case, chunk_size, forward_backward, assert_close):
    run, formula, inputs = any_op(one_case('non_divisible_batch'), torch.float32)
    exact = forward_backward(formula, *(x.double() for x in inputs))
    assert_close(forward_backward(run, *inputs), exact, torch.float32)


def of_pixels(function, others):
    """As a function of the pixels: gradients of a few numbers have errors that are a matter of luck in half types."""
    return lambda x: function(x, *(other.to(x.dtype) for other in others))


@HALF_TYPES
@LAYERS
def test_layers_in_half_types(name, dtype, one_case, assert_half_close):
    run, formula, (x, *others) = KINDS[name](one_case('non_divisible_batch'), dtype)
    assert_half_close(of_pixels(run, others), of_pixels(formula, others), x)


@HALF_TYPES
@LAYERS
def test_layers_under_autocast(name, dtype, one_case, assert_half_close):
    run, formula, (x, *others) = KINDS[name](one_case('non_divisible_batch'), torch.float32)
    autocast = torch.autocast('cpu', dtype)
    assert_half_close(autocast(of_pixels(run, others)), autocast(of_pixels(formula, others)), x)


@HALF_TYPES
@pytest.mark.parametrize('name', ['projection', 'feed_forward', 'tail'])
def test_layers_under_autocast_give_its_type(name, dtype, one_case, few_at_once):
    run, _, inputs = KINDS[name](one_case('odd'), torch.float32)
    with torch.autocast('cpu', dtype):
        assert run(*inputs).dtype == dtype


@pytest.fixture(params=[False, True], ids=['float32_products', 'bf16_products'])
def products(request, monkeypatch):
    """Attention as on a processor with and without instructions for bfloat16."""
    monkeypatch.setattr(precision, 'multiplies_bf16', lambda: request.param)


@pytest.mark.usefixtures('products')
@HALF_TYPES
@ATTENTION
def test_attention_in_half_types(name, dtype, one_case, chunk_size, assert_half_close):
    run, formula, inputs = KINDS[name](one_case('non_divisible_batch'), dtype)
    assert_half_close(run, formula, *inputs)


@pytest.mark.usefixtures('products')
@HALF_TYPES
@ATTENTION
def test_attention_in_half_types_under_autocast(name, dtype, one_case, chunk_size, assert_half_close):
    run, formula, inputs = KINDS[name](one_case('non_divisible_batch'), dtype)
    assert_half_close(torch.autocast('cpu', dtype)(run), formula, *inputs)


@pytest.mark.parametrize('weights', [1, 40, 2**18], ids=['one_key', 'some_keys', 'all_keys'])
@pytest.mark.parametrize('size', [1.0, 30.0], ids=['flat', 'peaked'])
def test_attention_in_bf16_without_gradients(weights, size, monkeypatch):
    """Where even a few rows have too many weights, chunk by chunk of the keys."""
    monkeypatch.setattr(precision, 'multiplies_bf16', lambda: True)
    monkeypatch.setattr('spinsr.ops.attention.by_hand.FORWARD', weights)
    q, k, v = (torch.randn(2, 3, length, width).bfloat16() for length, width in ((5, 4), (70, 4), (70, 6)))
    q = size * q
    exact = attention(*(x.double() for x in (q, k, v)), backend='reference')
    allowed = 2 * (attention(q, k, v, backend='reference').double() - exact).norm()
    found = attention(q, k, v, backend='torch')
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).norm() <= allowed


@pytest.mark.usefixtures('products')
@pytest.mark.parametrize('weights', [1, 2**18], ids=['one_key', 'all_keys'])
def test_attention_in_bf16_to_masked_keys(weights, monkeypatch):
    monkeypatch.setattr('spinsr.ops.attention.by_hand.FORWARD', weights)
    k = torch.tensor([float('-inf')] * 20 + [0.0, 1.0], dtype=torch.bfloat16).view(1, 1, -1, 1)
    v = torch.arange(22, dtype=torch.bfloat16).view(1, 1, -1, 1)
    found = attention(torch.ones(1, 1, 1, 1, dtype=torch.bfloat16), k, v, backend='torch')
    torch.testing.assert_close(found.float().item(), 20 + torch.ones(1).sigmoid().item(), rtol=0, atol=0.1)


@pytest.mark.usefixtures('products')
@pytest.mark.parametrize('autocast', [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('types', [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_attention_of_mixed_types(types, autocast):
    q, k, v = (torch.rand(1, 2, 9, 4) for _ in 'qkv')
    expected = attention(q, k, v, backend='reference')
    with torch.autocast('cpu', autocast, enabled=autocast is not None):
        found = attention(q.to(types[0]), k.to(types[0]), v.to(types[1]), backend='torch')
    assert found.dtype == types[1]
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)


@ATTENTION
def test_attention_in_float32_is_not_touched_by_autocast(name, one_case, few_at_once, forward_backward):
    run, _, inputs = KINDS[name](one_case('odd'), torch.float32)
    plain, under_autocast = (forward_backward(f, *inputs) for f in (run, torch.autocast('cpu', torch.bfloat16)(run)))
    assert all(torch.equal(x, y) for x, y in zip(under_autocast, plain, strict=True))


@ATTENTION
def test_backward_of_attention_under_autocast(name, one_case, few_at_once):
    run, _, inputs = KINDS[name](one_case('odd'), torch.float32)
    out, leaves = graph(run, inputs)
    plain = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
    with torch.autocast('cpu', torch.bfloat16):
        under_autocast = torch.autograd.grad(out.sum(), leaves)
    assert all(torch.equal(x, y) for x, y in zip(under_autocast, plain, strict=True))


@pytest.mark.parametrize(
    'name',
    [
        *('projection', 'projection-with_norm', 'feed_forward', 'tail-x3'),
        *('cross-one_head-wide_v', 'intra-two_heads-narrow_v'),
    ],
)
def test_gradcheck(name, one_case, few_at_once):
    run, _, inputs = OPS[name](one_case('one_row')._replace(batch=2, width=4, cell=2), torch.float64)
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs])


def test_inference_is_as_with_gradients(kind, one_case, chunk_size):
    run, _, inputs = kind(one_case('non_divisible_batch'), torch.float32)
    with torch.inference_mode():
        inferred = run(*inputs)
    assert torch.equal(inferred, graph(run, inputs)[0])


def test_inputs_stay_as_they_are(kind, one_case, chunk_size, forward_backward):
    run, _, inputs = kind(one_case('non_contiguous'), torch.float32)
    before = [x.clone() for x in inputs]
    forward_backward(run, *inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_a_second_run_is_bit_equal(kind, one_case, few_at_once, forward_backward):
    run, _, inputs = kind(one_case('non_contiguous'), torch.float32)
    first, second = forward_backward(run, *inputs), forward_backward(run, *inputs)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_a_second_backward_gives_the_same(kind, one_case, few_at_once):
    run, _, inputs = kind(one_case('odd'), torch.float32)
    out, leaves = graph(run, inputs)
    first, second = (torch.autograd.grad(out.sum(), leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize('name', ['projection', 'feed_forward', 'cross', 'intra'])
def test_second_derivatives_are_refused(name, one_case, few_at_once):
    run, _, inputs = KINDS[name](one_case('odd'), torch.float32)
    out, leaves = graph(run, inputs)
    gradients = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError):
        sum(x.square().sum() for x in gradients).backward()


def test_second_derivatives_of_the_tail(one_case, few_at_once):
    run, _, inputs = OPS['tail-x3'](one_case('one_row')._replace(batch=2, width=4, cell=2), torch.float64)
    assert torch.autograd.gradgradcheck(run, [x.requires_grad_() for x in inputs])


def test_functional_gradients_of_the_tail(one_case, few_at_once, assert_close):
    run, _, inputs = OPS['tail-x3'](one_case('odd'), torch.float64)
    out, leaves = graph(run, inputs)
    expected = torch.autograd.grad(out.square().sum(), leaves)
    found = torch.func.grad(lambda *x: run(*x).square().sum(), argnums=tuple(range(len(inputs))))(*inputs)
    assert_close(found, expected)


def test_functional_gradients_of_attention(few_at_once, assert_close):
    q, k, v = (torch.randn(3, 2, length, width, dtype=torch.float64) for length, width in ((5, 4), (7, 4), (7, 6)))

    def of_one(backend):
        def loss(q, k, v):
            return attention(q[None], k[None], v[None], backend=backend).square().sum()

        by_image = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)), in_dims=(0, 0, None))(q, k, v[0])
        return *by_image, torch.func.vmap(loss, in_dims=(0, None, 0))(q, k[0], v)

    assert_close(of_one('torch'), of_one('reference'))


def test_the_gradient_of_the_tail_has_the_multiply_adds_of_reference(one_case, few_at_once):
    counted = []
    for backend in ('reference', 'torch'):
        run, reference, inputs = OPS['tail-x4'](one_case('odd'), torch.float32)
        run = reference if backend == 'reference' else run
        with OpCounter() as counter:
            run(*[x.requires_grad_() for x in inputs]).sum().backward()
        counted.append(counter.multiply_adds)
    assert counted[0] == counted[1] > 0


@pytest.mark.parametrize('name', ['projection', 'projection-with_norm', 'feed_forward'])
def test_only_the_inputs_are_kept(name, one_case, few_at_once):
    run, _, inputs = KINDS[name](one_case('odd'), torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        graph(run, inputs)
    ours = {x.data_ptr() for x in inputs}
    others = [x for x in kept if x.data_ptr() not in ours]
    assert len(kept) >= len(inputs)
    assert all(inputs[0].shape[1] not in x.shape for x in others)  # nothing of the pixels: sums and weights


def rows_op(num_heads, start):
    """`add_attended_rows` and the same with all weights stored."""
    rows = torch.tensor([[0, 3, 5], [5, 1, 0], [6, 5, 3], [1, 0, 2]])  # 4 in none, 5 in three

    def run(q, k, v):
        return add_attended_rows(q, k, v, rows, num_heads, start)

    def formula(q, k, v):
        out = v.clone() if start else torch.zeros_like(v)
        b_q, b_k, b_v = (x[rows].unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = (b_q @ b_k.transpose(2, 3) / b_q.shape[3] ** 0.5).softmax(3)
        return out.index_add(0, rows.flatten(), (weights @ b_v).transpose(1, 2).flatten(2).flatten(0, 1))

    return run, formula


@pytest.mark.parametrize('start', [False, True], ids=['from_zero', 'from_v'])
@pytest.mark.parametrize('num_heads', [1, 2], ids=['one_head', 'two_heads'])
def test_rows_in_several_groups_and_in_none(num_heads, start, chunk_size, forward_backward, assert_close):
    run, formula = rows_op(num_heads, start)
    inputs = [torch.randn(7, c, dtype=torch.float64) for c in (4, 4, 6)]
    assert_close(forward_backward(run, *inputs), forward_backward(formula, *inputs))


def test_cross_with_large_logits(few_at_once, forward_backward, assert_close):
    # Parts of the keys are far apart: where one has all the weight, the others must not count.
    inputs = [10 * torch.randn(1, n, 4, dtype=torch.float64) for n in (23, 23, 23, 8)]
    run, formula = (
        lambda *inputs, backend=backend: superpixel_cross_attention(*inputs, backend=backend)
        for backend in ('torch', 'reference')
    )
    assert_close(forward_backward(run, *inputs), forward_backward(formula, *inputs))


@pytest.mark.parametrize('widths', [(4, 6), (6, 6), (8, 4)], ids=['wide_v', 'equal', 'narrow_v'])
@pytest.mark.parametrize('lengths', [(1, 1), (23, 5), (6, 40)], ids=['one_pixel', 'few_keys', 'many_keys'])
def test_attention_with_and_without_gradients(lengths, widths, chunk_size, forward_backward, assert_close):
    queries, keys = lengths
    shapes = (2, 3, queries, widths[0]), (2, 3, keys, widths[0]), (2, 3, keys, widths[1])
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    assert_close(
        forward_backward(attention, *inputs),
        forward_backward(functools.partial(attention, backend='reference'), *inputs),
    )


class Memory(NamedTuple):
    """A call and the elements of the tensor that it must not make."""

    run: Callable[..., Tensor]
    inputs: list[Tensor]
    limit: int


def cross_memory():
    n, num_tokens = 60, 50
    inputs = [torch.randn(1, count, 4) for count in (n, n, n, num_tokens)]
    return Memory(superpixel_cross_attention, inputs, n * num_tokens)


def intra_memory():
    groups, t = 12, 16
    indices = torch.arange(groups * t).view(1, groups, t)
    inputs = [torch.randn(1, groups * t, 4) for _ in range(3)]
    return Memory(lambda q, k, v: intra_superpixel_attention(q, k, v, indices), inputs, groups * t * t)


def window_memory():
    inputs = [torch.randn(1, 16, 24, 2) for _ in range(3)]
    return Memory(lambda q, k, v: window_attention(q, k, v, window=4, overlap=0), inputs, 24 * 16 * 16)


MEMORY = {'cross': cross_memory, 'intra': intra_memory, 'windows': window_memory}


@pytest.fixture(params=MEMORY.values(), ids=MEMORY.keys())
def memory(request):
    return request.param()


def test_backward_never_stores_all_weights(memory, few_at_once, largest_tensor):
    leaves = [x.requires_grad_() for x in memory.inputs]
    with largest_tensor() as largest:
        memory.run(*leaves).sum().backward()
    assert 0 < largest.elements < memory.limit


def test_inference_never_stores_all_weights(memory, few_at_once, largest_tensor):
    with largest_tensor() as largest, torch.no_grad():
        memory.run(*memory.inputs)
    assert 0 < largest.elements < memory.limit


@pytest.mark.parametrize('scale', ['tail-x3', 'tail-x4'])
def test_tail_without_gradients_makes_nothing_wide_at_full_resolution(scale, one_case, few_at_once, largest_tensor):
    run, _, inputs = OPS[scale](one_case('cells_of_many_pixels'), torch.float32)
    with largest_tensor() as largest, torch.no_grad():
        out = run(*inputs)
    # The output is the largest; features there would have 3 channels for its 2.
    assert largest.elements == out.numel()


def test_tail_of_frozen_weights_and_input_keeps_no_features(one_case, few_at_once, largest_tensor):
    run, _, inputs = OPS['tail-x4'](one_case('cells_of_many_pixels'), torch.float32)
    with largest_tensor() as largest:
        out = run(*inputs)
    assert largest.elements == out.numel()


@pytest.mark.parametrize('name', ['projection', 'feed_forward'])
def test_layers_make_nothing_for_all_pixels_but_their_results(name, one_case, few_at_once, largest_tensor):
    run, _, inputs = KINDS[name](one_case('odd'), torch.float32)
    leaves = [x.requires_grad_() for x in inputs]
    with largest_tensor() as largest:
        out = run(*leaves)
        out.backward(torch.randn(out.shape))
    assert largest.elements == out.numel()


def test_where_chunks_pay():
    x = torch.rand(2)
    assert chunk_type(x, x) == torch.float32
    assert chunk_type(x.double(), x.double()) == torch.float64
    assert chunk_type(x.bfloat16()) == torch.bfloat16
    assert chunk_type(x, x.double()) is None
    assert chunk_type(x, x.bfloat16()) is None
    assert chunk_type(x.half()) is None
    assert chunk_type(x.to('meta')) is None


def test_where_chunks_pay_under_autocast():
    x = torch.rand(2)
    with torch.autocast('cpu', torch.bfloat16):
        assert chunk_type(x, x.bfloat16()) == torch.bfloat16
        assert chunk_type(x.double()) == torch.float64  # autocast leaves it alone
        assert chunk_type(x, x.double()) is None
    with torch.autocast('cpu', torch.float16):
        assert chunk_type(x) is None


def test_chunks_are_not_for_a_compiler(monkeypatch):
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    assert not on_cpu(torch.rand(2))
    assert chunk_type(torch.rand(2)) is None


def test_gradients_of_weights_in_bf16_add_up_in_float32(monkeypatch):
    monkeypatch.setattr(chunking, 'ROWS', 1)
    x, norm = torch.tensor([[[-1.0, 1.0]] * 1000]).bfloat16(), (torch.ones(2).bfloat16(), torch.zeros(2).bfloat16())
    weight = torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)
    norm_project(x, norm, weight, [1], EPS)[0].sum().backward()
    assert weight.grad is not None
    # In bfloat16 256 + 1 is 256.
    torch.testing.assert_close(weight.grad.float(), torch.tensor([[-1000.0, 1000.0]]), rtol=5e-3, atol=0)


@pytest.mark.parametrize('name', ['projection', 'projection-with_norm', 'feed_forward'])
def test_gradients_of_one_input_at_a_time(name, one_case, few_at_once, assert_close):
    run, _, inputs = KINDS[name](one_case('odd'), torch.float64)
    out, leaves = graph(run, inputs)
    upstream = torch.randn_like(out)
    for i, expected in enumerate(torch.autograd.grad(out, leaves, upstream)):
        alone = inputs[i].detach().requires_grad_()
        out = run(*inputs[:i], alone, *inputs[i + 1 :])
        assert_close(torch.autograd.grad(out, alone, upstream)[0], expected)


@pytest.mark.parametrize('name', ['projection', 'projection-with_norm', 'feed_forward'])
def test_gradients_of_frozen_weights_are_not_computed(name, one_case):
    run, _, inputs = KINDS[name](one_case('odd'), torch.float64)

    def multiply_adds(frozen):
        leaves = [x.detach().requires_grad_(i == 0 or not frozen) for i, x in enumerate(inputs)]
        out = run(*leaves)
        with OpCounter() as counter:
            out.sum().backward()
        return counter.multiply_adds

    assert multiply_adds(frozen=True) < multiply_adds(frozen=False)


@pytest.mark.parametrize('fused', [False, True], ids=['by_hand', 'fused'])
@ATTENTION
def test_attention_measured_on_this_machine(name, fused, one_case, monkeypatch, forward_backward, assert_close):
    """Whichever is found to be faster, the result and the gradients are the same, and one measurement is enough."""
    monkeypatch.setenv('SPINSR_MEASURE_ATTENTION', '1')
    monkeypatch.setattr(by_hand, '_SLOWER', {})
    measured = []

    def seconds(attend, inputs):
        measured.append(attend.__name__)
        return float((attend.__name__ == '_forward') == fused)

    monkeypatch.setattr(by_hand, '_seconds', seconds)
    run, formula, inputs = KINDS[name](one_case('odd'), torch.float64)
    assert_close(forward_backward(run, *inputs), forward_backward(formula, *inputs))
    assert set(by_hand._SLOWER.values()) == {fused}
    assert len(measured) == 6 * len(by_hand._SLOWER)
    run(*inputs)
    assert len(measured) == 6 * len(by_hand._SLOWER)


@pytest.mark.parametrize('size', [1.0, 1e3, 1e30], ids=['bounded', 'large', 'huge'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_attention_of_any_size_of_logits(size, dtype, few_at_once):
    """The maximum is subtracted where the norms allow large logits, and nothing overflows."""
    q, k, v = (torch.randn(2, 3, length, width, dtype=dtype) for length, width in ((5, 4), (70, 4), (70, 6)))
    q = size * q
    found = attention(q, k, v, backend='torch')
    assert by_hand.is_bounded(q, k, 0.5) == (size == 1)
    expected = attention(q.double(), k.double(), v.double(), backend='reference')
    # Logits of 1e30 are rounded to steps much larger than 1 in both types: there only the range counts.
    exact = (
        torch.isfinite(found).all()
        if size == 1e30
        else torch.allclose(found.double(), expected, rtol=0, atol=1e-2 if dtype == torch.float32 else 1e-9)
    )
    assert exact


@pytest.mark.parametrize('length', [5, 300], ids=['few_rows', 'many_rows'])
def test_gradients_in_bf16_where_values_have_an_offset(length, monkeypatch):
    """What rounding adds is the same for all keys, so that it would add up in the gradient of q."""
    monkeypatch.setattr(precision, 'multiplies_bf16', lambda: True)
    q, k, v = (torch.randn(1, 1, n, width).bfloat16() for n, width in ((length, 24), (300, 24), (300, 40)))
    upstream = (torch.randn(1, 1, length, 40) + 1).bfloat16()

    def gradients(dtype, backend):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k + 2, v + 1)]
        return torch.autograd.grad(attention(*leaves, backend=backend), leaves, upstream.to(dtype))

    exact = gradients(torch.float64, 'reference')
    found, dense = ([x.double() for x in gradients(torch.bfloat16, backend)] for backend in ('torch', 'reference'))
    for x, by_reference, y in zip(found, dense, exact, strict=True):
        assert (x - y).norm() <= 1.5 * (by_reference - y).norm()


@pytest.mark.parametrize('size', [1.0, 1e9], ids=['bounded', 'large'])
def test_attention_to_no_keys(size):
    q, k, v = (torch.randn(2, 3, length, 4, requires_grad=True) for length in (5, 0, 0))
    out = attention(size * q, k, v, backend='torch')
    assert torch.equal(out, torch.zeros(2, 3, 5, 4))
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_attention_of_fake_tensors():
    with FakeTensorMode():
        leaves = [torch.rand(1, 2, length, 4, requires_grad=True) for length in (5, 7, 7)]
        out = attention(*leaves, backend='torch')
        assert out.shape == (1, 2, 5, 4)
        assert [g.shape for g in torch.autograd.grad(out.sum(), leaves)] == [x.shape for x in leaves]


def test_functional_second_derivatives_of_attention_are_refused():
    q, k, v = (torch.rand(1, 1, 5, 4) for _ in 'qkv')
    gradient = torch.func.grad(lambda q: attention(q, k, v, backend='torch').sin().sum())
    with pytest.raises(RuntimeError, match='differentiable once'):
        torch.func.grad(lambda q: gradient(q).square().sum())(q)


def test_attention_of_values_that_are_no_numbers():
    q, k, v = (torch.randn(1, 1, 4, 3) for _ in 'qkv')
    q[0, 0, 1, 0] = float('nan')
    found, expected = (attention(q, k, v, backend=backend) for backend in ('torch', 'reference'))
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_projection_of_mixed_types():
    x, norm, weight = torch.rand(1, 9, 4), (torch.rand(4).double(), torch.rand(4).double()), torch.rand(6, 4)
    (out,) = norm_project(x, norm, weight, [6], EPS)
    (expected,) = norm_project(x.double(), norm, weight.double(), [6], EPS)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)


FAULTS = """
import resource
import numpy as np

def touch():
    blocks = [np.ones(2**17) for _ in range(150)]  # 1 MB each

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    touch()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

import spinsr.ops
touch()
print(faults())
"""


def without_settings():
    """The variables of this process without settings of glibc's allocator."""
    return {key: value for key, value in os.environ.items() if not key.startswith(('MALLOC_', 'GLIBC_'))}


@pytest.mark.skipif(not chunking._is_glibc(), reason='a setting of glibc')
def test_freed_memory_is_kept():
    command = [sys.executable, '-c', FAULTS]
    done = subprocess.run(command, env=without_settings(), capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150 * 2**20 / os.sysconf('SC_PAGESIZE') / 10


BOTH = [(-3, 2**25), (-1, 2**28)]


@pytest.mark.parametrize(
    ('variable', 'is_glibc', 'works', 'expected'),
    [
        ('OTHER=1', True, True, BOTH),
        ('OTHER=1', True, False, BOTH[:1]),
        ('OTHER=1', False, True, []),
        ('MALLOC_TOP_PAD_=1', True, True, []),
        ('MALLOC_TRIM_THRESHOLD_=1', True, True, []),
        ('MALLOC_MMAP_THRESHOLD_=1', True, True, []),
        ('MALLOC_MMAP_MAX_=1', True, True, []),
        ('MALLOC_ARENA_MAX=2', True, True, BOTH),
        ('GLIBC_TUNABLES=glibc.malloc.hugetlb=1', True, True, []),
        ('GLIBC_TUNABLES=glibc.malloc.arena_max=2:glibc.malloc.mmap_threshold=1', True, True, []),
        ('GLIBC_TUNABLES=glibc.malloc.arena_max=2', True, True, BOTH),
        ('GLIBC_TUNABLES=glibc.pthread.rseq=0', True, True, BOTH),
    ],
)
def test_settings_of_the_allocator(variable, is_glibc, works, expected, monkeypatch):
    made = []
    library = SimpleNamespace(mallopt=lambda *setting: made.append(setting) or works)
    monkeypatch.setattr(chunking, '_is_glibc', lambda: is_glibc)
    monkeypatch.setattr(chunking.ctypes, 'CDLL', lambda _: library)
    monkeypatch.setattr(chunking.os, 'environ', without_settings() | dict([variable.split('=', 1)]))
    chunking.keep_freed_memory()
    assert made == expected


@pytest.mark.parametrize('library', [SimpleNamespace(), None], ids=['no_function', 'no_library'])
def test_a_library_without_the_setting(library, monkeypatch):
    def load(_):
        if library is None:
            raise OSError
        return library

    monkeypatch.setattr(chunking, '_is_glibc', lambda: True)
    monkeypatch.setattr(chunking.ctypes, 'CDLL', load)
    monkeypatch.setattr(chunking.os, 'environ', without_settings())
    chunking.keep_freed_memory()


@pytest.mark.parametrize('error', [AttributeError, ValueError, OSError, None])
def test_other_c_libraries(error, monkeypatch):
    def confstr(name):
        if error is not None:
            raise error

    monkeypatch.setattr(chunking.os, 'confstr', confstr, raising=False)
    assert not chunking._is_glibc()


def test_a_feed_forward_network_of_another_width(few_at_once, assert_close):
    x, (norm, gates, first) = torch.rand(2, 11, 6), ([6] * 2, [(2, 6), (2,)], [(5, 12), (5,)])
    parts = weights(torch.float32, *((size,) for size in norm)), weights(torch.float32, *gates, (6, 2), (6,))
    parts += weights(torch.float32, *gates, (1, 2), (1,)), weights(torch.float32, *first)
    parts += (weights(torch.float32, (4, 5), (4,)),)
    found, expected = (gated_feed_forward(x, *parts, EPS, backend=backend) for backend in ('torch', 'reference'))
    assert_close(found, expected, torch.float32)


def test_float64_weights_of_a_feed_forward_network(one_case):
    run, formula, (x, *others) = KINDS['feed_forward'](one_case('odd'), torch.float64)
    assert run(x.float(), *others).dtype == torch.float64
    torch.testing.assert_close(run(x.float(), *others), formula(x.float().double(), *others), rtol=1e-5, atol=1e-5)
