"""scripts/variant_cost.py: what it counts, and its table."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
variant_cost = importlib.import_module('variant_cost')

TINY = {'type': 'SPIN', 'upscale': 2, 'num_feat': 8, 'num_block': 1, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': [4]}


@pytest.fixture
def run(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    for name, changes in {
        'plain': {},
        'more': {'num_block': 2, 'stoken_size': [4, 4]},
        'wrong': {'num_iter': 0},
    }.items():
        Path(f'{name}.yml').write_text(yaml.safe_dump({'network_g': TINY | changes}))

    def run(*names):
        flags = ['--default', 'plain.yml', '--lr-size', '9x10', '--patch', '8x8', '--rounds', '1']
        monkeypatch.setattr(sys, 'argv', ['variant_cost.py', '-opt', *names, *flags])
        return variant_cost.main()

    yield run
    torch.set_num_threads(threads)


def test_table_has_a_line_for_each_network(run, capsys):
    assert run('more.yml') == 0
    lines = capsys.readouterr().out.splitlines()
    default, more = ([cell.strip() for cell in line.split('|')[1:-1]] for line in lines[-2:])
    assert [default[0], more[0]] == ['plain.yml', 'more.yml']
    assert int(more[1].replace(',', '')) > int(default[1].replace(',', ''))
    assert default[2].startswith('1 (') and ' to ' in more[2] and ' to ' in more[3]


def test_a_network_that_cannot_be_built_is_one_line(run, capsys):
    assert run('wrong.yml') == 1
    captured = capsys.readouterr()
    assert captured.out == '' and captured.err.count('\n') == 1 and 'num_iter=0' in captured.err


def test_memory_for_the_gradient_by_hand():
    net = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Tanh(), nn.Tanh())
    # The product keeps its input, each tanh its output; the weights, which are there anyway, do not count.
    assert variant_cost.bytes_kept(net, torch.rand(7, 3)) == 4 * 7 * (3 + 5 + 5)


def test_ratios_are_of_the_same_turn():
    times = {'default': [1.0, 2.0, 4.0], 'other': [2.0, 3.0, 12.0]}
    assert variant_cost.cell(times, 'other', 'default') == '2.00 (1.50 to 3.00)'
    assert variant_cost.cell(times, 'default', 'default') == '1 (2.00 s)'
