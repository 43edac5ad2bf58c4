"""What networks cost: counts known from hand or from the authors' networks, a process that measures, the picture."""

import io
import itertools
import json
import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import spinsr
from spinsr import ops
from spinsr.cli import main
from spinsr.evaluation import complexity, plot
from spinsr.evaluation.complexity import count, measure
from spinsr.evaluation.cost_table import to_markdown
from spinsr.evaluation.published_results import PUBLISHED

from ..networks import NETWORKS

SPIN = {'num_feat': 8, 'num_block': 1, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': [4]}
ARCH_ARGS = ['--arch-args', *(f'{key}={value}' for key, value in SPIN.items())]
COMMAND = ['complexity', '--size', '9x13', '--no-latency', *ARCH_ARGS]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scores(path, parameters=1000, scale=4, dataset='Set5', psnr=31.0):
    result = {'dataset': dataset, 'scale': scale, 'method': 'SPIN', 'parameters': parameters}
    path.write_text(json.dumps([{**result, 'protocols': {'y_crop_scale': {'psnr': psnr, 'ssim': 0.9}}}]))
    return path.name


class Product(nn.Module):
    """A convolution 3 -> 4 with stride 2, and a product of the (4, HW) features with themselves."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x):
        y = self.conv(x).flatten(2)
        return y @ y.transpose(1, 2)


def test_counts_by_hand():
    pixels = 5 * 4  # of a 10x8 input at stride 2
    convolution = pixels * 4 * 3 * 9
    assert count(Product(), 10, 8) == {
        'parameters': 4 * 3 * 9 + 4,
        'multiply_adds': convolution + 4 * 4 * pixels,
        'convolution_multiply_adds': convolution,
        'activations': 4 * pixels,
    }


@pytest.mark.parametrize('arch', ['SPIN', 'SAN'])
def test_counts_equal_those_of_torch_on_real_values(arch, monkeypatch):
    arguments = SPIN if arch == 'SPIN' else {'num_feat': 16, 'num_group': 1, 'num_block': 1}
    net = spinsr.load(arch, 2, None, **arguments)
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(torch.rand(1, 3, 17, 25))
    counted = count(net, 17, 25)
    by_op = {str(op): flops // 2 for op, flops in counter.get_flop_counts()['Global'].items()}
    assert counted['multiply_adds'] == sum(by_op.values())
    assert counted['convolution_multiply_adds'] == by_op['aten.convolution']


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=() if name == 'SPIN' else pytest.mark.slow) for name in NETWORKS]
)
def test_counts_on_both_kinds_of_tensors_without_values_are_equal(name):
    net = spinsr.load(name, 2, None, **NETWORKS[name].small)
    one, other = (f(net, 17, 25) for f in (complexity.count_on_meta, complexity.count_on_fake_tensors))
    assert (one.multiply_adds, one.convolution_multiply_adds) == (other.multiply_adds, other.convolution_multiply_adds)
    assert one.activations == other.activations > 0


def test_repeated_layers_count_each_time():
    counted = count(nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(5))), 4, 7)
    assert (counted['multiply_adds'], counted['activations']) == (5 * 9 * 28, 5 * 3 * 28)


def test_one_layer_counts_the_same_for_each_layout_of_its_input():
    class Layouts(nn.Conv2d):
        def forward(self, x):
            inputs = x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)
            return torch.stack([super(Layouts, self).forward(layout) for layout in inputs])

    with torch.no_grad(), complexity.OpCounter() as counter:
        Layouts(3, 8, 3, padding=1)(torch.rand(1, 3, 5, 6))
    counted = complexity.count_on_meta(Layouts(3, 8, 3, padding=1), 5, 6)
    assert counted.multiply_adds == counter.multiply_adds == 3 * (8 * 3 * 9 * 30)
    assert counted.activations == counter.activations == 3 * (8 * 30)


def test_ops_that_differ_in_the_type_of_a_number_are_different():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            ones = torch.ones_like(x, dtype=torch.int64)
            assert (ones * 2).dtype == torch.int64 and (ones * 2.0).dtype == torch.float32
            return super().forward(ones * 2.0)

    assert complexity.count_on_meta(Scaled(3, 8, 1), 5, 6).multiply_adds == 3 * 8 * 30


def test_fused_attention_is_counted():
    class Attention(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, N, C)
            return nn.functional.scaled_dot_product_attention(y, y, y)

    net = Attention(3, 4, 1)
    counters = [f(net, 5, 6) for f in (complexity.count_on_meta, complexity.count_on_fake_tensors)]
    assert [counter.multiply_adds - counter.convolution_multiply_adds for counter in counters] == [2 * 30 * 30 * 4] * 2


def test_tensors_that_stay_on_the_cpu_are_no_hindrance():
    class Shift(nn.Conv2d):
        shift = torch.ones(8, 1, 1)

        def forward(self, x):
            return super().forward(x) + self.shift

    assert count(Shift(3, 8, 1), 5, 6)['multiply_adds'] == 3 * 8 * 30


class Covariance(nn.Conv2d):
    def forward(self, x):
        return ops.covariance(super().forward(x))


def test_ops_count_as_the_papers_write_them():
    counted = count(Covariance(3, 4, 1), 5, 6)  # centred by a (30, 30) matrix
    assert counted['multiply_adds'] - counted['convolution_multiply_adds'] == 4 * 30 * 30 + 4 * 30 * 4


@pytest.mark.slow
def test_rcan_x4_for_1280x720():
    counted = count(spinsr.load('RCAN', 4, None), 180, 320)
    assert counted['parameters'] == 15_592_355
    assert round(counted['multiply_adds'] / 1e9, 1) == 916.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ('scale', 'size', 'published'), [(2, (360, 640), 595.9), (3, (240, 427), 175.3), (4, (180, 320), 89.2)]
)
def test_spin_is_near_the_count_of_the_authors_code(scale, size, published):
    counted = count(spinsr.load('SPIN', scale, None), *size)
    assert counted['multiply_adds'] / 1e9 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize('backend', [None, 'torch'])
def test_the_backend_in_force_neither_changes_the_count_nor_is_changed(backend, monkeypatch):
    net = spinsr.load('SPIN', 2, None, **SPIN)
    expected = count(net, 9, 13)
    if backend:
        monkeypatch.setenv('SPINSR_OPS_BACKEND', backend)
    assert count(net, 9, 13) == expected
    assert complexity.os.environ.get('SPINSR_OPS_BACKEND') == backend


def test_counting_takes_no_memory_and_leaves_the_network_as_it_was():
    net = nn.Conv2d(3, 8, 1)
    before = net.weight.clone()
    assert count(net, 10**6, 10**6)['multiply_adds'] == 24 * 10**12
    assert torch.equal(net.weight, before) and net(torch.rand(1, 3, 2, 2)).isfinite().all()


@pytest.mark.parametrize(('height', 'width'), [(0, 5), (5, 0)])
def test_sizes_below_one_are_refused(height, width):
    with pytest.raises(ValueError, match='at least 1'):
        count(nn.Conv2d(3, 8, 1), height, width)


def test_a_network_that_does_not_run_is_said_in_one_line():
    with pytest.raises(ValueError, match='5x5 input cannot be counted: ') as error:
        count(nn.Conv2d(4, 8, 1), 5, 5)
    assert '\n' not in str(error.value)


@pytest.mark.slow
def test_measured_in_a_process():
    row = measure('SPIN', 2, 9, 13, runs=3, arch_args=SPIN)
    assert len(row['seconds']) == 3 and row['latency'] == sorted(row['seconds'])[1] > 0
    assert row['peak_memory'] >= row['base_memory'] > 50e6


def test_no_run_begins_when_enough_time_has_passed(monkeypatch):
    order = {'arch': 'SPIN', 'scale': 2, 'size': [9, 13], 'runs': 3, 'device': 'cpu', 'arch_args': SPIN, 'imports': []}
    logger = logging.getLogger('spinsr')
    level = logger.level
    try:
        assert len(complexity._work(order)['seconds']) == 3
        monkeypatch.setattr(complexity, 'ENOUGH', 1e-9)
        assert len(complexity._work(order)['seconds']) == 1
    finally:
        logger.setLevel(level)  # which is that of another process where this is called


@pytest.mark.slow
def test_a_process_that_fails_says_why():
    with pytest.raises(ValueError, match='SPIN x2 cannot be measured: .*nowhere'):
        measure('SPIN', 2, 9, 13, device='nowhere')


def test_table():
    row = {'arch': 'A', 'scale': 4, 'size': [180, 320], 'parameters': 1234567, 'multiply_adds': 5_650_000_000}
    row |= {'convolution_multiply_adds': 5_250_000_000, 'activations': 3_210_000}
    header, _, line = to_markdown([row]).splitlines()
    assert [cell.strip() for cell in line.split('|')[1:-1]] == [
        'A',
        'x4',
        '180x320',
        '1,234,567',
        '5.7 G',
        '5.2 G',
        '3.2 M',
    ]
    assert 'latency' not in header
    header, _, line = to_markdown([row | {'latency': 0.5, 'peak_memory': 3e8}]).splitlines()
    assert 'latency' in header and line.endswith('| 0.5 s   | 300 MB      |')


def test_published_rows_are_plausible():
    def plausible(row):
        psnr = list(row.psnr.values())
        in_range = row.source and 2e3 < row.parameters < 2e8 and all(24 < value < 40 for value in psnr)
        ordered = psnr[:3] == sorted(psnr[:3], reverse=True) if psnr else 'no source' in row.source
        return in_range and ordered

    assert [f'{row.name} x{row.scale}' for row in PUBLISHED if not plausible(row)] == []


def picture(data):
    return Image.open(io.BytesIO(data)).convert('RGB')


@pytest.mark.slow
def test_points_are_in_the_picture():
    pytest.importorskip('adjustText', reason='plots need adjustText: the extra plot')
    point = plot.Point('here', 555_000, 30.0, ours=True)
    image = picture(plot.draw([point, plot.Point('there', 10**7, 32.0)], 'title'))
    assert image.size == plot.SIZE
    pixels = np.array(image)
    y, x = np.nonzero((pixels == (0xD1, 0x49, 0x5B)).all(2))
    assert np.median(x) < 400 and np.median(y) > 400  # fewer parameters and the lower PSNR: bottom left
    y, x = np.nonzero((pixels == (0x5B, 0x7F, 0xA6)).all(2) & (np.arange(image.size[1])[:, None] < 400))
    assert np.median(x) > 800 and np.median(y) < 200


def test_names_of_a_crowd_keep_off_each_other(monkeypatch):
    """Set5 x4, where RLFN and RFDN lie on each other."""
    pytest.importorskip('adjustText', reason='plots need adjustText: the extra plot')
    drawn = []
    monkeypatch.setattr(plot, 'to_png', lambda figure: drawn.append(figure) or b'')
    rows = [row for row in PUBLISHED if row.scale == 4 and row.psnr and 5e5 < row.parameters < 1.7e6]
    plot.draw([plot.Point(row.name, row.parameters, row.psnr['Set5']) for row in rows if 'DF2K' not in row.name], '')
    axes = drawn[0].axes[0]
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) > 12
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    inside = axes.bbox.padded(0.5)  # half a pixel for rounding
    assert all(inside.containsx(box.x0) and inside.containsx(box.x1) for box in boxes)


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'adjustText', None)
    with pytest.raises(ImportError, match=r"pip install 'spinsr\[plot\]'"):
        plot.draw([plot.Point('a', 9, 30.0)], 'title')


@pytest.mark.parametrize('points', [[], [plot.Point('a', 0, 30.0)], [plot.Point('a', 9, float('inf'))]])
def test_points_without_a_place_are_refused(points):
    with pytest.raises(ValueError, match='point|above 0'):
        plot.draw(points, 'title')


@pytest.mark.slow
def test_command_writes_table_numbers_and_picture(here, capsys):
    name = scores(here / 's.json')
    files = ['--markdown', 'o/t.md', '--json', 'o/t.json', '--plot', 'o/p.png', '--scores', name]
    assert main([*COMMAND, *files]) == 0
    table = (here / 'o/t.md').read_text()
    assert capsys.readouterr().out == table
    (row,) = json.loads((here / 'o/t.json').read_text())
    assert f'{row["parameters"]:,}' in table and row['size'] == [9, 13]
    assert Image.open(here / 'o/p.png').size == plot.SIZE
    assert sorted(path.name for path in (here / 'o').iterdir()) == ['p.png', 't.json', 't.md']
    assert main([*COMMAND, '--json', 'o/t.json']) == 1
    assert capsys.readouterr().err == 'spinsr complexity: error: o/t.json exists; --overwrite replaces it\n'
    assert main([*COMMAND, '--json', 'o/t.json', '--overwrite']) == 0


def test_measured_networks_stand_where_their_files_say(here, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, 'draw', lambda points, title: drawn.extend(points) or b'')
    files = [scores(here / 'small.json', 1000, psnr=30.0), scores(here / 'large.json', 2000, psnr=31.5)]
    assert main([*COMMAND, '--plot', 'one.png', '--scores', files[0]]) == 0
    assert drawn[-1] == plot.Point('SPIN (here)', 1000, 30.0, ours=True)
    assert main([*COMMAND, '--plot', 'two.png', '--scores', *files]) == 0
    assert drawn[-2:] == [
        plot.Point('SPIN (small)', 1000, 30.0, ours=True),
        plot.Point('SPIN (large)', 2000, 31.5, ours=True),
    ]


def test_default_size_gives_1280x720(here, monkeypatch):
    monkeypatch.setattr(complexity, 'count', lambda net, height, width: {'called': (height, width)})
    monkeypatch.setattr('spinsr.cli.complexity.to_markdown', lambda rows: '')
    assert main(['complexity', '--scale', '3', '--no-latency', '--json', 'a.json', *ARCH_ARGS]) == 0
    assert json.loads((here / 'a.json').read_text())[0]['called'] == [240, 427]


def test_an_unknown_arch_is_an_error_and_the_others_are_done(capsys):
    assert main(['complexity', '--arch', 'Nope', 'MSRResNet', '--size', '8x8', '--no-latency']) == 1
    out, err = capsys.readouterr()
    problem, doing = err.splitlines()
    assert 'MSRResNet' in out and "'Nope'" in problem
    assert doing == 'spinsr complexity: counting MSRResNet x4 for an input of 8x8 pixels (HxW) …'


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'dataset': 'Set14'}, 'has no results for Set5 x4'),
        ({'scale': 2}, 'has no results for Set5 x4'),
        ({'parameters': None}, 'must be of spinsr evaluate --json'),
        ({'psnr': None}, 'must be of spinsr evaluate --json'),
    ],
    ids=['dataset', 'scale', 'parameters', 'psnr'],
)
def test_scores_that_do_not_fit_are_refused(change, reason, here, capsys):
    assert main([*COMMAND, '--plot', 'p.png', '--scores', scores(here / 's.json', **change)]) == 1
    assert reason in capsys.readouterr().err and not (here / 'p.png').exists()


def test_a_picture_of_nothing_is_refused_before_the_work(here, capsys):
    assert main([*COMMAND, '--plot', 'p.png', '--dataset', 'Set51']) == 1
    captured = capsys.readouterr()
    assert 'no results for Set51 x4 are published or given' in captured.err and captured.out == ''
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    'arguments',
    [
        ['--size', '9'],
        ['--scale', '0'],
        ['--runs', '0'],
        ['--plot', 'p.jpg'],
        ['--scores', 's.json'],
        ['--arch', 'SPIN', 'SAN', *ARCH_ARGS],
        ['--json', 'a', '--markdown', 'a'],
    ],
    ids=lambda x: x[0][2:],
)
def test_usage(arguments):
    with pytest.raises(SystemExit) as error:
        main(['complexity', *arguments])
    assert error.value.code == 2


def test_the_command_leaves_the_logger_as_it_was(capsys):
    before = logging.getLogger('spinsr').level
    small = ['--arch-args', 'num_feat=4', 'num_group=1', 'num_block=1', 'squeeze_factor=2']
    assert main(['complexity', '--arch', 'RCAN', '--size', '8x8', '--no-latency', *small]) == 0
    assert logging.getLogger('spinsr').level == before
