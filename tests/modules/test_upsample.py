import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spinsr.modules.upsample import TokenUpsample, Upsample, upsample_and_convolve, upscale_factors

SIZES = {'one_pixel': (1, 1), 'one_row': (1, 7), 'one_column': (5, 1), 'odd': (5, 9)}


def tail_of(scale: int) -> tuple[TokenUpsample, nn.Conv2d]:
    return TokenUpsample(scale, 6).double(), nn.Conv2d(6, 3, 3, 1, 1).double()


def by_pixel_shuffle(scale: int, tail: TokenUpsample, conv_last: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    for factor, conv in zip(upscale_factors(scale), tail, strict=True):
        x = F.leaky_relu(F.pixel_shuffle(conv(x), factor), 0.1)
    return conv_last(x)


@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_token_upsample_equals_pixel_shuffle(scale, size, backend, forward_backward, assert_close):
    tail, conv_last = tail_of(scale)
    x = torch.randn(2, 6, *size, dtype=torch.float64).to(memory_format=torch.channels_last)
    before = x.clone()
    out = forward_backward(lambda x: tail(x, conv_last), x)
    assert_close(out, forward_backward(lambda x: by_pixel_shuffle(scale, tail, conv_last, x), x))
    assert out[0].shape == (2, 3, scale * size[0], scale * size[1])
    assert torch.equal(x, before)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_token_upsample_gives_all_weights_the_same_gradients(scale, backend, assert_close):
    (tail, conv_last), x = tail_of(scale), torch.randn(1, 6, 5, 7, dtype=torch.float64)
    upstream = torch.randn(1, 3, 5 * scale, 7 * scale, dtype=torch.float64)
    fast, plain = (
        torch.autograd.grad(out, [*tail.parameters(), *conv_last.parameters()], upstream)
        for out in (tail(x, conv_last), by_pixel_shuffle(scale, tail, conv_last, x))
    )
    assert_close(fast, plain)


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
def test_upsample_multiplies_the_sides(scale):
    assert Upsample(scale, 4)(torch.randn(1, 4, 3, 5)).shape == (1, 4, 3 * scale, 5 * scale)


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
def test_upsample_and_convolve_is_one_after_the_other(scale, backend, forward_backward, assert_close):
    upsample, conv_last = Upsample(scale, 6).double(), nn.Conv2d(6, 3, 3, 1, 1).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    out = forward_backward(lambda x: upsample_and_convolve(x, upsample, conv_last), x)
    assert_close(out, forward_backward(lambda x: conv_last(upsample(x)), x))


@pytest.mark.parametrize(('scale', 'factors'), [(2, [2]), (3, [3]), (4, [2, 2]), (8, [2, 2, 2])])
def test_factors(scale, factors):
    assert upscale_factors(scale) == factors


@pytest.mark.parametrize('scale', [0, 1, 5, 6, -2, 2.5, '4'])
@pytest.mark.parametrize('tail', [Upsample, TokenUpsample])
def test_other_scales_are_refused_with_the_value(tail, scale):
    with pytest.raises(ValueError, match=f'upscale must be .* got {scale!r}'):
        tail(scale, 4)
