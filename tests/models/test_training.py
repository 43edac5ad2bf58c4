"""The options of SpinsrModel in training: each does what it says, and without them nothing changes."""

import copy
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import spinsr.archs

# isort: split
from basicsr.models import build_model
from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY

import spinsr.models.spinsr_model  # noqa: F401
from spinsr.analysis.superpixels import draw, find_superpixels
from spinsr.archs.rcan_arch import RCAN
from spinsr.training import distributed
from spinsr.utils.errors import OptionError, TrainingError

from ..tiny_project import TRAIN, changed


class Scaled(nn.Module):
    """Two parameters; says in what type it was computed."""

    def __init__(self, upscale: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.conv(x)
        self.seen = y.dtype, y.is_contiguous(memory_format=torch.channels_last)
        return y


if 'Scaled' not in ARCH_REGISTRY:
    ARCH_REGISTRY.register(Scaled)


def build(model_type='SpinsrModel', **changes):
    options = changed(TRAIN, {'model_type': model_type, 'dist': False, 'is_train': True, 'rank': 0, **changes})
    torch.manual_seed(0)
    return build_model({**options, 'num_gpu': 0, 'world_size': 1})


SCALED = {'network_g': {'type': 'Scaled'}}
GREY = {'network_g:num_in_ch': 1, 'network_g:num_out_ch': 1}


def batch(size=4, side=8, scale=2):
    generator = torch.Generator().manual_seed(1)
    lq = torch.rand(size, 3, side, side, generator=generator)
    gt = torch.rand(size, 3, scale * side, scale * side, generator=generator)
    return {'lq': lq, 'gt': gt, 'lq_path': [f'{index}.png' for index in range(size)]}


def train(model, iterations=3, data=None):
    data = data or batch(scale=1 if isinstance(model.net_g, Scaled) else 2)
    for iteration in range(1, iterations + 1):
        model.update_learning_rate(iteration)
        model.feed_data(data)
        model.optimize_parameters(iteration)
    return model


def weights(model):
    return {
        **{f'ema.{name}': value for name, value in model.net_g_ema.state_dict().items()},
        **model.net_g.state_dict(),
    }


def same(one, other, atol=0.0):
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=atol)


@pytest.mark.parametrize('loss', ['mean', 'sum'])
def test_without_options_it_computes_what_srmodel_does(loss):
    changes = {'train:pixel_opt:reduction': loss}
    ours, basicsr = train(build(**changes)), train(build('SRModel', **changes))
    same(ours, basicsr)
    assert ours.log_dict == basicsr.log_dict


@pytest.mark.parametrize('loss', ['mean', 'sum'])
@pytest.mark.parametrize('parts', [2, 4])
def test_accumulated_parts_give_the_batch(loss, parts):
    changes = {'train:pixel_opt:reduction': loss}
    whole, parted = train(build(**changes), 1), train(build(**changes, **{'train:accumulate': parts}), 1)
    for one, other in zip(whole.net_g.parameters(), parted.net_g.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=3e-6 * one.grad.abs().max().item())
    assert math.isclose(whole.log_dict['l_pix'], parted.log_dict['l_pix'], rel_tol=1e-5)


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(OptionError, match='divisible by train:accumulate, got 4 images and 3'):
        train(build(**{'train:accumulate': 3}))


GROWING = {'gt_sizes': [4, 12, 16], 'iters': [2, 3, 1], 'mini_batch_sizes': [4, 3, 1]}


def growing(**others):
    part = {**GROWING, 'batch_size_per_gpu': 4, **others}
    return {f'datasets:train:{key}': value for key, value in part.items()}


def seen_of(model, iterations):
    """What the model takes of one batch in each iteration, and whether the pairs are still pairs."""
    data = batch()
    data['gt'] = data['lq'].repeat_interleave(2, 2).repeat_interleave(2, 3)
    patches = []
    for iteration in iterations:
        model.feed_data(data)
        model.optimize_parameters(iteration)
        assert torch.equal(model.gt, model.lq.repeat_interleave(2, 2).repeat_interleave(2, 3))
        patches.append(model.lq)
    return data['lq'], patches


