"""The Triton kernels against the reference: compiled where there is a GPU, else interpreted on the CPU."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip('triton', reason='triton is not installed')

import spinsr
from spinsr.ops import associate, intra_superpixel_attention, pool, superpixel_cross_attention, top_n, window_attention
from spinsr.ops.association import kernels as cells
from spinsr.ops.attention import kernels as attention
from spinsr.ops.common import backend
from spinsr.ops.common import triton_launch as launch
from spinsr.ops.common.grid import marked_pixels

from ..networks import SMALL
from .conftest import CASES, Case

if launch.obstacle():
    pytest.skip(launch.obstacle(), allow_module_level=True)

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
BACKENDS = ('triton', 'reference')
HALF_TYPES = pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])


# The interpreter takes seconds for each of the others.
QUICK = ('one_pixel', 'side_below_cell')


@pytest.fixture(
    params=[
        pytest.param(case, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, case in CASES.items()
    ]
)
def case(request) -> Case:
    return request.param


def features(case, channels, dtype=torch.float64):
    return case.features(channels, dtype).to(DEVICE)


def pool_by(case, num_heads=1, dtype=torch.float64):
    """backend -> pool as a function of x, with an association made from features in `dtype`."""
    x = features(case, 3, dtype)
    sparse, dense = associate(x, case.cell, backend='torch'), associate(x.double(), case.cell, backend='reference')
    associations = {'triton': sparse, 'reference': dense}
    return lambda backend: lambda x: pool(x, associations[backend], backend=backend)


def intra_by(case, num_heads=1, dtype=torch.float64):
    """backend -> ISPA as a function of q, k, v (B, H, W, channels)."""
    indices = top_n(associate(features(case, 3), case.cell, backend='torch'))

    def attend(backend):
        return lambda *qkv: intra_superpixel_attention(
            *(x.flatten(1, 2) for x in qkv), indices, num_heads, backend=backend
        )

    return attend


def window_by(case, num_heads=1, dtype=torch.float64):
    """backend -> window attention as a function of q, k, v (B, H, W, channels)."""
    return lambda backend: lambda *qkv: window_attention(*qkv, case.cell, 1, num_heads, backend=backend)


def inputs_of(op, case, dtype=torch.float64, widths=(4, 6)):
    if op is pool_by:
        return [features(case, widths[1], dtype)]
    return [features(case, channels, dtype) for channels in (widths[0], widths[0], widths[1])]


OPS = pytest.mark.parametrize('op', [pool_by, intra_by, window_by], ids=['pool', 'intra', 'window'])
ATTENTIONS = pytest.mark.parametrize('op', [intra_by, window_by], ids=['intra', 'window'])

FEATURES = {
    'random': lambda x: x,
    'constant': lambda x: torch.full_like(x, 0.7),
    'saturated': lambda x: 50 * x,
    'tied': torch.round,
}


def test_kernels_are_compiled_on_a_gpu_and_else_interpreted():
    assert launch.INTERPRETED == (DEVICE.type == 'cpu')


@pytest.mark.parametrize(
    ('target', 'value', 'message'),
    [
        ('triton.__version__', '3.4.0', 'needs triton 3.5 .+ got 3.4.0'),
        ('spinsr.ops.common.triton_launch.INTERPRETED', not launch.INTERPRETED, 'was changed after'),
    ],
    ids=['old_triton', 'late_variable'],
)
def test_what_cannot_run_is_said(target, value, message, monkeypatch):
    assert launch.obstacle() is None
    monkeypatch.setattr(target, value)
    assert re.search(message, launch.obstacle())


def test_association_equals_reference(case, assert_close):
    x = features(case, 5) + 3  # away from 0, so that the centring by the mean matters
    sparse, dense = (associate(x, case.cell, backend=backend) for backend in BACKENDS)
    assert_close(sparse.dense(), dense.dense())
    assert_close(sparse.dense_log_odds(), dense.dense_log_odds())


@pytest.mark.slow
@pytest.mark.parametrize('num_iter', [1, 2])
def test_association_equals_reference_after_other_rounds(num_iter, one_case, assert_close):
    x = features(one_case('non_contiguous'), 5) + 3
    sparse, dense = (associate(x, 4, num_iter, backend=backend) for backend in BACKENDS)
    assert_close(sparse.dense(), dense.dense())
    assert_close(sparse.dense_log_odds(), dense.dense_log_odds())


@pytest.mark.parametrize('name', ['odd', 'one_cell', 'side_below_cell'])
def test_association_is_stored_as_by_torch(name, one_case, assert_close):
    case = one_case(name)
    x = features(case, 5)
    kernel, torch_ = (associate(x, case.cell, backend=backend) for backend in ('triton', 'torch'))
    assert_close(kernel.weights, torch_.weights)
    in_padding = marked_pixels(kernel.grid)[:, None] < 0
    assert_close(*(a.log_odds.masked_fill(in_padding, 0.0) for a in (kernel, torch_)))


def test_association_with_positions_equals_reference(one_case, assert_close):
    x = features(one_case('side_below_cell'), 5)
    sparse, dense = (associate(x, 4, backend=backend, position_weight=2.5) for backend in BACKENDS)
    assert_close(sparse.dense(), dense.dense())


@pytest.mark.slow
def test_attention_where_only_ignored_pixels_keep_their_values(one_case, forward_backward, assert_close):
    case = one_case('non_divisible_batch')
    indices = top_n(associate(features(case, 3), case.cell, backend='torch'), 3)
    inputs = [features(case, channels).flatten(1, 2) for channels in (4, 4, 6)]

    def attend(backend):
        return lambda q, k, v: intra_superpixel_attention(q, k, v, indices, 2, backend=backend, own_values='ignored')

    assert_close(*(forward_backward(attend(backend), *inputs) for backend in BACKENDS))


@pytest.mark.slow
def test_attention_that_is_added_to_a_tensor(one_case, forward_backward, assert_close):
    case = one_case('non_divisible_batch')
    indices = top_n(associate(features(case, 3), case.cell, backend='torch'), 3)
    images = [features(case, channels) for channels in (4, 4, 6, 6)]
    tokens = [x.flatten(1, 2) for x in images]

    def inside(backend):
        return lambda q, k, v, x: intra_superpixel_attention(q, k, v, indices, 2, add_to=x, backend=backend)

    def windows(backend):
        return lambda q, k, v, x: window_attention(q, k, v, 4, num_heads=2, add_to=x, backend=backend)

    for attend, inputs in ((inside, tokens), (windows, images)):
        assert_close(*(forward_backward(attend(backend), *inputs) for backend in BACKENDS))


@pytest.mark.parametrize('channels', [1, 15, 16, 40])
def test_association_of_other_widths_equals_reference(channels, one_case, assert_close):
    x = features(one_case('side_below_cell'), channels)
    sparse, dense = (associate(x, 4, backend=backend) for backend in BACKENDS)
    assert_close(sparse.dense(), dense.dense())


@pytest.mark.parametrize('offset', [0.0, 10_000.0])
def test_association_in_float32(offset, one_case, assert_close):
    x = features(one_case('odd'), 5, torch.float32) + offset
    sparse, exact = associate(x, 4, backend='triton'), associate(x.double(), 4, backend='reference')
    assert sparse.weights.dtype == sparse.log_odds.dtype == torch.float32
    assert_close(sparse.dense(), exact.dense(), torch.float32)
    if offset == 0:
        assert_close(sparse.dense_log_odds(), exact.dense_log_odds(), torch.float32)


@HALF_TYPES
def test_association_under_autocast_is_computed_in_float32(dtype, one_case):
    x = features(one_case('side_below_cell'), 5, dtype)
    expected = associate(x.float(), 4, backend='triton')
    with torch.autocast(DEVICE.type, dtype):
        association = associate(x, 4, backend='triton')
    assert torch.equal(association.weights, expected.weights)
    assert torch.equal(association.log_odds, expected.log_odds)


@pytest.mark.parametrize('kind', FEATURES.values(), ids=FEATURES.keys())
def test_selects_the_pixels_that_torch_selects(kind, one_case):
    x = kind(features(one_case('non_contiguous'), 4, torch.float32))
    assert torch.equal(*(top_n(associate(x, 4, backend=backend)) for backend in ('triton', 'torch')))


def test_superpixel_that_nothing_belongs_to_moves_to_zero(assert_close):
    # Two pixels each of 100 and 500 in the middle cell have the mean 300 and prefer the cells beside it.
    x = torch.tensor([100.0, 100, 100, 500, 500, 500], device=DEVICE).double().view(1, 1, 6, 1).repeat(1, 2, 1, 1)
    sparse, dense = (associate(x, cell=2, num_iter=2, backend=backend) for backend in BACKENDS)
    assert_close(sparse.dense_log_odds(), dense.dense_log_odds())


@OPS
def test_equals_reference(op, case, forward_backward, assert_close):
    by, inputs = op(case, num_heads=2 if op is intra_by else 1), inputs_of(op, case)
    assert_close(*(forward_backward(by(backend), *inputs) for backend in BACKENDS))


@pytest.fixture
def small_blocks(monkeypatch):
    """Interpreted, the blocks are so large that most cases have one; these are as small as they can be."""
    for module, name in ((cells, 'BLOCK_P'), (attention, 'BLOCK_T')):
        monkeypatch.setattr(module, name, 16)


@pytest.mark.slow
@pytest.mark.parametrize('op', [pool_by, intra_by], ids=['pool', 'intra'])
def test_several_blocks_equal_reference(op, small_blocks, one_case, forward_backward, assert_close):
    case = one_case('non_divisible_batch')._replace(cell=6)
    by, inputs = op(case), inputs_of(op, case, widths=(4, 18))
    assert_close(*(forward_backward(by(backend), *inputs) for backend in BACKENDS))


@pytest.mark.slow
def test_association_of_several_blocks_equals_reference(small_blocks, one_case, assert_close):
    x = features(one_case('non_divisible_batch'), 5)
    sparse, dense = (associate(x, 6, backend=backend) for backend in BACKENDS)
    assert_close(sparse.dense_log_odds(), dense.dense_log_odds())


@OPS
@pytest.mark.parametrize('widths', [(24, 40), (40, 18), (1, 1)], ids=['of_spin', 'wide_q', 'one_channel'])
def test_other_widths_equal_reference(op, widths, one_case, forward_backward, assert_close):
    case = one_case('side_below_cell')
    by, inputs = op(case), inputs_of(op, case, widths=widths)
    assert_close(*(forward_backward(by(backend), *inputs) for backend in BACKENDS))


@pytest.mark.slow
@OPS
def test_in_float32(op, one_case, forward_backward, assert_close):
    case = one_case('divisible')
    by, inputs = op(case, dtype=torch.float32), inputs_of(op, case, torch.float32)
    exact = forward_backward(by('reference'), *(x.double() for x in inputs))
    assert_close(forward_backward(by('triton'), *inputs), exact, torch.float32)


@ATTENTIONS
@HALF_TYPES
def test_in_half_types(op, dtype, one_case, assert_half_close):
    case = one_case('side_below_cell')
    by = op(case)
    assert_half_close(by('triton'), by('reference'), *inputs_of(op, case, dtype, (8, 12)))


@HALF_TYPES
def test_pool_of_half_types_averages_in_the_type_of_the_association(dtype, one_case):
    case = one_case('side_below_cell')
    association, x = associate(features(case, 3, dtype), case.cell, backend='torch'), features(case, 5, dtype)
    with torch.autocast(DEVICE.type, dtype):
        pooled = pool(x.requires_grad_(), association, backend='triton')
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, pool(x.float(), association, backend='triton'))
    assert torch.autograd.grad(pooled.sum(), x)[0].dtype == dtype


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_logits_of_half_types_are_float32(dtype, one_case, assert_close):
    # Logits of 10^5 and more, beyond float16, whose differences decide.
    case = one_case('one_cell')
    q, k, v = (x.to(dtype) for x in (300 * features(case, 8), 300 * features(case, 8), features(case, 8)))
    assert (q.double().flatten(1, 2) @ k.double().flatten(1, 2).transpose(1, 2)).abs().max() > 1e5
    exact = window_by(case)('reference')(q.double(), k.double(), v.double())
    with torch.autocast(DEVICE.type, dtype):
        out = window_by(case)('triton')(q, k, v)
    assert_close(out, exact.to(dtype), torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize('op', [pool_by, intra_by], ids=['pool', 'intra'])
def test_gradcheck(op, one_case):
    case = one_case('one_cell')._replace(batch=1, height=1, width=3, cell=2)
    inputs = [x.requires_grad_() for x in inputs_of(op, case, widths=(2, 2))]
    assert torch.autograd.gradcheck(op(case, num_heads=2)('triton'), inputs)


@OPS
def test_inputs_stay_as_they_are(op, one_case):
    case = one_case('side_below_cell')
    by, inputs = op(case), inputs_of(op, case)
    before = [x.clone() for x in inputs]
    by('triton')(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@OPS
def test_repeats_bit_for_bit(op, one_case, forward_backward):
    case = one_case('side_below_cell')
    by, inputs = op(case, dtype=torch.float32), inputs_of(op, case, torch.float32)
    one, other = (forward_backward(by('triton'), *inputs) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@ATTENTIONS
def test_splits_of_one_projection_are_attended_without_copies(op, one_case, assert_close):
    case = one_case('side_below_cell')
    by, qkv = op(case), features(case, 4 + 4 + 6)
    parts = qkv.split((4, 4, 6), -1)
    assert torch.equal(by('triton')(*parts), by('triton')(*(x.contiguous() for x in parts)))


@ATTENTIONS
def test_channels_that_heads_do_not_divide_are_refused(op, one_case):
    case = one_case('one_cell')
    with pytest.raises(ValueError, match='got 4 and num_heads=3'):
        op(case, num_heads=3)('triton')(*inputs_of(op, case))


def test_network_variable_lets_an_op_without_kernels_run_as_torch(monkeypatch, caplog):
    inputs = [torch.randn(1, n, 8, device=DEVICE) for n in (60, 60, 60, 6)]
    expected = superpixel_cross_attention(*inputs, backend='torch')
    backend._log.cache_clear()
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'triton')
    with caplog.at_level(logging.INFO, logger='spinsr.ops'):
        found = [superpixel_cross_attention(*inputs) for _ in range(2)]
    assert all(torch.equal(x, expected) for x in found)
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert 'superpixel_cross_attention has no Triton kernels' in caplog.text


SPARSE = {'reach': 2}, {'reach': 0}, {'reach': None}, {'kind': 'exponential'}, {'differentiable': True}


@pytest.mark.parametrize('options', SPARSE, ids=['5x5', 'patch', 'all', 'exponential', 'differentiable'])
def test_association_without_a_kernel_is_refused(options, one_case):
    x = features(one_case('one_cell'), 3).requires_grad_()
    with pytest.raises(RuntimeError, match="'triton' cannot run: associate has .+ reach 1 only, got kind="):
        associate(x, 4, backend='triton', **options)
    association = associate(x, 4, backend='torch', **options)
    if options != {'kind': 'exponential'}:
        with pytest.raises(RuntimeError, match="'triton' cannot run: .*kernels"):
            pool(x, association, backend='triton')


def test_pooling_of_a_dense_association_is_refused(one_case):
    x = features(one_case('one_cell'), 3)
    with pytest.raises(RuntimeError, match='got a DenseAssociation'):
        pool(x, associate(x, 4, backend='reference'), backend='triton')


@OPS
def test_forward_mode_derivative_is_refused(op, one_case):
    case = one_case('one_cell')
    function, inputs = op(case)('triton'), inputs_of(op, case)
    with pytest.raises(NotImplementedError, match='forward-mode'):
        torch.func.jvp(function, tuple(inputs), tuple(torch.ones_like(x) for x in inputs))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match='forward-mode'):
        function(*inputs[:-1], forward_ad.make_dual(inputs[-1], torch.ones_like(inputs[-1])))


def op_arguments(name, case, dtype=torch.float32):
    """A custom op and arguments for it."""
    sparse = associate(features(case, 3, dtype), case.cell, backend='torch')
    grid, x = sparse.grid, features(case, 5, dtype).flatten(1, 2).contiguous()
    pixels = marked_pixels(grid)
    to_rows = attention.row_map(top_n(sparse)[0], grid.num_pixels)
    q, k, v = (torch.randn(grid.num_pixels, c, dtype=dtype, device=DEVICE) for c in (8, 8, 6))
    if name == 'associate':
        centroids = torch.randn(case.batch, grid.num_cells, 5, dtype=dtype, device=DEVICE)
        neighbors = grid.neighbors.masked_fill(~grid.is_neighbor, -1)
        return cells.associate_rounds, (x, x.mean(1), centroids, neighbors, grid.incoming, pixels, 2)
    if name == 'pool':
        return cells.cell_sums, (x.requires_grad_(), sparse.weights, pixels)
    if name == 'pool_backward':
        sums = cells.cell_sums(x, sparse.weights, pixels)
        return cells.cell_sums_backward, (sums, sparse.weights, pixels, grid.num_pixels, torch.bfloat16)
    if name == 'attend_rows':
        return attention.attend_rows, (*(x.requires_grad_() for x in (q, k, v)), *to_rows, 2)
    assert name == 'attend_rows_backward'
    total, out, lse = attention.attend_rows(q, k, v, *to_rows, 2)
    return attention.attend_rows_backward, (total, q, k, v, out, lse, *to_rows)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['associate', 'pool', 'pool_backward', 'attend_rows', 'attend_rows_backward'])
def test_custom_op_is_registered_as_torch_wants_it(name, one_case):
    op, arguments = op_arguments(name, one_case('one_row'))
    results = torch.library.opcheck(op, arguments)
    assert set(results.values()) == {'SUCCESS'}


def test_second_derivative_is_refused(one_case):
    x = features(one_case('one_row'), 5).requires_grad_()
    association = associate(x, 4, backend='torch')
    (grad,) = torch.autograd.grad(pool(x, association, backend='triton').square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


class OpNames(TorchDispatchMode):
    """Records the names of the ops that run inside it."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ('op', 'expected'),
    [(pool_by, {'pool'}), (intra_by, {'attend_rows'}), (window_by, {'attend_rows'})],
    ids=['pool', 'intra', 'window'],
)
def test_runs_the_kernels_when_asked(op, expected, one_case):
    case = one_case('one_cell')
    function, inputs = op(case)('triton'), inputs_of(op, case)
    with OpNames() as ops:
        function(*inputs)
    assert {name for name in ops.names if name.startswith('spinsr::')} == {f'spinsr::{name}' for name in expected}


