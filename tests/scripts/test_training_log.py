"""The table of a training's log files."""

import csv
import importlib
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
training_log = importlib.import_module('training_log')

COMMON = {'lr': '0.0002', 'l_pix': '0.03', 'l_tv': '1.0'}


def line(iteration, seconds, losses='l_pix: 3.0000e-02 l_tv: 1.0000e+00 '):
    place = f'[train..][epoch:  3, iter:{iteration:8,d}, lr:(2.000e-04,)]'
    return f'2026-01-01 00:00:00,000 INFO: {place} [eta: 1:00:00, time (data): {seconds:.3f} (0.001)] {losses}'


def validation(psnr, dataset='My set'):
    return [
        f'2026-01-01 00:00:00,000 INFO: Validation {dataset}',
        f'\t # psnr: {psnr:.4f}\tBest: 99.0000 @ 7 iter',
        '\t # ssim: 0.9000\tBest: 0.9000 @ 7 iter',
        '',
    ]


def write_log(folder, name, *parts, total_iter=2600, val_freq=250):
    folder.mkdir(exist_ok=True)
    options = [
        '  train:[',
        f'    total_iter: {total_iter}',
        '  ]',
        '  val:[',
        f'    val_freq: {val_freq}',
        '    save_img: False',
        '  ]',
    ]
    lines = [part for one in parts for part in ([one] if isinstance(one, str) else one)]
    (folder / f'train_net_20260101_{name}.log').write_text('\n'.join([*options, *lines]) + '\n')


@pytest.fixture
def experiment(tmp_path):
    """A training that prints every 1,000 and validates every 1,250 iterations, was killed, and went on from 2,000."""
    folder = tmp_path / 'net'
    started = 'INFO: Start training from epoch: 0, iter: 0'
    write_log(folder, '000000', started, line(1000, 2), validation(30), line(2000, 2), validation(50), val_freq=1250)
    resuming = 'INFO: Resuming training from epoch: 1, iter: 2000.'
    resumed = 'INFO: Start training from epoch: 1, iter: 2000'
    end = 'INFO: End of training. Time consumed: 1:00:00'
    course = [resuming, validation(31), resumed, validation(32), line(2600, 4), end, validation(math.inf)]
    write_log(folder, '010000', *course, val_freq=1250)
    return folder


def test_the_later_run_of_an_iteration_counts(experiment, tmp_path, capsys):
    assert training_log.main([str(experiment), '--csv', str(tmp_path / 'csv')]) == 0
    # The median of 2, 2 and 4 seconds.
    found = capsys.readouterr().out
    assert found == f'net: 2600 iterations, {2600 * 2 / 3600:.2f} h; My set/psnr inf, My set/ssim 0.9\n'
    rows = list(csv.DictReader((tmp_path / 'csv/net.csv').open()))
    unknown = dict.fromkeys(['seconds', *COMMON], '')
    assert rows == [
        {'iteration': '1000', 'seconds': '2.0', **COMMON, 'My set/psnr': '', 'My set/ssim': ''},
        {'iteration': '1250', **unknown, 'My set/psnr': '30.0', 'My set/ssim': '0.9'},
        {'iteration': '2000', 'seconds': '2.0', **COMMON, 'My set/psnr': '31.0', 'My set/ssim': '0.9'},
        {'iteration': '2500', **unknown, 'My set/psnr': '32.0', 'My set/ssim': '0.9'},
        {'iteration': '2600', 'seconds': '4.0', **COMMON, 'My set/psnr': 'inf', 'My set/ssim': '0.9'},
    ]


def test_last_validation_of_a_log_without_options_is_of_its_last_iteration(tmp_path):
    began, end = 'INFO: Start training from epoch: 0, iter: 0', 'INFO: End of training. Time consumed: 1:00:00'
    (tmp_path / 'a.log').write_text('\n'.join([began, line(100, 1), end, *validation(30)]))
    assert training_log.read([tmp_path / 'a.log']).rows[100]['My set/psnr'] == 30


def test_each_stage_has_a_speed_of_its_own(tmp_path, capsys):
    stage = 'INFO: Iteration 301: patches of 16x16 (HR), 8 on each device, since iteration 301.'
    began = 'INFO: Start training from epoch: 0, iter: 0'
    write_log(tmp_path / 'net', '0', began, [line(100, 1), line(200, 1), line(300, 1)], stage, line(400, 36))
    assert training_log.main([str(tmp_path / 'net')]) == 0
    assert capsys.readouterr().out == f'net: 400 iterations, {(300 * 1 + 100 * 36) / 3600:.2f} h; not validated\n'


def test_two_sets_are_validated_at_the_same_iterations(tmp_path):
    began = 'INFO: Start training from epoch: 0, iter: 0'
    both = [validation(30, 'a'), validation(40, 'b'), validation(31, 'a'), validation(41, 'b')]
    write_log(tmp_path / 'net', '0', began, line(250, 1), *both)
    rows = training_log.read([*(tmp_path / 'net').iterdir()]).rows
    assert [(rows[at]['a/psnr'], rows[at]['b/psnr']) for at in (250, 500)] == [(30, 40), (31, 41)]


def test_picture_shows_the_metric(experiment, tmp_path, capsys):
    file = tmp_path / 'curves.png'
    command = [str(experiment), '--plot', str(file), '--metric']
    assert training_log.main([*command, 'My set/psn']) == 1
    found = 'no training was validated by My set/psn; there is My set/psnr, My set/ssim'
    assert capsys.readouterr().err == f'training_log: error: {found}\n'
    assert not file.exists()
    assert training_log.main([*command, 'My set/ssim']) == 0
    assert file.read_bytes().startswith(b'\x89PNG\r\n\x1a\n')


def test_folder_without_an_iteration_is_one_line(tmp_path, capsys):
    write_log(tmp_path / 'net', '0', 'INFO: Resuming training from epoch: 1, iter: 2000.', validation(31))
    assert training_log.main([str(tmp_path / 'net')]) == 1
    assert capsys.readouterr().err == 'training_log: error: no log file of net has an iteration\n'


def test_folders_of_one_name_are_one_line(tmp_path, capsys):
    assert training_log.main([str(tmp_path / 'a/net'), str(tmp_path / 'b/net')]) == 1
    assert capsys.readouterr().err == 'training_log: error: the folders must have different names\n'
