"""`spinsr superpixels` as it is typed."""

import contextlib
import os

import numpy as np
import pytest
import torch

import spinsr
from spinsr.analysis.superpixels import draw, find_superpixels
from spinsr.cli import main
from spinsr.data import image_file

TINY = {'num_feat': 8, 'num_block': 2, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': [4, 8]}


@pytest.fixture
def net():
    return spinsr.load('SPIN', 2, None, **TINY)


@pytest.fixture
def look(tmp_path, net, monkeypatch):
    """Runs the command in a folder with a.png, 11 x 14 pixels, and gives its exit status."""
    monkeypatch.chdir(tmp_path)
    image_file.write_png(tmp_path / 'a.png', np.random.randint(0, 256, (11, 14, 3), np.uint8))
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    flags = ['--weights', 'net.pth', '--scale', '2', '--arch-args', *(f'{key}={value}' for key, value in TINY.items())]
    return lambda arguments: main(['superpixels', *arguments.split(), *flags])


def test_the_folder_is_printed_without_control_sequences(look, capfd):
    assert look('a.png -o out\x1b[2J') == 0
    assert capfd.readouterr().out.splitlines()[-1] == r'out\x1b[2J: 2 done, 0 skipped'


def test_pictures_of_two_blocks(look, net, capfd, tmp_path):
    assert look('a.png -o out --block 0 1') == 0
    captured = capfd.readouterr()
    assert captured.out.splitlines() == [
        'block 0: 2x3 superpixels of about 4 pixels a side',
        'block 1: 1x1 superpixels of about 8 pixels a side',
        'out: 4 done, 0 skipped',
    ]
    assert captured.err == ''
    names = [f'a_block{block}_{name}.png' for block in (0, 1) for name in ('boundaries', 'colours')]
    assert sorted(os.listdir('out')) == names
    expected = draw(find_superpixels(image_file.read(tmp_path / 'a.png'), net, 0))
    assert np.array_equal(image_file.read(tmp_path / 'out' / names[0]), expected['boundaries'])


def test_pictures_of_a_pixel_and_a_superpixel(look, net, capfd, tmp_path):
    assert look('a.png -o out --pixel 2 13 --superpixel 5 --top 3 --enlarge 2') == 0
    assert 'pixel 2 13 belongs to superpixel ' in capfd.readouterr().out
    expected = draw(find_superpixels(image_file.read(tmp_path / 'a.png'), net, 0), 2, (2, 13), 5, 3)
    assert {name[len('a_block0_') : -len('.png')] for name in os.listdir('out')} == set(expected)
    drawn = image_file.read(tmp_path / 'out/a_block0_superpixel_5_top3.png')
    assert np.array_equal(drawn, expected['superpixel_5_top3'])


def test_second_run_skips_and_overwrite_does_not(look, capfd):
    assert [look('a.png -o out'), look('a.png -o out'), look('a.png -o out --overwrite')] == [0, 0, 0]
    assert capfd.readouterr().out.splitlines()[1::2] == [
        'out: 2 done, 0 skipped',
        'out: 0 done, 2 skipped (--overwrite replaces them)',
        'out: 2 done, 0 skipped',
    ]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('b.png -o out', 'b.png is missing'),
        ('a.png -o net.pth', 'output path is not a directory: net.pth'),
        ('a.png -o out --block 2', 'the block must be 0 to 1, got 2'),
        ('a.png -o out --pixel 11 0', 'the pixel must be inside the image of 11x14 (HxW), got y=11, x=0'),
        ('a.png -o out --block 0 1 --superpixel 1', 'the superpixel must be 0 to 0 (block 1 has 1x1), got 1'),
    ],
    ids=['missing', 'file', 'block', 'pixel', 'superpixel'],
)
def test_bad_input_is_one_line_and_exit_status_1(look, capfd, arguments, message):
    assert look(arguments) == 1
    assert capfd.readouterr().err == f'spinsr superpixels: error: {message}\n'
    assert not os.path.exists('out')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--top 3', '--top goes with --superpixel'),
        ('--enlarge 0', "argument --enlarge: must be an integer of at least 1, got '0'"),
        ('--block -1', "argument --block: must be an integer of at least 0, got '-1'"),
    ],
    ids=['top', 'enlarge', 'block'],
)
def test_usage_error(look, capfd, arguments, message):
    with pytest.raises(SystemExit) as exit:
        look(f'a.png -o out {arguments}')
    assert exit.value.code == 2
    assert message in capfd.readouterr().err


def test_pictures_that_do_not_fit_into_memory_are_one_line(look, capfd):
    assert look('a.png -o out --enlarge 1000000') == 1
    error = capfd.readouterr().err
    assert error.startswith('spinsr superpixels: error: out of memory')
    assert error.count('\n') == 1
    assert not os.path.exists('out')


def test_memory_is_limited_while_it_draws(look, monkeypatch):
    seen = []

    @contextlib.contextmanager
    def limited():
        seen.append('limit')
        yield
        seen.append('no limit')

    monkeypatch.setattr('spinsr.inference.upscale.limited_memory', limited)
    monkeypatch.setattr(
        'spinsr.analysis.superpixels.find_superpixels', lambda *given: seen.append('found') or find_superpixels(*given)
    )
    assert look('a.png -o out') == 0
    assert seen == ['limit', 'found', 'no limit']
