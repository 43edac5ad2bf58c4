"""`spinsr evaluate` as it is typed."""

import json
import logging
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from PIL import Image

import spinsr
from spinsr.cli import main
from spinsr.data import image_file
from spinsr.evaluation import benchmark as evaluation
from spinsr.evaluation.benchmark import evaluate, network
from spinsr.evaluation.protocols import DEFAULT, PROTOCOLS

from ..tiny_benchmark import SIZES, write_benchmark

SPIN = {'num_feat': 8, 'num_block': 1, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': [4]}
ARCH_ARGS = ['--arch-args', *(f'{key}={value}' for key, value in SPIN.items())]

PLUGIN = """
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn


@ARCH_REGISTRY.register()
class NearestOfEvaluatePlugin(nn.Module):
    def __init__(self, scale, offset=0):
        super().__init__()
        self.scale, self.offset = scale, offset
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3) * self.gain + self.offset / 255
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory with a benchmark."""
    monkeypatch.chdir(tmp_path)
    write_benchmark(tmp_path / 'Mine')
    return tmp_path


@pytest.fixture
def weights(here):
    """SPIN_x2.pth and SPIN_x3.pth."""
    for scale in (2, 3):
        net = spinsr.load('SPIN', scale, None, **SPIN)
        torch.save({'params': net.state_dict()}, here / f'SPIN_x{scale}.pth')


def run(*arguments):
    return main(['evaluate', *map(str, arguments)])


def bicubic(*arguments):
    return run('--arch', 'bicubic', *arguments)


@pytest.mark.parametrize('scales', [['2,3'], ['2', '3'], ['3,2', '2']], ids=' '.join)
def test_one_table_over_sets_and_scales(here, capsys, scales):
    write_benchmark(here / 'Other', {'one': (40, 40)})
    assert bicubic('--scale', *scales, '--benchmark', 'Mine', 'Other', '--protocol', 'rgb', 'y_crop_scale') == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('PSNR (dB) / SSIM')
    assert re.split(r' *\| *', lines[2])[1:-1] == ['method', 'dataset', 'scale', 'rgb', 'y_crop_scale']
    assert set(lines[3]) == set('| -')
    cells = [re.split(r' *\| *', line)[1:-1] for line in lines[4:]]
    assert [row[:3] for row in cells] == [
        *(['bicubic', 'Mine', 'x2'], ['bicubic', 'Mine', 'x3'], ['bicubic', 'Other', 'x2'], ['bicubic', 'Other', 'x3'])
    ]
    entry = evaluate(['Mine'], [2], evaluation.upsample)[0]['protocols']['y_crop_scale']
    assert cells[0][4] == f'{entry["psnr"]:.3f}/{entry["ssim"]:.4f}'


def test_scale_is_4_unless_said(capsys):
    assert bicubic('--benchmark', 'Mine') == 0
    assert '| Mine    | x4    |' in capsys.readouterr().out


def test_half_precision_is_named_and_computed(here, weights, capsys):
    arguments = ['--weights', 'SPIN_x2.pth', *ARCH_ARGS, '--scale', '2', '--benchmark', 'Mine']
    for precision in ('fp32', 'bf16'):
        assert run(*arguments, '--precision', precision, '--json', f'{precision}.json') == 0
    full, half = (json.loads((here / f'{name}.json').read_text())[0] for name in ('fp32', 'bf16'))
    assert (full['method'], half['method'], half['precision']) == ('SPIN', 'SPIN (bf16)', 'bf16')
    assert full['protocols'] != half['protocols']


def test_network_with_weights_for_each_scale_in_every_protocol(here, weights, capsys):
    arguments = ['--weights', 'SPIN_x{scale}.pth', *ARCH_ARGS, '--scale', '2,3', '--benchmark', 'Mine']
    assert run(*arguments, '--json', 'out.json') == 0
    results = json.loads((here / 'out.json').read_text())
    nets = {scale: spinsr.load('SPIN', scale, f'SPIN_x{scale}.pth', **SPIN) for scale in (2, 3)}
    expected = evaluate(['Mine'], [2, 3], network(nets), method='SPIN')
    about = [
        {
            'arch': 'SPIN',
            'arch_args': {key: list(value) if isinstance(value, tuple) else value for key, value in SPIN.items()},
            'parameters': sum(p.numel() for p in nets[scale].parameters()),
            'weights': f'SPIN_x{scale}.pth',
            'self_ensemble': False,
            'precision': 'fp32',
        }
        for scale in (2, 3)
    ]
    assert results == [{**result, **more} for result, more in zip(expected, about, strict=True)]
    assert list(results[0]['protocols']) == list(DEFAULT)
    assert all(name in capsys.readouterr().out for name in [*PROTOCOLS][:1])


def test_self_ensemble_carries_a_plus(here, weights, capsys):
    arguments = ['--weights', 'SPIN_x2.pth', *ARCH_ARGS, '--scale', '2', '--benchmark', 'Mine', '--overwrite']
    assert run(*arguments, '--json', 'plain.json') == 0
    plain = capsys.readouterr().out
    assert run(*arguments, '--json', 'plus.json', '--csv', 'plus.csv', '--self-ensemble') == 0
    assert '| SPIN+ ' in capsys.readouterr().out and 'SPIN+' not in plain
    (one,), (plus,) = (json.loads((here / f'{name}.json').read_text()) for name in ('plain', 'plus'))
    assert (one['method'], one['self_ensemble']) == ('SPIN', False)
    assert (plus['method'], plus['self_ensemble']) == ('SPIN+', True)
    assert plus['protocols']['rgb']['psnr'] != one['protocols']['rgb']['psnr']
    assert ',SPIN+,' in (here / 'plus.csv').read_text()


def test_network_of_a_module_in_the_working_directory(here, monkeypatch):
    monkeypatch.setattr(sys, 'path', [*sys.path])
    (here / 'evaluate_plugin.py').write_text(PLUGIN)
    torch.save({'params': {'gain': torch.ones(1)}}, here / 'nearest.pth')
    arguments = ['--import', 'evaluate_plugin', '--arch', 'NearestOfEvaluatePlugin', '--weights', 'nearest.pth']
    assert run(*arguments, '--arch-args', 'offset=9', '--scale', 3, '--benchmark', 'Mine', '--json', 'out.json') == 0
    (result,) = json.loads((here / 'out.json').read_text())
    assert (result['method'], result['scale']) == ('NearestOfEvaluatePlugin', 3)

    def nearest(pair):
        return np.clip(pair.lr.repeat(3, 0).repeat(3, 1).astype(int) + 9, 0, 255).astype(np.uint8)

    (expected,) = evaluate(['Mine'], [3], nearest, protocols=['rgb'])
    assert result['protocols']['rgb']['psnr'] == pytest.approx(expected['protocols']['rgb']['psnr'], abs=1e-9)


@pytest.mark.parametrize('folder', ['', 'Mine', 'Mine/x2'], ids=['flat', 'dataset', 'dataset_and_scale'])
def test_images_made_elsewhere(here, capsys, folder):
    hr = write_benchmark(here / 'Mine')
    for name, image in hr.items():
        even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        image_file.write_png(here / 'Old net' / folder / f'{name}_RCAN_x2.png', even ^ 4)
    assert run('--sr', 'Old net', '--scale', '2', '--benchmark', 'Mine', '--json', 'out.json') == 0
    captured = capsys.readouterr()
    assert '| Old net | Mine ' in captured.out
    assert captured.err.count('skipped, spin_published needs unrounded outputs') == 1
    (result,) = json.loads((here / 'out.json').read_text())
    assert list(result['protocols']) == ['y_crop_scale', 'ntire', 'rgb']
    assert result['protocols']['rgb']['psnr'] == pytest.approx(20 * np.log10(255 / 4), abs=1e-9)
    assert result['sr'] == 'Old net'


def test_folder_of_images_below_home(here, monkeypatch):
    monkeypatch.setenv('HOME', str(here))
    arguments = [
        '--sr',
        '~/Mine/HR',
        '--scale',
        '1',
        '--benchmark',
        'Mine',
        '--benchmark',
        'Other',
        '--protocol',
        'rgb',
    ]
    write_benchmark(here / 'Other')
    assert run(*arguments, '--json', 'out.json') == 0
    assert [result['dataset'] for result in json.loads((here / 'out.json').read_text())] == ['Mine', 'Other']


def test_folder_of_images_for_each_scale(here):
    hr = write_benchmark(here / 'Mine', {'a': (36, 36)})['a']
    (here / 'Mine' / 'HR' / 'baby.png').unlink()
    (here / 'Mine' / 'HR' / 'bird.png').unlink()
    image_file.write_png(here / 'sr2' / 'a.png', hr ^ 1)
    image_file.write_png(here / 'sr3' / 'a.png', hr ^ 8)
    arguments = ['--sr', 'sr{scale}', '--scale', '2,3', '--benchmark', 'Mine', '--protocol', 'rgb']
    assert run(*arguments, '--json', 'out.json') == 0
    results = json.loads((here / 'out.json').read_text())
    assert [result['protocols']['rgb']['psnr'] for result in results] == pytest.approx(
        [20 * np.log10(255 / step) for step in (1, 8)], abs=1e-9
    )
    assert [result['sr'] for result in results] == ['sr2', 'sr3']


def test_files_hold_what_was_printed(here, capsys):
    assert bicubic('--scale', '2', '--benchmark', 'Mine', '--markdown', 'a/out.md', '--csv', 'a/out.csv') == 0
    assert (here / 'a' / 'out.md').read_text() == capsys.readouterr().out
    lines = (here / 'a' / 'out.csv').read_text().splitlines()
    assert lines[0] == 'dataset,scale,method,protocol,image,psnr,ssim'
    rows = [line.split(',')[:5] for line in lines[1:]]
    protocols = ('y_crop_scale', 'ntire', 'rgb')
    assert rows == [['Mine', '2', 'bicubic', name, image] for name in protocols for image in [*SIZES, 'mean']]
    assert sorted(os.listdir('a')) == ['out.csv', 'out.md']


@pytest.mark.parametrize('flag', ['--json', '--csv', '--markdown'])
def test_existing_files_are_kept_unless_overwritten(here, capsys, monkeypatch, flag):
    (here / 'out').write_text('old')
    arguments = ['--scale', '2', '--benchmark', 'Mine', flag, 'out']
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, 'evaluate', None)  # nothing is computed before the refusal
        assert bicubic(*arguments) == 1
    assert 'error: out exists; --overwrite replaces it\n' in capsys.readouterr().err
    assert (here / 'out').read_text() == 'old'
    assert bicubic(*arguments, '--overwrite') == 0
    assert 'y_crop_scale' in (here / 'out').read_text()


