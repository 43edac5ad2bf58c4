"""The checks of an option file: each mistake gives its line, and a good file gives none."""

import pytest
import torch

import spinsr.archs  # noqa: F401

from .tiny_project import TEST, TRAIN, changed, without

# isort: split
import spinsr.models.spinsr_model  # noqa: F401
from spinsr import check
from spinsr.option_files import OptionError


@pytest.mark.parametrize(('options', 'is_train'), [(TRAIN, True), (TEST, False)], ids=['train', 'test'])
def test_a_good_file_passes(options, is_train):
    check.numbers(options)
    check.structure(options, is_train=is_train)
    check.path_keys(options)
    check.types(options)
    check.devices(options)


@pytest.mark.parametrize(
    ('options', 'line'),
    [
        pytest.param(without(TRAIN, 'datasets'), "the option file has no key 'datasets'", id='no-datasets'),
        pytest.param(
            changed(without(TRAIN, 'network_g'), {'network_q': {}}), "did you mean 'network_q'?", id='misspelt-section'
        ),
        pytest.param(without(TRAIN, 'train:total_iter'), "the section train has no key 'total_iter'", id='no-total'),
        pytest.param(without(TRAIN, 'datasets:train'), "datasets has no key 'train'", id='no-training-set'),
        pytest.param(without(TRAIN, 'val:save_img'), "the section val has no key 'save_img'", id='no-save_img'),
        pytest.param(changed(TRAIN, {'train': None}), 'the section train must not be empty', id='empty-section'),
        pytest.param(changed(TRAIN, {'path': 'here'}), 'path must be a section', id='no-section'),
        pytest.param(changed(TRAIN, {'datasets:test': {}}), 'begin with one of train, val', id='phase'),
        pytest.param(changed(TRAIN, {'train:total_iter': 0}), 'whole number of at least 1, got 0', id='total-zero'),
        pytest.param(
            changed(TRAIN, {'datasets:train:batch_size_per_gpu': 1.5}), 'at least 1, got 1.5', id='half-a-batch'
        ),
    ],
)
def test_structure(options, line):
    with pytest.raises(OptionError, match=line.replace('?', r'\?')):
        check.structure(options, is_train=True)


@pytest.mark.parametrize('text', ['2e-4', '1E6', '-3e2'])
def test_number_that_is_text(text):
    with pytest.raises(OptionError, match=f'train:optim_g:lr: {text} is text to YAML'):
        check.numbers(changed(TRAIN, {'train:optim_g:lr': text}))


@pytest.mark.parametrize('text', ['easy', 'hr/e4', '{}x4', 'auto'])
def test_text_that_is_no_number(text):
    check.numbers(changed(TRAIN, {'datasets:train:name': text}))


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        pytest.param({'path:pretrain_netwrok_g': 'x.pth'}, "did you mean 'pretrain_network_g'", id='pretrain'),
        pytest.param({'path:model': 'x'}, "path has no key 'model'", id='unknown'),
    ],
)
def test_path_keys(changes, line):
    with pytest.raises(OptionError, match=line):
        check.path_keys(changed(TRAIN, changes))


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        pytest.param({'model_type': 'SRModle'}, "'SRModle' is not registered; did you mean 'SRModel'", id='model'),
        pytest.param({'datasets:val:type': 'PairedImageDatset'}, "did you mean 'PairedImageDataset'", id='dataset'),
        pytest.param({'network_g:type': 'RCANspinsr'}, "did you mean 'RCAN_spinsr'", id='arch'),
        pytest.param({'network_g:stoken_sise': 4}, "SPIN has no keyword 'stoken_sise'; did you mean", id='keyword'),
        pytest.param({'network_d': {'type': 'VGGStyleDiscriminator'}}, "needs the keyword 'num_in_ch'", id='missing'),
        pytest.param({'val:metrics:psnr:type': 'calculate_pnsr'}, "did you mean 'calculate_psnr'", id='metric'),
    ],
)
def test_types(capsys, changes, line):
    with pytest.raises(OptionError, match=line):
        check.types(changed(TRAIN, changes))
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    ('changes', 'launcher', 'line'),
    [
        pytest.param({'num_gpu': 1}, 'none', 'use num_gpu: auto or 0', id='no-gpu'),
        pytest.param({'num_gpu': 'all'}, 'none', "must be 'auto' or a whole number", id='text'),
        pytest.param({'num_gpu': -1}, 'none', 'got -1', id='negative'),
        pytest.param({}, 'slurm', '--launcher slurm needs CUDA', id='launcher'),
    ],
)
def test_devices_without_cuda(monkeypatch, changes, launcher, line):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(OptionError, match=line):
        check.devices(changed(TRAIN, changes), launcher)


def test_devices_with_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    check.devices(changed(TRAIN, {'num_gpu': 1}), 'pytorch')


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A working directory with the data of the tiny project."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'hr').mkdir()
    (tmp_path / 'lr').mkdir()
    (tmp_path / 'half.lmdb').mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ('path', 'line'),
    [
        ('datasets/div2k/x.lmdb', 'make it with: spinsr prepare div2k PATH_TO_DIV2K'),
        ('datasets/sample/x.lmdb', 'make it with: spinsr prepare sample'),
        ('datasets/benchmark/B100/HR', 'make it with: spinsr prepare benchmark PATH_TO/B100'),
        ('elsewhere/HR', 'datasets:val:dataroot_gt: elsewhere/HR does not exist$'),
        ('half.lmdb', 'half.lmdb is not complete'),
    ],
    ids=['div2k', 'sample', 'benchmark', 'elsewhere', 'half-an-lmdb'],
)
def test_missing_data(data, path, line):
    with pytest.raises(OptionError, match=line):
        check.files(changed(TRAIN, {'datasets:val:dataroot_gt': path}))


@pytest.mark.parametrize(
    ('changes', 'resumes', 'line'),
    [
        pytest.param({'datasets:train:meta_info_file': 'meta.txt'}, False, 'train:meta_info_file: meta', id='meta'),
        pytest.param({'path:pretrain_network_g': 'a.pth'}, False, 'a.pth does not exist$', id='weights'),
        pytest.param(
            {'path:pretrain_network_g': 'experiments/mine/models/net_g_5.pth'},
            False,
            'train the experiment mine first',
            id='weights-of-mine',
        ),
        pytest.param({'path:resume_state': 'a.state'}, True, 'resume_state: a.state does not exist', id='state'),
    ],
)
def test_missing_files(data, changes, resumes, line):
    with pytest.raises(OptionError, match=line):
        check.files(changed(TRAIN, changes), resumes=resumes)


@pytest.mark.parametrize(
    ('changes', 'resumes'),
    [
        pytest.param({}, False, id='all-there'),
        pytest.param({'path:pretrain_network_g': 'a.pth'}, True, id='weights-of-a-resume'),
        pytest.param({'path:resume_state': 'a.state', 'auto_resume': True}, False, id='auto-resume'),
    ],
)
def test_files_that_are_not_needed(data, changes, resumes):
    check.files(changed(TRAIN, changes), resumes=resumes)


@pytest.mark.parametrize(
    ('values', 'message'),
    [({'stoken_size': [12]}, 'stoken_size must have num_block'), ({'upscale': 5}, 'upscale must be 2, 3 or 4, got 5')],
    ids=['stoken_size', 'upscale'],
)
def test_values_that_do_not_fit_are_refused(values, message):
    from spinsr.archs import ARCH_REGISTRY

    with pytest.raises(OptionError, match=f'network_g: {message}'):
        check.values(ARCH_REGISTRY.get('SPIN'), {'type': 'SPIN', **values})
