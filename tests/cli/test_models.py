"""`spinsr models` lists what is shipped, and --model takes it."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from spinsr import weights
from spinsr.cli import main
from spinsr.cli import models as models_command
from spinsr.evaluation import complexity
from spinsr.inference.load import load
from spinsr.weights.models import MODELS, PHOTO, find_model


def test_every_shipped_file_is_a_model():
    assert {model.file for model in MODELS} == set(weights.shipped())


def test_table_has_a_row_for_each(capsys):
    assert main(['models']) == 0
    header, _, *rows = (re.split(r' *\| *', line)[1:-1] for line in capsys.readouterr().out.splitlines())
    assert header[:4] == ['model', 'scale', 'network', 'parameters']
    assert [row[:3] for row in rows] == [[model.name, f'x{model.scale}', model.arch] for model in MODELS]


def test_what_was_not_measured_is_left_open(monkeypatch, capsys):
    monkeypatch.setattr(models_command, 'MODELS', (MODELS[0], dataclasses.replace(PHOTO, psnr={'Set14': 27.0})))
    assert main(['models']) == 0
    header, _, first, second = (re.split(r' *\| *', line)[1:-1] for line in capsys.readouterr().out.splitlines())
    place = header.index('Set5')
    assert (header[place + 1], second[place : place + 2]) == ('Set14', ['-', '27.00'])
    assert '-' not in first[place : place + 2] and 'JPEG' in second[header.index('trained for')]


def test_json_names_the_files(capsys):
    assert main(['models', '--json']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row['weights'] for row in rows] == [str(model.path) for model in MODELS]


@pytest.mark.slow
@pytest.mark.parametrize('model', MODELS, ids=lambda model: f'{model.name}_x{model.scale}')
def test_numbers_are_those_of_the_network(model):
    net = load(model.arch, model.scale, model.path)
    assert sum(parameter.numel() for parameter in net.parameters()) == model.parameters
    counted = complexity.count(net, round(720 / model.scale), round(1280 / model.scale))
    assert counted['multiply_adds'] == pytest.approx(model.multiply_adds, rel=0.001)


def test_latency_is_that_of_the_network_with_these_weights(monkeypatch, capsys):
    measured = []
    answer = {'latency': 1.5}
    monkeypatch.setattr(complexity, 'measure', lambda *of, arch_args: measured.append((of, arch_args)) or answer)
    assert main(['models', '--latency']) == 0
    assert capsys.readouterr().out.count('| 1.5 s ') == len(MODELS)
    assert measured[-1][0] == ('SPIN', 4, 180, 320)
    assert measured[-1][1]['num_feat'] == 40


def test_upscale_takes_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save('photo.png')
    assert main(['upscale', 'photo.png', '--model', 'spin', '--scale', '2']) == 0
    assert Image.open('photo_x2.png').size == (12, 10)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--model', 'spinn'], "got 'spinn'; did you mean 'spin'?"),
        (['--model', 'spin', '--scale', '8'], 'the model spin has the scales 2, 3, 4, got 8'),
        (['--model', 'spin', '--arch', 'SAN'], 'SPIN'),
    ],
)
def test_what_is_not_a_model_is_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save('photo.png')
    assert main(['upscale', 'photo.png', *flags]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1


def test_scale_of_a_model_without_one():
    assert find_model('spin').scale == 4
