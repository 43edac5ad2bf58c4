"""scripts/engines.py: turns, ratios, the table, and a whole run on a tiny network."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
engines = importlib.import_module('engines')

TINY = {'type': 'RCAN_spinsr', 'upscale': 2, 'num_feat': 4, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 2}


class Instant:
    """A worker without a process, whose runs take 1, 2, … seconds times a factor."""

    def __init__(self, log, name, factor):
        self.log, self.name, self.factor, self.runs = log, name, factor, 0

    def ask(self, command):
        if command == 'run':
            self.log.append(self.name)
            self.runs += 1
        answers = {'first': 10.0, 'run': self.factor * self.runs, 'peak': 5, 'result': np.full(4, self.factor)}
        return answers[command]


def test_engines_take_turns_and_the_first_run_is_not_counted():
    log = []
    found = engines.measure({'torch': Instant(log, 'torch', 1.0), 'onnx': Instant(log, 'onnx', 2.0)}, 3)
    assert log == ['torch', 'onnx', 'onnx', 'torch', 'torch', 'onnx']
    assert found['seconds'] == {'torch': [1, 2, 3], 'onnx': [2, 4, 6]}
    assert found['largest_difference'] == {'torch': 0, 'onnx': 1}


def test_ratios_are_of_the_same_turn():
    assert engines.ratio({'torch': [1.0, 2.0, 12.0], 'onnx': [2.0, 1.0, 3.0]}, 'torch', 'onnx') == '2.00 (0.50 to 4.00)'
    assert engines.ratio({'torch': [1.0]}, 'torch', 'onnx') == ''


@pytest.mark.parametrize(
    ('compiled', 'first', 'expected'),
    # 10 s more at first, 1 s less for each later image: equal at the 11th.
    [(1.0, 12.0, '12'), (2.0, 12.0, 'never'), (1.0, 2.0, '1')],
)
def test_image_from_which_compiling_pays(compiled, first, expected):
    row = {'seconds': {'torch': [2.0], 'compile': [compiled]}, 'first_seconds': {'torch': 2.0, 'compile': first}}
    assert engines.pays_from(row, 'torch') == expected


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('tiny.yml').write_text(yaml.safe_dump({'network_g': TINY}))
    return 'tiny.yml'


def test_network_of_an_option_file(tiny):
    net = engines.build(tiny, 2)
    assert sum(p.numel() for p in net.parameters()) < 10_000 and engines.size_for(net, (9, 13)) == (9, 13)
    with pytest.raises(ValueError, match='is for scale 2, got scale 4'):
        engines.build(tiny, 4)


@pytest.mark.slow
def test_a_whole_run(tiny, capsys):
    command = [
        '--networks',
        tiny,
        'nothing',
        '--scale',
        '2',
        '--lr-size',
        '9x13',
        '--repeats',
        '1',
        '--json',
        'out.json',
    ]
    assert engines.main(command) == 1
    row, failed = json.loads(Path('out.json').read_text())['rows']
    assert row['size'] == [9, 13] and row['largest_difference']['onnx'] <= 1e-4
    # PyTorch is not in the process of ONNX Runtime.
    assert row['base_memory']['onnx'] < row['base_memory']['torch'] - 50e6
    assert failed['failed'].startswith("arch must be a network of spinsr or a name in ARCH_REGISTRY, got 'nothing'")
    assert 'nothing: arch must be' in capsys.readouterr().out
