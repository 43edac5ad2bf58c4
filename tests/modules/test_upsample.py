import pytest
import torch
import torch.nn.functional as F

from spinsr.modules.upsample import TokenUpsample, Upsample, upscale_factors

SIZES = {'one_pixel': (1, 1), 'one_row': (1, 7), 'one_column': (5, 1), 'odd': (5, 9)}


def by_pixel_shuffle(tail: TokenUpsample, x: torch.Tensor) -> torch.Tensor:
    for factor, conv in zip(tail.factors, tail, strict=True):
        x = F.leaky_relu(F.pixel_shuffle(conv(x), factor), 0.1)
    return x


@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_token_upsample_equals_pixel_shuffle(scale, size, forward_backward, assert_close):
    tail = TokenUpsample(scale, 6).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64).to(memory_format=torch.channels_last)
    before = x.clone()
    out = forward_backward(tail, x)
    assert_close(out, forward_backward(lambda x: by_pixel_shuffle(tail, x), x))
    assert out[0].shape[2:] == (scale * size[0], scale * size[1])
    assert torch.equal(x, before)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_token_upsample_gives_its_weights_the_same_gradients(scale, assert_close):
    tail, x = TokenUpsample(scale, 6).double(), torch.randn(1, 6, 5, 7, dtype=torch.float64)
    upstream = torch.randn(1, 6, 5 * scale, 7 * scale, dtype=torch.float64)
    fast, plain = (
        torch.autograd.grad(function(x), list(tail.parameters()), upstream)
        for function in (tail, lambda x: by_pixel_shuffle(tail, x))
    )
    assert_close(fast, plain)


def test_token_upsample_is_channels_last():
    out = TokenUpsample(4, 8)(torch.randn(2, 8, 5, 7).to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('scale', [2, 3, 4, 8])
def test_upsample_multiplies_the_sides(scale):
    assert Upsample(scale, 4)(torch.randn(1, 4, 3, 5)).shape == (1, 4, 3 * scale, 5 * scale)


@pytest.mark.parametrize(('scale', 'factors'), [(2, [2]), (3, [3]), (4, [2, 2]), (8, [2, 2, 2])])
def test_factors(scale, factors):
    assert upscale_factors(scale) == factors


@pytest.mark.parametrize('scale', [0, 1, 5, 6, -2, 2.5, '4'])
@pytest.mark.parametrize('tail', [Upsample, TokenUpsample])
def test_other_scales_are_refused_with_the_value(tail, scale):
    with pytest.raises(ValueError, match=f'upscale must be .* got {scale!r}'):
        tail(scale, 4)
