"""Where BasicSR and torchvision are not installed: what needs only the networks works, the rest says how to get it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from spinsr.archs import ARCH_REGISTRY
from spinsr.archs.registry import Registry
from spinsr.convert import write_checkpoint
from spinsr.data import image_file

# As if they were not installed, in worker processes too.
HIDE = "import sys\nsys.modules['basicsr'] = sys.modules['torchvision'] = None\n"

# One process for all, since each import of torch costs seconds.
SCRIPT = """
import contextlib, io, json, sys

import numpy as np
import spinsr
import spinsr.test, spinsr.train
from spinsr.archs import ARCH_REGISTRY
from spinsr.cli import main

def run(function, arguments):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        status = function(arguments.split())
    return [status, errors.getvalue().splitlines()[-1:]]

results = {'registered': sorted(ARCH_REGISTRY.keys())}
net = spinsr.load(weights='net.safetensors')
results['shape'] = spinsr.upscale(np.zeros((8, 9, 3), np.uint8), net).shape
for line in COMMANDS:
    results[line] = run(main, line)
try:
    spinsr.load('EDSR', weights=None)
except ValueError as error:
    results['EDSR'] = str(error)
results['train'] = run(spinsr.train.main, '-opt train_SPIN_x4_sample.yml')
results['test'] = run(spinsr.test.main, '-opt test_SPIN_x4_sample.yml')
results['check'] = run(main, 'check -opt train_SPIN_x4_sample.yml')
results['imported'] = [name for name in sys.modules if name.startswith(('basicsr.', 'torchvision.'))]
json.dump(results, open('results.json', 'w'))
"""
COMMANDS = [
    'upscale images --weights net.safetensors -o large',
    'evaluate --benchmark bench --weights net.safetensors --scale 2 --json scores.json',
    'report bench --weights net.safetensors -o page.html',
    'superpixels images/a.png --weights net.safetensors -o pictures',
    'complexity --weights net.safetensors --no-latency --size 8x9',
    'convert net.safetensors net.pth',
    'export net.safetensors other.safetensors',
    'prepare images images --scale 2 -o data --workers 1',
    'prepare teacher data --weights net.safetensors --scale 2',
]


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('without')
    (folder / 'hidden').mkdir()
    (folder / 'hidden' / 'sitecustomize.py').write_text(HIDE)
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    image_file.write_png(folder / 'images' / 'a.png', image)
    image_file.write_png(folder / 'bench' / 'HR' / 'a.png', image)
    net = ARCH_REGISTRY.get('SPIN')(num_feat=8, num_block=1, qk_dim=4, mlp_dim=8, stoken_size=[12], upscale=2)
    write_checkpoint(folder / 'net.safetensors', net.state_dict())
    (folder / 'script.py').write_text(f'COMMANDS = {COMMANDS!r}\n' + SCRIPT)
    path = os.pathsep.join([str(folder / 'hidden'), *filter(None, [os.environ.get('PYTHONPATH')])])
    done = subprocess.run(
        [sys.executable, 'script.py'],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / 'results.json').read_text())


@pytest.mark.slow
def test_networks_register_and_run(results):
    ours = sorted(name for name, cls in ARCH_REGISTRY if cls.__module__.startswith('spinsr.archs.'))
    assert results['registered'] == ours
    assert results['shape'] == [16, 18, 3]
    assert results['imported'] == []


def test_commands_work(results):
    assert {line: results[line] for line in COMMANDS if results[line][0] != 0} == {}


def test_training_says_how_to_get_basicsr(results):
    advice = 'error: BasicSR is not installed; get it with: spinsr install-basicsr'
    assert results['train'] == [1, [f'spinsr.train: {advice}']]
    assert results['test'] == [1, [f'spinsr.test: {advice}']]
    assert results['check'] == [1, [f'spinsr check: {advice}']]


def test_networks_of_basicsr_say_how_to_get_it(results):
    assert results['EDSR'].endswith('cannot be built: BasicSR is not installed; get it with: spinsr install-basicsr')


def test_registry_is_used_as_basicsrs_is():
    registry = Registry('arch')
    registry.register(torch.nn.Identity)
    assert registry.register(suffix='ours')(torch.nn.Linear) is torch.nn.Linear
    assert list(registry) == [('Identity', torch.nn.Identity), ('Linear_ours', torch.nn.Linear)]
    assert list(registry.keys()) == ['Identity', 'Linear_ours']
    assert registry.get('Identity') is torch.nn.Identity
    assert 'Linear' not in registry
    with pytest.raises(ValueError, match='Identity is already registered'):
        registry.register(torch.nn.Identity)
    with pytest.raises(KeyError, match='Linear'):
        registry.get('Linear')
