"""The plugin in other people's projects: BasicSR's own pipelines, and next to another plugin."""

import os
import subprocess
import sys

import pytest

from .tiny_project import TEST, TRAIN, changed, write_images, write_options

PIPELINES = """
import os
import sys

import spinsr.archs
from basicsr.test import test_pipeline
from basicsr.train import train_pipeline

if __name__ == '__main__':
    sys.argv = ['train.py', '-opt', 'train.yml']
    train_pipeline(os.getcwd())
    sys.argv = ['train.py', '-opt', 'train.yml', '--auto_resume', '--force_yml', 'train:total_iter=6']
    train_pipeline(os.getcwd())
    sys.argv = ['test.py', '-opt', 'test.yml']
    test_pipeline(os.getcwd())
"""

OTHER_PLUGIN = """
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
from torch import nn


@ARCH_REGISTRY.register()
class OtherNet(nn.Conv2d):
    pass


@ARCH_REGISTRY.register(suffix='other')
class SPIN(nn.Conv2d):
    pass


@MODEL_REGISTRY.register()
class OtherModel:
    pass
"""

BESIDE = """
import importlib

import spinsr
import spinsr.archs
import other_plugin.archs
import spinsr.archs
from spinsr import compat

compat.install()
importlib.reload(spinsr.archs)

from basicsr.archs import build_network, rcan_arch
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY

names = set(ARCH_REGISTRY.keys())
assert {'SPIN', 'SAN', 'RCAN_spinsr', 'RCAN', 'OtherNet', 'SPIN_other'} <= names, names
assert ARCH_REGISTRY.get('SPIN').__module__ == 'spinsr.archs.spin_arch'
assert ARCH_REGISTRY.get('SPIN_other').__module__ == 'other_plugin.archs'
assert ARCH_REGISTRY.get('RCAN') is rcan_arch.RCAN
assert 'OtherModel' in MODEL_REGISTRY
"""


def run(folder, code):
    (folder / 'script.py').write_text(code)
    return subprocess.run(
        [sys.executable, 'script.py'],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(folder)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_basicsrs_own_pipelines_train_resume_and_test(tmp_path):
    write_images(tmp_path, 4)
    write_options(tmp_path / 'train.yml', changed(TRAIN, {'model_type': 'SRModel'}))
    weights = {'model_type': 'SRModel', 'path:pretrain_network_g': 'experiments/tiny/models/net_g_6.pth'}
    write_options(tmp_path / 'test.yml', changed(TEST, weights))

    done = run(tmp_path, PIPELINES)

    assert done.returncode == 0, done.stderr
    assert 'Resuming training from epoch: 1, iter: 4.' in done.stderr
    assert (tmp_path / 'experiments' / 'tiny' / 'training_states' / '6.state').is_file()
    assert len(list((tmp_path / 'results' / 'tiny_test' / 'visualization' / 'pairs').iterdir())) == 4


@pytest.mark.slow
def test_next_to_another_plugin(tmp_path):
    package = tmp_path / 'other_plugin'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / 'archs.py').write_text(OTHER_PLUGIN)

    done = run(tmp_path, BESIDE)

    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