@pytest.fixture
def log(caplog, monkeypatch):
    """What BasicSR's logger says, which propagates nothing by itself."""
    monkeypatch.setattr(get_root_logger(), 'propagate', True)
    caplog.set_level('INFO', 'basicsr')
    return caplog


def test_patches_grow(log):
    model = build(**growing())
    _, patches = seen_of(model, range(1, 8))
    assert [tuple(patch.shape) for patch in patches] == [(4, 3, 2, 2)] * 2 + [(3, 3, 6, 6)] * 3 + [(1, 3, 8, 8)] * 2
    assert [line for line in log.messages if 'patches' in line] == [
        'Iteration 1: patches of 4x4 (HR), 4 on each device, since iteration 1.',
        'Iteration 3: patches of 12x12 (HR), 3 on each device, since iteration 3.',
        'Iteration 6: patches of 16x16 (HR), 1 on each device, since iteration 6.',
    ]


@pytest.mark.slow
def test_the_place_of_a_small_patch_is_random_and_that_of_its_iteration():
    changes = growing(gt_sizes=[10], iters=[100], mini_batch_sizes=None)
    whole, patches = seen_of(build(**changes), range(1, 101))
    at = [
        next(
            (top, left)
            for top in range(4)
            for left in range(4)
            if torch.equal(patch, whole[:, :, top : top + 5, left : left + 5])
        )
        for patch in patches
    ]
    assert len(set(at)) == 16
    _, later = seen_of(build(**changes), [57])
    assert torch.equal(later[0], patches[56])
    _, other = seen_of(build(**changes, manual_seed=1), range(1, 21))
    assert any(not torch.equal(*pair) for pair in zip(other, patches, strict=False))


def test_a_stage_has_its_images_on_each_device():
    _, patches = seen_of(build(**growing(batch_size_per_gpu=2, mini_batch_sizes=[2, 2, 1])), [1, 3, 6])
    assert [len(patch) for patch in patches] == [4, 4, 2]


def test_a_small_patch_keeps_the_memory_format():
    model = build(**growing(), **{'train:channels_last': True})
    _, patches = seen_of(model, [1, 3])
    assert all(patch.is_contiguous(memory_format=torch.channels_last) for patch in patches)


def test_a_skipped_iteration_names_the_images_that_were_taken(log):
    data = batch()
    data['lq'][0] = math.nan
    train(build(**growing(mini_batch_sizes=[2, 2, 2])), 1, data)
    assert log.messages[-1].endswith('images: 0.png, 1.png')


@pytest.mark.parametrize('limit', [0.01, 1000.0], ids=['clipped', 'below-the-limit'])
def test_gradient_is_clipped_to_its_norm(limit):
    free, clipped = train(build(), 1), train(build(**{'train:grad_clip': limit}), 1)
    norm = torch.cat([p.grad.flatten() for p in free.net_g.parameters()]).norm()
    factor = min(1, limit / norm)
    assert (factor < 1) == (limit < 1)
    for one, other in zip(free.net_g.parameters(), clipped.net_g.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad * factor, rtol=1e-4, atol=1e-9)


def test_gradient_of_fp16_is_clipped_without_its_scale():
    model = train(build(**SCALED, **{'train:precision': 'fp16', 'train:grad_clip': 0.01}), 1)
    norm = torch.cat([p.grad.flatten() for p in model.net_g.parameters()]).norm().item()
    assert math.isclose(norm, 0.01, rel_tol=1e-3)


