"""Testing: results/<name>, and no silence about random weights."""

import pytest
import torch

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.archs import build_network
from basicsr.utils import logger as basicsr_logger

from spinsr import test as spinsr_test

from .tiny_project import SPIN, TEST, changed, write_images, write_options


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, 2)
    torch.save({'params': build_network(SPIN).state_dict()}, tmp_path / 'net.pth')
    monkeypatch.setattr(basicsr_logger, 'initialized_logger', {})
    return tmp_path


@pytest.mark.parametrize('weights', [None, 'net.pth'], ids=['random-weights', 'a-file'])
def test_writes_results_and_warns_of_random_weights(project, weights):
    options = write_options(project / 'test.yml', changed(TEST, {'path:pretrain_network_g': weights}))

    assert spinsr_test.main(['-opt', options]) == 0

    results = project / 'results' / 'tiny_test'
    log = next(results.glob('test_*.log')).read_text()
    assert log.count('the weights under test are random') == (weights is None)
    assert '# psnr:' in log
    assert sorted(path.name for path in (results / 'visualization' / 'pairs').iterdir()) == [
        '0_tiny_test.png',
        '1_tiny_test.png',
    ]


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        pytest.param(
            {'datasets:test_1:dataroot_lq': 'datasets/benchmark/Urban100/LR_bicubic/X2'},
            'make it with: spinsr prepare benchmark PATH_TO/Urban100',
            id='no-data',
        ),
        pytest.param(
            {'path:pretrain_network_g': 'experiments/train_SPIN_x2/models/net_g_latest.pth'},
            'train it first: python -m spinsr.train -opt train_SPIN_x2.yml',
            id='no-weights',
        ),
        pytest.param({'network_g:scale': 2}, "did you mean 'upscale'?", id='key'),
        pytest.param(
            {'datasets:test_1:type': 'SingleImageDataset'},
            'use PairedImageDataset with dataroot_gt, or remove val:metrics',
            id='no-hr',
        ),
    ],
)
def test_mistake_is_one_line(project, capsys, changes, line):
    options = write_options(project / 'test.yml', changed(TEST, changes))

    assert spinsr_test.main(['-opt', options]) == 1

    error = capsys.readouterr().err
    assert error.startswith('spinsr.test: error: ')
    assert error.endswith(f'{line}\n')
    assert error.count('\n') == 1
