"""The table of all networks, and weights measured beside what was published."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import spinsr
from spinsr.cli import main
from spinsr.data import image_file
from spinsr.data.bicubic import downsample, mod_crop
from spinsr.evaluation import benchmark, complexity, counts, plot, zoo
from spinsr.evaluation.published_results import elsewhere
from spinsr.inference.load import resolve

from ..tiny_benchmark import photo, write_benchmark

# IMDN_RTC, of 20,000 parameters, whose results are not published.
SMALL = 'IMDN_RTC'


def test_a_variant_has_the_results_of_its_configuration():
    (paper,) = zoo.variants(['RFDN-paper'])
    assert [row.psnr['Set5'] for row in paper.published(4)] == [32.24]
    assert [variant.name for variant in zoo.variants(['RFDN'])] == ['E-RFDN', 'RFDN-paper', 'RFDN-L']
    (plus,) = zoo.variants(['SMFANet+'])
    assert [row.name for row in plus.published(4)] == ['SMFANet+', 'SMFANet+ (DF2K)']
    large, base = zoo.variants(['EDSR-large', 'EDSR-baseline'])
    assert [row.psnr['Manga109'] for variant in (large, base) for row in variant.published(4)] == [31.02, 30.35]


def test_a_result_may_have_another_protocol_than_the_network():
    (variant,) = zoo.variants(['ECBSR-M4C16'])
    (row,) = zoo.rows(variant, 4)
    assert (row.protocol, row.psnr['Set5']) == ('y_mod12', 30.87)
    assert [row.protocol for row in zoo.variants(['ECBSR-M16C64'])[0].published(4)] == ['y_crop_scale']


def test_every_published_result_of_a_format_is_in_the_zoo():
    for variant in zoo.variants():
        if variant.format and variant.name == next(zoo._variants_of(variant.format)).name:
            scales = {row.scale for row in variant.format.published}
            found = sum(len(other.published(scale)) for scale in scales for other in zoo._variants_of(variant.format))
            assert found == len(variant.format.published), variant.name


def test_networks_that_are_known_by_their_results_say_so():
    names = {row.name for row in elsewhere()}
    assert {'MADNet', 'GLADSR', 'LatticeNet', 'DRSAN'} <= names
    (variant,) = zoo.variants(['LatticeNet'])
    (row,) = zoo.rows(variant, 4)
    assert (row.parameters, row.multiply_adds, row.psnr['Set5']) == (777_000, None, 32.3)
    assert '| results only |' in zoo.to_markdown([row])


def test_a_format_replaces_results_known_before(monkeypatch):
    imdn = zoo.variants(['IMDN'])[0].format
    monkeypatch.setattr('spinsr.evaluation.published_results.formats', lambda: (replace(imdn, name='DRSAN'),))
    assert 'DRSAN' not in {row.name for row in elsewhere()} and 'MADNet' in {row.name for row in elsewhere()}


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'SAFMM'; did you mean 'SAFMN'"):
        zoo.variants(['SAFMM'])


def test_weights_are_told_from_other_sizes():
    net = spinsr.load('ShuffleMixer-tiny', 2, None)
    assert zoo.variant_of(resolve(weights=net.state_dict())).name == 'ShuffleMixer-tiny'
    net = spinsr.load('ShuffleMixer-tiny', 2, None, num_block=1)
    assert zoo.variant_of(resolve(weights=net.state_dict())) is None


@pytest.fixture
def counted(monkeypatch):
    """Counting and measuring take no time, and BSRN-S cannot be counted."""

    def count(net, height, width):
        if type(net).__name__ == 'BSRN_S':
            raise ValueError('cannot be counted')
        return {'parameters': sum(p.numel() for p in net.parameters()), 'multiply_adds': height * width * 10**6}

    for find in ('find', 'find_outside'):
        monkeypatch.setattr(counts, find, lambda *_: None)
    monkeypatch.setattr(complexity, 'count', count)
    monkeypatch.setattr(complexity, 'measure', lambda *_, **__: {'latency': 0.25, 'peak_memory': 3 * 10**8})


def test_command_writes_table_numbers_and_picture(tmp_path, monkeypatch, counted, capsys):
    pytest.importorskip('adjustText', reason='plots need adjustText: the extra plot')
    monkeypatch.chdir(tmp_path)
    files = ['--markdown', 't.md', '--csv', 't.csv', '--plot', 'p.png']
    assert main(['zoo', '--arch', SMALL, 'SMFANet', '--latency', '--device', 'cpu', *files]) == 0
    table = (tmp_path / 't.md').read_text()
    assert capsys.readouterr().out == table and '0.25 s' in table and '300 MB' in table
    lines = list(csv.DictReader(io.StringIO((tmp_path / 't.csv').read_text())))
    assert [line['name'] for line in lines] == [SMALL, 'SMFANet', 'SMFANet (DF2K)', 'SMFANet+', 'SMFANet+ (DF2K)']
    assert (lines[1]['Set5'], lines[1]['latency'], lines[0]['Set5']) == ('32.25', '0.25', '')
    assert Image.open('p.png').size == plot.SIZE


def test_command_names_what_fails_and_continues(counted, capsys):
    assert main(['zoo', '--arch', 'BSRN_S', SMALL]) == 1
    out, err = capsys.readouterr()
    assert SMALL in out and 'latency' not in out
    assert err == 'spinsr zoo: error: BSRN-S x4: cannot be counted\n'


def test_what_was_measured_survives_ctrl_c(tmp_path, monkeypatch, counted, capsys):
    rows, path = zoo.rows, tmp_path / 't.csv'

    def interrupted(variant, *args, **kwargs):
        if variant.name == 'SMFANet':
            raise KeyboardInterrupt
        return rows(variant, *args, **kwargs)

    monkeypatch.setattr(zoo, 'rows', interrupted)
    monkeypatch.setattr(plot, 'new_figure', lambda *_: None)  # which needs the extra plot
    picture = tmp_path / 'p.png'
    files = ['--csv', str(path), '--plot', str(picture)]
    assert main(['zoo', '--arch', SMALL, 'SMFANet', '--latency', '--device', 'cpu', *files]) == 1
    assert [line['name'] for line in csv.DictReader(io.StringIO(path.read_text()))] == [SMALL]
    out, err = capsys.readouterr()
    # Nothing to draw: the one that was measured has no published results.
    assert SMALL in out and 'error' not in err and not picture.exists()


def test_plot_needs_latency(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(['zoo', '--plot', 'p.png'])
    assert exit_info.value.code == 2 and '--plot: needs --latency' in capsys.readouterr().err


def test_counts_are_those_of_complexity():
    (row,) = zoo.rows(zoo.variants([SMALL])[0], 4)
    assert row.parameters == 24_114 and row.size == (180, 320)
    assert row.multiply_adds == complexity.count(spinsr.load(SMALL, 4, None), *row.size)['multiply_adds']


def test_lr_of_the_etds_protocol_is_made_from_the_crop(tmp_path):
    hr = write_benchmark(tmp_path / 'Mine', {'one': (37, 42)}, scales=[2])['one']
    pairs = []
    (result,) = benchmark.evaluate(
        [tmp_path / 'Mine'], [2], lambda pair: pairs.append(pair) or pair.hr, protocols=['y_mod12']
    )
    cropped = mod_crop(hr, 12)
    assert pairs[-1].hr.shape == (36, 36, 3) and np.array_equal(pairs[-1].lr, downsample(cropped, 2))
    assert list(result['protocols']) == ['y_mod12']


def test_a_folder_of_weights_is_measured_beside_published(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image_file.write_png(tmp_path / 'Set5' / 'HR' / 'a.png', photo(32, 32))
    for name, net in {
        'whole': spinsr.load('SAFMN', 2, None),
        'small': spinsr.load('SAFMN', 2, None, num_block=1),
    }.items():
        (tmp_path / 'w').mkdir(exist_ok=True)
        torch.save({'params': net.state_dict()}, tmp_path / 'w' / f'{name}.pth')
    torch.save({'a': torch.zeros(1)}, tmp_path / 'w' / 'other.pth')
    (tmp_path / 'w' / 'damaged.pth').write_bytes(b'damaged')
    (tmp_path / 'w' / 'LICENSE').write_text('')
    assert main(['evaluate', '--weights', 'w', '--benchmark', 'Set5', '--device', 'cpu', '--markdown', 't.md']) == 1
    out, err = capsys.readouterr()
    assert out == (tmp_path / 't.md').read_text()
    small, whole = out.splitlines()[2:]
    assert '| x2    | Set5    | y_crop_scale |' in whole and '| 38.00 ' in whole and 'SAFMN: ICCV 2023' in whole
    assert 'small.pth' in small and 'ICCV' not in small
    assert [name for line in err.splitlines() for name in ('damaged.pth', 'other.pth') if name in line] == [
        'damaged.pth',
        'other.pth',
    ]


def test_weights_are_scored_in_the_protocol_of_the_result(tmp_path):
    image_file.write_png(tmp_path / 'Set5' / 'HR' / 'a.png', photo(37, 42))
    for name in ('ECBSR-M4C16', 'ECBSR-M10C16'):
        torch.save({'params': spinsr.load(name, 2, None).state_dict()}, tmp_path / f'{name}.pth')
    ours, unpublished = (
        zoo.evaluate_file(tmp_path / f'{name}.pth', [tmp_path / 'Set5'])[0] for name in ('ECBSR-M4C16', 'ECBSR-M10C16')
    )
    assert list(ours['protocols']) == ['y_mod12'] and ours['published'][0]['psnr'] == 37.18
    assert list(unpublished['protocols']) == ['y_crop_scale'] and unpublished['published'] == []
