"""Training: exactly total_iter iterations, resume, seeds and the one-line errors."""

import os
import queue
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.utils import logger as basicsr_logger

from spinsr import cli, train
from spinsr import test as run_test
from spinsr.launch import INTERRUPTED, launch
from spinsr.models.spinsr_model import SpinsrModel
from spinsr.training import experiment, option_files, time_limit
from spinsr.utils.errors import TrainingError

from .tiny_project import TRAIN, changed, write_images, write_options


@pytest.fixture
def iterations(monkeypatch):
    """The numbers of the iterations that were trained."""
    done = []
    optimize_parameters = SpinsrModel.optimize_parameters

    def count(self, current_iter):
        done.append(current_iter)
        optimize_parameters(self, current_iter)

    monkeypatch.setattr(SpinsrModel, 'optimize_parameters', count)
    return done


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The working directory of a training; BasicSR makes a new log file there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(basicsr_logger, 'initialized_logger', {})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: several threads only wait for each other
    yield tmp_path
    torch.set_num_threads(threads)


def log(project):
    return next((project / 'experiments' / 'tiny').glob('train_*.log')).read_text()


@pytest.mark.parametrize(
    ('images', 'batch', 'total'),
    [
        pytest.param(3, 4, 5, id='fewer-images-than-a-batch'),
        pytest.param(3, 2, 6, id='last-batch-dropped'),
        pytest.param(4, 2, 4, id='whole-epochs'),
        pytest.param(1, 1, 1, id='one-of-all'),
    ],
)
def test_runs_exactly_total_iter(project, iterations, images, batch, total):
    write_images(project, images)
    changes = {'train:total_iter': total, 'datasets:train:batch_size_per_gpu': batch}
    options = write_options(project / 'tiny.yml', changed(TRAIN, changes))

    assert train.main(['-opt', options]) == 0

    assert iterations == list(range(1, total + 1))
    weights = torch.load(project / 'experiments/tiny/models/net_g_latest.pth', weights_only=True)
    assert set(weights) == {'params', 'params_ema'}


def test_enlarging_is_said_once(project):
    write_images(project, 3)
    options = write_options(project / 'tiny.yml', changed(TRAIN, {'datasets:train:batch_size_per_gpu': 4}))

    train.main(['-opt', options])

    assert log(project).count('fewer than a batch') == 1


@pytest.mark.parametrize(
    'flags',
    [
        pytest.param(['--auto_resume', '--force_yml', 'train:total_iter=7'], id='auto'),
        pytest.param(
            ['--auto_resume', '--force_yml', 'train:total_iter=7', 'datasets:train:batch_size_per_gpu=1'],
            id='smaller-batch',
        ),
        pytest.param(
            ['--auto_resume', '--force_yml', 'train:total_iter=7', 'datasets:train:batch_size_per_gpu=4'],
            id='larger-batch',
        ),
        pytest.param(
            ['--force_yml', 'train:total_iter=7', 'path:resume_state=experiments/tiny/training_states/4.state'],
            id='named-state',
        ),
    ],
)
def test_resume_reaches_total_iter(project, iterations, flags):
    write_images(project, 5)
    options = write_options(project / 'tiny.yml', TRAIN)
    assert train.main(['-opt', options]) == 0
    iterations.clear()

    assert train.main(['-opt', options, *flags]) == 0

    assert iterations == [5, 6, 7]


def test_resume_of_a_finished_training_trains_nothing(project, iterations):
    write_images(project, 4)
    options = write_options(project / 'tiny.yml', TRAIN)
    assert train.main(['-opt', options]) == 0
    iterations.clear()

    assert train.main(['-opt', options, '--auto_resume']) == 0

    assert iterations == []


def test_forced_seed_is_the_seed(project):
    def weights(name, seed, *flags):
        changes = {'name': name, 'manual_seed': seed, 'train:total_iter': 1}
        options = write_options(project / 'tiny.yml', changed(TRAIN, changes))
        assert train.main(['-opt', options, *flags]) == 0
        state = torch.load(project / 'experiments' / name / 'models/net_g_latest.pth', weights_only=True)['params']
        return torch.cat([value.flatten() for value in state.values()])

    write_images(project, 4)
    written = weights('written', 7)
    forced = weights('forced', 0, '--force_yml', 'manual_seed=7')
    other = weights('other', 0)

    assert torch.equal(written, forced)
    assert not torch.equal(written, other)


