"""The table of a training's log files."""

import csv
import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
training_log = importlib.import_module('training_log')


def line(iteration, seconds, losses='l_pix: 3.0000e-02 l_tv: 1.0000e+00 '):
    place = f'[train..][epoch:  3, iter:{iteration:8,d}, lr:(2.000e-04,)]'
    return f'2026-01-01 00:00:00,000 INFO: {place} [eta: 1:00:00, time (data): {seconds:.3f} (0.001)] {losses}'


def validation(psnr):
    return [
        '2026-01-01 00:00:00,000 INFO: Validation Set5',
        f'\t # psnr: {psnr:.4f}\tBest: 99.0000 @ 7 iter',
        '\t # ssim: 0.9000\tBest: 0.9000 @ 7 iter',
        '',
    ]


@pytest.fixture
def experiment(tmp_path):
    """A training that was killed after 3,000 iterations and went on from 2,000."""
    folder = tmp_path / 'net'
    folder.mkdir()
    start = ['INFO: Start training from epoch: 0, iter: 0', 'INFO: Validation Set14', *validation(20)[1:]]
    first = [*start, line(1000, 2), *validation(30), line(2000, 2), line(3000, 9), *validation(50)]
    resumed = ['INFO: Resuming training from epoch: 1, iter: 2000.', *validation(31), line(2500, 4)]
    second = [*resumed, *validation(32), 'INFO: End of training.', *validation(32)]
    (folder / 'train_net_20260101_000000.log').write_text('\n'.join(first) + '\n')
    (folder / 'train_net_20260101_010000.log').write_text('\n'.join(second) + '\n')
    return folder


def test_the_later_run_of_an_iteration_counts(experiment, tmp_path, capsys):
    assert training_log.main([str(experiment), '--csv', str(tmp_path / 'csv')]) == 0
    # The median of 2, 2 and 4 seconds.
    assert capsys.readouterr().out == f'net: 2500 iterations, {2500 * 2 / 3600:.2f} h; Set5/psnr 32, Set5/ssim 0.9\n'
    rows = list(csv.DictReader((tmp_path / 'csv/net.csv').open()))
    common = {'lr': '0.0002', 'l_pix': '0.03', 'l_tv': '1.0'}
    assert rows == [
        {'iteration': '1000', 'seconds': '2.0', **common, 'Set5/psnr': '30.0', 'Set5/ssim': '0.9'},
        {'iteration': '2000', 'seconds': '2.0', **common, 'Set5/psnr': '31.0', 'Set5/ssim': '0.9'},
        {'iteration': '2500', 'seconds': '4.0', **common, 'Set5/psnr': '32.0', 'Set5/ssim': '0.9'},
    ]


def test_picture(experiment, tmp_path):
    assert training_log.main([str(experiment), '--plot', str(tmp_path / 'curves.png')]) == 0
    with (tmp_path / 'curves.png').open('rb') as file:
        assert file.read(8) == b'\x89PNG\r\n\x1a\n'


def test_folder_without_a_log_is_one_line(tmp_path, capsys):
    assert training_log.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == f'training_log: error: no log file in {tmp_path.name} has an iteration\n'
