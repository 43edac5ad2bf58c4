"""The losses that SRModel does not have, in training: SpinsrModel's, a teacher's, and the steps of UncertaintyModel."""

import copy

import pytest
import torch

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.losses import build_loss
from basicsr.models import build_model

from spinsr.models.registration import register
from spinsr.utils.errors import OptionError

from ..tiny_project import TRAIN, changed

register()

TV = {'train:tv_opt': {'type': 'WeightedTVLoss', 'loss_weight': 0.5}}
FFT = {'train:fft_opt': {'type': 'FFTLoss', 'loss_weight': 0.05}}
CONTRASTIVE = {'train:contrastive_opt': {'type': 'ContrastiveLoss', 'loss_weight': 0.1, 'num_feat': 4}}
DISTILL = {'train:distill_opt': {'type': 'L1Loss', 'loss_weight': 0.5, 'reduction': 'mean'}}
TEACHER_ALONE = {**DISTILL, 'train:pixel_opt': None}
THEN_HR = {**DISTILL, 'train:distill_iters': 2, 'train:pixel_after': 2}
SMALL = {'num_feat': 4, 'num_block': 1, 'squeeze_factor': 2, 'upscale': 2}
ESTIMATION = {
    'model_type': 'UncertaintyModel',
    'network_s': {'type': 'RDBESA', **SMALL},
    'train:pixel_opt:type': 'UncertaintyEstimationLoss',
}
DRIVEN = {**ESTIMATION, 'train:pixel_opt:type': 'UncertaintyDrivenLoss', 'path:pretrain_network_s': 'net_s.pth'}


def build(**changes):
    options = changed(TRAIN, {'dist': False, 'is_train': True, 'rank': 0, **changes})
    torch.manual_seed(0)
    return build_model({**copy.deepcopy(options), 'num_gpu': 0, 'world_size': 1})


def batch(size=4):
    generator = torch.Generator().manual_seed(1)
    sides = {'lq': 8, 'gt': 16, 'teacher': 16}
    return {name: torch.rand(size, 3, side, side, generator=generator) for name, side in sides.items()}


def step(model, data=None, iteration=1):
    model.update_learning_rate(iteration)
    model.feed_data(data or batch())
    model.optimize_parameters(iteration)
    return model


def gradients(model):
    return [parameter.grad for parameter in model.net_g.parameters()]


@pytest.fixture
def estimator(tmp_path, monkeypatch):
    """The file of an estimator, as DRIVEN names it."""
    monkeypatch.chdir(tmp_path)
    net = build(**ESTIMATION).net_s
    torch.save({'params': net.state_dict()}, 'net_s.pth')
    return net


def test_losses_are_called_with_what_they_need():
    model = build(**FFT, **TV, **CONTRASTIVE, **DISTILL)
    data = batch()
    with torch.no_grad():
        output = model.net_g(data['lq'])
    expected = {
        'l_pix': (output - data['gt']).abs().mean(),
        'l_fft': build_loss(FFT['train:fft_opt'])(output, data['gt']),
        'l_tv': build_loss(TV['train:tv_opt'])(output),
        'l_contrastive': build_loss(CONTRASTIVE['train:contrastive_opt'])(output, data['gt'], data['lq']),
        'l_distill': 0.5 * (output - data['teacher']).abs().mean(),
    }
    assert step(model, data).log_dict == pytest.approx({key: loss.item() for key, loss in expected.items()}, rel=1e-5)


@pytest.mark.parametrize('loss', [TV, CONTRASTIVE, DISTILL], ids=['tv', 'contrastive', 'distill'])
def test_a_loss_more_changes_the_gradient(loss):
    plain, more = step(build()), step(build(**loss))
    assert not torch.allclose(gradients(plain)[0], gradients(more)[0], rtol=1e-2)


@pytest.mark.parametrize(
    'changes',
    [FFT, TV, CONTRASTIVE, DISTILL, TEACHER_ALONE, ESTIMATION, {**ESTIMATION, 'train:pixel_opt:reduction': 'sum'}],
    ids=['fft', 'tv', 'contrastive', 'distill', 'teacher-alone', 'estimation', 'estimation-sum'],
)
def test_accumulated_parts_give_the_batch(changes):
    whole, parted = step(build(**changes)), step(build(**changes, **{'train:accumulate': 2}))
    one, other = (torch.cat([gradient.flatten() for gradient in gradients(model)]) for model in (whole, parted))
    torch.testing.assert_close(one, other, rtol=0, atol=3e-6 * one.abs().max().item())
    assert whole.log_dict == pytest.approx(parted.log_dict, rel=1e-5)


