"""Everything together: the function check, the command, and the flags of train."""

import os

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import spinsr.archs  # noqa: F401

from ..tiny_project import SPIN, TEST, TRAIN, changed, without, write_images, write_options

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY

from spinsr import test as spinsr_test
from spinsr import train
from spinsr.check import check, is_training, memory
from spinsr.cli import main
from spinsr.models.registration import register

register()

# Its iterations are too few for the frequency of the validation, and the two data sets are the same.
WARNINGS = 2


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, 3)
    return tmp_path


@pytest.fixture
def without_memory(monkeypatch):
    monkeypatch.setattr(memory, 'memory', lambda *_, **__: [])


@pytest.fixture
def chain(monkeypatch):
    """A network of which every byte is known: two convolutions, of which autograd keeps the inputs."""

    class Chain(nn.Module):
        def __init__(self, num_feat=4, upscale=2):
            super().__init__()
            self.first = nn.Conv2d(3, num_feat, 1, bias=False)
            self.last = nn.Conv2d(num_feat, 3 * upscale**2, 1, bias=False)
            self.shuffle = nn.PixelShuffle(upscale)

        def forward(self, x):
            return self.shuffle(self.last(self.first(x)))

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Chain', Chain)
    return {'type': 'Chain', 'num_feat': 100}


def levels(findings):
    return [finding.level for finding in findings]


def test_good_project(project, chain):
    (project / 'large').mkdir()
    larger = np.zeros((48, 48, 3), np.uint8)
    cv2.imwrite(str(project / 'large' / '0.png'), larger)
    changes = {'dataroot_gt': 'large', 'type': 'BicubicImageDataset'}
    changes = {f'datasets:train:{key}': value for key, value in changes.items()}
    found = check(changed(without(TRAIN, 'datasets:train:dataroot_lq'), {'network_g': chain, **changes}))
    assert levels(found) == ['warning'] * 2 + ['note'] * 2
    assert 'GB for a training step (batch 2, LR 8x8)' in found[-2].message
    assert 'GB for the largest image to validate (LR 12x12)' in found[-1].message
    assert sorted(os.listdir()) == ['hr', 'large', 'lr']


def test_all_findings_at_once_errors_first(project, without_memory):
    (project / 'hr' / '1.png').write_text('text')
    changes = {'train:optim_g:lr': '2e-4', 'manual_seed': None, 'path:pretrain_network_g': 'gone.pth'}
    found = check(changed(TRAIN, changes))
    keys = [finding.key for finding in found if finding.level == 'error']
    assert keys == ['train:optim_g:lr', 'path:pretrain_network_g', 'datasets:train', 'datasets:val']
    assert levels(found) == ['error'] * 4 + ['warning'] * (WARNINGS + 1)


@pytest.mark.parametrize(
    ('options', 'expected'),
    [(TRAIN, True), (TEST, False), (without(TRAIN, 'train'), True), ({}, False), ({'datasets': 1}, False)],
    ids=['train', 'test', 'without-train', 'empty', 'odd'],
)
def test_training_or_testing(options, expected):
    assert is_training(options) == expected


@pytest.mark.parametrize('value', [None, [1], 'x', float('nan'), {'a': [{}]}], ids=repr)
@pytest.mark.parametrize(
    'key',
    ['datasets', 'datasets:train', 'datasets:val:type', 'network_g', 'network_g:type', 'path', 'train']
    + ['train:optim_g', 'train:scheduler:type', 'val:metrics', 'logger', 'scale', 'datasets:train:io_backend'],
)
def test_no_value_stops_the_check(project, without_memory, key, value):
    assert check(changed(TRAIN, {key: value}), is_train=True)


@pytest.mark.parametrize(
    ('changes', 'status', 'end'),
    [
        ({}, 0, '0 errors, 0 warnings'),
        ({'manual_seed': None}, 0, '0 errors, 1 warning'),
        ({'network_g:num_fet': 8}, 1, '1 error, 0 warnings'),
    ],
    ids=['good', 'warning', 'error'],
)
def test_command(project, without_memory, capsys, changes, status, end):
    options = write_options(project / 'ein test.yml', changed(TEST, changes))
    assert main(['check', '-opt', options]) == status
    assert capsys.readouterr().out.splitlines()[-1] == end


def test_command_with_forced_values(project, without_memory, capsys):
    options = write_options(project / 'test.yml', TEST)
    assert main(['check', '-opt', options, '--force_yml', 'scale=4']) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == 'error    scale: is 4, but network_g:upscale is 2'


