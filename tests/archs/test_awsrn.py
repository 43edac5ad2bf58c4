"""What only AWSRN has: its variants."""

import pytest
import torch

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