def test_a_teacher_alone_is_trained_on_as_hr_would_be():
    data = batch()
    as_hr = step(build(**{'train:pixel_opt': DISTILL['train:distill_opt']}), {**data, 'gt': data['teacher']})
    for given in (data, {name: data[name] for name in ('lq', 'teacher')}):
        alone = step(build(**TEACHER_ALONE), given)
        assert alone.log_dict == {'l_distill': as_hr.log_dict['l_pix']}
        assert all(map(torch.equal, gradients(alone), gradients(as_hr)))


@pytest.mark.parametrize('more', [{}, {'train:accumulate': 2}], ids=['at-once', 'in-two-parts'])
def test_teacher_then_hr(more):
    model = build(**THEN_HR, **more)
    losses = [list(step(model, batch(), iteration).log_dict) for iteration in (1, 2, 3, 4)]
    assert losses == [['l_distill'], ['l_distill'], ['l_pix'], ['l_pix']]


def test_patches_that_grow_are_cut_out_of_the_output_too():
    sizes = {'gt_sizes': [8, 16], 'iters': [2, 2], 'mini_batch_sizes': [4, 2], 'batch_size_per_gpu': 4}
    changes = {f'datasets:train:{key}': value for key, value in sizes.items()}
    model, data = build(**DISTILL, **changes), batch()
    data['teacher'] = data['gt'] / 2
    for iteration, (images, side) in enumerate([(4, 8), (4, 8), (2, 16)], start=1):
        step(model, data, iteration)
        assert model.targets['teacher'].shape == (images, 3, side, side)
        assert torch.equal(model.targets['teacher'], model.targets['gt'] / 2)


def test_an_iteration_that_is_not_finite_through_the_teacher_is_skipped():
    model, data = build(**DISTILL), batch()
    before = copy.deepcopy(model.net_g.state_dict())
    data['teacher'][0, 0, 0, 0] = float('nan')
    step(model, data)
    assert model.nonfinite == 1
    torch.testing.assert_close(model.net_g.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('changes', 'missing', 'line'),
    [
        (DISTILL, 'teacher', 'train:distill_opt needs the outputs of a teacher, .* datasets:train .* gives none'),
        (DISTILL, 'gt', 'train:pixel_opt needs HR'),
        ({**TEACHER_ALONE, **CONTRASTIVE}, 'gt', 'train:contrastive_opt needs HR'),
    ],
    ids=['teacher', 'hr', 'hr-of-another-loss'],
)
def test_what_a_loss_needs_and_the_data_lacks_is_said_in_the_first_iteration(changes, missing, line):
    data = batch()
    del data[missing]
    with pytest.raises(OptionError, match=line):
        step(build(**changes), data)


def test_validation_needs_no_teacher():
    model = step(build(**TEACHER_ALONE))
    model.feed_data({name: value for name, value in batch().items() if name != 'teacher'})
    model.test()
    assert model.get_current_visuals()['result'].shape == (4, 3, 16, 16)


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
@pytest.mark.parametrize('changes', [{**FFT, **TV, **CONTRASTIVE, **DISTILL}, ESTIMATION], ids=['more', 'estimation'])
def test_losses_are_in_float32_under_autocast(changes, precision):
    exact, half = step(build(**changes)), step(build(**changes, **{'train:precision': precision}))
    assert half.log_dict == pytest.approx(exact.log_dict, rel=2e-2)
    assert half.nonfinite == 0


def test_estimator_learns_with_the_network_in_the_first_step():
    model = build(**ESTIMATION)
    before = copy.deepcopy(model.net_s.state_dict())
    step(model)
    after = model.net_s.state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in ('conv_first.weight', 'conv_last.weight'))
    assert len(model.optimizer_g.param_groups) == 2
    assert model.get_current_learning_rate() == [1e-3, 1e-3]


def test_estimator_learns_by_muon():
    model = build(**ESTIMATION, **{'train:optim_g': {'type': 'Muon', 'lr': 0.01}})
    before = copy.deepcopy(model.net_s.state_dict())
    step(model)
    after = model.net_s.state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in ('conv_first.weight', 'conv_last.weight'))
    matrices, others = ({id(p) for p in group['params']} for group in model.optimizer_g.param_groups)
    for net in (model.net_g, model.net_s):
        assert {id(net.conv_first.weight), id(net.conv_last.weight)} <= others
        assert {id(p) for p in net.parameters()} <= matrices | others and matrices & {id(p) for p in net.parameters()}


