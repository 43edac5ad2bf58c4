"""What only EMT has: its windows, its shifts, batch normalisation, and images that are smaller than its windows."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spinsr.archs.emt_arch import EMT, PixelMixer, StripedWindowAttention, _fixed_kernels

SMALL = {
    'num_feat': 20,
    'num_block': 1,
    'num_layer': 3,
    'num_heads': 2,
    'window_size': ((8, 4), (4, 8)),
    'shift_size': ((4, 2), (2, 4)),
}


def random_statistics(net: nn.Module) -> nn.Module:
    """Gives batch normalisation other statistics than those it starts from, and uses them."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias)
    return net.eval()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_feat': 24}, 'num_feat=24'),
        ({'num_feat': 30}, 'num_feat=30.*num_heads=2'),
        ({'mlp_ratio': 1.3}, 'mlp_ratio=1.3'),
        ({'shift_size': ((4, 2),)}, r'shift_size=\(\(4, 2\),\)'),
        ({'num_out_ch': 1}, 'num_out_ch=1'),
        ({'rgb_mean': (0.5,)}, r'rgb_mean=\(0.5,\)'),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_with_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        EMT(**SMALL | arguments)


@pytest.mark.parametrize('shifts', [((0, 0), (0, 0)), ((3, 1), (1, 2))], ids=['plain', 'shifted'])
def test_attention_equals_a_loop_over_windows(shifts, assert_close):
    """Also with a shift that is not half a window, which tells the direction, on sides that are no multiples."""
    windows, height, width = ((4, 2), (2, 4)), 7, 9
    net = random_statistics(StripedWindowAttention(20, 2, windows, shifts)).double()
    x = torch.randn(2, 20, height, width, dtype=torch.float64)
    mixed = []
    for share, (rows, columns), (down, right) in zip(net.attn(x).chunk(2, 1), windows, shifts, strict=True):
        share = F.pad(share, (0, -width % columns, 0, -height % rows), mode='reflect').roll((down, right), (2, 3))
        out = torch.zeros_like(share[:, :10])
        for top in range(0, share.shape[2], rows):
            for left in range(0, share.shape[3], columns):
                window = share[:, :, top : top + rows, left : left + columns]
                for head in (slice(0, 5), slice(5, 10)):
                    q, v = (part[:, head].flatten(2).transpose(1, 2) for part in window.chunk(2, 1))
                    result = (q @ q.transpose(1, 2)).softmax(2) @ v
                    out[:, head, top : top + rows, left : left + columns] = result.transpose(1, 2).reshape(
                        2, 5, rows, columns
                    )
        mixed.append(out.roll((-down, -right), (2, 3))[:, :, :height, :width])
    assert_close(net(x), net.proj(torch.cat(mixed, 1)))


def test_only_every_second_layer_is_shifted():
    net = EMT(**SMALL | {'num_layer': 4, 'num_attention': 3})
    mixers = net.body[0].sa_list
    assert [mixer.shift_size for mixer in mixers[:3]] == [((0, 0), (0, 0)), ((4, 2), (2, 4)), ((0, 0), (0, 0))]
    assert isinstance(mixers[3], PixelMixer)


def fixed_kernels(name: str) -> torch.Tensor:
    """The authors' kernels for 20 channels, which `_fixed_kernels` makes."""
    prefix = 'body.0.sa_list.0.' if name == 'token_mixer.mask' else 'body.0.mlp_list.0.'
    weights = {'body.0.sa_list.0.norm.weight': torch.ones(20), 'body.0.mlp_list.0.fc1.weight': torch.ones(40, 20, 1, 1)}
    return _fixed_kernels(weights)[prefix + name].double()


def test_pixel_mixer_is_a_circular_convolution_with_the_fixed_kernels(assert_close):
    net, x = random_statistics(PixelMixer(20)).double(), torch.rand(2, 20, 5, 6, dtype=torch.float64)
    moved = F.conv2d(F.pad(x, (1, 1, 1, 1), mode='circular'), fixed_kernels('token_mixer.mask'), groups=20)
    assert_close(net(x), net.norm(moved - x))


@pytest.mark.parametrize('size', [(4, 9), (5, 4), (3, 3)], ids=['4x9', '5x4', '3x3'])
def test_an_image_of_half_a_window_is_extended_by_reflection(size, assert_close):
    net, x = random_statistics(EMT(**SMALL, upscale=2)).double(), torch.rand(1, 3, *size, dtype=torch.float64)
    missing = [max(5 - side, 0) for side in size]
    extended = F.pad(x, (0, missing[1], 0, missing[0]), mode='reflect')
    assert_close(net(x), net(extended)[..., : 2 * size[0], : 2 * size[1]])


def test_five_pixels_are_not_extended(monkeypatch):
    """More than half of the longest window, 8, is all that the reflection in the attention needs."""
    net, seen = EMT(**SMALL).eval(), []
    net.conv_first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:]))
    net(torch.rand(1, 3, 5, 5))
    net(torch.rand(1, 3, 4, 6))
    assert seen == [(5, 5), (5, 6)]


def test_other_channels_and_windows_of_three_shapes():
    shapes = {'window_size': ((4, 4), (2, 8), (8, 2)), 'shift_size': ((2, 2), (1, 4), (4, 1))}
    net = EMT(1, 1, 30, num_block=1, num_heads=2, mlp_ratio=1.5, upscale=3, rgb_mean=(0.5,), **shapes).eval()
    assert net(torch.rand(2, 1, 6, 11)).shape == (2, 1, 18, 33)
