"""The report as a function: what its page holds."""

import os
import re

import markupsafe
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

import spinsr
from spinsr import report
from spinsr.data import image_file
from spinsr.evaluation import benchmark as evaluation
from spinsr.evaluation import complexity
from spinsr.inference.load import resolve
from spinsr.report import make_report, page

from ..tiny_benchmark import photo, write_benchmark

SPIN = {'num_feat': 8, 'num_block': 2, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': [4, 8]}


@pytest.fixture(scope='module', autouse=True)
def small_count():
    """The dense formulation, which is what is counted, has large tables for cells as small as those here."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(report, 'COUNTED', (40, 64))
        yield


@pytest.fixture(scope='module')
def spin():
    torch.manual_seed(0)
    return spinsr.load('SPIN', 2, None, **SPIN)


@pytest.fixture(scope='module')
def benchmark(tmp_path_factory, spin, small_count):
    """A benchmark, and its page."""
    folder = tmp_path_factory.mktemp('page') / 'Mine'
    write_benchmark(folder, scales=[2])
    return folder, make_report(folder, spin, weights='a<b>.pth')


def labels(text):
    """What the menus of the slider offer, image by image."""
    menus = re.findall(r'<select data-side="left"[^>]*>(.*?)</select>', text)
    return [re.findall(r'<option[^>]*>([^<]*)</option>', menu) for menu in menus]


def test_benchmark_has_all_pictures(benchmark):
    _, text = benchmark
    assert (
        labels(text)
        == [['bicubic', 'SPIN', 'HR', 'LR', 'superpixels', 'mean colours', 'error of bicubic', 'error of SPIN']] * 2
    )
    assert re.findall(r'<h3>([^<]*)</h3>', text) == ['baby', 'bird']
    assert len(re.findall('<img ', text)) == len(
        re.findall('<img class="[a-z]*" src="data:image/|<img src="data:image/', text)
    )
    assert len(re.findall('<img [^>]*alt="[^"]+">', text)) == len(re.findall('<img ', text))


def test_scores_are_those_of_evaluate(benchmark, spin):
    folder, text = benchmark
    expected = evaluation.evaluate([folder], [2], evaluation.network({2: spin}))[0]['protocols']
    of_bicubic = evaluation.evaluate([folder], [2], evaluation.upsample)[0]['protocols']
    rows = [re.sub(r'<[^>]+>', ' ', row).split() for row in re.findall(r'<tr[ >].*?</tr>', text)]
    one, other = (scores['y_crop_scale']['images']['bird'] for scores in (of_bicubic, expected))
    gain = f'{other["psnr"] - one["psnr"]:+.2f}'.replace('-', '−')
    numbers = [f'{scores[key]:.{digits}f}' for scores in (one, other) for key, digits in (('psnr', 2), ('ssim', 4))]
    assert ['bird', *numbers, gain] in rows
    mean = expected['ntire']
    row = next(row for row in rows if row[0] == 'ntire')
    assert row[-3:-1] == [f'{mean["psnr"]:.2f}', f'{mean["ssim"]:.4f}']
    row = next(row for row in rows if row[0] == 'spin_published')
    assert row[-4:] == [
        '–',
        f'{expected["spin_published"]["psnr"]:.2f}',
        f'{expected["spin_published"]["ssim"]:.4f}',
        '–',
    ]


def test_no_number_stands_without_its_protocol(benchmark):
    _, text = benchmark
    assert re.findall(r'<dt>((?:PSNR|SSIM)[^<]*)</dt>', text) == ['PSNR, y_crop_scale', 'SSIM, y_crop_scale']
    assert len(re.findall(r'<p class="numbers"><code>y_crop_scale</code>', text)) == 2
    assert len(re.findall(' dB', re.sub('<caption>.*?</caption>', '', text))) == 3


def test_costs_and_versions_are_there(benchmark, spin):
    _, text = benchmark
    counted = complexity.count(spin, 20, 32)
    assert f'<dt>Parameters</dt><dd>{counted["parameters"]:,}</dd>' in text
    assert f'<dt>Multiply-adds, input 32 × 20</dt><dd>{counted["multiply_adds"] / 1e9:,.1f} G</dd>' in text
    assert f'spinsr {spinsr.__version__}, torch {torch.__version__}, BasicSR 1.4' in text
    assert '<dd>a&lt;b&gt;.pth</dd>' in text


def test_page_asks_for_nothing_else(benchmark):
    _, text = benchmark
    assert not re.search(r'https?:|url\(|@import|<link(?! rel="icon" href="data:,">)|<script [^>]*src', text)
    assert set(re.findall(r'(?:src|href)="([^#"]{1,5})', text)) == {'data:'}


def test_folder_without_hr_has_no_scores(tmp_path, spin):
    Image.fromarray(photo(9, 14)).save(tmp_path / 'a.jpg')
    Image.fromarray(photo(12, 8)[..., 0]).save(tmp_path / 'b.png')
    (tmp_path / 'c.txt').write_bytes(b'no image')
    text = make_report(tmp_path, spin)
    assert labels(text) == [['bicubic', 'SPIN', 'LR', 'superpixels', 'mean colours']] * 2
    assert '28 × 18' in text
    assert not re.search('PSNR|SSIM|id="scores"|<table', text)


@pytest.mark.parametrize('kind', ['grey', 'alpha', '16_bits'])
def test_kinds_of_images_are_shown_as_rgb(tmp_path, spin, kind):
    rgb = photo(9, 12)
    image = {
        'grey': rgb[..., 0],
        'alpha': np.dstack((rgb, rgb[..., :1])),
        '16_bits': rgb[..., 0].astype(np.uint16) * 257,
    }
    Image.fromarray(image[kind]).save(tmp_path / 'a.png')
    expected = rgb if kind == 'alpha' else rgb[..., [0, 0, 0]]
    plain = tmp_path / 'plain'
    image_file.write_png(plain / 'a.png', expected)

    def sources(folder):
        return re.findall('src="([^"]*)"', make_report(folder, spin))

    assert sources(tmp_path) == sources(plain)


def test_other_networks_have_no_superpixels(tmp_path):
    write_benchmark(tmp_path / 'Mine')
    rcan = spinsr.load('RCAN', 2, None, num_feat=4, num_group=1, num_block=1, squeeze_factor=2)
    text = make_report(tmp_path / 'Mine', rcan)
    assert labels(text)[0] == ['bicubic', 'RCAN', 'HR', 'LR', 'error of bicubic', 'error of RCAN']
    assert 'uperpixel' not in text


def test_pictures_of_some_images_and_scores_of_all(benchmark, spin):
    folder, _ = benchmark
    text = make_report(folder, spin, shown=1)
    assert re.findall(r'<h3>([^<]*)</h3>', text) == ['baby']
    assert '<a href="#image-0">baby</a>' in text
    assert '<th scope="row">bird</th>' in text
    assert 'Pictures of the first 1 of 2 images, by name.' in text
    assert '<dt>Images</dt><dd>2</dd>' in text


def test_other_block_has_other_superpixels(benchmark, spin):
    folder, text = benchmark
    other = make_report(folder, spin, block=1)
    pictures, others = (re.findall('<button[^>]*>(.*?)</button>', one) for one in (text, other))
    assert [one == two for one, two in zip(pictures, others, strict=True)] == [False, False, True, True] * 2
    assert 'Superpixels are those of block 1,' in other


def test_curves_of_a_log(benchmark, spin, tmp_path):
    folder, text = benchmark
    assert 'id="training"' not in text
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar('losses/l_pix', 0.5, 1)
        writer.add_scalar('metrics/Set5/psnr', 28.5, 1)
    text = make_report(folder, spin, log=tmp_path)
    assert re.findall('<figure class="chart"><h3>([^<]*)</h3><svg ', text) == ['PSNR on Set5', 'Training loss l_pix']


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no such file names')
@pytest.mark.parametrize(
    'name', ['<b>&"\'', 'Ünïcode 中', '-- {0} %s $x', 'bad\udcff'], ids=['html', 'unicode', 'format', 'bytes']
)
def test_names_are_escaped(tmp_path, spin, name):
    image_file.write_png(tmp_path / f'{name}.png', photo(8, 8))
    text = make_report(tmp_path, spin)
    shown = f'{name}.png'.replace('\udcff', '?')
    assert f'<h3>{markupsafe.escape(shown)}</h3>' in text
    assert '<b>' not in text
    text.encode()


def test_small_images_that_have_no_score(tmp_path, spin):
    write_benchmark(tmp_path / 'Mine', {'small': (12, 12)})
    text = make_report(tmp_path / 'Mine', spin)
    assert 'SSIM n/a → <strong>n/a</strong>' in text
    assert '<dt>SSIM, y_crop_scale</dt><dd>n/a</dd>' in text


@pytest.mark.parametrize(
    ('psnr', 'before', 'expected'),
    [(30.0, 29.5, '+0.50'), (29.0, 29.5, '−0.50'), (float('inf'), 29.5, ''), (None, None, '')],
    ids=['up', 'down', 'equal_images', 'small'],
)
def test_gain(psnr, before, expected):
    assert page.gain({'psnr': psnr}, {'psnr': before}) == expected


def test_damaged_image_is_left_out_and_told(tmp_path, spin):
    image_file.write_png(tmp_path / 'a.png', photo(8, 8))
    (tmp_path / 'b.png').write_bytes((tmp_path / 'a.png').read_bytes()[:60])
    lines = []
    text = make_report(tmp_path, spin, failed=lines.append)
    assert [line.startswith(f'{tmp_path / "b.png"} ') for line in lines] == [True]
    assert re.findall(r'<h3>([^<]*)</h3>', text) == ['a.png']
    with pytest.raises(ValueError, match='b.png'):
        make_report(tmp_path, spin)


def test_nothing_to_show_is_an_error(tmp_path, spin):
    (tmp_path / 'b.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='holds no image that can be shown'):
        make_report(tmp_path, spin, failed=lambda line: None)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'shown': 0}, 'shown must be at least 1, got shown=0'),
        ({'block': 2}, 'the block must be 0 to 1, got 2'),
        ({'block': -1}, 'the block must be 0 to 1, got -1'),
        ({'log': 'no_such_log'}, 'no_such_log holds no TensorBoard log'),
    ],
    ids=['shown', 'block', 'block_-1', 'log'],
)
def test_bad_arguments_are_errors_before_the_work(benchmark, spin, options, message):
    with pytest.raises(ValueError, match=message):
        make_report(benchmark[0] / 'HR', spin, **options)


def test_network_that_cannot_be_counted_is_said(benchmark):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            if x.shape[2:] == (20, 32):
                raise RuntimeError('not of this size')
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3) * self.gain

    text = make_report(benchmark[0], Odd())
    assert '<dd>not counted: a 20x32 input cannot be counted: not of this size</dd>' in text
    assert len(re.findall('<dt>Multiply-adds', text)) == 1


def test_kept_counts_are_shown_without_counting(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'COUNTED', (720, 1280))
    monkeypatch.setattr(complexity, 'count', None)
    image_file.write_png(tmp_path / 'a.png', photo(8, 8))
    network = resolve('SPIN', 4, None)
    assert '<dd>88.7 G</dd>' in make_report(tmp_path, network.build(), network=network)


def test_network_without_parameters_is_shown(tmp_path):
    image_file.write_png(tmp_path / 'a.png', photo(8, 8))
    assert '<dd>cpu, float32, ' in make_report(tmp_path, torch.nn.Upsample(scale_factor=2))