@pytest.mark.slow
def test_estimator_learns_where_the_error_is_large():
    """The left half of the target is out of reach: after some steps s is larger there."""
    model, data = build(**ESTIMATION, **{'train:optim_g:lr': 1e-2}), batch()
    data['gt'][..., :8] = torch.rand(4, 3, 16, 8).round()
    data['gt'][..., 8:] = 0.5
    data['lq'][..., :4] = 0
    data['lq'][..., 4:] = 1
    [step(model, data) for _ in range(60)]
    s = model.log_scale(data['lq'])
    assert s[..., :6].mean() > s[..., 10:].mean() + 0.5


def test_scale_has_the_authors_lower_bound():
    model = build(**ESTIMATION)
    torch.nn.init.constant_(model.net_s.conv_last.bias, -50)
    assert model.log_scale(batch()['lq']).min() == -1


def test_estimator_stands_still_in_the_second_step(estimator):
    model = step(build(**DRIVEN))
    torch.testing.assert_close(model.net_s.state_dict(), estimator.state_dict(), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in model.net_s.parameters())
    assert len(model.optimizer_g.param_groups) == 1
    assert not model.net_s.training


def test_second_step_weights_the_error(estimator):
    model, data = build(**DRIVEN), batch()
    with torch.no_grad():
        error = (model.net_g(data['lq']) - data['gt']).abs()
        s = torch.nn.functional.elu(estimator(data['lq']))
    expected = ((s - s.amin((2, 3), keepdim=True) + 1) * error).mean().item()
    assert step(model, data).log_dict['l_pix'] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({**ESTIMATION, 'train:pixel_opt:type': 'L1Loss'}, 'train:pixel_opt:type must be one of .*L1Loss'),
        ({**ESTIMATION, 'train:pixel_opt': None}, 'train:pixel_opt:type must be one of .*None'),
        ({**ESTIMATION, 'network_s': None}, 'needs the section network_s'),
        ({**DRIVEN, 'path:pretrain_network_s': None}, 'path:pretrain_network_s must name'),
        ({'train:tv_opt': 0.5}, 'train:tv_opt must be a section'),
        ({'train:distill_opt': {'type': 'ContrastiveLoss'}}, 'ContrastiveLoss needs .*lq, but .* gives it output, tea'),
        ({'train:distill_iters': 2}, 'train:distill_iters: needs distill_opt'),
        (
            {**DISTILL, 'train:distill_iters': 0},
            'train:distill_iters must be a whole number of at least 1, or ~, got 0',
        ),
        (
            {'train:pixel_opt': {'type': 'UncertaintyEstimationLoss'}},
            'train:pixel_opt: .* needs pred, target, log_scale',
        ),
        (
            {'train:pixel_opt': {'type': 'ContrastiveLoss'}},
            'ContrastiveLoss needs .*lq, but SpinsrModel gives it output, gt',
        ),
        ({'train:tv_opt': {'type': 'L1Loss'}}, 'train:tv_opt: L1Loss needs pred, target, but .* gives it output$'),
        ({'train:contrastive_opt': {'type': 'L1Loss'}}, 'train:contrastive_opt: L1Loss needs pred, target'),
    ],
    ids=['loss', 'no-loss', 'no-estimator', 'no-weights', 'no-section', 'distill-with-lr', 'no-teacher', 'none']
    + ['uncertainty-without-estimator', 'contrastive-as-pixel', 'pixel-as-tv', 'pixel-as-contrastive'],
)
def test_wrong_options_are_one_line(changes, line):
    with pytest.raises(OptionError, match=line):
        build(**changes)


def test_estimator_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'params': {'weight': torch.zeros(1)}}, 'net_s.pth')
    with pytest.raises(OptionError, match='^path:pretrain_network_s: net_s.pth cannot be loaded into RDBESA: '):
        build(**DRIVEN)


def test_checkpoint_holds_both_networks_and_old_ones_go(tmp_path):
    model = build(**ESTIMATION, **{'logger:keep_last': 1})
    model.opt['path'] |= {'models': str(tmp_path), 'training_states': str(tmp_path)}
    model.save(0, 1)
    model.save(0, 2)
    assert {path.name for path in tmp_path.iterdir()} == {'net_g_2.pth', 'net_s_2.pth', '2.state'}
    assert set(torch.load(tmp_path / '2.state', weights_only=True)['networks']) == {'net_g_2.pth', 'net_s_2.pth'}