@pytest.mark.parametrize(
    ('changes', 'flags', 'line'),
    [
        pytest.param(
            {'network_g:num_blok': 2}, [], "SPIN has no keyword 'num_blok'; did you mean 'num_block'?", id='key'
        ),
        pytest.param({'network_g:type': 'SPINN'}, [], "'SPINN' is not registered; did you mean 'SPIN'?", id='arch'),
        pytest.param({'model_type': 'SpinModel'}, [], "did you mean 'SpinsrModel'?", id='model'),
        pytest.param({}, ['--force_yml', 'train:total_itr=3'], "did you mean 'train:total_iter'?", id='forced-key'),
        pytest.param({}, ['--force_yml', 'train:total_iter'], 'must be section:key=value', id='forced-nothing'),
        pytest.param({'train:optim_g:lr': '2e-4'}, [], 'train:optim_g:lr: 2e-4 is text to YAML', id='text-number'),
        pytest.param(
            {'datasets:train:dataroot_gt': 'datasets/div2k/DIV2K_train_HR'},
            [],
            'make it with: spinsr prepare div2k PATH_TO_DIV2K',
            id='no-data',
        ),
        pytest.param(
            {'path:pretrain_network_g': 'experiments/train_RCAN_x2/models/net_g_latest.pth'},
            [],
            'train it first: python -m spinsr.train -opt train_RCAN_x2.yml',
            id='no-weights',
        ),
        pytest.param(
            {'path:pretrain_network_g': 'experiments/train_RLFN_x2_contrastive/models/net_g_latest.pth'},
            [],
            'train it first: python -m spinsr.train -opt train_RLFN_x2_contrastive.yml',
            id='no-weights-of-a-recipe',
        ),
        pytest.param(
            {'datasets:train:filename_tmpl': '{}x2'},
            [],
            "0.png of hr has no LR image 0x2.png in lr (filename_tmpl: '{}x2')",
            id='no-pair',
        ),
        pytest.param({'path:resume_state': 'gone.state'}, [], 'path:resume_state: gone.state does not', id='no-state'),
    ],
)
def test_mistake_is_one_line(project, capsys, changes, flags, line):
    write_images(project, 2)
    options = write_options(project / 'tiny.yml', changed(TRAIN, changes))

    assert train.main(['-opt', options, *flags]) == 1

    error = capsys.readouterr().err
    assert error.startswith('spinsr.train: error: ')
    assert line in error
    assert error.count('\n') == 1
    assert not (project / 'experiments').exists()


@pytest.mark.parametrize(
    'name', ['train_SPIN_x4_sample.yml', 'options/train_SPIN_x4_sample.yml', 'train_SPIN_x4_sample']
)
def test_shipped_option_file_from_another_directory(project, capsys, name):
    assert train.main(['-opt', name]) == 1
    assert capsys.readouterr().err.endswith('make it with: spinsr prepare sample\n')


def test_generated_option_file_says_so(project, capsys):
    seen = []
    flags = ['-opt', 'test_RDBESA_x3', '--no-check']
    assert launch('spinsr.test', lambda opt, args: seen.append((opt['name'], args.opt)), flags, is_train=False) == 0
    assert seen == [('test_RDBESA_x3', 'test_RDBESA_x3.yml')]
    line = 'spinsr.test: test_RDBESA_x3.yml was generated from the recipe of RDBESA; to change it: spinsr options '
    assert capsys.readouterr().err == f'{line}test_RDBESA_x3.yml -o DIR\n'


# Pairs of random images instead of DIV2K and Set5.
HERE = [f'datasets:{key}:dataroot_gt=hr' for key in ('train', 'val', 'val_2')]
HERE += [f'datasets:{key}:dataroot_lq=lr' for key in ('train', 'val_2')]
HERE += [f'datasets:{key}:io_backend:type=disk' for key in ('train', 'val')]
HERE += ['datasets:val_2:filename_tmpl={}', 'datasets:train:gt_size=16', 'datasets:train:batch_size_per_gpu=2']
HERE += ['datasets:train:num_worker_per_gpu=0', 'logger:use_tb_logger=false']


@pytest.mark.slow
def test_trains_from_a_generated_option_file(project, iterations):
    write_images(project, 4)
    short = ['train:total_iter=10', 'train:scheduler:milestones=[5]', 'network_g:num_block=1']
    assert train.main(['-opt', 'train_RLFN_x2.yml', '--force_yml', *HERE, *short]) == 0
    assert iterations == list(range(1, 11))
    folder = project / 'experiments/train_RLFN_x2'
    assert (folder / 'models/net_g_latest.pth').is_file()
    copy = (folder / 'train_RLFN_x2.yml').read_text()
    assert copy.endswith(option_files.find('train_RLFN_x2').text())