def test_file_is_replaced_whole_or_not_at_all(here, monkeypatch, capsys):
    (here / 'out.json').write_text('old')

    def fail(source, target):
        json.loads(open(source).read())
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', fail)
    assert bicubic('--scale', '2', '--benchmark', 'Mine', '--json', 'out.json', '--overwrite') == 1
    assert (here / 'out.json').read_text() == 'old'
    assert 'No space left' in capsys.readouterr().err


@pytest.mark.parametrize(('target', 'message'), [('.', 'exists'), ('file/out.json', 'file')])
def test_impossible_files_are_refused_before_the_work(here, monkeypatch, capsys, target, message):
    (here / 'file').write_text('')
    monkeypatch.setattr(evaluation, 'evaluate', None)
    assert bicubic('--benchmark', 'Mine', '--json', target, '--overwrite') == 1
    assert message in capsys.readouterr().err


def test_read_only_folder_is_refused_before_the_work(here, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, 'evaluate', None)
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # the superuser may write everywhere
    assert bicubic('--benchmark', 'Mine', '--json', 'out.json') == 1
    assert capsys.readouterr().err.endswith('error: . cannot be written to\n')


def test_a_broken_set_fails_and_the_others_are_done(here, capsys):
    write_benchmark(here / 'Bad')
    path = here / 'Bad' / 'HR' / 'bird.png'
    path.write_bytes(path.read_bytes()[:-300])
    assert bicubic('--scale', '2', '--benchmark', 'Bad', 'Mine', '--protocol', 'rgb', '--json', 'out.json') == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if 'error' in line]
    assert len(errors) == 1
    assert errors[0].startswith('spinsr evaluate: error: Bad x2: Bad/HR/bird.png cannot be read completely')
    assert '| Mine ' in captured.out and 'Bad' not in captured.out
    assert [result['dataset'] for result in json.loads((here / 'out.json').read_text())] == ['Mine']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--benchmark', 'nowhere'], 'error: not a directory: nowhere/HR'),
        (['--sr', 'Mine/HR', '--benchmark', 'Mine'], 'Mine/HR/baby.png must be 36x42'),
        (['--sr', 'nowhere', '--benchmark', 'Mine'], 'error: not a directory: nowhere'),
        (['--sr', 'empty', '--benchmark', 'Mine'], 'no images (.bmp'),
        (['--benchmark', 'Mine', 'there/Mine'], 'benchmarks must be folders of different names'),
        (['--arch', 'SAN', '--benchmark', 'Mine'], 'spinsr ships no weights for SAN x2'),
        (['--arch', 'SPIN', '--weights', 'nowhere.pth', '--benchmark', 'Mine'], 'nowhere.pth'),
        (['--arch', 'SPINN', '--benchmark', 'Mine'], "got 'SPINN'"),
        (['--arch', 'SPIN', '--import', 'no_such_module', '--benchmark', 'Mine'], 'no_such_module'),
    ],
    ids=['benchmark', 'size', 'sr', 'sr_empty', 'one_name_twice', 'default_weights', 'weights', 'arch', 'import'],
)
def test_nothing_is_written_when_all_fails(here, capsys, arguments, message):
    (here / 'empty').mkdir()
    write_benchmark(here / 'there' / 'Mine')
    arguments = arguments if '--sr' in arguments or '--arch' in arguments else ['--arch', 'bicubic', *arguments]
    assert run('--scale', '2', *arguments, '--protocol', 'rgb', '--json', 'out.json') == 1
    captured = capsys.readouterr()
    assert captured.out == '' and not (here / 'out.json').exists()
    errors = captured.err.splitlines()
    assert len(errors) == 1 and errors[0].startswith('spinsr evaluate: error: ') and message in errors[0]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], '--benchmark'),
        (['--benchmark', 'Mine', '--scale', 'x'], 'must be integers'),
        (['--benchmark', 'Mine', '--scale', '0'], 'must be integers of at least 1, got [0]'),
        (['--benchmark', 'Mine', '--scale', ','], 'must be integers of at least 1, got []'),
        (['--benchmark', 'Mine', '--protocol', 'psnr'], "must be among y_crop_scale, .* got 'psnr'"),
        (['--benchmark', 'Mine', '--weights', 'SPIN_x2.pth', '--scale', '2,3'], 'must name one file for each scale'),
        (['--benchmark', 'Mine', '--sr', '.', '--weights', 'SPIN_x4.pth'], 'argument --weights: needs a network, not'),
        (['--benchmark', 'Mine', '--sr', '.', '--self-ensemble'], 'argument --self-ensemble: needs a network'),
        (['--benchmark', 'Mine', '--arch', 'bicubic', '--self-ensemble'], 'not --arch bicubic'),
        (['--benchmark', 'Mine', '--sr', '.', '--protocol', 'rgb,spin_published'], 'spin_published needs unrounded'),
        (['--benchmark', 'Mine', '--json', 'a', '--csv', 'b/../a'], 'must be different files, got a, b/../a'),
    ],
    ids=[
        *('no_benchmark', 'scale', 'scale_0', 'no_scale', 'protocol', 'one_file_for_two_scales'),
        *('sr_and_weights', 'sr_and_plus', 'bicubic_and_plus', 'unrounded_sr', 'one_file_twice'),
    ],
)
def test_wrong_usage_exits_with_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        run(*arguments)
    assert exit_info.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message if '.*' in message else re.escape(message), line)


