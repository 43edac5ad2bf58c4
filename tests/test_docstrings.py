"""The examples in docstrings run, and show what they say."""

import doctest
import importlib
import pkgutil

import pytest

import spinsr.modules
import spinsr.ops

MODULES = [
    *(
        module.name
        for module in pkgutil.walk_packages(spinsr.ops.__path__, 'spinsr.ops.')
        if not module.name.endswith(('kernels', 'triton_launch'))
    ),
    *(f'spinsr.modules.{module.name}' for module in pkgutil.iter_modules(spinsr.modules.__path__)),
    'spinsr.data.resample',
    'spinsr.inference.upscale',
    'spinsr.inference.load',
    'spinsr.analysis.superpixels',
    'spinsr.training.muon',
]
OPS = [
    'associate',
    'covariance',
    'gated_feed_forward',
    'intra_superpixel_attention',
    'norm_project',
    'pool',
    'resolve_backend',
    'sqrtm_newton_schulz',
    'superpixel_cross_attention',
    'superpixel_grid',
    'top_n',
    'upsampling_tail',
    'window_attention',
]


@pytest.mark.parametrize('name', MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize('name', OPS)
def test_every_op_has_an_example(name):
    assert '>>>' in getattr(spinsr.ops, name).__doc__
