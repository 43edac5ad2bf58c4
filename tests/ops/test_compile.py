"""The ops in torch.compile for images of different sizes."""

import pytest
import torch

from spinsr import ops


def every_op_with_tables(x):
    association = ops.associate(x, 4)
    return ops.pool(x, association), ops.top_n(association), ops.window_attention(x, x, x, window=5)


@pytest.mark.slow
def test_dynamic_sizes_compile_without_a_graph_break(assert_close):
    torch._dynamo.reset()
    compiled = torch.compile(every_op_with_tables, dynamic=True, fullgraph=True, backend='aot_eager')
    for size in ((9, 14), (12, 7)):
        x = torch.rand(1, *size, 8)
        (pooled, selected, attended), expected = compiled(x), every_op_with_tables(x)
        assert_close((pooled, attended), (expected[0], expected[2]))
        assert torch.equal(selected, expected[1])
    torch._dynamo.reset()