def test_odd_files_and_names(here, capsys):
    folder = here / 'Ünter wegs 画像'
    write_benchmark(folder, {'Käse brot': (33, 34)})
    Image.fromarray(np.full((33, 34, 4), 200, np.uint8)).save(folder / 'HR' / 'alpha.webp', lossless=True)
    assert bicubic('--scale', '2', '--benchmark', folder, '--json', 'Größe.json') == 0
    assert 'Ünter wegs 画像' in capsys.readouterr().out
    (result,) = json.loads((here / 'Größe.json').read_text(encoding='utf-8'))
    assert sorted(result['protocols']['rgb']['images']) == ['Käse brot', 'alpha']


@pytest.mark.skipif(sys.platform != 'linux', reason='needs names that are not UTF-8')
def test_names_that_are_not_utf8_or_printable_are_written_and_printed(here, capsys):
    name = os.fsdecode(b'caf\xe9\x1b[2J\nx')
    folder = here / name
    write_benchmark(folder, {name: (33, 34)})
    files = ['--json', 'out.json', '--csv', 'out.csv', '--markdown', 'out.md']
    assert bicubic('--scale', '2', '--benchmark', folder, '--protocol', 'rgb', *files) == 0
    assert r'| caf\udce9\x1b[2J\nx |' in capsys.readouterr().out
    (result,) = json.loads((here / 'out.json').read_text(encoding='utf-8'))
    assert result['dataset'] == name and list(result['protocols']['rgb']['images']) == [name]
    assert 'caf\\udce9' in (here / 'out.csv').read_text(encoding='utf-8')
    assert 'caf\\udce9' in (here / 'out.md').read_text(encoding='utf-8')


