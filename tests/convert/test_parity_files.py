"""Which network a parity file is of, and what is refused."""

import numpy as np
import pytest

from spinsr.convert.parity import network_of, read_official
from spinsr.convert.registry import renamed


@pytest.mark.parametrize(
    ('file', 'network', 'variant'),
    [
        ('rlfn_x2.npz', 'RLFN', ''),
        ('hidden_rlfn_ntire_x4.npz', 'RLFN', 'ntire'),
        ('spin_official_tiny_x3.npz', 'SPIN', 'official_tiny'),
    ],
)
def test_name_tells_network_and_variant(file, network, variant):
    format, found = network_of(file)
    assert (format.name, found) == (network, variant)


@pytest.mark.parametrize('file', ['spa_official.npz', 'spinach_x2.npz', 'x_rlfn_x2.npz'])
def test_other_names_are_refused(file):
    with pytest.raises(ValueError, match=f'must begin with the name of a network, got {file}'):
        network_of(file)


@pytest.mark.parametrize('missing', ['cfg', 'y1', 'w/conv_1.bias'])
def test_incomplete_files_are_refused(tmp_path, missing):
    arrays = {'cfg': '{}', 'x0': 0, 'y0': 0, 'x1': 0, 'y1': 0, 'w/conv_1.bias': 0}
    np.savez(tmp_path / 'rlfn_x2.npz', **{name: value for name, value in arrays.items() if name != missing})
    with pytest.raises(ValueError, match='has no constructor arguments|must have weights, and a result for each'):
        read_official(tmp_path / 'rlfn_x2.npz')


def test_arguments_are_renamed_or_dropped():
    translate = renamed(dim='num_feat', task=None)
    assert translate('', {'dim': 8, 'task': 'lsr', 'upscale': 2}) == {'num_feat': 8, 'upscale': 2}
