"""`spinsr convert` as it is typed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spinsr.cli import main
from spinsr.convert import read_checkpoint


@pytest.fixture
def saved(official, tmp_path):
    """Writes a small official network and gives its path."""

    def save(name, wrap=lambda weights: weights):
        torch.save(wrap(official(name).weights), tmp_path / f'{name}.pt')
        return str(tmp_path / f'{name}.pt')

    return save


def test_says_what_it_read_and_wrote(saved, tmp_path, capsys):
    source, target = saved('rcan_official_tiny_x3'), str(tmp_path / 'ours.safetensors')
    assert main(['convert', source, target]) == 0
    captured = capsys.readouterr()
    line = f"{source}: RCAN x3, the authors' form, 47,875 parameters -> {target}: spinsr's form\n"
    assert (captured.out, captured.err) == (line, '')


def test_says_what_was_left_out(saved, tmp_path, capsys):
    source = saved('spin_official_tiny_x2', lambda weights: {'epoch': 3, 'params_ema': weights, 'params': weights})
    assert main(['convert', source, str(tmp_path / 'ours.safetensors')]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "SPIN x2, the authors' form (params_ema), " in out[0]
    assert out[1:] == ['left out: epoch, params']


def test_says_what_is_not_the_same(saved, tmp_path, capsys):
    assert main(['convert', saved('san_official_tiny_drift_x2'), str(tmp_path / 'ours.pth')]) == 0
    assert [line.split(':')[0] for line in capsys.readouterr().out.splitlines()[1:]] == ['note', 'note']


def test_flags_reach_the_function(saved, tmp_path):
    wrap = {'params': {}, 'params_ema': {}}
    source, target = saved('rcan_official_tiny_x2', lambda weights: wrap | {'params': weights}), tmp_path / 'a.pth'
    target.touch()
    flags = ['--arch', 'RCAN', '--to', 'basicsr', '--key', 'params', '--overwrite']
    assert main(['convert', source, str(target), *flags]) == 0
    assert 'conv_first.weight' in read_checkpoint(target)['params']
    assert 'mean' not in read_checkpoint(target)['params']


def test_drifted_mean_is_refused_for_basicsr_with_the_reason(saved, tmp_path, capsys):
    source = saved('rcan_official_tiny_drift_x2')
    assert main(['convert', source, str(tmp_path / 'a.pth'), '--to', 'basicsr']) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.startswith(f"spinsr convert: error: {source}: BasicSR's RCAN always subtracts the mean")
    assert captured.err.count('\n') == 1
    assert not (tmp_path / 'a.pth').exists()


def test_paths_with_spaces_and_letters(saved, tmp_path, capsys):
    folder = tmp_path / 'größe 雪'
    folder.mkdir()
    os.rename(saved('spin_official_tiny_x3'), folder / 'gewichte é.pt')
    assert main(['convert', str(folder / 'gewichte é.pt'), str(folder / 'unsere é.safetensors')]) == 0
    assert sorted(os.listdir(folder)) == ['gewichte é.pt', 'unsere é.safetensors']
    assert 'größe 雪/unsere é.safetensors' in capsys.readouterr().out


BAD_FILES = {
    'truncated.pth': lambda whole: whole[: len(whole) // 2],
    'text.pth': lambda whole: b'not weights\n',
    'text.safetensors': lambda whole: b'not weights\n',
    'empty.pth': lambda whole: b'',
    'empty.safetensors': lambda whole: b'',
    'image.pt': lambda whole: b'\x89PNG\r\n\x1a\n' + bytes(100),
    'pth.safetensors': lambda whole: whole,
}


@pytest.mark.parametrize('name', BAD_FILES)
def test_bad_input_is_one_line_and_exits_with_1(name, saved, tmp_path, capsys):
    with open(saved('rcan_official_tiny_x2'), 'rb') as file:
        (tmp_path / name).write_bytes(BAD_FILES[name](file.read()))
    assert main(['convert', str(tmp_path / name), str(tmp_path / 'out.pth')]) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.startswith(f'spinsr convert: error: cannot read checkpoint {tmp_path / name}: ')
    assert captured.err.count('\n') == 1
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize(
    ('source', 'target', 'message'),
    [
        ('nowhere.pth', 'out.pth', 'no such weights file: .*nowhere.pth'),
        ('folder', 'out.pth', 'no such weights file: .*folder'),
        ('in.pt', 'out.ckpt', 'a checkpoint must end in .pth, .pt, .safetensors, got .*out.ckpt'),
        ('in.pt', 'out', 'a checkpoint must end in .pth, .pt, .safetensors, got .*out'),
        ('in.pt', 'nowhere/out.pth', 'the folder of .*nowhere/out.pth does not exist'),
        ('in.pt', 'folder.pth', '.*folder.pth is a folder, not a file to write'),
        ('in.pt', 'in.pt', '.*in.pt exists; --overwrite replaces it'),
        ('in.pt', f'{"x" * 252}.pth', '.*x.pth.*: File name too long'),
        ('edsr.pth', 'out.pth', '.*edsr.pth: the weights do not belong to a known network: a, b; known: '),
    ],
)
def test_bad_paths_are_one_line_and_exit_with_1(source, target, message, saved, tmp_path, capsys):
    os.rename(saved('spin_official_tiny_x2'), tmp_path / 'in.pt')
    torch.save({'params': {'a': torch.zeros(1), 'b': torch.zeros(1)}}, tmp_path / 'edsr.pth')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder.pth').mkdir()
    before = sorted(os.listdir(tmp_path))
    assert main(['convert', str(tmp_path / source), str(tmp_path / target)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.count('\n') == 1
    assert re.match(f'spinsr convert: error: {message}', captured.err)
    assert sorted(os.listdir(tmp_path)) == before


def test_denied_folder_is_one_line_and_exits_with_1(saved, tmp_path, capsys, monkeypatch):
    def deny(*_):
        raise PermissionError(13, 'Permission denied', 'a temporary name')

    source = saved('spin_official_tiny_x2')
    monkeypatch.setattr(os, 'replace', deny)
    assert main(['convert', source, str(tmp_path / 'out.pth')]) == 1
    assert (
        capsys.readouterr().err == f'spinsr convert: error: {tmp_path}/out.pth cannot be written: Permission denied\n'
    )


@pytest.mark.parametrize(
    'arguments',
    ['', 'a.pth', 'a b c', 'a b --to ours', 'a.pth b.pth --arch MSRResNet', 'a b --key ema', 'a b --frobnicate'],
    ids=str,
)
def test_wrong_usage_exits_with_2(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('a.pth').touch()
    with pytest.raises(SystemExit) as exit_info:
        main(['convert', *arguments.split()])
    assert exit_info.value.code == 2


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(['convert', '--help'])
    assert exit_info.value.code == 0
    assert 'spinsr convert' in capsys.readouterr().out.partition('examples:')[2]


def test_help_needs_neither_torch_nor_basicsr():
    code = (
        'import sys\nfrom spinsr.cli import convert\n'
        'sys.exit(sum(name in sys.modules for name in ("torch", "torchvision", "basicsr", "numpy")))'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
