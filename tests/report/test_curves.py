"""Training curves of the report."""

import re

import numpy as np
import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from spinsr.report.curves import POINTS, Series, chart, read_log, read_protocols
from spinsr.utils.errors import OptionError

PSNR = {'type': 'calculate_psnr', 'crop_border': 4, 'test_y_channel': True}


@pytest.fixture
def log(tmp_path):
    """Writes (tag, step, value) into a new event file of tb_logger/try, each time it is called."""
    folder = tmp_path / 'tb_logger' / 'try'

    def write(*scalars, start=None):
        with SummaryWriter(str(folder), purge_step=start, filename_suffix=f'.{len(list(folder.glob("*")))}') as writer:
            for tag, step, value in scalars:
                writer.add_scalar(tag, value, step)
        return folder

    return write


@pytest.fixture
def options(tmp_path):
    """Writes the option file of the experiment."""

    def write(text):
        path = tmp_path / 'experiments' / 'try' / 'try.yml'
        path.parent.mkdir(parents=True)
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding='utf-8')
        return tmp_path / 'tb_logger' / 'try'

    return write


def test_log_holds_metrics_then_losses(log):
    log(('losses/l_pix', 1, 0.5), ('lr', 1, 1e-3), ('metrics/Set5/psnr', 2, 30.25), ('losses/l_pix', 2, 0.25))
    found = read_log(log(('metrics/Set5/psnr', 4, 31.5)))
    assert [(one.tag, one.steps.tolist(), one.values.tolist()) for one in found] == [
        ('metrics/Set5/psnr', [2, 4], [30.25, 31.5]),
        ('losses/l_pix', [1, 2], [0.5, 0.25]),
    ]


def test_what_was_computed_twice_is_there_once(log):
    log(*(('losses/l_pix', step, 1.0) for step in (1, 2, 3, 4)))
    found = read_log(log(('losses/l_pix', 3, 2.0), start=3))
    assert (found[0].steps.tolist(), found[0].values.tolist()) == ([1, 2, 3], [1, 1, 2])


def test_values_that_are_no_numbers_are_left_out(log):
    found = read_log(
        log(('losses/l_pix', 1, float('nan')), ('losses/l_pix', 2, 1.0), ('losses/l_pix', 3, float('inf')))
    )
    assert found[0].steps.tolist() == [2]


@pytest.mark.parametrize('content', [None, ('lr', 1, 1e-3)], ids=['no_log', 'no_curves'])
def test_no_log_is_an_error(log, tmp_path, content):
    folder = log(content) if content else tmp_path
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        read_log(folder)


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({}, 'y_crop_scale'),
        ({'test_y_channel': False}, 'rgb'),
        ({'test_y_channel': False, 'crop_border': 10}, 'ntire'),
        ({'crop_border': 2}, 'calculate_psnr, crop_border 2, test_y_channel True'),
        ({'type': 'calculate_niqe', 'test_y_channel': True}, 'calculate_niqe, crop_border 4, test_y_channel True'),
    ],
    ids=['y', 'rgb', 'ntire', 'other_border', 'other_metric'],
)
def test_protocol_of_the_option_file(options, changes, expected):
    folder = options({'scale': 4, 'val': {'metrics': {'psnr': PSNR | changes}}})
    assert read_protocols(folder) == {'psnr': expected}


def test_no_option_file_is_no_protocol(tmp_path, options):
    assert read_protocols(tmp_path / 'tb_logger' / 'other') == {}
    assert read_protocols(options({'scale': 4, 'val': None})) == {}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('a: [', 'not valid YAML'),
        ({'val': [1]}, r'val must be a mapping, got \[1\]'),
        ({'val': {'metrics': 'psnr'}}, "metrics must be a mapping, got 'psnr'"),
    ],
    ids=['yaml', 'val', 'metrics'],
)
def test_damaged_option_file_is_an_error(options, content, message):
    with pytest.raises(OptionError, match=message):
        read_protocols(options(content))


def test_metric_without_rules_has_no_protocol(options):
    assert read_protocols(options({'scale': 4, 'val': {'metrics': {'psnr': PSNR, 'ssim': None}}})) == {
        'psnr': 'y_crop_scale'
    }


def series(tag, values, first=10):
    return Series(tag, np.arange(first, first + len(values)), np.array(values, float))


def points(drawing):
    pairs = re.search(r'<polyline points="([^"]*)"', drawing)[1].split()
    return np.array([[float(number) for number in pair.split(',')] for pair in pairs])


def test_chart_says_what_it_shows():
    title, text, drawing = chart(series('metrics/Set5/psnr', [28.1, 29.456]), {'psnr': 'y_crop_scale'})
    assert title == 'PSNR on Set5'
    assert text == 'Validation, y_crop_scale: last 29.46 at iteration 11.'
    assert f'role="img" aria-label="{title}. {text}"' in drawing
    title, text, _ = chart(series('losses/l_pix', [0.05, 0.04]), {})
    assert (title, text) == ('Training loss l_pix', 'Last 0.04 at iteration 11.')
    assert 'unknown protocol' in chart(series('metrics/Set5/psnr', [28.0]), {})[1]


def test_a_larger_value_is_drawn_higher_and_a_later_one_further_right():
    (x, y) = points(chart(series('metrics/Set5/psnr', [28.0, 30, 29]), {})[2]).T
    assert x[0] < x[1] < x[2]
    assert y[1] < y[2] < y[0]
    assert y[2] == pytest.approx((y[0] + y[1]) / 2, abs=0.11)


def test_loss_that_spans_powers_has_a_logarithmic_axis():
    _, text, drawing = chart(series('losses/l_pix', [1, 0.1, 0.01]), {})
    y = points(drawing)[:, 1]
    assert y[1] == pytest.approx((y[0] + y[2]) / 2, abs=0.11)
    assert text.endswith('The vertical axis is logarithmic.')


@pytest.mark.parametrize('values', [[5.0], [3.0, 3], [0.0, 0], [-2.0, 9]], ids=['one', 'equal', 'zeros', 'signs'])
def test_odd_curves_are_drawn(values):
    drawing = chart(series('losses/l_pix', values), {})[2]
    assert np.isfinite(points(drawing)).all()
    assert len(points(drawing)) == len(values)


def test_many_values_are_drawn_as_means():
    _, text, drawing = chart(series('losses/l_pix', [1, 3] * POINTS + [7], first=1), {})
    assert len(points(drawing)) <= POINTS
    assert text == f'Last 7 at iteration {2 * POINTS + 1}. Each point is the mean of 3.'


@pytest.mark.parametrize('scale', [1e-6, 1, 1e6], ids=['tiny', 'one', 'huge'])
def test_axis_has_some_lines_with_different_numbers(scale):
    drawing = chart(series('metrics/Set5/psnr', [2.7 * scale, 3.1 * scale]), {})[2]
    labels = re.findall(r'text-anchor="end">([^<]*)</text>', drawing)[:-1]
    assert 2 <= len(labels) == len(set(labels)) <= 5


def test_names_are_escaped():
    _, _, drawing = chart(series('metrics/<b>&"/psnr', [1.0]), {})
    assert '<b>' not in drawing
    assert 'PSNR on &lt;b&gt;&amp;&#34;' in drawing
