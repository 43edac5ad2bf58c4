"""Attention on the CPU, in pieces whose weights stay in the cache.

Each piece is one batched matmul, one softmax in place and another batched matmul on memory that the next piece uses
again; nothing of the size of all weights exists. The backward pass computes the weights of a piece once more.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spinsr.ops.parts import without_autocast

WEIGHTS_A_THREAD = 2**20  # attention weights of a piece: 4 MB in float32
SIDE = 512  # queries, or keys, of a piece that are one matmul


def _piece(size: int) -> int:
    """How many groups of `size` weights make a piece: the same number for each thread."""
    return torch.get_num_threads() * max(1, WEIGHTS_A_THREAD // size)


def add_attended_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int, start: bool) -> Tensor:
    """Attention within groups of rows, added up by row; differentiable in q, k and v.

    Args:
        q, k: (R, num_heads * D).
        v: (R, C).
        rows: (G, T) int64 in [0, R), the rows of each group; a row may be in several groups or in none.
        num_heads: Number of heads.
        start: Whether the sum starts at `v` and not at 0.

    Returns:
        (R, C) in the type of `v`: for each row the sum of what it got in its groups.
    """
    return _AddAttendedRows.apply(q, k, v, rows, num_heads, start)


class _AddAttendedRows(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int, start: bool) -> Tensor:
        ctx.save_for_backward(q, k, v, rows)
        ctx.num_heads, ctx.start = num_heads, start
        full = _full(v.dtype)
        out = (
            v.to(full, memory_format=torch.contiguous_format, copy=True) if start else v.new_zeros(v.shape, dtype=full)
        )
        scale = 1 / math.sqrt(q.shape[1] // num_heads)
        buffer = _Buffer(rows, num_heads, full)
        for part in buffer.parts:
            b_q, b_k, b_v = (_heads(x, part, num_heads, full) for x in (q, k, v))
            weights = buffer.softmax(b_q, b_k, scale)
            out.index_add_(0, part.flatten(), _rows(weights @ b_v, num_heads))
        return out.to(v.dtype)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, grad: Tensor):
        q, k, v, rows = ctx.saved_tensors
        num_heads, full = ctx.num_heads, _full(v.dtype)
        scale = 1 / math.sqrt(q.shape[1] // num_heads)
        widths = [q.shape[1], k.shape[1], v.shape[1]]
        # One buffer for the three gradients: what made q, k and v with one matmul can take them back as one matrix.
        grads = v.new_zeros(len(v), sum(widths), dtype=full)
        buffer, other = _Buffer(rows, num_heads, full), _Buffer(rows, num_heads, full)
        for part in buffer.parts:
            b_q, b_k, b_v, b_grad = (_heads(x, part, num_heads, full) for x in (q, k, v, grad))
            weights = buffer.softmax(b_q, b_k, scale)
            d_v = weights.transpose(1, 2) @ b_grad
            d_logits = other.matmul(b_grad, b_v.transpose(1, 2))
            torch.ops.aten._softmax_backward_data.out(d_logits, weights, -1, full, grad_input=d_logits)
            d_q = torch.baddbmm(b_q, d_logits, b_k, beta=0, alpha=scale)
            d_k = torch.baddbmm(b_k, d_logits.transpose(1, 2), b_q, beta=0, alpha=scale)
            joined = torch.cat([_rows(x, num_heads) for x in (d_q, d_k, d_v)], 1)
            grads.index_add_(0, part.flatten(), joined)
        d_q, d_k, d_v = grads.to(v.dtype).split(widths, 1)
        if ctx.start:
            d_v += grad
        return d_q, d_k, d_v, None, None, None


class _Buffer:
    """Room for the weights of a piece of groups of rows."""

    def __init__(self, rows: Tensor, num_heads: int, dtype: torch.dtype):
        t = rows.shape[1]
        self.parts = rows.split(_piece(num_heads * t * t))
        self.room = torch.empty(len(self.parts[0]) * num_heads, t, t, dtype=dtype, device=rows.device)

    def softmax(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        weights = self.matmul(q, k.transpose(1, 2), scale)
        return torch.softmax(weights, -1, out=weights)

    def matmul(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        room = self.room[: len(a)]
        return torch.baddbmm(room, a, b, beta=0, alpha=scale, out=room)


def _heads(x: Tensor, rows: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
    """(R, C) and rows (G, T) -> (G * heads, T, C / heads)."""
    x = x.index_select(0, rows.flatten()).to(dtype).view(*rows.shape, num_heads, -1)
    return x.transpose(1, 2).flatten(0, 1)


def _rows(x: Tensor, num_heads: int) -> Tensor:
    """(G * heads, T, D) -> (G * T, heads * D)."""
    return x.unflatten(0, (-1, num_heads)).transpose(1, 2).reshape(-1, num_heads * x.shape[2])


def _full(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@without_autocast
def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v without gradients, (B, heads, L, D), (B, heads, S, D), (B, heads, S, E) in all."""
    out = v.new_empty(*q.shape[:3], v.shape[3])
    for place in itertools.product(range(len(q)), range(q.shape[1])):
        _attend_many(q[place], k[place], v[place].to(_full(v.dtype)), scale, out[place])
    return out


