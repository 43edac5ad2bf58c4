"""`spinsr models` lists what is shipped, and --model takes it."""

import json

import numpy as np
import pytest
from PIL import Image

from spinsr import weights
from spinsr.cli import main
from spinsr.evaluation.complexity import count
from spinsr.inference.load import load
from spinsr.weights.models import MODELS, find_model


def test_every_shipped_file_is_a_model():
    assert {model.file for model in MODELS} == set(weights.shipped())


def test_table_has_a_row_for_each(capsys):
    assert main(['models']) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ['model', 'scale', 'network']
    assert [row.split()[:3] for row in rows] == [[model.name, f'x{model.scale}', model.arch] for model in MODELS]


def test_json_names_the_files(capsys):
    assert main(['models', '--json']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row['weights'] for row in rows] == [str(model.path) for model in MODELS]


@pytest.mark.slow
@pytest.mark.parametrize('model', MODELS, ids=lambda model: f'{model.name}_x{model.scale}')
def test_numbers_are_those_of_the_network(model):
    net = load(model.arch, model.scale, model.path)
    assert sum(parameter.numel() for parameter in net.parameters()) == model.parameters
    counted = count(net, 720 // model.scale, round(1280 / model.scale))
    assert counted['multiply_adds'] == pytest.approx(model.multiply_adds, rel=0.001)


def test_upscale_takes_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save('photo.png')
    assert main(['upscale', 'photo.png', '--model', 'spin', '--scale', '2']) == 0
    assert Image.open('photo_x2.png').size == (12, 10)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--model', 'spinn'], "model must be one of spin, got 'spinn'"),
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