@pytest.mark.parametrize(
    ('precision', 'dtype'), [('fp32', torch.float32), ('bf16', torch.bfloat16), ('fp16', torch.float16)]
)
def test_precision_is_that_of_the_network_and_not_of_the_weights(precision, dtype):
    model = train(build(**SCALED, **{'train:precision': precision}))
    assert model.net_g.seen[0] == dtype
    assert all(value.dtype == torch.float32 for value in weights(model).values())
    assert all(p.grad.dtype == torch.float32 for p in model.net_g.parameters())
    same(model, train(build(**SCALED)), atol=3e-3)


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_spin_trains_in_half_precision(precision):
    model = train(build(**{'train:precision': precision}), 20)
    assert model.nonfinite == 0
    assert model.log_dict['l_pix'] < train(build(), 1).log_dict['l_pix']


def test_scale_of_fp16_is_searched_and_saved(tmp_path):
    model = build(**SCALED, **{'train:precision': 'fp16'})
    model.scaler = torch.amp.GradScaler('cpu', init_scale=2.0**40)
    before = weights(build(**SCALED))
    train(model, 1)
    assert model.scaler.get_scale() == 2.0**39
    assert model.nonfinite == 0
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)
    train(model, 40)
    assert not torch.equal(weights(model)['conv.weight'], before['conv.weight'])

    other = build(**SCALED, **{'train:precision': 'fp16'})
    other.resume_training(saved_state(model, tmp_path))
    assert other.scaler.state_dict() == model.scaler.state_dict()


def saved_state(model, folder):
    model.opt['path'] |= {'models': str(folder), 'training_states': str(folder)}
    model.save(0, 1)
    return torch.load(folder / '1.state', weights_only=True)


@pytest.mark.parametrize('value', [float('nan'), float('inf')], ids=str)
@pytest.mark.parametrize('place', ['lq', 'gt', 'gradient'])
@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_step_that_is_not_finite_is_skipped_and_counted(place, value, precision, log):
    model = train(build(**SCALED, **{'train:precision': precision}), 1)
    if precision == 'fp16' and place == 'gradient':
        model.scaler = torch.amp.GradScaler('cpu', init_scale=1.0)  # nothing is left to search
    before, data = {name: tensor.clone() for name, tensor in weights(model).items()}, batch(scale=1)
    hook = None
    if place == 'gradient':
        hook = model.net_g.conv.weight.register_hook(lambda gradient: gradient * value)
    else:
        data[place][2, 1, 3, 3] = value
    model.feed_data(data)
    model.optimize_parameters(2)
    assert (model.nonfinite, model.nonfinite_in_a_row) == (1, 1)
    assert 'iteration 2: loss or gradient not finite' in log.text and '2.png' in log.text
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)
    if hook:
        hook.remove()
    train(model, 1)
    assert (model.nonfinite, model.nonfinite_in_a_row) == (1, 0)


def test_loss_of_another_process_that_is_not_finite_skips_weights_and_ema(monkeypatch):
    model = train(build(**SCALED), 1)
    before = {name: tensor.clone() for name, tensor in weights(model).items()}
    monkeypatch.setattr(distributed, 'all_true', lambda flag: False)
    train(model, 1)
    assert model.nonfinite == 1
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0)


def test_too_many_in_a_row_end_training(tmp_path):
    model = build(**SCALED, **{'train:max_nonfinite': 3})
    data = batch(scale=1)
    data['lq'].fill_(math.nan)
    train(model, 2, data)
    state = saved_state(model, tmp_path)
    other = build(**SCALED, **{'train:max_nonfinite': 3})
    other.resume_training(state)
    with pytest.raises(TrainingError, match='not finite in 3 iterations in a row'):
        train(other, 1, data)


def test_adamw_decays_the_weights_themselves():
    changes = {'train:optim_g': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.5}}
    model = build(**SCALED, **changes)
    assert type(model.optimizer_g) is torch.optim.AdamW
    assert model.optimizer_g.param_groups[0]['weight_decay'] == 0.5
    train(model)


MUON = {'train:optim_g': {'type': 'Muon', 'lr': 0.01, 'adam': {'lr': 1e-3}}}


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
def test_spin_trains_with_muon(precision):
    model = train(build(**MUON, **{'train:precision': precision}), 20)
    assert model.nonfinite == 0
    assert model.log_dict['l_pix'] < train(build(), 1).log_dict['l_pix']