def cross_attention(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor, num_heads: int) -> Tensor:
    """Tokens gather from all pixels, then pixels from all tokens; differentiable. Shapes as in the public op."""
    return _CrossAttention.apply(q, k, v, tokens, num_heads)


class _CrossAttention(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, tokens: Tensor, num_heads: int) -> Tensor:
        b, num_tokens = tokens.shape[:2]
        full = _full(v.dtype)
        out = v.new_empty(v.shape)
        gathered = v.new_empty(b, num_heads, num_tokens, v.shape[2] // num_heads, dtype=full)
        log_sums = gathered.new_empty(b, num_heads, num_tokens)
        scale = 1 / math.sqrt(q.shape[2] // num_heads)
        for place, (b_q, b_k, b_v, b_tokens, b_out) in _each_head(num_heads, q, k, v, tokens, out):
            for start in range(0, num_tokens, SIDE):
                rows = slice(start, start + SIDE)
                few = _attend_few(b_tokens[rows].to(full), b_k, b_v, scale)
                gathered[place][rows], log_sums[place][rows] = few
            _attend_many(b_q, b_tokens, gathered[place], scale, b_out)
        ctx.save_for_backward(q, k, v, tokens, gathered, log_sums)
        ctx.num_heads = num_heads
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, grad: Tensor):
        q, k, v, tokens, gathered, log_sums = ctx.saved_tensors
        full = gathered.dtype
        scale = 1 / math.sqrt(q.shape[2] // ctx.num_heads)
        widths = [q.shape[2], k.shape[2], v.shape[2]]
        d_q, d_k, d_v = v.new_empty(*v.shape[:2], sum(widths)).split(widths, 2)
        d_tokens = tokens.new_zeros(tokens.shape, dtype=full)
        heads = _each_head(ctx.num_heads, q, k, v, tokens, grad, d_q, d_k, d_v, d_tokens)
        for place, (b_q, b_k, b_v, b_tokens, b_grad, b_d_q, b_d_k, b_d_v, b_d_tokens) in heads:
            b_tokens, b_gathered, sums = b_tokens.to(full), gathered[place], log_sums[place]
            d_gathered = torch.zeros_like(b_gathered)
            room = _rooms(2, len(q[0]), len(b_tokens), full)
            for pixels in _matmuls(len(b_q), len(b_tokens)):
                part_q, part_grad = (_grouped(x, pixels, full) for x in (b_q, b_grad))
                weights = _product(room[0], part_q, b_tokens.t(), scale)
                torch.softmax(weights, 2, out=weights)
                d_gathered += (weights.transpose(1, 2) @ part_grad).sum(0)
                d_logits = _product(room[1], part_grad, b_gathered.t())
                torch.ops.aten._softmax_backward_data.out(d_logits, weights, 2, full, grad_input=d_logits)
                b_d_q[pixels[0]] = (d_logits @ b_tokens).flatten(0, 1) * scale
                b_d_tokens += (d_logits.transpose(1, 2) @ part_q).sum(0) * scale
            inner = (d_gathered * b_gathered).sum(1)
            for pixels in _matmuls(len(b_q), len(b_tokens)):
                part_k, part_v = (_grouped(x, pixels, full) for x in (b_k, b_v))
                weights = _product(room[0], part_k, b_tokens.t(), scale).sub_(sums).exp_()
                b_d_v[pixels[0]] = (weights @ d_gathered).flatten(0, 1)
                d_logits = _product(room[1], part_v, d_gathered.t()).sub_(inner).mul_(weights)
                b_d_k[pixels[0]] = (d_logits @ b_tokens).flatten(0, 1) * scale
                b_d_tokens += (d_logits.transpose(1, 2) @ part_k).sum(0) * scale
        return d_q, d_k, d_v, d_tokens.to(tokens.dtype), None


def _each_head(num_heads: int, *tensors: Tensor) -> Iterator[tuple[tuple[int, int], list[Tensor]]]:
    """For each image and head its place (b, h) and of each tensor (B, N, heads * D) the matrix (N, D)."""
    split = [x.unflatten(2, (num_heads, -1)) for x in tensors]
    for place in itertools.product(range(len(tensors[0])), range(num_heads)):
        yield place, [x[place[0], :, place[1]] for x in split]


def _matmuls(count: int, num_tokens: int) -> Iterator[tuple[slice, int]]:
    """Slices of pixels and the side of their groups: whole groups of SIDE pixels, then what is left as one."""
    side = min(SIDE, count)
    step = side * _piece(side * num_tokens)
    whole = count // side * side
    for start in range(0, whole, step):
        yield slice(start, min(start + step, whole)), side
    if whole < count:
        yield slice(whole, count), count - whole


def _rooms(number: int, count: int, num_tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """Memory for the weights of any of `_matmuls`."""
    largest = max(pixels.stop - pixels.start for pixels, _ in _matmuls(count, num_tokens))
    return list(torch.empty(number, largest * num_tokens, dtype=dtype, device='cpu'))


def _grouped(x: Tensor, pixels: tuple[slice, int], dtype: torch.dtype) -> Tensor:
    """(N, D) -> (G, side, D)."""
    return x[pixels[0]].to(dtype).unflatten(0, (-1, pixels[1]))


def _product(room: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale a b in `room`: (G, L, D), (D, S) or (L, D), (G, D, S) -> (G, L, S)."""
    groups = len(a) if a.ndim == 3 else len(b)
    a, b = (x if x.ndim == 3 else x.expand(groups, -1, -1) for x in (a, b))
    out = room[: groups * a.shape[1] * b.shape[2]].view(groups, a.shape[1], b.shape[2])
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _attend_few(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v for few queries and many keys: (L, D), (S, D), (S, E) -> (L, E), and the log-sum-exp (L,).

    Parts of the keys have a softmax each; their results are averaged with the weights of the whole softmax.
    """
    result, log_sum = q.new_zeros(1, len(q), v.shape[1]), q.new_full((1, len(q)), -math.inf)
    (room,) = _rooms(1, len(k), len(q), q.dtype)
    for pixels in _matmuls(len(k), len(q)):
        part_k, part_v = (_grouped(x, pixels, q.dtype) for x in (k, v))
        weights = _product(room, q, part_k.transpose(1, 2), scale)
        top = weights.amax(2)
        torch.softmax(weights, 2, out=weights)
        # A weight is exp(logit - log_sum); that of the largest logit is the largest.
        log_sums = torch.cat([log_sum, top - weights.amax(2).log_()])  # (1 + G, L)
        results = torch.cat([result, weights @ part_v])
        result = (results * log_sums.softmax(0).unsqueeze(2)).sum(0, keepdim=True)
        log_sum = log_sums.logsumexp(0, keepdim=True)
    return result[0], log_sum[0]


def _attend_many(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """softmax(scale q k^T) v for many queries and few keys: (L, D), (S, D), (S, E) -> `out` (L, E)."""
    k = k.to(v.dtype).t()
    (room,) = _rooms(1, len(q), len(v), v.dtype)
    for pixels in _matmuls(len(q), len(v)):
        weights = _product(room, _grouped(q, pixels, v.dtype), k, scale)
        torch.softmax(weights, 2, out=weights)
        place = out[pixels[0]]
        if place.dtype == v.dtype and place.is_contiguous():
            torch.bmm(weights, v.expand(len(weights), -1, -1), out=place.unflatten(0, (-1, pixels[1])))
        else:
            place.copy_((weights @ v).flatten(0, 1))