def test_metrics_of_pyiqa(here, monkeypatch, capsys):
    class Metric:
        metric_mode = 'FR'

        def __call__(self, target, ref):
            return (target - ref).abs().mean()

    made = []
    pyiqa = SimpleNamespace(create_metric=lambda name, device: made.append((name, device)) or Metric())
    monkeypatch.setitem(sys.modules, 'pyiqa', pyiqa)
    arguments = ['--scale', '2', '--benchmark', 'Mine', '--protocol', 'rgb', '--metric', 'lpips,dists', 'lpips']
    assert bicubic(*arguments, '--device', 'cpu', '--json', 'out.json') == 0
    assert made == [('lpips', torch.device('cpu')), ('dists', torch.device('cpu'))]
    assert '| pyiqa lpips (rgb) | pyiqa dists (rgb) |' in capsys.readouterr().out
    (result,) = json.loads((here / 'out.json').read_text())
    assert result['metrics']['lpips']['protocol'] == 'rgb' and list(result['metrics']['dists']['images']) == [*SIZES]


def test_missing_pyiqa_is_said_before_the_work(here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'pyiqa', None)
    monkeypatch.setattr(evaluation, 'evaluate', None)
    assert bicubic('--benchmark', 'Mine', '--protocol', 'rgb', '--metric', 'lpips') == 1
    assert capsys.readouterr().err == 'spinsr evaluate: error: the metrics lpips need pyiqa: pip install pyiqa\n'


