"""SpinsrModel: starts from BasicSR's files as SRModel does, and from the authors' too."""

import numpy as np
import pytest
import torch

import spinsr.archs

# isort: split
from basicsr.archs import build_network
from basicsr.models import build_model

import spinsr.models.spinsr_model  # noqa: F401
from spinsr.utils.errors import OptionError

from ..networks import NETWORKS


def network(arch, upscale=2):
    return {'type': arch, **NETWORKS[arch].small, 'upscale': upscale}


def model(network_g, path, strict=True, model_type='SpinsrModel', key='params'):
    return build_model(
        {
            'model_type': model_type,
            'num_gpu': 0,
            'dist': False,
            'is_train': False,
            'network_g': network_g,
            'path': {'pretrain_network_g': str(path), 'strict_load_g': strict, 'param_key_g': key},
        }
    )


@pytest.mark.parametrize('name', ['spin_official_tiny_x2', 'san_official_tiny_x2', 'rcan_official_tiny_drift_x2'])
@pytest.mark.parametrize('key', ['params', 'params_ema'])
def test_starts_from_the_authors_file(tmp_path, official, name, key):
    theirs = official(name)
    file = tmp_path / 'model.pt'
    torch.save(theirs.weights, file)

    net = model({'type': theirs.arch, **theirs.arguments}, file, key=key).net_g.double()

    error = (net(theirs.images[0].double()) - theirs.results[0]).abs().max()
    assert error < 1e-5  # the weights went through the network's float32


def test_starts_from_a_training_file_of_spin(tmp_path, official):
    theirs = official('spin_official_tiny_x2')
    scores = {'best_psnr': {'value': np.float64(30.5), 'epoch': 7}}
    weights = {f'module.{name}': value for name, value in theirs.weights.items()}
    torch.save({'epoch': 7, 'model_state_dict': weights, 'stat_dict': scores}, tmp_path / 'model_x2_7.pt')

    net = model({'type': 'SPIN', **theirs.arguments}, tmp_path / 'model_x2_7.pt').net_g.double()

    assert (net(theirs.images[0].double()) - theirs.results[0]).abs().max() < 1e-5


@pytest.mark.parametrize('arch', NETWORKS)
@pytest.mark.parametrize('model_type', ['SpinsrModel', 'SRModel'])
def test_starts_from_basicsrs_file(tmp_path, arch, model_type):
    weights = build_network(network(arch)).state_dict()
    torch.save({'params': weights}, tmp_path / 'net_g_5.pth')

    loaded = model(network(arch), tmp_path / 'net_g_5.pth', model_type=model_type, key='params_ema')

    torch.testing.assert_close(loaded.net_g.state_dict(), weights, rtol=0, atol=0)


@pytest.mark.parametrize('arch', NETWORKS)
def test_warm_start_x2_to_x4(tmp_path, arch):
    weights = build_network(network(arch)).state_dict()
    torch.save({'params': weights}, tmp_path / 'net_g_5.pth')

    state = model(network(arch, 4), tmp_path / 'net_g_5.pth', strict=False).net_g.state_dict()

    same = [name for name, value in weights.items() if name in state and value.shape == state[name].shape]
    assert any(name.startswith('conv_first.') for name in same) and len(same) > 5
    torch.testing.assert_close({name: state[name] for name in same}, {name: weights[name] for name in same})


def test_warm_start_from_a_network_with_other_parts(tmp_path):
    weights = build_network(network('SPIN')).state_dict()
    torch.save({'params': {**weights, 'more.weight': torch.ones(1)}}, tmp_path / 'net.pth')

    state = model(network('SPIN'), tmp_path / 'net.pth', strict=False).net_g.state_dict()

    torch.testing.assert_close(state, weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('content', 'line'),
    [
        pytest.param({'params': {'more.weight': torch.ones(1)}}, 'more.weight', id='other-names'),
        pytest.param({'params': print}, 'cannot read checkpoint', id='code'),
    ],
)
def test_a_file_of_something_else_is_an_error(tmp_path, content, line):
    torch.save(content, tmp_path / 'net.pth')
    with pytest.raises(OptionError, match=line):
        model(network('SPIN'), tmp_path / 'net.pth')


def test_another_network_is_loaded_by_basicsr(tmp_path):
    net = {'type': 'MSRResNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2}
    weights = build_network(net).state_dict()
    torch.save({'params': weights}, tmp_path / 'net.pth')

    loaded = model(net, tmp_path / 'net.pth')

    torch.testing.assert_close(loaded.net_g.state_dict(), weights, rtol=0, atol=0)
