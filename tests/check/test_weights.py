"""Weights and states against the network: what would not load, or would load something else, is found."""

import copy

import pytest
import torch
from safetensors.torch import save_file

import spinsr.archs  # noqa: F401
from spinsr.training.muon import Muon

from ..networks import NETWORKS
from ..tiny_project import SPIN, TEST, TRAIN, changed

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY

from spinsr.check.weights import weights
from spinsr.models.registration import register
from spinsr.models.spinsr_model import SpinsrModel
from spinsr.training import checkpoints

register()


def network(**changes):
    arguments = {key: value for key, value in {**SPIN, **changes}.items() if key != 'type'}
    return ARCH_REGISTRY.get('SPIN')(**arguments).state_dict()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(options, *, is_train=True):
    return [f'{finding.level} {finding}' for finding in weights(options, is_train=is_train)]


def save(content, name='a.pth'):
    torch.save(content, name)
    return {'path:pretrain_network_g': name}


@pytest.mark.parametrize('model', ['SpinsrModel', 'SRModel'])
@pytest.mark.parametrize('key', ['params', None], ids=['params', 'bare'])
def test_weights_that_fit(place, model, key):
    changes = save({'params': network()} if key else network())
    assert said(changed(TRAIN, {'model_type': model, **changes, 'path:param_key_g': key})) == []


@pytest.mark.parametrize('name', NETWORKS)
def test_weights_of_each_network_fit(place, name):
    small = {**NETWORKS[name].small, 'upscale': 2}
    changes = save({'params': ARCH_REGISTRY.get(name)(**small).state_dict()})
    assert said(changed(TRAIN, {**changes, 'network_g': {'type': name, **small}})) == []


@pytest.mark.parametrize(
    ('content', 'changes', 'line'),
    [
        (lambda: {'params': network(num_feat=16)}, {}, 'error path:pretrain_network_g: a.pth does not fit SPIN, '),
        (lambda: {'params': network(upscale=4)}, {}, 'it has 2 that the network has not: upsample.'),
        (
            lambda: {'params': {'upsample.0.bias': network()['upsample.0.bias']}},
            {},
            'a.pth does not fit SPIN: it lacks',
        ),
        (lambda: {'params': {'x': torch.zeros(1)}}, {}, 'error path:pretrain_network_g: a.pth does not fit SPIN: '),
        (lambda: {'params': {'x': torch.zeros(1)}}, {'path:strict_load_g': False}, 'nothing in it has the name'),
        (lambda: {'params': network(upscale=3)}, {'path:strict_load_g': False}, 'note path:pretrain_network_g: 2 of '),
        (lambda: {'params': network()}, {'path:param_key_g': 'params_ema'}, 'warning path:param_key_g: a.pth has no'),
        (lambda: [1, 2], {}, 'a.pth is not a checkpoint: it holds a list'),
        (lambda: {'params': print}, {}, 'could run code'),
    ],
    ids=['shape', 'scale', 'lacks', 'other', 'nothing-fits', 'some-fit', 'no-ema', 'list', 'code'],
)
def test_weights_that_do_not_fit(place, content, changes, line):
    found = said(changed(TRAIN, {**save(content()), **changes}))
    assert len(found) == 1
    assert line in found[0]


def test_of_the_names_of_another_network_some_are_shown(place):
    (line,) = said(changed(TRAIN, save({'params': {f'x{number}': torch.zeros(1) for number in range(999)}})))
    assert '999 unexpected keys for SPIN: x0, ' in line
    assert len(line) < 400


class ModelOfSomebodyElse(SpinsrModel):
    """Reads weights as its base does."""


if 'ModelOfSomebodyElse' not in MODEL_REGISTRY:
    MODEL_REGISTRY.register(ModelOfSomebodyElse)


@pytest.mark.parametrize(('model', 'count'), [('SpinsrModel', 0), ('ModelOfSomebodyElse', 0), ('SRModel', 1)])
def test_safetensors_are_for_the_models_of_spinsr(place, model, count):
    save_file(network(), 'a.safetensors')
    found = said(changed(TRAIN, {'model_type': model, 'path:pretrain_network_g': 'a.safetensors'}))
    assert len(found) == count
    assert all('cannot be read by SRModel; model_type: SpinsrModel reads .safetensors' in line for line in found)


def test_a_home_that_does_not_exist_is_no_file(place):
    assert said(changed(TRAIN, {'path:pretrain_network_g': '~nobody-by-this-name/a.pth'})) == []


def test_no_checkpoint(place):
    (place / 'a.pth').write_text('text')
    assert 'cannot read checkpoint' in said(changed(TRAIN, {'path:pretrain_network_g': 'a.pth'}))[0]


