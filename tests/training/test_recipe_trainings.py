"""Every network trains from its generated option file, shortened, and resumes with the same bits."""

import cv2
import numpy as np
import pytest
import torch
import yaml

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.utils import logger as basicsr_logger

from spinsr import train
from spinsr.convert import formats
from spinsr.models.spinsr_model import SpinsrModel
from spinsr.training import checkpoints, recipes

from ..networks import BASICSR, NETWORKS
from ..tiny_project import write_options
from .test_exact_resume import Stop, assert_identical, crash

pytestmark = pytest.mark.slow

NAMES = [format.registered for format in formats() if format.recipe is not None]
SIDE = 12  # of LR images


def write_images(folder, scale):
    rng = np.random.default_rng(0)
    for name, side in (('hr', SIDE * scale), ('lr', SIDE)):
        (folder / name).mkdir()
        for index in range(5):
            image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / name / f'{index}.png'), image)


def shortened(file, network):
    """The options of a file: ten iterations, tiny images and a small network."""
    options = yaml.safe_load(file.text())
    options['network_g'] |= network.small
    data = {'dataroot_gt': 'hr', 'dataroot_lq': 'lr', 'io_backend': {'type': 'disk'}, 'gt_size': 8 * file.scale}
    loader = {'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'dataset_enlarge_ratio': 1}
    options['datasets'] = {'train': options['datasets']['train'] | data | loader}
    options['logger'] = {'print_freq': 5, 'save_checkpoint_freq': 5, 'use_tb_logger': False}
    del options['val']
    part = options['train']
    part['total_iter'] = 10
    part['scheduler'] |= {'milestones': [4, 7]} if 'milestones' in part['scheduler'] else {}
    part['scheduler'] |= {'periods': [10], 'restart_weights': [1]} if 'periods' in part['scheduler'] else {}
    part['warmup_iter'] = min(part['warmup_iter'], 7)
    # Still frozen where training is stopped, and not at its end.
    part |= {'freeze_iters': 7} if 'freeze_iters' in part else {}
    return options


def run(options, name):
    return ['-opt', write_options(f'{name}.yml', options | {'name': name})]


def result(name):
    """The last state, and the last weights of the network."""
    folder = f'experiments/{name}'
    state = torch.load(f'{folder}/training_states/10.state', weights_only=True)
    del state[checkpoints.NETWORKS]
    return state, torch.load(f'{folder}/models/net_g_latest.pth', weights_only=True)


@pytest.mark.parametrize('name', NAMES)
def test_ten_iterations_and_resume(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(basicsr_logger, 'initialized_logger', {})
    found = [file for file in recipes.files().values() if file.format.registered == name and file.phase == 'train']
    # The smallest scale starts from scratch.
    file = min((file for file in found if not file.stage), key=lambda file: file.scale)
    write_images(tmp_path, file.scale)
    options = shortened(file, (NETWORKS | BASICSR)[name])
    assert train.main(run(options, 'whole')) == 0
    with monkeypatch.context() as patch:
        crash(patch, SpinsrModel, 'optimize_parameters', 6)
        with pytest.raises(Stop):
            train.main(run(options, 'broken'))

    assert train.main([*run(options, 'broken'), '--auto_resume']) == 0

    assert_identical(result('broken'), result('whole'))
    assert result('whole')[0]['nonfinite'] == [0, 0]
