"""Shapes and values that an op cannot use are refused with the rule and the value."""

import pytest
import torch

from spinsr import ops
from spinsr.ops.attention import attention

STAGE, LAST = (torch.rand(32, 8, 3, 3), torch.rand(32)), (torch.rand(3, 8, 3, 3), torch.rand(3))
NORM = torch.ones(8), torch.zeros(8)


@pytest.mark.parametrize(
    ('stages', 'slope', 'message'),
    [
        ([], 0.1, 'needs at least one stage.* got 0 stages'),
        ([STAGE], -0.1, 'slope of at least 0.* slope=-0.1'),
        ([(torch.rand(24, 8, 3, 3), torch.rand(24))], 0.1, r'\(f\^2 C, C, 3, 3\) with C = 8, got \(24, 8, 3, 3\)'),
        ([(torch.rand(16, 4, 3, 3), torch.rand(16))], 0.1, r'with C = 8, got \(16, 4, 3, 3\)'),
    ],
    ids=['no_stage', 'negative_slope', 'no_square', 'other_channels'],
)
def test_upsampling_tail(stages, slope, message):
    with pytest.raises(ValueError, match=message):
        ops.upsampling_tail(torch.rand(1, 8, 4, 4), stages, LAST, slope)


def test_norm_project():
    with pytest.raises(ValueError, match=r'x must have the shape \(B, N, C\), got \(1, 4, 5, 8\)'):
        ops.norm_project(torch.rand(1, 4, 5, 8), NORM, torch.rand(20, 8), (6, 6, 8), eps=1e-6)


@pytest.mark.parametrize('backend', ['reference', 'torch'])
def test_shapes_of_attention(backend):
    q, v = torch.rand(1, 6, 6, 4), torch.rand(1, 5, 5, 4)
    with pytest.raises(ValueError, match=r'same shape \(B, H, W, C\), and v may only have another C, got .*5, 5'):
        ops.window_attention(q, q, v, window=3, backend=backend)
    indices, tokens = torch.arange(4).view(1, 1, 4), torch.rand(1, 1, 4)
    # Not flattened, of two sizes, of two widths.
    for images in ((q, q, q), (q[0], q[0], v[0]), (q[0, ..., :2], q[0], q[0])):
        with pytest.raises(ValueError, match=r'must have the same shape \(B, N, C\)'):
            ops.intra_superpixel_attention(*images, indices, backend=backend)
        with pytest.raises(ValueError, match=r'must have the same shape \(B, N, C\)'):
            ops.superpixel_cross_attention(*images, tokens, backend=backend)
    x = q.flatten(1, 2)
    for other in (tokens[0], tokens[..., :2], tokens.expand(2, -1, -1)):
        with pytest.raises(ValueError, match='tokens must have the shape .* got'):
            ops.superpixel_cross_attention(x, x, x, other, backend=backend)
    for wrong in ((x, x[..., :2], x), (x, x, x[:, :5])):
        with pytest.raises(ValueError, match='must have the shapes .* got'):
            attention(*(one[None] for one in wrong), backend=backend)


def test_tables_ignore_the_default_device():
    x = torch.rand(1, 43, 57, 8)  # a size that no other test has: tables are cached
    tokens = x.flatten(1, 2)
    with torch.device('meta'):
        association = ops.associate(x, cell=5)
        pixels = ops.top_n(association)
        out = ops.window_attention(x, x, x, window=7)
        across = ops.superpixel_cross_attention(tokens, tokens, tokens, ops.pool(x, association))
    assert {t.device.type for t in (association.weights, pixels, out, across)} == {'cpu'}
