"""What a training shows on a terminal and in a pipe."""

import logging
import sys
from types import SimpleNamespace

import pytest

from spinsr.training.progress_bar import Progress, summary


class Stderr(logging.StreamHandler):
    """Writes to what sys.stderr is at that moment: pytest changes it between fixture and test."""

    stream = property(lambda self: sys.stderr, lambda self, value: None)


@pytest.fixture
def logger(monkeypatch):
    logger = logging.getLogger('basicsr')
    monkeypatch.setattr(logger, 'handlers', [Stderr()])
    monkeypatch.setattr(logger, 'propagate', False)
    before = logger.level
    logger.setLevel(logging.INFO)  # not the attribute: a logger remembers what it is enabled for
    yield logger
    logger.setLevel(before)


def test_bar_shows_loss_rate_and_where_training_stands(logger, capfd):
    progress = Progress(total=10, done=4, name='tiny', shown=True)
    progress.step({'l_pix': 0.0125, 'other': 3.0}, 2e-4)
    logger.info('[tiny..][epoch:  0, iter:       5, lr:(2.000e-04,)] l_pix: 1.2500e-02')
    logger.info('Validation Set5')
    progress.close()
    shown = capfd.readouterr().err
    assert '5/10' in shown and 'l_pix=1.250e-02' in shown and 'lr=2.00e-04' in shown
    assert 'other' not in shown and 'iter:' not in shown
    assert 'Validation Set5' in shown


def test_lines_come_back_when_the_bar_is_closed(logger, capfd):
    Progress(10, 0, 'tiny', shown=True).close()
    logger.info('[tiny..][epoch:  0, iter:       5, lr:(2.000e-04,)]')
    assert 'iter:       5' in capfd.readouterr().err


def test_bar_ends_with_the_last_iteration(logger, capfd):
    progress = Progress(10, 9, 'tiny', shown=True)
    progress.step({}, 2e-4)
    assert capfd.readouterr().err.endswith('\n')
    logger.info('Validation Set5')
    progress.close()
    assert capfd.readouterr().err == 'Validation Set5\n'


def test_nothing_but_lines_in_a_pipe(logger, capfd):
    progress = Progress(total=10, done=4, name='tiny')
    progress.step({'l_pix': 0.0125}, 2e-4)
    logger.info('[tiny..][epoch:  0, iter:       5, lr:(2.000e-04,)]')
    progress.close()
    assert capfd.readouterr().err == '[tiny..][epoch:  0, iter:       5, lr:(2.000e-04,)]\n'


def test_summary_says_best_skipped_and_where():
    psnr = {'better': 'higher', 'val': 31.234567, 'iter': 400}
    never = {'better': 'higher', 'val': float('-inf'), 'iter': -1}
    model = SimpleNamespace(best_metric_results={'Set5': {'psnr': psnr, 'ssim': never}}, nonfinite=2)
    assert list(summary({'path': {'models': 'experiments/tiny/models'}}, model)) == [
        'Best on Set5: psnr 31.2346 at iteration 400',
        'Skipped because loss or gradient was not finite: 2 iterations',
        'Weights: experiments/tiny/models/net_g_latest.pth; checkpoints, log and option file: experiments/tiny',
    ]


def test_summary_of_another_model_says_where():
    assert len(list(summary({'path': {'models': 'experiments/tiny/models'}}, SimpleNamespace()))) == 1
