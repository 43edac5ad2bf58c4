"""`spinsr upscale` as it is typed."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import spinsr
from spinsr.cli import main
from spinsr.cli import upscale as upscale_command
from spinsr.data import photograph
from spinsr.data.photograph import Photograph
from spinsr.inference import upscale as upscaling

SMALL = {'num_feat': 4, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 2}
FLAGS = ['--arch', 'RCAN', '--scale', '2', '--arch-args', *(f'{key}={value}' for key, value in SMALL.items())]


@pytest.fixture
def net():
    return spinsr.load('RCAN', 2, None, **SMALL)


@pytest.fixture
def upscale(tmp_path, net, monkeypatch):
    """Runs the command on photos/ (a.png, b.png) in a folder of its own, and gives its exit status."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'photos').mkdir()
    for name in ('a.png', 'b.png'):
        photograph.write(tmp_path / 'photos' / name, Photograph(np.random.randint(0, 256, (40, 50, 3), np.uint8)))
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    return lambda *arguments: main(['upscale', *arguments, '--weights', 'net.pth', *FLAGS])


def test_images_of_a_folder(upscale, net, capfd):
    assert upscale('photos', '-o', 'out') == 0
    captured = capfd.readouterr()
    assert captured.out == 'out/a_x2.png: 100x80\nout/b_x2.png: 100x80\nout: 2 done, 0 skipped, 0 failed\n'
    assert captured.err == ''
    assert sorted(os.listdir('out')) == ['a_x2.png', 'b_x2.png']
    expected = spinsr.upscale(photograph.read(photograph.Path('photos/a.png')).pixels, net)
    assert np.array_equal(photograph.read(photograph.Path('out/a_x2.png')).pixels, expected)


def test_onnx_engine(upscale, net, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv('SPINSR_CACHE', str(tmp_path / 'cache'))
    assert upscale('photos/a.png', '-o', 'out', '--engine', 'onnx') == 0
    assert "engine 'onnx': exporting RCAN" in capfd.readouterr().err
    expected = spinsr.upscale(photograph.read(photograph.Path('photos/a.png')).pixels, net)
    found = photograph.read(photograph.Path('out/a_x2.png')).pixels
    assert abs(found.astype(int) - expected).max() <= 1
    with pytest.raises(SystemExit) as error:
        upscale('photos', '-o', 'out', '--engine', 'onnx', '--compile')
    assert error.value.code == 2 and '--compile is for --engine torch' in capfd.readouterr().err


def test_outputs_go_into_the_working_directory_by_default(upscale, capfd):
    assert upscale('photos/a.png') == 0
    assert capfd.readouterr().out == 'a_x2.png: 100x80\n'
    assert os.path.exists('a_x2.png') and os.listdir('photos') == ['a.png', 'b.png']


def test_second_run_skips_and_overwrite_does_not(upscale, capsys):
    assert upscale('photos/a.png', '-o', 'out') == 0
    assert upscale('photos', '-o', 'out') == 0
    assert upscale('photos', '-o', 'out', '--overwrite') == 0
    assert upscale('photos/a.png', '-o', 'out') == 0
    assert capsys.readouterr().out.splitlines() == [
        'out/a_x2.png: 100x80',
        'out/b_x2.png: 100x80',
        'out: 1 done, 1 skipped (--overwrite replaces them), 0 failed',
        'out/a_x2.png: 100x80',
        'out/b_x2.png: 100x80',
        'out: 2 done, 0 skipped, 0 failed',
        'out/a_x2.png exists; --overwrite replaces it',
    ]


def test_a_broken_file_is_one_line_and_exit_status_1(upscale, capfd):
    data = (photograph.Path('photos') / 'a.png').read_bytes()
    (photograph.Path('photos') / 'a.png').write_bytes(data[:-200])
    assert upscale('photos', '-o', 'out') == 1
    captured = capfd.readouterr()
    assert captured.out == 'out/b_x2.png: 100x80\nout: 1 done, 0 skipped, 1 failed\n'
    (line,) = captured.err.splitlines()
    assert line.startswith('photos/a.png cannot be read completely')
    assert os.listdir('out') == ['b_x2.png']


@pytest.mark.parametrize(
    ('flags', 'options'),
    [
        ('', {'tile': None, 'self_ensemble': False, 'precision': 'auto'}),
        ('--tile 48 --self-ensemble', {'tile': 48, 'self_ensemble': True, 'precision': 'auto'}),
        ('--precision bf16', {'tile': None, 'self_ensemble': False, 'precision': 'bf16'}),
    ],
)
def test_flags_reach_the_function(upscale, monkeypatch, flags, options):
    seen = []
    monkeypatch.setattr(upscaling, 'upscale', lambda image, net, **given: seen.append(given) or image)
    assert upscale('photos/a.png', '-o', 'out', *flags.split()) == 0
    assert seen == [{**options, 'progress': True}]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('nowhere.png -o out', 'nowhere.png is missing'),
        ('~nobody-by-this-name.png -o out', '~nobody-by-this-name.png is missing'),
        ('photos -o photos', 'the output folder must not be an input, got photos'),
        ('photos -o net.pth', 'output path is not a directory: net.pth'),
        ('photos -o out --tile 8', 'tile must be at least 32, got tile=8'),
        ('photos -o net.pth/out', 'net.pth/out: Not a directory'),
    ],
    ids=['missing', 'no_home', 'into_input', 'into_file', 'tile', 'below_file'],
)
def test_bad_input_is_one_line_and_exit_status_1(upscale, capfd, arguments, message):
    assert upscale(*arguments.split()) == 1
    assert capfd.readouterr() == ('', f'spinsr upscale: error: {message}\n')
    assert not os.path.exists('out')


