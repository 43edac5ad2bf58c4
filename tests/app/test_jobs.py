"""The work behind the page, with a small network."""

import dataclasses
import logging
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import spinsr
from spinsr.analysis.superpixels import draw, find_superpixels
from spinsr.app import jobs as jobs_module
from spinsr.app.jobs import Cancelled, Jobs
from spinsr.data import bicubic, image_file, photograph
from spinsr.inference.image_files import upscale_files
from spinsr.weights import models

SPIN = {'num_feat': 8, 'num_block': 2, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': [4, 4]}


@pytest.fixture
def net():
    return spinsr.load('SPIN', 2, None, **SPIN)


@pytest.fixture
def jobs(tmp_path, monkeypatch, net):
    monkeypatch.setattr(jobs_module, 'load', lambda **_: net)
    return Jobs(tmp_path / 'results', 'cpu', max_bytes=2**15, max_pixels=20_000)


@pytest.fixture
def source(tmp_path, photo):
    path = tmp_path / 'photo.png'
    image_file.write_png(path, photo(50, 70))
    return path


def test_file_is_the_one_of_upscale(jobs, net, tmp_path, source):
    result = jobs.run('page', source, 'spin', 2, tile=32)
    upscale_files({source: tmp_path / 'expected.png'}, net, tile=32)
    assert result.file.name == 'photo_x2.png'
    assert result.file.read_bytes() == (tmp_path / 'expected.png').read_bytes()
    assert '70x50 to 140x100' in result.summary


def test_comparison_is_bicubic_and_the_output(jobs, tmp_path, photo):
    path = tmp_path / 'grey.png'
    deep = np.dstack([photo(20, 30)[..., 0].astype(np.uint16) * 257, np.full((20, 30), 9, np.uint16)])
    photograph.write(path, photograph.Photograph(deep))
    result = jobs.run('page', path, 'spin', 2)
    before, after = (photograph.read(file).pixels for file in (result.before, result.after))
    enlarged = photograph.read(result.file).pixels
    assert np.array_equal(before, bicubic.upsample(photo(20, 30)[..., 0], 2))
    assert np.array_equal(after, np.rint(enlarged[..., 0] / 257).astype(np.uint8))


def test_large_comparison_is_reduced_and_the_file_is_not(jobs, source, monkeypatch):
    monkeypatch.setattr(jobs_module, 'SHOWN_SIDE', 35)
    result = jobs.run('page', source, 'spin', 2)
    shapes = [photograph.read(file).pixels.shape for file in (result.file, result.before, result.after)]
    assert shapes == [(100, 140, 3), (25, 35, 3), (25, 35, 3)]
    assert 'reduced to 35 pixels' in result.summary


def test_superpixels_are_those_of_the_middle(jobs, net, source, photo, monkeypatch):
    monkeypatch.setattr(jobs_module, 'SUPERPIXEL_SIDE', 40)
    assert jobs.blocks('spin', 2) == 2
    (boundaries, caption), _ = jobs.run('page', source, 'spin', 2, block=1).superpixels
    expected = draw(find_superpixels(photo(50, 70)[5:45, 15:55], net, 1))['boundaries']
    assert np.array_equal(boundaries, expected)
    assert 'middle 40x40' in caption


def test_progress_counts_tiles(jobs, source, monkeypatch):
    monkeypatch.setattr(jobs_module, '_REPORT_INTERVAL', 0)
    seen = []
    jobs.run('page', source, 'spin', 2, tile=32, report=lambda *progress: seen.append(progress))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.9 < shares[-1] <= 1
    assert list(dict.fromkeys(text for _, text in seen)) == [f'Tile {k} of 6' for k in range(1, 7)]


def test_cancel_ends_within_a_tile(jobs, source, monkeypatch):
    monkeypatch.setattr(jobs_module, '_REPORT_INTERVAL', 0)
    steps = []

    def report(*progress):
        steps.append(progress)
        jobs.cancel('another page')
        jobs.cancel('page')

    with pytest.raises(Cancelled):
        jobs.run('page', source, 'spin', 2, report=report)
    assert len(steps) == 1
    assert not list(source.parent.rglob('*_x2*'))
    assert jobs.run('page', source, 'spin', 2).file.exists()  # the next job is not cancelled


def test_other_pages_cannot_cancel(jobs, source):
    assert jobs.run('page', source, 'spin', 2, report=lambda *_: jobs.cancel('another page')).file.exists()


def test_names_of_pages_are_no_paths(jobs, source, tmp_path):
    jobs.run('../..', source, 'spin', 2)
    jobs.forget('../..')
    jobs.forget(str(tmp_path))
    assert source.exists()


def test_messages_name_no_folder(jobs, net, tmp_path, source):
    net.register_forward_hook(lambda *call: torch.full_like(call[-1], torch.nan))
    with pytest.raises(ValueError) as caught:
        jobs.run('page', source, 'spin', 2)
    assert str(caught.value).startswith('photo.png: ')
    assert str(tmp_path) not in str(caught.value)


def test_results_go_with_the_next_job_and_with_the_page(jobs, source, tmp_path):
    first = jobs.run('page', source, 'spin', 2).file
    other = jobs.run('another page', source, 'spin', 2).file
    source.rename(tmp_path / 'second.png')
    second = jobs.run('page', tmp_path / 'second.png', 'spin', 2).file
    assert [path.exists() for path in (first, second, other)] == [False, True, True]
    jobs.forget('page')
    assert [path.exists() for path in (second, other)] == [False, True]


def test_closing_ends_the_job_and_takes_no_other(jobs, source):
    closing = threading.Thread(target=jobs.close)
    with pytest.raises(Cancelled):
        jobs.run('page', source, 'spin', 2, report=lambda *_: (closing.start(), closing.join(0.1)))
    closing.join(30)
    with pytest.raises(Cancelled):
        jobs.run('page', source, 'spin', 2)
    assert not list(source.parent.rglob('*_x2*'))


def test_one_job_at_a_time(jobs, source, monkeypatch):
    monkeypatch.setattr(jobs_module, '_REPORT_INTERVAL', 0)
    seen = []

    def report(*_):
        seen.append('first')
        if len(seen) == 1:
            second.start()
            second.join(0.5)

    options = {'report': lambda *_: seen.append('second')}
    second = threading.Thread(target=jobs.run, args=('another page', source, 'spin', 2), kwargs=options)
    jobs.run('page', source, 'spin', 2, report=report)
    second.join(30)
    half = len(seen) // 2
    assert half > 1
    assert seen == ['first'] * half + ['second'] * half


@pytest.mark.parametrize(
    ('name', 'shape', 'words'),
    [
        ('large.bmp', (110, 180), 'large.bmp must have at most 0.03125 MB (max_mb), has 0.1 MB'),
        ('many.png', (150, 140), 'must have at most 20,000 pixels (max_pixels), has 150x140 (HxW)'),
        ('photo.ppm', (9, 9), 'photo.ppm must end in one of'),
    ],
)
def test_what_is_not_taken(jobs, tmp_path, name, shape, words):
    path = tmp_path / name
    Image.new('RGB', shape[::-1]).save(path)
    with pytest.raises(ValueError) as caught:
        jobs.preview(path)
    assert words in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_warnings_are_in_the_summary(jobs, source, monkeypatch):
    def with_warning(*args, **options):
        logging.getLogger('spinsr').warning('less memory')
        return upscale_files(*args, **options)

    monkeypatch.setattr(jobs_module, 'upscale_files', with_warning)
    assert jobs.run('page', source, 'spin', 2).summary.endswith('\nless memory')


def test_the_model_for_photographs_is_named_for_a_jpeg_of_low_quality(jobs, tmp_path, monkeypatch):
    model = dataclasses.replace(models.PHOTO, scale=2)
    monkeypatch.setattr(jobs_module, 'PHOTO', model)
    monkeypatch.setattr(models, 'MODELS', (*models.MODELS, model))
    Image.new('RGB', (9, 8)).save(tmp_path / 'a.jpg', quality=30)
    advice = 'a.jpg: a JPEG of quality 30; the model photo (x2) may do better'
    assert advice in jobs.run('page', tmp_path / 'a.jpg', 'spin', 2).summary.splitlines()
    assert advice not in jobs.run('page', tmp_path / 'a.jpg', 'photo', 2).summary