@pytest.mark.parametrize(
    ('main', 'name', 'line'),
    [
        (train.main, 'test_SPIN_x4_sample.yml', 'this is an option file for testing: python -m spinsr.test'),
        (run_test.main, 'train_SPIN_x4_sample.yml', 'this is an option file for training: python -m spinsr.train'),
        (train.main, 'train_SPIN_x4_sampel.yml', "did you mean 'train_SPIN_x4_sample.yml'?"),
        (train.main, 'nothere.yml', 'no such file, nor an option file of spinsr (spinsr options lists them)'),
    ],
    ids=['test-file', 'train-file', 'misspelt', 'no-file'],
)
def test_the_wrong_file_is_one_line(main, name, line, capsys):
    assert main(['-opt', name]) == 1
    error = capsys.readouterr().err
    assert error.endswith(f'{line}\n') and error.count('\n') == 1


@pytest.mark.parametrize(
    ('cause', 'line'),
    [
        (RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. '), 'is killed by signal: Killed.'),
        (queue.Empty(), 'exited unexpectedly'),
    ],
    ids=['signal-known', 'signal-unknown'],
)
def test_dead_worker_is_one_line_with_the_signal_if_it_is_known(project, capsys, cause, line):
    def pipeline(opt, args):
        raise RuntimeError('DataLoader worker (pid(s) 7) exited unexpectedly') from cause

    options = write_options(project / 'tiny.yml', TRAIN)
    assert launch('spinsr.train', pipeline, ['-opt', options, '--no-check'], is_train=True) == 1
    error = capsys.readouterr().err
    assert error.startswith('spinsr.train: error: DataLoader worker') and error.endswith(f'{line}\n')


@pytest.mark.parametrize('error', [ConnectionRefusedError(111, 'refused'), EOFError(), FileNotFoundError(2, 'gone')])
def test_worker_that_is_killed_before_its_batch_is_taken_over_is_named(error):
    def lost():
        raise error

    run = SimpleNamespace(is_complete=lambda: False, stop=time_limit.Stop(program=False))
    with pytest.raises(TrainingError, match='a data loader worker has died'):
        train._Prefetcher(run, SimpleNamespace(next=lost)).next()


@pytest.mark.parametrize(
    ('error', 'status', 'line'),
    [
        (ConnectionResetError(104, 'Connection reset by peer'), 1, 'a data loader worker, or another process of this'),
        (EOFError(), 1, 'a data loader worker, or another process of this training, has died (EOFError)'),
        (
            RuntimeError("can't start new thread"),
            1,
            'error: out of memory or threads: a smaller',
        ),
        (MemoryError(), 1, 'error: out of memory or threads: a smaller'),
        (ImportError('libtorch.so: failed to map segment from shared object'), 1, 'error: out of memory or threads: a'),
        (PermissionError(13, 'Permission denied', 'x.pth'), 1, 'spinsr.train: error: x.pth: Permission denied'),
        (KeyboardInterrupt(), INTERRUPTED, 'spinsr.train: interrupted'),
    ],
    ids=['worker-gone', 'worker-silent', 'thread-limit', 'memory', 'import', 'file', 'ctrl-c'],
)
def test_what_the_system_refuses_is_one_line(project, capsys, error, status, line):
    def pipeline(opt, args):
        raise error

    options = write_options(project / 'tiny.yml', TRAIN)
    assert launch('spinsr.train', pipeline, ['-opt', options, '--no-check'], is_train=True) == status
    (text,) = capsys.readouterr().err.strip().splitlines()
    assert line in text and '[Errno' not in text


@pytest.mark.parametrize('name', ['../precious', 'experiments/precious', 'precious/.', ''])
@pytest.mark.parametrize('flags', [[], ['--no-check']], ids=['checked', 'unchecked'])
def test_name_that_leaves_the_experiments_touches_nothing(project, capsys, name, flags):
    (project / 'precious').mkdir()
    (project / 'experiments').mkdir()
    options = write_options(project / 'tiny.yml', changed(TRAIN, {'name': name}))
    assert train.main(['-opt', options, *flags]) == 1
    assert 'name must be' in capsys.readouterr().err.replace('name: must', 'name must')
    assert sorted(path.name for path in project.rglob('*')) == ['experiments', 'precious', 'tiny.yml']


def test_second_training_in_the_same_folder_is_refused_and_the_folder_stays(project, capsys, monkeypatch):
    write_images(project, 2)
    (project / 'experiments/tiny').mkdir(parents=True)
    monkeypatch.setattr(experiment, '_lock', lambda file: False)
    options = write_options(project / 'tiny.yml', TRAIN)
    assert train.main(['-opt', options]) == 1
    assert 'experiments/tiny is in use by another process' in capsys.readouterr().err
    assert [path.name for path in (project / 'experiments').iterdir() if path.is_dir()] == ['tiny']


def test_terminal_shows_no_banner_and_the_log_file_has_it(project, iterations, capsys):
    write_images(project, 4)
    numbers = {'val:val_freq': 2.0, 'logger:save_checkpoint_freq': 2.0, 'train:total_iter': 4.0}
    options = write_options(project / 'tiny.yml', changed(TRAIN, numbers))
    assert train.main(['-opt', options]) == 0
    shown, text = capsys.readouterr(), log(project)
    assert iterations == [1, 2, 3, 4]
    assert shown.out == ''
    assert 'Version Information' in text and 'pixel_opt:[' in text
    assert 'Version Information' not in shown.err and 'pixel_opt:[' not in shown.err
    assert 'iter:       4' in shown.err
    # The last line of an iteration has no time left, and the last iteration is validated once.
    assert '[eta: -' not in text
    assert text.count('Validation pairs_val') == 2
    assert not list((project / 'experiments').glob('.*'))


def test_metrics_without_hr_end_before_the_first_iteration(project, iterations, capsys):
    write_images(project, 2)
    val = {'type': 'SingleImageDataset', 'name': 'v', 'dataroot_lq': 'lr', 'io_backend': {'type': 'disk'}}
    options = write_options(project / 'tiny.yml', changed(TRAIN, {'datasets:val': val}))
    assert train.main(['-opt', options, '--no-check']) == 1
    assert 'data set v (SingleImageDataset) has no HR images to compare with' in capsys.readouterr().err
    assert iterations == []


PLUGIN = """
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

class PluginNet(nn.Sequential):
    def __init__(self, upscale=2):
        super().__init__(nn.Conv2d(3, 3 * upscale**2, 3, 1, 1), nn.PixelShuffle(upscale))

if 'PluginNet' not in ARCH_REGISTRY:
    ARCH_REGISTRY.register(PluginNet)
"""


def test_import_registers_the_network_of_a_plugin(project, iterations, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'path', sys.path[:])
    write_images(project, 2)
    (project / 'their_plugin.py').write_text(PLUGIN)
    options = write_options(project / 'tiny.yml', changed(TRAIN, {'network_g': {'type': 'PluginNet'}}))
    assert train.main(['-opt', options]) == 1
    assert "'PluginNet' is not registered" in capsys.readouterr().err
    assert train.main(['-opt', options, '--import', 'their_plugin']) == 0
    assert iterations == [1, 2, 3, 4]


@pytest.mark.parametrize('code', ['raise SystemExit(0)', 'import nothing_by_this_name', 'raise KeyError'])
def test_module_that_cannot_be_imported_is_one_line(project, capsys, monkeypatch, code):
    monkeypatch.setattr(sys, 'path', sys.path[:])
    (project / 'their_script.py').write_text(code)
    options = write_options(project / 'tiny.yml', TRAIN)
    assert train.main(['-opt', options, '--import', 'their_script']) == 1
    assert capsys.readouterr().err.startswith('spinsr.train: error: --import their_script: ')
    assert cli.main(['check', '-opt', options, '--import', 'their_script']) == 1
    assert capsys.readouterr().err.startswith('spinsr check: error: --import their_script: ')


def test_usage_error_is_status_2(capsys):
    with pytest.raises(SystemExit) as exit_info:
        train.main(['--launcher', 'pytorch'])
    assert exit_info.value.code == 2
    assert '-opt' in capsys.readouterr().err


@pytest.mark.parametrize('network', ['MSRResNet'], ids=['of-BasicSR'])
def test_network_of_basicsr_trains(project, iterations, network):
    write_images(project, 2)
    net = {'type': network, 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2}
    options = write_options(project / 'tiny.yml', changed(TRAIN, {'network_g': net}))

    assert train.main(['-opt', options]) == 0

    assert iterations == [1, 2, 3, 4]


@pytest.mark.slow
def test_command_with_spawned_workers(tmp_path):
    """Where processes are spawned (macOS, Windows, --launcher), a worker imports BasicSR with the shims in place."""
    write_images(tmp_path, 3)
    changes = {
        'datasets:train:num_worker_per_gpu': 1,
        'datasets:train:persistent_workers': True,
        'logger:use_tb_logger': True,
        'train:total_iter': 2,
    }
    write_options(tmp_path / 'tiny.yml', changed(TRAIN, changes))
    (tmp_path / 'sitecustomize.py').write_text(
        "import multiprocessing\nmultiprocessing.set_start_method('spawn', force=True)\n"
    )
    done = subprocess.run(
        [sys.executable, '-m', 'spinsr.train', '-opt', 'tiny.yml'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 'iter:       2' in done.stderr
    assert list((tmp_path / 'tb_logger' / 'tiny').iterdir())
