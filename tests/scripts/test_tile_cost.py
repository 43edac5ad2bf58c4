"""scripts/tile_cost.py: its arguments and its table."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
tile_cost = importlib.import_module('tile_cost')


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['--no-whole', '--tiles'], '--no-whole needs --tiles, got none'),
        (['--processor-time', '--threads', '2'], '--processor-time is for one thread'),
        (['--tiles', '64', '31'], '--tiles must be at least 32, got 31'),
    ],
)
def test_wrong_arguments(arguments, reason, capsys):
    with pytest.raises(SystemExit) as error:
        tile_cost.parse(arguments)
    assert error.value.code == 2 and reason in capsys.readouterr().err


def test_the_whole_image_alone_or_tiles_alone():
    assert tile_cost.parse(['--tiles']).tiles == [] and tile_cost.parse(['--no-whole', '--tiles', '32']).tiles == [32]


def test_table_is_relative_to_the_first_row_of_the_same_turn():
    rows = [
        {'tile': None, 'tiles': 1, 'seconds': [1.0, 2.0, 4.0], 'peak_memory': 5 * 10**8},
        {'tile': 64, 'tiles': 6, 'seconds': [2.0, 3.0, 4.0], 'peak_memory': None},
    ]
    head, _, *lines = (
        [cell.strip() for cell in line.split('|')[1:-1]]
        for line in tile_cost.to_markdown(rows, (100, 200)).splitlines()
    )
    assert head[4] == 'relative to whole'
    assert lines == [
        ['whole', '1', '2 s', '100 s', '1.00 (1.00 to 1.00)', '500 MB'],
        ['64', '6', '3 s', '150 s', '1.50 (1.00 to 2.00)', '0 MB'],
    ]
