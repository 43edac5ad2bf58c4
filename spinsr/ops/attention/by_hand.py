"""Attention on the CPU as products and powers of two, in chunks that stay in the cache.

softmax(l) v = (2^b v) / sum(2^b) with b = log2(e) l: one pass over the weights where a softmax has four, and torch's
power of two is faster than its exponential. Where logits may be large, by the norms of q and k, and for gradients in
bfloat16, it is torch's softmax, of logits that are rounded as in the reference.

On the processors where it was measured this takes less time than torch's fused kernel for every size of SPIN, so that
it is used for all. With the environment variable SPINSR_MEASURE_ATTENTION=1 both are timed, once for each shape in a
process, and the faster one is used in forward passes.
"""

import math
import os
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from spinsr.ops.attention import sdpa
from spinsr.ops.common.chunking import chunks
from spinsr.ops.common.precision import attention_type, full_type
from spinsr.ops.common.products import cpu_products

# Attention weights of a chunk for each thread, forward and backward; twice as many in bfloat16 take as much memory.
FORWARD, BACKWARD = 2**19, 2**18
# Of q, in one product, at least; products with fewer rows are slow.
ROWS = 32
# Of |b|: then weights, their sums, and sums of values of up to 1e4 stay in the range of float32 and bfloat16.
BOUND = 96.0
LOG2_E = math.log2(math.e)
# What SPINSR_MEASURE_ATTENTION=1 found, by shapes, type, and number of threads.
_SLOWER: dict[tuple, bool] = {}


def attention(q: Tensor, k: Tensor, v: Tensor, factor: float) -> Tensor:
    """softmax(factor q k^T) v of (..., L, D), (..., S, D), (..., S, E); its products in `attention_type` of `v`."""
    return _Attention.apply(q, k, v, factor)


class _Attention(torch.autograd.Function):
    """Keeps q, k and v; the weights are computed once more for the gradient."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, factor: float) -> Tensor:
        with cpu_products():
            return Attention(attention_type(v), factor, is_bounded(q, k, factor)).forward(q, k, v).to(v.dtype)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
        *tensors, ctx.factor = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def vmap(info, in_dims: tuple[int | None, ...], *args):
        return _Attention.apply(*_batched(info, in_dims, args)), 0

    @staticmethod
    def backward(ctx, grad: Tensor):
        return *_Gradients.apply(*ctx.saved_tensors, grad, ctx.factor), None


class _Gradients(torch.autograd.Function):
    """Those of `_Attention`; a function of its own for `torch.func.vmap`."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, factor: float) -> tuple[Tensor, Tensor, Tensor]:
        with cpu_products():
            attention = Attention(attention_type(v), factor, is_bounded(q, k, factor)).for_gradients()
            d_q, d_k, d_v = attention.backward(q, k, v, grad)
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, *grads: Tensor):
        raise RuntimeError('attention on the CPU is differentiable once; backend="reference" is, more often')

    @staticmethod
    def vmap(info, in_dims: tuple[int | None, ...], *args):
        return _Gradients.apply(*_batched(info, in_dims, args)), (0, 0, 0)


def _batched(info, in_dims: tuple[int | None, ...], args: tuple) -> list:
    """The tensors of `args`, all but the last, with the dimension of vmap as the first."""
    tensors = [
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(args[:-1], in_dims[:-1], strict=True)
    ]
    return [*tensors, args[-1]]


def is_bounded(q: Tensor, k: Tensor, factor: float) -> bool:
    """Whether all |b| of queries (..., D) and keys (..., D) are known to be at most BOUND, by their norms."""
    # Not where one is NaN or infinite. Fake tensors have no values.
    return isinstance(q, FakeTensor) or abs(factor) * LOG2_E * _longest(q) * _longest(k) <= BOUND


