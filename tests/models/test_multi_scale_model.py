"""Training for several scales: which scale a step takes, and that the network has its own again afterwards."""

import pytest
import torch

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.models import build_model

from spinsr.launch import register
from spinsr.utils.errors import OptionError

register()


def build(multi_scale=True, scales=(2, 3, 4), **dataset):
    return build_model(
        {
            'model_type': 'MultiScaleModel',
            'num_gpu': 0,
            'dist': False,
            'is_train': True,
            'rank': 0,
            'manual_seed': 5,
            'scale': 4,
            'network_g': {'type': 'CARN', 'num_feat': 4, 'multi_scale': multi_scale, 'upscale': 4},
            'path': {},
            'datasets': {'train': {'scales': list(scales), 'batch_size_per_gpu': 1, **dataset}},
            'train': {
                'optim_g': {'type': 'Adam', 'lr': 1e-3},
                'scheduler': {'type': 'MultiStepLR', 'milestones': [9]},
                'pixel_opt': {'type': 'L1Loss'},
            },
        }
    )


def batch():
    pairs = {
        f'{name}_x{s}': torch.rand(1, 3, 4 * factor, 4 * factor)
        for s in (2, 3)
        for name, factor in (('lq', 1), ('gt', s))
    }
    return {'lq': torch.rand(1, 3, 4, 4), 'gt': torch.rand(1, 3, 16, 16), **pairs}


def test_each_step_takes_the_scale_of_its_iteration_and_trains_its_upsampler_alone():
    model = build()
    scales = [model.scale_of(iteration) for iteration in range(1, 31)]
    assert {scales.count(scale) > 4 for scale in (2, 3, 4)} == {True}
    assert scales == [build().scale_of(iteration) for iteration in range(1, 31)]
    for iteration in (scales.index(scale) + 1 for scale in (2, 3, 4)):
        before = {name: value.clone() for name, value in model.net_g.upsample.state_dict().items()}
        model.feed_data(batch())
        model.optimize_parameters(iteration)
        after = model.net_g.upsample.state_dict()
        changed = {name.split('.')[0] for name, value in before.items() if not torch.equal(value, after[name])}
        assert changed == {f'x{scales[iteration - 1]}'}
        assert model.net_g.upscale == 4


def test_what_cannot_be_trained_so_is_refused():
    with pytest.raises(OptionError, match='multi_scale: true'):
        build(multi_scale=False)
    with pytest.raises(OptionError, match='datasets:train:scales'):
        build(scales=())
    with pytest.raises(OptionError, match=r'among those of CARN, \(2, 3, 4\), got \(2, 8\)'):
        build(scales=(2, 8))
    with pytest.raises(OptionError, match='gt_sizes: must be left out with scales'):
        build(gt_sizes=[8, 16])