@pytest.mark.parametrize(('key', 'count'), [('params', 1), ('params_ema', 0)])
def test_testing_the_weights_without_average(place, key, count):
    options = changed(TEST, {**save({'params': network(), 'params_ema': network()}), 'path:param_key_g': key})
    found = said(options, is_train=False)
    assert len(found) == count
    assert all('was trained with EMA' in line for line in found)


def test_testing_with_random_parts_is_a_warning(place):
    options = changed(TEST, {**save({'params': network(upscale=3)}), 'path:strict_load_g': False})
    assert said(options, is_train=False)[0].startswith('warning path:pretrain_network_g: 2 of')


def test_nothing_to_look_at(place):
    assert said(TRAIN) == []
    assert said(changed(TRAIN, {'path:pretrain_network_g': 'gone.pth'})) == []


STATE = {'epoch': 1, 'iter': 2, 'optimizers': [], 'schedulers': []}
OF_MUON = {**STATE, 'optimizers': [Muon([torch.ones(2, 2)]).state_dict()]}
OF_ADAM = {**STATE, 'optimizers': [torch.optim.Adam([torch.ones(2, 2)]).state_dict()]}


STATES = 'experiments/tiny/training_states'
MALFORMED = 'error path:resume_state: experiments/tiny/training_states/2.state is not a training state: '


def save_state(folder, content):
    """A state of iteration 2 or of its own, beside the network of iteration 2."""
    for name in ('models', 'training_states'):
        (folder / 'experiments' / 'tiny' / name).mkdir(parents=True)
    checkpoints.write(folder / 'experiments/tiny/models/net_g_2.pth', {})
    path = f'{STATES}/{content.get("iter", 2) if isinstance(content.get("iter"), int) else 2}.state'
    checkpoints.write(folder / path, copy.deepcopy(content))
    return path


@pytest.mark.parametrize(
    ('state', 'lines'),
    [
        (STATE, []),
        (OF_ADAM, []),
        (OF_MUON, ['error train:optim_g:type: must be that of the state to resume, Muon, got Adam']),
        ({**STATE, 'iter': 3}, ['error path:resume_state: experiments/tiny/models/net_g_3.pth is missing']),
        ({'iter': 2}, [f'{MALFORMED}it has no epoch, optimizers, schedulers']),
        ({**STATE, 'iter': '2'}, [f'{MALFORMED}iter is a str']),
        ({**STATE, 'optimizers': {}}, [f'{MALFORMED}optimizers is a dict']),
        ({**STATE, 'optimizers': [{'state': {}}]}, [f'{MALFORMED}an optimizer has no param_groups']),
        ({**STATE, 'networks': ['net_g_2.pth']}, [f'{MALFORMED}networks must name the network files']),
        ({**STATE, 'networks': {'../models/net_g_2.pth': 'ab'}}, [f'{MALFORMED}networks must name the network files']),
        ({**STATE, 'networks': {'net_g_2.pth': 3}}, [f'{MALFORMED}networks must name the network files']),
        (
            {**STATE, 'networks': {'net_g_2.pth': 'ab'}},
            ['error path:resume_state: experiments/tiny/models/net_g_2.pth is damaged, or not the file'],
        ),
    ],
    ids=['fits', 'adam', 'muon', 'no-network', 'no-state', 'iter-text', 'optimizers-mapping', 'no-groups']
    + ['networks-list', 'networks-elsewhere', 'networks-number', 'networks-of-another'],
)
def test_state(place, state, lines):
    path = save_state(place, state)
    # It does not fit, and is not read.
    found = said(changed(TRAIN, {**save([1]), 'path:resume_state': path}))
    assert len(found) == len(lines)
    assert all(text.startswith(line) for text, line in zip(found, lines, strict=True)), found


def test_state_after_the_last_iteration(place):
    path = save_state(place, {**STATE, 'iter': 2})
    (line,) = said(changed(TRAIN, {'path:resume_state': path, 'train:total_iter': 2}))
    assert line.startswith('warning path:resume_state: is the state of iteration 2, and total_iter is 2')


def test_state_of_another_experiment_is_looked_for_beside_its_networks(place):
    path = save_state(place, STATE)
    assert said(changed(TRAIN, {'path:resume_state': path, 'name': 'other'})) == []


@pytest.mark.parametrize('kind', ['state', 'weights'])
def test_file_with_a_flipped_bit_in_its_directory_is_damaged(place, kind):
    path, changes = save_state(place, OF_ADAM), {}
    if kind == 'weights':
        path = 'a.pth'
        checkpoints.write(place / path, {'params': network()})
    content = bytearray((place / path).read_bytes())
    at = content.rindex(b'PK\1\2') + 38  # the attributes of the last record
    content[at] ^= 0x10
    (place / path).write_bytes(content)
    changes = {'path:resume_state' if kind == 'state' else 'path:pretrain_network_g': path}
    (line,) = said(changed(TRAIN, changes))
    assert f'{path} is damaged' in line