def test_command_decodes_when_asked(project, without_memory, capsys):
    data = bytearray((project / 'hr' / '1.png').read_bytes())
    data[len(data) // 2] ^= 255
    (project / 'hr' / '1.png').write_bytes(data)
    options = write_options(project / 'test.yml', TEST)
    assert main(['check', '-opt', options]) == 0
    assert main(['check', '-opt', options, '--deep']) == 1
    assert 'hr/1.png cannot be read completely' in capsys.readouterr().out


def test_command_takes_the_file_for_testing(project, without_memory, capsys):
    options = write_options(project / 'test.yml', TRAIN)
    assert main(['check', '-opt', options, '--test']) == 1
    assert 'this is an option file for training: python -m spinsr.train' in capsys.readouterr().out


def test_command_on_what_is_no_file(capsys):
    assert main(['check', '-opt', 'gone.yml']) == 1
    assert capsys.readouterr().err.startswith('spinsr check: error: -opt gone.yml: no such file')


def test_usage_error_is_status_2(capsys):
    with pytest.raises(SystemExit) as leaves:
        main(['check'])
    assert leaves.value.code == 2


def test_testing_says_the_warnings_and_goes_on(project, capsys):
    options = write_options(project / 'test.yml', changed(TEST, {'val:metrics:psnr:crop_border': 0}))
    assert spinsr_test.main(['-opt', options]) == 0
    assert 'spinsr.test: warning: val:metrics:psnr:crop_border: is 0: papers' in capsys.readouterr().err


def test_no_check_leaves_the_failure_to_basicsr(project):
    options = write_options(project / 'train.yml', changed(TRAIN, {'train:scheduler:type': 'Step'}))
    assert train.main(['-opt', options]) == 1
    assert not (project / 'experiments').exists()
    with pytest.raises(NotImplementedError):
        train.main(['-opt', options, '--no-check'])


def test_names_for_adam_are_looked_up_in_a_network_of_another_package(project, chain, without_memory):
    muon = {'type': 'Muon', 'lr': 0.01, 'adam': {'params': ['first', 'tail']}}
    found = check(changed(TRAIN, {'network_g': chain, 'train:optim_g': muon}))
    errors = [str(finding) for finding in found if finding.level == 'error']
    assert errors == ["train:optim_g:adam:params: 'tail' matches no parameter of the network"]


def test_bytes_of_a_forward(chain):
    weights, pixel = 4 * (3 * 100 + 100 * 12), 4 * 10 * 10
    # Beside its output a layer has its input: the highest are the 100 channels with the 12 after them.
    expected = pixel * (3 + 100 + 12) + weights
    assert memory.inference_bytes(chain, 10, 10) == expected
    assert memory.inference_bytes(chain, 10, 10, trained=True, ema=True) == expected + 4 * weights


def test_muon_keeps_one_moment_of_a_matrix(chain):
    matrices = 4 * (3 * 100 + 100 * 12)
    largest = {'type': 'Muon', 'lr': 0.01, 'adam': {'params': []}}
    assert (
        memory.training_bytes(chain, 2, 10, 10, optimizer=largest) == memory.training_bytes(chain, 2, 10, 10) - matrices
    )
    sizes = [memory.inference_bytes(chain, 10, 10, trained=True, optimizer=part) for part in (largest, None)]
    assert sizes[1] - sizes[0] == matrices


def test_bytes_of_a_step_are_a_line_in_the_batch(chain):
    one, two, nine = (memory.training_bytes(chain, batch, 10, 10) for batch in (1, 2, 9))
    assert nine - one == 8 * (two - one) > 8 * 4 * 100 * (3 + 100 + 12)
    assert memory.training_bytes(chain, 2, 10, 10, ema=True) == two + 4 * (3 * 100 + 100 * 12)
    direct = memory._peak(chain, 9, 10, 10, with_gradient=True)
    assert direct + 3 * 4 * (3 * 100 + 100 * 12) == nine


def test_fake_tensors_leave_nothing_behind():
    section = {**SPIN, 'num_feat': 8}
    memory.training_bytes(section, 1, 12, 12)
    arguments = {key: value for key, value in section.items() if key != 'type'}
    net = ARCH_REGISTRY.get('SPIN')(**arguments)
    output = net(torch.rand(1, 3, 12, 12))
    output.mean().backward()
    assert type(output) is torch.Tensor
    assert output.isfinite().all()


@pytest.mark.parametrize(('available', 'level'), [(10**6, 'warning'), (10**12, 'note')], ids=['too-little', 'enough'])
def test_memory_against_what_there_is(chain, monkeypatch, available, level):
    monkeypatch.setattr(memory, '_available', lambda device: (available, 'available'))
    found = list(memory.memory(changed(TRAIN, {'network_g': chain}), (12, 12), is_train=True))
    assert levels(found) == [level, level]


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({}, 'batch 2, LR 8x8'),
        ({'gt_sizes': [8, 12], 'iters': [2, 2]}, 'batch 2, LR 6x6'),
        ({'gt_sizes': [8, 12], 'iters': [2, 2], 'mini_batch_sizes': [4, 1]}, 'batch 4, LR 4x4'),
        ({'gt_sizes': [8, 12], 'iters': [4, 2]}, 'batch 2, LR 4x4'),
        ({'gt_sizes': 'large'}, 'batch 2, LR 8x8'),
        ({'gt_sizes': [8, 12]}, 'batch 2, LR 8x8'),
    ],
    ids=['one-size', 'growing', 'growing-as-batches-shrink', 'growing-after-the-end', 'of-no-kind', 'incomplete'],
)
def test_memory_is_that_of_the_largest_step(chain, changes, words):
    batch = {'batch_size_per_gpu': 4} if 'mini_batch_sizes' in changes else {}
    dataset = {f'datasets:train:{key}': value for key, value in {**changes, **batch}.items()}
    (found,) = memory.memory(changed(TRAIN, {'network_g': chain, **dataset}), is_train=True)
    assert words in found.message


def test_network_that_cannot_be_estimated(monkeypatch):
    class Moody(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Moody', Moody)
    found = list(memory.memory(changed(TEST, {'network_g': {'type': 'Moody'}}), (12, 12), is_train=False))
    assert levels(found) == ['note']
    assert 'cannot be estimated' in found[0].message


def test_nothing_is_written(project, without_memory):
    before = {path: path.stat().st_mtime_ns for path in project.rglob('*')}
    check(TEST)
    assert {path: path.stat().st_mtime_ns for path in project.rglob('*')} == before