def test_a_scale_that_the_network_takes_and_does_not_have(upscale, capfd):
    sizes = {'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}
    torch.save(spinsr.load('RRDBNet', 4, None, **sizes).state_dict(), 'net.pth')
    arguments = [*'upscale photos --weights net.pth --arch RRDBNet --scale 8 --arch-args'.split()]
    assert main(arguments + [f'{key}={value}' for key, value in sizes.items()]) == 1
    assert capfd.readouterr().err.endswith('RRDBNet x8 enlarges 4 times: pass --scale 4\n')


def test_misspelt_keyword_of_the_network_has_its_nearest(upscale, capfd):
    assert main(['upscale', 'photos', '-o', 'out', '--weights', 'net.pth', '--arch-args', 'num_blok=1']) == 1
    assert capfd.readouterr().err == (
        "spinsr upscale: error: net.pth: RCAN has no keyword 'num_blok'; did you mean 'num_block'?\n"
    )


def test_unknown_flag_shows_the_flags_of_the_command(capfd):
    with pytest.raises(SystemExit) as error:
        main(['upscale', 'photo.jpg', '--wieghts', 'x'])
    assert error.value.code == 2
    usage = capfd.readouterr().err
    assert usage.startswith('usage: spinsr upscale ') and usage.endswith('unrecognized arguments: --wieghts x\n')


@pytest.mark.parametrize('code', ['def (', '1 / 0', 'import no_such_module'], ids=['syntax', 'error', 'import'])
def test_a_plugin_that_fails_is_one_line(upscale, capfd, code):
    photograph.Path('broken_plugin.py').write_text(code)
    assert upscale('photos', '-o', 'out', '--import', 'broken_plugin') == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith('spinsr upscale: error: --import broken_plugin: ')


def test_without_weights_the_error_says_that_there_are_none(upscale, capsys):
    assert main(['upscale', 'photos', '-o', 'out', '--arch', 'RCAN', '--scale', '2']) == 1
    assert 'spinsr ships no weights for RCAN x2' in capsys.readouterr().err
    assert not os.path.exists('out')


def test_denied_folder(upscale, capfd, monkeypatch):
    def deny(*_):
        raise PermissionError(13, 'Permission denied', 'a temporary name')

    monkeypatch.setattr(os, 'replace', deny)
    assert upscale('photos', '-o', 'out') == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all('Permission denied' in line for line in lines)
    assert os.listdir('out') == []


def test_ctrl_c_is_one_line(upscale, capfd, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(upscaling, 'upscale', interrupt)
    assert upscale('photos', '-o', 'out') == 1
    assert capfd.readouterr().err == 'spinsr upscale: interrupted; run the same command again to continue\n'
    assert os.listdir('out') == []


@pytest.mark.parametrize('arguments', ['', '-o out', 'photos -o out --precision fp8', 'photos -o o --tile x'])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(['upscale', *arguments.split()])
    assert exit_info.value.code == 2


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        main(['upscale', '--help'])
    assert 'spinsr upscale photo.jpg' in capsys.readouterr().out.partition('examples:')[2]


def test_compile_is_used(upscale, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda net, **options: compiled.append(options) or net)
    assert upscale('photos', '-o', 'out', '--compile') == 0
    assert compiled == [{'dynamic': True}]


def test_compile_that_fails_is_one_line_and_the_work_is_done(upscale, monkeypatch, caplog):
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError('No working C++ compiler found\nmore')

    monkeypatch.setattr(torch, 'compile', lambda net, **options: Broken())
    assert upscale('photos', '-o', 'out', '--compile') == 0
    assert caplog.messages == ['--compile failed, continuing without it: No working C++ compiler found']
    assert sorted(os.listdir('out')) == ['a_x2.png', 'b_x2.png']


@pytest.mark.slow
def test_compiled_network_gives_the_same(upscale, net):
    compiled = torch.compile(net, dynamic=True)
    x = torch.rand(1, 3, 20, 30)
    assert torch.allclose(upscaling.super_resolve(x, compiled), upscaling.super_resolve(x, net), rtol=0, atol=1e-5)


def test_names_are_printed_without_control_sequences(upscale, capfd):
    for name in ('x\x1b[2Jy.png', 'line\nend.png'):
        os.rename('photos/a.png', f'photos/{name}')
        assert upscale(f'photos/{name}', '-o', 'out') == 0
        os.rename(f'photos/{name}', 'photos/a.png')
    assert upscale('no\x1b[2J.png', '-o', 'out') == 1
    captured = capfd.readouterr()
    assert captured.out == 'out/x\\x1b[2Jy_x2.png: 100x80\nout/line\\nend_x2.png: 100x80\n'
    assert captured.err == 'spinsr upscale: error: no\\x1b[2J.png is missing\n'


def test_max_pixels_reaches_the_reader(upscale, capfd):
    assert upscale('photos/a.png', '-o', 'out', '--max-pixels', '1999') == 1
    captured = capfd.readouterr()
    assert captured.out == ''
    assert captured.err == 'photos/a.png must have at most 1,999 pixels (max_pixels), has 40x50 (HxW)\n'


@pytest.fixture
def small_models(monkeypatch, net):
    """Every model is a small network."""
    described = SimpleNamespace(scale=2, cls=type(net), build=lambda device: net)
    monkeypatch.setattr(upscale_command.network, 'resolve', lambda args, scale: described)


@pytest.mark.parametrize(
    ('flags', 'advice'),
    [
        ('', '--model photo may do better'),
        ('--model spin', '--model photo may do better'),
        ('--scale 2', '--model photo --outscale 2 instead of --scale may do better'),
        ('--model photo', None),
        (f'--weights net.pth {" ".join(FLAGS)}', None),
    ],
)
def test_the_model_for_photographs_is_named_where_weights_are_not(upscale, small_models, capfd, flags, advice):
    image = Image.new('RGB', (5, 4))
    image.save('a.jpg', quality=30)
    image.save('b.jpg', quality=60)
    assert main(['upscale', 'a.jpg', 'b.jpg', '-o', 'out', *flags.split()]) == 0
    assert capfd.readouterr().err == (f'a.jpg: a JPEG of quality 30; {advice}\n' if advice else '')
