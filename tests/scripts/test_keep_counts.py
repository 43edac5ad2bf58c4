"""scripts/keep_counts.py: the file that it writes."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from spinsr.evaluation import complexity, counts
from spinsr.inference.load import resolve

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
keep_counts = importlib.import_module('keep_counts')


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the script for two small networks and one that cannot be built."""
    arguments = {'num_feat': 8, 'num_block': 1, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': (4,)}
    wanted = [
        keep_counts.Wanted({'name': 'small'}, resolve('SPIN', scale, None, **{**arguments, **changes}), (8, 9))
        for scale, changes in ((4, {}), (2, {}), (2, {'num_iter': 0}))
    ]
    monkeypatch.setattr(counts, 'FILE', tmp_path / 'counts.json')
    monkeypatch.setattr(keep_counts, 'wanted', lambda: iter(wanted))
    monkeypatch.setattr(sys, 'argv', ['keep_counts.py'])
    return wanted, counts.FILE


def test_the_file_has_a_line_for_each_network_that_can_be_counted(run, capsys):
    wanted, file = run
    assert keep_counts.main() == 0 and '2 entries' in capsys.readouterr().out
    first, *lines, last = file.read_text().splitlines()
    assert (first, last) == ('[', ']')
    small, large = (json.loads(line.rstrip(',')) for line in lines)
    assert (small['scale'], large['scale']) == (2, 4)
    assert counts.key(large) == counts.key(counts.describe(wanted[0].network, 8, 9))
    assert {name: large[name] for name in counts.COUNTED} == complexity.recount(wanted[0].network, 8, 9)


def test_a_file_that_cannot_be_written_is_one_line(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(counts, 'FILE', tmp_path / 'missing' / 'counts.json')
    assert keep_counts.main() == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith('keep_counts.py: error: ')


def test_without_basicsr_there_is_one_line(run, monkeypatch, capsys):
    def wanted():
        raise ValueError("'SwinIR' cannot be built")

    monkeypatch.setattr(keep_counts, 'wanted', wanted)
    assert keep_counts.main() == 1
    assert capsys.readouterr().err.splitlines()[-1] == "keep_counts.py: error: 'SwinIR' cannot be built"
