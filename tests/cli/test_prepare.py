"""`spinsr prepare` as it is typed."""

import subprocess
import sys

import pytest

from spinsr.cli import main
from spinsr.data import prepare, sample
from spinsr.utils import memory


@pytest.fixture
def calls(monkeypatch):
    """What the functions beneath the commands are called with."""
    calls = []
    for module, name in ((prepare, 'prepare_div2k'), (prepare, 'prepare_benchmark'), (sample, 'prepare_sample')):
        monkeypatch.setattr(module, name, lambda *arguments: calls.append(arguments) or [])
    return calls


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        ('', [2, 3, 4, 8]),
        ('--scale 2,4', [2, 4]),
        ('--scale 4 2', [2, 4]),
        ('--scale 3,2 8 2', [2, 3, 8]),
    ],
    ids=str,
)
def test_scales(calls, arguments, expected):
    assert main(['prepare', 'div2k', 'DIV2K', *arguments.split()]) == 0
    assert calls[0][2] == expected


@pytest.mark.parametrize(
    ('command', 'out'),
    [
        ('div2k DIV2K', 'datasets/div2k'),
        ('benchmark Set5', 'datasets/benchmark'),
        ('sample', 'datasets/sample'),
        ('sample -o here', 'here'),
        ('div2k DIV2K -o here', 'here'),
    ],
)
def test_outputs(calls, command, out):
    assert main(['prepare', *command.split()]) == 0
    assert out in map(str, calls[0])


@pytest.mark.parametrize(('command', 'status'), [('div2k DIV2K', 0), ('degraded Set5', 1)])
def test_only_what_imports_torch_needs_memory_for_it(calls, monkeypatch, capsys, command, status):
    def refuse():
        raise MemoryError('out of memory: too little for torch')

    monkeypatch.setattr(memory, 'require_for_torch', refuse)
    assert main(['prepare', *command.split()]) == status
    assert ('too little for torch' in capsys.readouterr().err) == bool(status)


@pytest.mark.parametrize('kind', ['div2k', 'benchmark', 'images', 'sample', 'degraded', 'teacher'])
def test_help_shows_an_example(capsys, kind):
    with pytest.raises(SystemExit) as exit_info:
        main(['prepare', kind, '--help'])
    assert exit_info.value.code == 0
    assert f'spinsr prepare {kind}' in capsys.readouterr().out.partition('example:')[2]


@pytest.mark.parametrize(
    'arguments',
    ['', 'nothing', 'div2k', 'benchmark', 'teacher', 'teacher data --scale 2,4']
    + ['sample --scale x', 'sample --workers 0', 'sample --workers x'],
    ids=str,
)
def test_wrong_usage_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(['prepare', *arguments.split()])
    assert exit_info.value.code == 2


def test_an_error_is_one_line_and_exits_with_1(tmp_path, capsys):
    assert main(['prepare', 'div2k', str(tmp_path / 'nowhere'), '-o', str(tmp_path / 'out')]) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err == f'spinsr prepare: error: not a directory: {tmp_path}/nowhere/DIV2K_train_HR\n'


def test_benchmark_prints_its_folders(tmp_path, capsys, write_photo):
    write_photo(tmp_path / 'Mine' / 'a.png', 16, 24)
    assert main(['prepare', 'benchmark', str(tmp_path / 'Mine'), '-o', str(tmp_path / 'out'), '--scale', '2']) == 0
    assert capsys.readouterr().out == f'{tmp_path}/out/Mine\n'
    assert (tmp_path / 'out/Mine/LR_bicubic/X2/ax2.png').exists()


def test_folders_are_printed_without_control_sequences(tmp_path, capsys, write_photo):
    write_photo(tmp_path / 'Mi\x1b[2Jne' / 'a.png', 16, 24)
    assert (
        main(['prepare', 'benchmark', str(tmp_path / 'Mi\x1b[2Jne'), '-o', str(tmp_path / 'out'), '--scale', '2']) == 0
    )
    assert capsys.readouterr().out == f'{tmp_path}/out/Mi\\x1b[2Jne\n'


def test_help_needs_neither_torch_nor_basicsr():
    code = (
        'import sys\n'
        'from spinsr.data import bicubic, prepare, sample\n'
        'from spinsr.cli import prepare\n'
        'sys.exit(sum(name in sys.modules for name in ("torch", "torchvision", "basicsr", "skimage")))'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