def test_rates_of_muon_and_adam_follow_the_schedule_each_from_its_own():
    cosine = {'type': 'CosineAnnealingRestartLR', 'periods': [4], 'restart_weights': [1]}
    model, rates = build(**MUON, **{'train:scheduler': cosine}), []
    for iteration in (1, 2, 3):
        model.update_learning_rate(iteration, warmup_iter=2)
        rates.append(model.get_current_learning_rate())
        model.feed_data(batch())
        model.optimize_parameters(iteration)
    muon, adam = zip(*rates, strict=True)
    assert muon == pytest.approx([0.005, 0.01 * (1 + 0.5**0.5) / 2, 0.005])
    assert adam == pytest.approx([rate / 10 for rate in muon])


@pytest.mark.parametrize('changes', [{'train:accumulate': 2}, {'train:grad_clip': 1e-3}], ids=['accumulate', 'clip'])
def test_step_of_muon_is_that_of_the_whole_batch_and_of_any_scale(changes):
    models = train(build(**MUON), 1), train(build(**MUON, **changes), 1)
    for one, other in zip(*(model.optimizer_g.param_groups[0]['params'] for model in models), strict=True):
        # A hundredth of a step.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_skipped_step_leaves_the_state_of_muon(precision):
    model = train(build(**MUON, **{'train:precision': precision}), 2)
    before = copy.deepcopy(model.optimizer_g.state_dict()), {k: v.clone() for k, v in weights(model).items()}
    data = batch()
    data['gt'][0, 0, 0, 0] = math.nan
    model.feed_data(data)
    model.optimize_parameters(3)
    assert model.nonfinite == 1
    torch.testing.assert_close((model.optimizer_g.state_dict(), weights(model)), before, rtol=0, atol=0)


def test_unknown_optimizer_stays_basicsrs_error():
    with pytest.raises(NotImplementedError, match='Lion'):
        build(**{'train:optim_g': {'type': 'Lion', 'lr': 1e-3}})


def test_channels_last_reaches_the_network():
    model = train(build(**SCALED, **{'train:channels_last': True}))
    assert model.net_g.seen[1]
    same(model, train(build(**SCALED)), atol=1e-6)


def test_average_starts_as_the_network_where_the_weights_of_another_scale_leave_something_out(tmp_path):
    torch.save({'params': build(**{'network_g:upscale': 3}).net_g.state_dict()}, tmp_path / 'x3.pth')
    start = {'path:pretrain_network_g': str(tmp_path / 'x3.pth'), 'path:strict_load_g': False}
    model = build(**start)
    torch.testing.assert_close(model.net_g_ema.state_dict(), model.net_g.state_dict(), rtol=0, atol=0)


def test_average_starts_as_the_average_of_the_file(tmp_path):
    trained = train(build())
    content = {'params': trained.net_g.state_dict(), 'params_ema': trained.net_g_ema.state_dict()}
    torch.save(content, tmp_path / 'a.pth')
    same(build(**{'path:pretrain_network_g': str(tmp_path / 'a.pth')}), trained)


def test_weights_of_a_network_of_another_project_keep_the_names_of_one_of_spinsr_inside(tmp_path, monkeypatch):
    class Wrapping(nn.Module):
        def __init__(self, num_feat):
            super().__init__()
            self.model = RCAN(num_feat=num_feat, num_group=1, num_block=1, squeeze_factor=2)

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Wrapping', Wrapping)
    network = {'network_g': {'type': 'Wrapping', 'num_feat': 4}}
    trained = {name: value + 1 for name, value in build(**network).net_g.state_dict().items()}
    torch.save({'params': trained}, tmp_path / 'a.pth')
    loaded = build(**network, **{'path:pretrain_network_g': str(tmp_path / 'a.pth')}).net_g.state_dict()
    torch.testing.assert_close(dict(loaded), trained, rtol=0, atol=0)