def test_environment_brings_the_kernels_into_the_modules(monkeypatch):
    from spinsr.archs.spin_arch import SuperpixelInteractionBlock

    block = SuperpixelInteractionBlock(8, 1, 4, 8, 4, 2).to(DEVICE)
    x = torch.randn(1, 4, 8, 8, device=DEVICE)
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'triton')
    with OpNames() as ops:
        block(x).sum().backward()
    ours = {'associate', 'pool', 'pool_backward', 'attend_rows', 'attend_rows_backward'}
    assert {name for name in ops.names if name.startswith('spinsr::')} == {f'spinsr::{name}' for name in ours}


def test_maps_built_in_inference_mode_serve_autograd():
    q = torch.randn(
        1, 5, 7, 4, device=DEVICE
    )  # a size of this test alone, so that its maps are built in inference mode
    with torch.inference_mode():
        window_attention(q, q, q, window=6, backend='triton')
        associate(q, 3, backend='triton')
    q.requires_grad_()
    window_attention(q, q, q, window=6, backend='triton').sum().backward()
    assert q.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    'autocast',
    [pytest.param(None, id='float64'), pytest.param(torch.bfloat16, id='bfloat16_autocast')],
)
def test_network_equals_reference(autocast, monkeypatch, forward_backward, assert_close):
    from spinsr.archs.spin_arch import SPIN

    net = SPIN(num_feat=8, num_block=2, num_heads=2, qk_dim=4, mlp_dim=8, stoken_size=(4, 5), upscale=2)
    net = net.to(DEVICE, torch.float32 if autocast else torch.float64)
    x = torch.rand(1, 3, 7, 9, device=DEVICE, dtype=torch.float32 if autocast else torch.float64)

    def results(backend):
        monkeypatch.setenv('SPINSR_OPS_BACKEND', backend)
        with torch.autocast(DEVICE.type, autocast, enabled=autocast is not None):
            out = net(x.requires_grad_())
        upstream = torch.rand(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        return out, *torch.autograd.grad(out, [x, *net.parameters()], upstream)

    actual, expected = (results(backend) for backend in BACKENDS)
    if autocast is None:
        assert_close(actual, expected)
    else:
        assert all(one.isfinite().all() for one in actual)
        assert (actual[0] - expected[0]).abs().max() < 0.01


@pytest.mark.slow
def test_stores_nothing_of_pixels_times_superpixels():
    x = torch.randn(1, 24, 24, 8, device=DEVICE, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:  # sees what is made inside custom ops too
        association = associate(x, 3, 2, backend='triton')
        pool(x, association, backend='triton').square().sum().backward()
        tokens = x.flatten(1, 2)
        out = intra_superpixel_attention(tokens, tokens, tokens, top_n(association), 1, backend='triton')
        out.square().sum().backward()
        window_attention(x, x, x, 12, 1, backend='triton').square().sum().backward()
    events = profile.events()
    largest = max(max(event.self_cpu_memory_usage, event.self_device_memory_usage) for event in events)
    assert 4 * 9 * 24 * 24 <= largest < 4 * 24 * 24 * 8 * 8  # bytes: the association, and pixels x superpixels


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_without_tf32_and_atomics(tmp_path):
    pytest.importorskip('triton.backends.nvidia', reason='triton was built without its NVIDIA backend')
    environment = {key: value for key, value in os.environ.items() if key != 'TRITON_INTERPRET'}
    environment |= {'TRITON_CACHE_DIR': str(tmp_path), 'PYTHONPATH': str(Path(__file__).parents[2])}
    command = [sys.executable, '-W', 'ignore', Path(__file__).with_name('compile_kernels.py')]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    assert [line.split(': ')[1] for line in process.stdout.splitlines()] == ['True []'] * 6


@pytest.mark.slow
@pytest.mark.parametrize(
    'sizes',
    [pytest.param([(9, 14)], id='one_size'), pytest.param([(12, 7), (9, 14)], id='two_sizes')],
)
def test_network_compiles_without_a_graph_break(sizes, compiled, monkeypatch, assert_close):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'triton')
    net = spinsr.load('SPIN', 2, None, DEVICE, **{**SMALL['SPIN'], 'num_block': 1, 'stoken_size': (4,)}).double()
    faster = compiled(net)
    for size in sizes:
        x = torch.rand(1, 3, *size, dtype=torch.float64, device=DEVICE)
        found, expected = faster(x), net(x)
        assert_close(found, expected)
        parameters = list(net.parameters())
        assert_close(*(torch.autograd.grad(out.square().sum(), parameters) for out in (found, expected)))
