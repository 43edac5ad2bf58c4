"""Muon: its arithmetic, and what a section optim_g makes of a network."""

import copy
import math

import pytest
import torch
from torch import nn

from spinsr.training import muon
from spinsr.training.muon import Muon, orthogonalize
from spinsr.training.option_files import OptionError

SHAPES = [(4, 6), (4, 6), (6, 4), (5, 2, 3, 3), (4, 6), (2, 5, 1, 3)]


def tensors(shapes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def parameters(dtype=torch.float64, shapes=SHAPES):
    return [nn.Parameter(value) for value in tensors(shapes, dtype=dtype)]


def step(params, seed, *optimizers):
    for p, gradient in zip(params, tensors([p.shape for p in params], seed), strict=True):
        p.grad = gradient.to(p)
    for optimizer in optimizers:
        optimizer.step()


def by_the_formula(weight, gradients, lr, momentum, nesterov, weight_decay):
    """Keller Jordan's steps of one tensor, written down in float64."""
    w, moving = weight.double().flatten(1), 0
    for gradient in gradients:
        g = gradient.double().flatten(1)
        moving = momentum * moving + g
        u = g + momentum * moving if nesterov else moving
        x = u / u.norm()
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        w = w - lr * weight_decay * w - lr * math.sqrt(max(1, w.shape[0] / w.shape[1])) * x
    return w.view(weight.shape)


@pytest.mark.parametrize(('dtype', 'atol'), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize(('nesterov', 'weight_decay'), [(True, 0.0), (False, 0.1)])
def test_steps_are_those_of_the_formula(dtype, atol, nesterov, weight_decay):
    params, seeds = parameters(dtype), (1, 2, 3)
    options = {'lr': 0.02, 'momentum': 0.9, 'nesterov': nesterov, 'weight_decay': weight_decay}
    optimizer = Muon([{'params': params, **options}])
    for seed in seeds:
        step(params, seed, optimizer)
    for index, value in enumerate(tensors(SHAPES, dtype=dtype)):
        gradients = [tensors(SHAPES, seed, dtype)[index] for seed in seeds]
        expected = by_the_formula(value, gradients, **options)
        torch.testing.assert_close(params[index].double(), expected, rtol=0, atol=atol)


def test_matrices_of_a_shape_together_are_as_one_by_one():
    together, alone = parameters(torch.float32), parameters(torch.float32)
    optimizer, optimizers = Muon([{'params': together}]), [Muon([{'params': [p]}]) for p in alone]
    for seed in (1, 2):
        step(together, seed, optimizer)
        step(alone, seed, *optimizers)
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_steps_are_the_same_bits_again():
    one, other = ([nn.Parameter(value) for value in tensors([(40, 80), (40, 80)], dtype=torch.float32)] for _ in 'ab')
    for params in (one, other):
        step(params, 1, Muon([{'params': params}]))
    assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


@pytest.mark.parametrize('shape', [(2, 20, 30), (3, 30, 20), (1, 8, 8)], ids=str)
def test_singular_values_come_near_one_and_vectors_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = orthogonalize(matrices)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ result @ right.mT
    diagonal = found.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found, torch.diag_embed(diagonal), rtol=0, atol=1e-10)
    # Those below a hundredth of the norm may not have come so far.
    reached = diagonal[values > 0.01 * matrices.norm(dim=(1, 2))[:, None]]
    assert reached.min() > 0.6 and reached.max() < 1.3


@pytest.mark.parametrize('value', [0.0, 1e-30], ids=['zero', 'tiny'])
def test_gradient_without_a_norm_moves_nothing(value):
    p = nn.Parameter(torch.ones(2, 3))
    p.grad = torch.full_like(p, value)
    Muon([p]).step()
    assert torch.equal(p, torch.ones(2, 3))


@pytest.mark.parametrize('weight_decay', [0.0, 0.1])
def test_the_others_have_adamw(weight_decay):
    ours, theirs = (parameters(torch.float32, [(3,), (2, 3), ()]) for _ in 'ab')
    options = {'lr': 0.01, 'betas': (0.9, 0.99), 'weight_decay': weight_decay}
    optimizer = Muon([{'params': ours, 'use_muon': False, **options}])
    reference = torch.optim.AdamW(theirs, **options)
    for seed in (1, 2, 3):
        step(ours, seed)
        step(theirs, seed)
        if seed == 2:  # a tensor that has missed a step has its own bias correction
            ours[0].grad = theirs[0].grad = None
        optimizer.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_memory_format_changes_nothing():
    plain, last = (nn.Parameter(value) for value in tensors([(4, 6, 3, 3)] * 2, dtype=torch.float32))
    last.data = plain.data.contiguous(memory_format=torch.channels_last)
    for p in (plain, last):
        optimizer = Muon([p])
        p.grad = tensors([p.shape], 1)[0].to(p).contiguous(memory_format=torch.channels_last)
        optimizer.step()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-6)


def test_weights_in_a_half_type_are_orthogonalized_in_float32():
    half, single = (nn.Parameter(value) for value in tensors([(4, 6)] * 2, dtype=torch.bfloat16))
    single.data = half.data.float()
    for p in (half, single):
        p.grad = tensors([p.shape], 1)[0].bfloat16().to(p.dtype)
        Muon([{'params': [p], 'momentum': 0.0, 'lr': 1.0}]).step()
    torch.testing.assert_close(half.float(), single, rtol=2**-7, atol=2**-7)