def test_recomputed_training_gives_the_same():
    model = build(**{'train:recompute': True})
    assert type(model.net_g.blocks[0]) is not type(model.net_g_ema.blocks[0])
    same(train(model), train(build()))


def test_recomputing_goes_with_the_other_options():
    options = {'train:precision': 'bf16', 'train:accumulate': 2, 'train:grad_clip': 1.0}
    same(train(build(**options, **{'train:recompute': True})), train(build(**options)))


def test_recomputing_a_network_without_blocks_is_refused():
    with pytest.raises(OptionError, match='train:recompute: Scaled has no sequence of blocks'):
        build(**SCALED, **{'train:recompute': True})


def test_compile_keeps_the_names_of_the_weights(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, 'compile', lambda self, **_: compiled.append(type(self).__name__))
    model = build(**{'train:compile': True})
    assert compiled == ['SPIN']
    assert set(model.net_g.state_dict()) == set(build().net_g.state_dict())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler on the CPU')
def test_compiled_training_gives_the_same():
    same(train(build(**{'train:compile': True})), train(build()), atol=2e-4)


RCAN_OPTIONS = {
    'network_g': {'type': 'RCAN_spinsr', 'num_feat': 8, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4}
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler on the CPU')
@pytest.mark.parametrize('ema_decay', [0, 0.9])
def test_compiled_training_takes_patches_that_grow_and_images_of_many_sizes(ema_decay):
    options = {**RCAN_OPTIONS, 'network_g:upscale': 2, 'train:ema_decay': ema_decay, **growing()}
    model, plain = (build(**options, **{'train:compile': compiled}) for compiled in (True, False))
    for net in (model, plain):
        for iteration in range(1, 7):
            net.update_learning_rate(iteration)
            net.feed_data(batch())
            net.optimize_parameters(iteration)
    for side in range(4, 16):
        images = batch(size=1, side=side)
        model.feed_data(images)
        plain.feed_data(images)
        model.test()
        plain.test()
        torch.testing.assert_close(model.output, plain.output, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'train:precision': 'half'}, "train:precision must be one of fp32, bf16, fp16, got 'half'"),
        ({'train:grad_clip': -1}, 'train:grad_clip must be a number above 0, or ~, got -1'),
        ({'train:grad_clip': '1'}, "train:grad_clip must be a number above 0, or ~, got '1'"),
        ({'train:accumulate': 1.5}, 'train:accumulate must be a whole number of at least 1, got 1.5'),
        ({'train:max_nonfinite': 0}, 'train:max_nonfinite must be a whole number of at least 1, got 0'),
        ({'train:compile': 1}, 'train:compile must be true or false, got 1'),
        ({'val:tile': True}, 'val:tile must be a whole number of at least 32, or ~, got True'),
        ({'val:self_ensemble': 'yes'}, "val:self_ensemble must be true or false, got 'yes'"),
        ({'val:superpixels': -1}, 'val:superpixels must be a whole number of at least 0, or ~, got -1'),
        ({'val:superpixels': 1}, 'val:superpixels must be a block of SPIN, got 1: SPIN has blocks 0 to 0'),
        ({**SCALED, 'val:superpixels': 0}, 'val:superpixels must be a block of SPIN, got 0: Scaled is not a SPIN'),
        ({**GREY, 'val:superpixels': 0}, 'val:superpixels must be of RGB images, got num_in_ch 1'),
        ({'logger:keep_last': 0}, 'logger:keep_last must be a whole number of at least 1, or ~, got 0'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_wrong_value_is_one_line(changes, line):
    with pytest.raises(OptionError) as error:
        build(**changes)
    assert str(error.value) == line


@pytest.mark.parametrize(('options', 'plus'), [({}, False), ({'val:self_ensemble': True}, True)], ids=['plain', 'plus'])
def test_validation_takes_the_ema_and_the_options(options, plus):
    model = train(build(**options))
    model.feed_data(batch(1, side=6))
    model.test()
    with torch.no_grad():
        plain = model.net_g_ema(model.lq)
    assert model.output.shape == (1, 3, 12, 12)
    assert torch.equal(model.output, plain) != plus
    assert (model.output - plain).abs().mean() < 0.1


@pytest.mark.parametrize('ema', [0, 0.9], ids=['no-ema', 'ema'])
def test_mode_of_the_networks_stays(ema):
    model = build(**{'train:ema_decay': ema})
    model.feed_data(batch(1))
    model.test()
    assert model.net_g.training
    assert not ema or not model.net_g_ema.training


class Board:
    """A SummaryWriter that remembers."""

    def __init__(self):
        self.scalars, self.images = {}, {}

    def add_scalar(self, name, value, iteration):
        self.scalars[name, iteration] = value

    def add_image(self, name, image, iteration):
        self.images[name, iteration] = image


def validate(model, side=6, board=None):
    """What a validation of six images sends; TRAIN has 4 iterations, and BasicSR counts one too many at the end."""
    board = Board() if board is None else board
    images = [{**batch(1, side=side), 'lq_path': [f'lr/{index}x2.png']} for index in range(6)]
    loader = type('Loader', (list,), {'dataset': type('Set', (), {'opt': {'name': 'Set5'}})})(images)
    model.validation(loader, 5, board)
    return board


def test_validation_sends_pictures_and_scalars():
    board = validate(build())
    assert set(board.scalars) == {('metrics/Set5/psnr', 4)}
    assert {key: one.shape for key, one in board.images.items()} == {
        (f'Set5/{index}x2.png', 4): (3, 12, 12) for index in range(4)
    }


def test_validation_without_tensorboard_draws_nothing(monkeypatch):
    model = build(**{'val:superpixels': 0})
    monkeypatch.setattr(model, '_draw_superpixels', lambda *_: pytest.fail('superpixels were drawn'))
    validate(model, board=False)
    assert model.metric_results['psnr'] > 0


def test_validation_sends_superpixels():
    model = train(build(**{'val:superpixels': 0}))
    with torch.no_grad():
        model.net_g.conv_first.weight.neg_()  # what is drawn is the EMA
    images = validate(model, side=12).images
    parts = ['', '_boundaries', '_colours', '_pixel_association', '_pixel_attention']
    parts += ['_superpixel_top', '_superpixel_attention']
    names = [f'{index}x2.png{part}' for index in range(4) for part in parts]
    assert list(images) == [(f'Set5/{name}', 4) for name in names]
    barred = '_pixel_association', '_pixel_attention', '_superpixel_attention'  # beside their colour bar
    shapes = {one.shape for (name, _), one in images.items() if not name.endswith(barred)}
    assert shapes == {(3, 24, 24)}
    assert {one.dtype for one in images.values()} == {torch.float32}
    lr = (batch(1, side=12)['lq'][0] * 255).round().byte().permute(1, 2, 0).numpy()
    found, other = (find_superpixels(lr, net, 0) for net in (model.net_g_ema, model.net_g))
    pictures, others = (draw(one, 2, (6, 6), one.labels[6, 6]) for one in (found, other))
    assert (pictures['colours'] != others['colours']).any()
    sent = [(images[f'Set5/0x2.png{part}', 4] * 255).round().byte().permute(1, 2, 0).numpy() for part in parts[1:]]
    assert all(map(np.array_equal, sent, pictures.values()))


def test_validation_in_tiles_sends_superpixels_of_the_tile_in_the_middle():
    model = build(**{'val:superpixels': 0, 'val:tile': 32})
    images = validate(model, side=37).images
    lr = (batch(1, side=37)['lq'][0, :, 2:34, 2:34] * 255).round().byte().permute(1, 2, 0).numpy()
    expected = draw(find_superpixels(lr, model.net_g_ema, 0), 2)['boundaries']
    assert images['Set5/0x2.png', 4].shape == (3, 74, 74)
    assert torch.equal(images['Set5/0x2.png_boundaries', 4], torch.from_numpy(expected).permute(2, 0, 1) / 255)