def test_no_gt_scores_a_folder_of_photographs(here, monkeypatch, capsys):
    class Metric:
        metric_mode = 'NR'

        def __call__(self, target):
            return target.mean()

    monkeypatch.setitem(sys.modules, 'pyiqa', SimpleNamespace(create_metric=lambda name, device: Metric()))
    image_file.write_png(here / 'photos/a.png', np.full((5, 7, 3), 51, np.uint8))
    assert bicubic('--no-gt', '--scale', '2', '--benchmark', 'photos', '--json', 'out.json') == 0
    assert '| bicubic | photos  | x2    | 0.2000 ' in capsys.readouterr().out
    (result,) = json.loads((here / 'out.json').read_text())
    assert result['metrics'] == {'niqe': {'protocol': 'rgb_whole', 'value': ANY, 'images': {'a': ANY}}}
    assert main(['evaluate', '--no-gt', '--sr', 'photos', '--metric', 'brisque']) == 0
    assert '| -      | photos  | -     | 0.2000 ' in capsys.readouterr().out


def test_no_gt_needs_pyiqa(here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'pyiqa', None)
    assert bicubic('--no-gt', '--benchmark', 'Mine/HR') == 1
    assert capsys.readouterr().err == 'spinsr evaluate: error: the metrics niqe need pyiqa: pip install pyiqa\n'


def test_help_shows_examples_and_all_protocols(capsys):
    with pytest.raises(SystemExit) as exit_info:
        run('--help')
    out = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert 'spinsr evaluate --weights' in out.partition('examples:')[2]
    assert ', '.join(PROTOCOLS) in ' '.join(out.split())


def test_arguments_need_neither_torch_nor_basicsr():
    code = 'import sys, spinsr.cli.evaluate; sys.exit("torch" in sys.modules or "basicsr" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


@pytest.fixture(autouse=True)
def quiet():
    """The command's logging goes to the stderr of the test that was first; here only what the command prints counts."""
    root = logging.getLogger()
    before = root.handlers[:]
    yield
    root.handlers[:] = before
