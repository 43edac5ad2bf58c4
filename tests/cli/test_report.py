"""`spinsr report` as it is typed."""

import os

import pytest
import torch

import spinsr
import spinsr.report
from spinsr.cli import main
from spinsr.data import image_file

from ..tiny_benchmark import photo, write_benchmark

SPIN = {'num_feat': 8, 'num_block': 1, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': [4]}


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Runs the command in a folder with the benchmark Mine and the weights net.pth; gives its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spinsr.report, 'COUNTED', (40, 64))  # for cells so small more takes long
    write_benchmark(tmp_path / 'Mine', {'a': (24, 24)})
    torch.save({'params': spinsr.load('SPIN', 2, None, **SPIN).state_dict()}, tmp_path / 'net.pth')
    flags = ['--weights', 'net.pth', '--scale', '2', '--arch-args', *(f'{key}={value}' for key, value in SPIN.items())]
    return lambda arguments: main(['report', *arguments.split(), *flags])


def test_page_is_written(report, capfd, tmp_path):
    assert report('Mine -o out/page\x1b[2J.html') == 0
    text = (tmp_path / 'out/page\x1b[2J.html').read_text(encoding='utf-8')
    assert '<h1>SPIN ×2 on Mine</h1>' in text
    assert '<dd>net.pth</dd>' in text
    assert '<dd>num_feat=8, num_block=1, qk_dim=4, mlp_dim=8, stoken_size=[4]</dd>' in text
    assert capfd.readouterr().out == f'out/page\\x1b[2J.html: {len(text.encode()) / 1e6:.1f} MB, 0 failed\n'
    assert os.listdir('out') == ['page\x1b[2J.html']


def test_weights_that_ship_have_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_benchmark(tmp_path / 'Mine', {'a': (24, 24)}, scales=[4])
    named = []
    monkeypatch.setattr(spinsr.report, 'make_report', lambda *_, weights, **__: named.append(weights) or '')
    assert main(['report', 'Mine', '-o', 'page.html']) == 0
    assert named == ['SPIN_x4.safetensors, shipped with spinsr']


def test_page_that_is_there_is_an_error_unless_it_is_to_be_replaced(report, capfd, tmp_path):
    (tmp_path / 'page.html').write_text('old')
    assert report('Mine -o page.html') == 1
    assert capfd.readouterr().err == 'spinsr report: error: page.html exists; --overwrite replaces it\n'
    assert (tmp_path / 'page.html').read_text() == 'old'
    assert report('Mine -o page.html --overwrite') == 0
    assert (tmp_path / 'page.html').read_text(encoding='utf-8').startswith('<!doctype html>')


def test_failure_leaves_the_old_page(report, tmp_path, monkeypatch):
    (tmp_path / 'page.html').write_text('old')

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    assert report('Mine -o page.html --overwrite') == 1
    assert (tmp_path / 'page.html').read_text() == 'old'
    assert not list(tmp_path.glob('.*'))


def test_damaged_image_is_one_line_and_exit_status_1(report, capfd, tmp_path):
    image_file.write_png(tmp_path / 'photos/a.png', photo(8, 8))
    (tmp_path / 'photos/b.png').write_bytes(b'no image')
    assert report('photos -o page.html') == 1
    captured = capfd.readouterr()
    assert captured.err == 'spinsr report: error: photos/b.png is not an image, or its start is damaged\n'
    assert captured.out.endswith(' MB, 1 failed\n')
    assert '<h3>a.png</h3>' in (tmp_path / 'page.html').read_text(encoding='utf-8')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('nowhere -o page.html', 'not a directory: nowhere'),
        ('Mine -o page.html --block 1', 'the block must be 0 to 0, got 1'),
        ('Mine -o page.html --log Mine', 'Mine holds no TensorBoard log (events.out.tfevents…)'),
        ('Mine -o page.txt', 'a page must end in .html, .htm, got page.txt'),
        ('Mine -o folder.html --overwrite', 'folder.html exists'),
    ],
    ids=['folder', 'block', 'log', 'ending', 'page'],
)
def test_bad_input_is_one_line_and_exit_status_1(report, capfd, arguments, message):
    os.mkdir('folder.html')
    assert report(arguments) == 1
    assert capfd.readouterr().err == f'spinsr report: error: {message}\n'
    assert not os.path.exists('page.html')


@pytest.mark.parametrize('arguments', ['Mine', '-o page.html', 'Mine -o page.html --images 0'])
def test_wrong_usage_is_exit_status_2(report, arguments):
    with pytest.raises(SystemExit) as exit:
        report(arguments)
    assert exit.value.code == 2
