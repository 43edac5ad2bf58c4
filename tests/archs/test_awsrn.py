"""What only AWSRN has: its variants and its convolutions with a learned length."""

import pytest
import torch
import torch.nn.functional as F

from spinsr.archs.awsrn_arch import WeightNormConv2d
from spinsr.convert.registry import find_configuration


@pytest.mark.parametrize(
    ('name', 'counts'),
    [
        ('AWSRN-M', [1_063_742, 1_143_017, 1_254_002]),
        ('AWSRN-S', [397_482, 476_757, 587_742]),
        ('AWSRN-SD', [348_098, 388_013, 443_894]),
    ],
)
def test_number_of_parameters_of_the_variants(name, counts):
    format, arguments = find_configuration(name)
    with torch.device('meta'):
        nets = [format.arch(**arguments, upscale=scale) for scale in (2, 3, 4)]
    assert [sum(parameter.numel() for parameter in net.parameters()) for net in nets] == counts


def test_weight_norm_sets_the_length_of_each_kernel(assert_close):
    conv, x = WeightNormConv2d(2, 3, 5), torch.rand(1, 2, 6, 7)
    assert_close(conv(x), F.conv2d(x, conv.weight_v, conv.bias, padding=2))
    conv.weight_v.data *= torch.tensor([1.0, 2.0, 30.0]).view(3, 1, 1, 1)
    conv.weight_g.data.fill_(4)
    unit = conv.weight_v / conv.weight_v.flatten(1).norm(dim=1).view(3, 1, 1, 1)
    assert_close(conv(x), F.conv2d(x, 4 * unit, conv.bias, padding=2))
