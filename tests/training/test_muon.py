"""Muon: its arithmetic, and what a section optim_g makes of a network."""

import math

import pytest
import torch
from torch import nn

from spinsr.training.muon import Muon

SHAPES = [(4, 6), (4, 6), (6, 4), (5, 2, 3, 3), (4, 6), (2, 5, 1, 3)]


def tensors(shapes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def step(optimizer, params, seed):
    for p, gradient in zip(params, tensors([p.shape for p in params], seed), strict=True):
        p.grad = gradient.to(p)
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


@pytest.mark.parametrize(('dtype', 'atol'), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(('nesterov', 'weight_decay'), [(True, 0.0), (False, 0.1)])
def test_steps_are_those_of_the_formula(dtype, atol, nesterov, weight_decay):
    values = tensors(SHAPES, dtype=dtype)
    params = [nn.Parameter(value.clone()) for value in values]
    options = {'lr': 0.02, 'momentum': 0.9, 'nesterov': nesterov, 'weight_decay': weight_decay}
    optimizer = Muon([{'params': params, **options}])
    seeds = (1, 2, 3)
    for seed in seeds:
        step(optimizer, params, seed)
    for index, (value, p) in enumerate(zip(values, params, strict=True)):
        gradients = [tensors(SHAPES, seed, dtype)[index] for seed in seeds]
        torch.testing.assert_close(p.double(), by_the_formula(value, gradients, **options), rtol=0, atol=atol)


def test_matrices_of_a_shape_together_are_as_one_by_one():
    together, alone = ([nn.Parameter(value) for value in tensors(SHAPES, dtype=torch.float32)] for _ in range(2))
    one, several = Muon([{'params': together}]), [Muon([{'params': [p]}]) for p in alone]
    for seed in (1, 2):
        step(one, together, seed)
        for optimizer, p in zip(several, alone, strict=True):
            p.grad = together[[q is p for q in alone].index(True)].grad
            optimizer.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