class Attention:
    """softmax(factor q k^T) v and its gradients.

    Args:
        dtype: The type of the products, float32, float64 or bfloat16. Weights are added up in float32 at least; in
            bfloat16 their sum is rounded to it.
        factor: Of the logits.
        is_bounded: Whether all |b| are at most BOUND, and no softmax is needed.
    """

    def __init__(self, dtype: torch.dtype, factor: float, is_bounded: bool):
        self.dtype, self.factor, self.is_bounded = dtype, factor, is_bounded
        self.base = LOG2_E if is_bounded else 1.0  # logits are multiplied by it
        # By a column of ones beside v; in bfloat16 the sum costs nothing then, and is rounded as the values are.
        self.sums_by_product = is_bounded and dtype == torch.bfloat16

    def for_gradients(self) -> 'Attention':
        """The one that computes gradients: in bfloat16 weights are rounded once, after a softmax."""
        return Attention(self.dtype, self.factor, is_bounded=False) if self.dtype == torch.bfloat16 else self

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(..., L, D), (..., S, D), (..., S, E) -> (..., L, E) in `dtype`."""
        if not k.shape[-2]:
            return v.new_zeros(*q.shape[:-1], v.shape[-1], dtype=self.dtype)
        if os.environ.get('SPINSR_MEASURE_ATTENTION') == '1' and self._is_slower(q.shape, k.shape, v.shape):
            return self._fused(q, k, v)
        return self._forward(q, k, v)

    def _forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        leading = v.shape[:-2]
        q, k, v = (x.flatten(0, -3) for x in (q, self._transposed(k), v.to(self.dtype)))
        out, full = v.new_empty(*q.shape[:2], v.shape[2]), full_type(self.dtype)
        if self.sums_by_product:
            v = F.pad(v, (0, 1), value=1.0)
        groups, rows, keys = self._chunk(FORWARD, q.shape, v.shape[1], cut_keys=self.is_bounded)
        buffer = v.new_empty(min(groups, len(q)) * min(rows, q.shape[1]) * min(keys, v.shape[1]))
        for some in chunks(len(q), groups):
            for place in chunks(q.shape[1], rows):
                q_in = self._scaled(q[some, place])
                parts = (self._attend(q_in, k[some, :, at], v[some, at], buffer) for at in chunks(v.shape[1], keys))
                total, mass = next(parts)
                for more, sums in parts:
                    total, mass = total.to(full) + more, mass.to(full) + sums
                out[some, place] = total / mass
        return out.unflatten(0, leading)

    def backward(self, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v for that of the result, (..., L, E); in float32 at least."""
        if not k.shape[-2]:
            return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        leading = v.shape[:-2]
        q, k, v, grad = (x.to(self.dtype).flatten(0, -3) for x in (self._scaled(q), k, v, grad))
        full, transposed = full_type(self.dtype), self._transposed(k)
        groups, rows, _ = self._chunk(BACKWARD, q.shape, k.shape[1], cut_keys=False)
        d_q, d_k, d_v = (torch.empty_like(x, dtype=full) for x in (q, k, v))
        buffers = q.new_empty(2, min(groups, len(q)) * min(rows, q.shape[1]) * k.shape[1])
        for some in chunks(len(q), groups):
            for place in chunks(q.shape[1], rows):
                q_in, upstream, is_first = q[some, place], grad[some, place], place.start == 0
                weights = self._weights(q_in, transposed[some], buffers[0])
                if self.is_bounded:
                    weights.mul_(self._sums(weights).reciprocal_())
                _multiply(weights.mT, upstream, d_v[some], is_first)
                d_weights = torch.bmm(upstream, v[some].mT, out=buffers[1, : weights.numel()].view_as(weights))
                d_logits = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, self.dtype)
                _multiply(d_logits, k[some], d_q[some, place])
                _multiply(d_logits.mT, q_in, d_k[some], is_first)
        d_q, d_k, d_v = (x.unflatten(0, leading) for x in (d_q.mul_(self.factor), d_k.div_(self.base), d_v))
        return d_q, d_k, d_v

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # The scale before the product, as in the reference: large logits are then rounded in the same way.
        q = q.to(torch.promote_types(q.dtype, self.dtype)) * self.factor
        return sdpa.attention(q.to(self.dtype), k.to(self.dtype), v.to(self.dtype), 1.0)

    def _is_slower(self, *shapes: torch.Size) -> bool:
        """Whether this takes longer than the fused kernel for such queries, keys and values."""
        key = shapes, self.dtype, self.is_bounded, torch.get_num_threads()
        if key not in _SLOWER:
            inputs = [torch.zeros(shape, dtype=self.dtype) for shape in shapes]
            turns = [[_seconds(attend, inputs) for attend in (self._forward, self._fused)] for _ in range(3)]
            by_hand, fused = map(min, zip(*turns, strict=True))
            _SLOWER[key] = by_hand > fused
        return _SLOWER[key]

    def _scaled(self, q: Tensor) -> Tensor:
        q = q.to(torch.promote_types(q.dtype, self.dtype))  # float16 could overflow
        return (q * (self.factor * self.base)).to(self.dtype)

    def _transposed(self, k: Tensor) -> Tensor:
        k = k.to(self.dtype).mT
        return k.contiguous() if self.dtype == torch.bfloat16 else k  # or each product would copy it

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
        weights = self._weights(q, k, buffer)
        out = torch.bmm(weights, v)
        return (out[..., :-1], out[..., -1:]) if self.sums_by_product else (out, self._sums(weights))

    def _weights(self, q: Tensor, k: Tensor, buffer: Tensor) -> Tensor:
        """Weights (G, L, S) up to a factor for each row; may lie in `buffer`."""
        shape = *q.shape[:2], k.shape[2]
        logits = torch.bmm(q, k, out=buffer[: math.prod(shape)].view(shape))
        return logits.exp2_() if self.is_bounded else logits.softmax(-1)

    def _sums(self, weights: Tensor) -> Tensor:
        """What the weights have to be divided by: (G, L, 1), or 1."""
        full = full_type(self.dtype)
        return weights.sum(-1, keepdim=True, dtype=full) if self.is_bounded else weights.new_ones((), dtype=full)

    def _chunk(self, weights: int, q: torch.Size, keys: int, cut_keys: bool) -> tuple[int, int, int]:
        """How many groups, rows of q, and keys at once; all keys unless `cut_keys`."""
        weights = 2 * weights if self.dtype == torch.bfloat16 else weights
        threads, (_, rows, _) = torch.get_num_threads(), q
        if rows * keys <= weights:  # the same number of groups for each thread
            return threads * (weights // max(1, rows * keys)), rows, keys
        weights *= threads
        if cut_keys and weights // keys < ROWS:
            rows = min(rows, math.isqrt(weights))
            return 1, rows, weights // rows
        return 1, max(ROWS, weights // keys), keys


def _multiply(a: Tensor, b: Tensor, out: Tensor, is_first: bool = True) -> None:
    """out = a b, or out += a b."""
    if not is_first:
        out += torch.bmm(a, b)
    elif out.dtype == a.dtype:
        torch.bmm(a, b, out=out)
    else:
        out.copy_(torch.bmm(a, b))


def _seconds(attend: Callable[..., Tensor], inputs: Sequence[Tensor]) -> float:
    start = time.perf_counter()
    attend(*inputs)
    return time.perf_counter() - start


def _longest(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dim=-1, dtype=full_type(x.dtype)).max()) if x.numel() else 0.0