def test_state_is_loaded_bit_for_bit():
    params = parameters(torch.float32, [(4, 6), (3,)])
    optimizer = Muon([{'params': params[:1]}, {'params': params[1:], 'use_muon': False}])
    step(params, 1, optimizer)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    other = Muon([{'params': others[:1], 'lr': 7}, {'params': others[1:], 'use_muon': False}])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (2, 3):
        step(params, seed, optimizer)
        step(others, seed, other)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert other.param_groups[0]['lr'] == 0.01


def test_closure_is_called_with_gradients():
    p = nn.Parameter(torch.ones(2, 2))

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert Muon([p]).step(closure) == 4
    assert not torch.equal(p, torch.ones(2, 2))


def test_vector_in_a_group_of_muon_is_refused():
    with pytest.raises(ValueError, match=r'two or more dimensions, got \(3,\)'):
        Muon(parameters(shapes=[(2, 3), (3,)]))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_first = nn.Conv2d(3, 4, 3)
        self.conv_first_too = nn.Conv2d(4, 4, 3)
        self.body = nn.ModuleList(nn.ModuleDict({'norm': nn.LayerNorm(4), 'attention': Attention()}) for _ in 'ab')
        self.conv_last = nn.Conv2d(4, 3, 3)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(4, 1, 1))
        self.table = nn.Parameter(torch.ones(9, 2))
        self.to_qkv = nn.Linear(4, 12, bias=False)


def of_muon(adam):
    return [name for name, _ in muon.split(Network().named_parameters(), {'adam': adam})[0]]


TABLES, MIDDLE = [f'body.{index}.attention.table' for index in (0, 1)], ['conv_first_too.weight']
LINEAR = [f'body.{index}.attention.to_qkv.weight' for index in (0, 1)]
BODY = [TABLES[0], LINEAR[0], TABLES[1], LINEAR[1]]


@pytest.mark.parametrize(
    ('adam', 'names'),
    [
        (None, [*MIDDLE, TABLES[0], LINEAR[0], TABLES[1], LINEAR[1]]),
        (
            {'params': []},
            ['conv_first.weight', *MIDDLE, TABLES[0], LINEAR[0], TABLES[1], LINEAR[1], 'conv_last.weight'],
        ),
        ({'params': ['conv_first', 'body', 'conv_last.weight']}, MIDDLE),
        ({'params': ['*.table', 'conv_*']}, LINEAR),
        ({'params': ['body.0', 'conv_first_too']}, ['conv_first.weight', TABLES[1], LINEAR[1], 'conv_last.weight']),
    ],
    ids=['first-and-last', 'all', 'modules', 'patterns', 'whole-names'],
)
def test_vectors_and_what_is_listed_go_to_adam(adam, names):
    assert of_muon(adam) == names


def test_muon_comes_first_and_each_group_has_its_options():
    options = {
        'type': 'Muon',
        'lr': 0.02,
        'momentum': 0.9,
        'adam': {'lr': 0.002, 'betas': [0.5, 0.9], 'params': ['conv_first']},
    }
    first, second = muon.build(Network().named_parameters(), options).param_groups
    assert (first['use_muon'], first['lr'], first['momentum'], first['nesterov']) == (True, 0.02, 0.9, True)
    assert (second['use_muon'], second['lr'], second['betas'], second['weight_decay']) == (False, 0.002, [0.5, 0.9], 0)
    assert 'params' in options['adam']


def test_frozen_parameters_may_be_named_and_are_left_out():
    net = Network()
    net.conv_first.requires_grad_(False)
    optimizer = muon.build(net.named_parameters(), {'lr': 0.01, 'adam': {'params': ['conv_first']}})
    trained = {id(p) for group in optimizer.param_groups for p in group['params']}
    assert trained == {id(p) for p in net.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'lr': '1e-2'}, "train:optim_g:lr: must be a number above 0, got '1e-2'"),
        ({'lr': math.inf}, 'train:optim_g:lr: must be'),
        ({'momentum': 1}, 'train:optim_g:momentum: must be a number from 0 to below 1, got 1'),
        ({'nesterov': 1}, 'train:optim_g:nesterov: must be true or false'),
        ({'weight_decay': -0.1}, 'train:optim_g:weight_decay: must be'),
        ({'betas': [0.9, 0.99]}, "train:optim_g:betas: Muon has no keyword 'betas'"),
        ({'adam': [0.9]}, 'train:optim_g:adam: must be a section'),
        ({'adam': {'lr': 0}}, 'train:optim_g:adam:lr: must be'),
        ({'adam': {'betas': [0.9]}}, 'train:optim_g:adam:betas: must be a list of two numbers'),
        ({'adam': {'type': 'Adam'}}, "train:optim_g:adam:type: Muon has no keyword 'type'"),
        ({'adam': {'params': 'conv_first'}}, 'train:optim_g:adam:params: must be a list'),
        (
            {'adam': {'params': ['conv_frist']}},
            "adam:params: 'conv_frist' matches no parameter of the network; did you mean 'conv_first'?",
        ),
        ({'adam': {'params': ['*']}}, 'train:optim_g:adam:params: must leave matrices to Muon'),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_wrong_option_is_one_line(changes, line):
    with pytest.raises(OptionError) as error:
        muon.build(Network().named_parameters(), {'type': 'Muon', 'lr': 0.01, **changes})
    assert line in str(error.value)
