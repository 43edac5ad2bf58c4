"""A project that trains in a second: random image pairs and an option file with a tiny network."""

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

SPIN = {
    'type': 'SPIN',
    'num_feat': 8,
    'num_block': 1,
    'qk_dim': 4,
    'mlp_dim': 8,
    'stoken_size': [4],
    'upscale': 2,
}
_DATA = {'type': 'PairedImageDataset', 'dataroot_gt': 'hr', 'dataroot_lq': 'lr', 'io_backend': {'type': 'disk'}}
_VAL = {
    'save_img': False,
    'suffix': None,
    'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True}},
}
TRAIN = {
    'name': 'tiny',
    'model_type': 'SpinsrModel',
    'scale': 2,
    'num_gpu': 'auto',
    'manual_seed': 0,
    'datasets': {
        'train': {
            'name': 'pairs',
            **_DATA,
            'gt_size': 16,
            'use_hflip': True,
            'use_rot': True,
            'num_worker_per_gpu': 0,
            'batch_size_per_gpu': 2,
        },
        'val': {'name': 'pairs_val', **_DATA},
    },
    'network_g': SPIN,
    'path': {'pretrain_network_g': None, 'param_key_g': 'params', 'strict_load_g': True, 'resume_state': None},
    'train': {
        'ema_decay': 0.9,
        'optim_g': {'type': 'Adam', 'lr': 1e-3},
        'scheduler': {'type': 'MultiStepLR', 'milestones': [2, 3], 'gamma': 0.5},
        'total_iter': 4,
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
    },
    'val': {'val_freq': 1000, **_VAL},
    'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False},
}
# Of a training set that has a teacher's outputs, by write_outputs.
DISTILLATION = {
    'datasets:train:type': 'DistillationDataset',
    'datasets:train:dataroot_teacher': 'teacher',
    'train:distill_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
}
TEST = {
    'name': 'tiny_test',
    'model_type': 'SpinsrModel',
    'scale': 2,
    'num_gpu': 'auto',
    'manual_seed': 0,
    'datasets': {'test_1': {'name': 'pairs', **_DATA}},
    'network_g': SPIN,
    'path': {'pretrain_network_g': None, 'param_key_g': 'params', 'strict_load_g': True},
    'val': {**_VAL, 'save_img': True},
}


def write_images(folder: Path, count: int) -> None:
    """Writes pairs of random 24x24 and 12x12 images into hr/ and lr/."""
    rng = np.random.default_rng(0)
    for name, side in (('hr', 24), ('lr', 12)):
        (folder / name).mkdir()
        for index in range(count):
            image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / name / f'{index}.png'), image)


def write_outputs(folder: Path, count: int, name: str = 'teacher') -> None:
    """Writes random 24x24 images of 16 bits, as a teacher's outputs for those of write_images."""
    rng = np.random.default_rng(1)
    (folder / name).mkdir()
    for index in range(count):
        cv2.imwrite(str(folder / name / f'{index}.png'), rng.integers(0, 65536, (24, 24, 3), dtype=np.uint16))


def changed(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of the options with some values changed or added; the keys are written section:key."""
    options = copy.deepcopy(options)
    for key, value in changes.items():
        *sections, last = key.split(':')
        section = options
        for name in sections:
            section = section[name]
        section[last] = value
    return options


def without(options: dict[str, Any], key: str) -> dict[str, Any]:
    """A copy of the options without one key, written section:key."""
    options = copy.deepcopy(options)
    *sections, last = key.split(':')
    section = options
    for name in sections:
        section = section[name]
    del section[last]
    return options


def write_options(path: Path | str, options: dict[str, Any]) -> str:
    """Writes an option file and returns its path."""
    Path(path).write_text(yaml.safe_dump(copy.deepcopy(options)), encoding='utf-8')
    return str(path)
