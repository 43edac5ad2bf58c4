"""--arch and --scale are optional wherever weights are given."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import spinsr
from spinsr.cli import main

from ..networks import SMALL


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with small weights of RDBESA x3 and an image."""
    monkeypatch.chdir(tmp_path)
    torch.save({'params': spinsr.load('RDBESA', 3, None, **SMALL['RDBESA']).state_dict()}, 'net.pth')
    Image.fromarray(np.random.randint(0, 256, (6, 7, 3), np.uint8)).save('photo.png')
    return tmp_path


def test_upscale(place):
    assert main(['upscale', 'photo.png', '--weights', 'net.pth']) == 0
    assert Image.open('photo_x3.png').size == (21, 18)


def test_upscale_with_contradicting_flags(place, capsys):
    for flags in (['--scale', '2'], ['--arch', 'SPIN']):
        assert main(['upscale', 'photo.png', '--weights', 'net.pth', *flags]) == 1
        error = capsys.readouterr().err
        assert error.endswith('the file holds RDBESA x3 weights\n')
        assert error.count('\n') == 1


def test_evaluate(place):
    (place / 'set/HR').mkdir(parents=True)
    Image.fromarray(np.random.randint(0, 256, (36, 42, 3), np.uint8)).save('set/HR/a.png')
    assert main(['evaluate', '--weights', 'net.pth', '--benchmark', 'set', '--json', 'a.json']) == 0
    (result,) = json.loads((place / 'a.json').read_text())
    assert (result['arch'], result['scale'], result['method']) == ('RDBESA', 3, 'RDBESA')


def test_complexity(place, capsys):
    assert main(['complexity', '--weights', 'net.pth', '--size', '20x30', '--no-latency']) == 0
    assert '| RDBESA | x3 ' in capsys.readouterr().out.splitlines()[-1].replace('  ', ' ')


def test_convert(place, capsys):
    assert main(['convert', 'net.pth', 'net.safetensors']) == 0
    assert 'net.pth: RDBESA x3, ' in capsys.readouterr().out


def test_convert_to_a_form_that_the_network_does_not_have(place, capsys):
    assert main(['convert', 'net.pth', 'out.pth', '--to', 'official']) == 1
    assert 'RDBESA does not have an official form' in capsys.readouterr().err


def test_texts_of_a_file_reach_the_terminal_escaped(place, capsys):
    torch.save({'params': {'evil\x1b[2J\n': torch.zeros(1)}}, 'evil\x1b[31m.pth')
    assert main(['convert', 'evil\x1b[31m.pth', 'out.pth']) == 1
    error = capsys.readouterr().err
    assert '\x1b' not in error and error.count('\n') == 1
    assert r'evil\x1b[31m.pth' in error and r'evil\x1b[2J\n' in error
