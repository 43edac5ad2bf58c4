"""The comparison of models on JPEGs, with tiny photographs and a network that is told apart."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from spinsr import compat

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
photo_comparison = importlib.import_module('photo_comparison')


@pytest.fixture
def tiny(monkeypatch, photo, tmp_path):
    """Two photographs, one shown at two qualities; every model is nearest neighbour."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(photo_comparison, 'photographs', lambda: {'a': photo(48, 64), 'b': photo(40, 52, 1)})
    monkeypatch.setattr(photo_comparison, 'SHOWN', [photo_comparison.Crop('a', q, 4, 8) for q in (90, 30, 10)])
    monkeypatch.setattr(photo_comparison, 'SIDE', 40)
    monkeypatch.setattr(photo_comparison.spinsr, 'load', lambda **_: nn.Upsample(scale_factor=4))
    monkeypatch.setattr(photo_comparison, 'niqe', lambda: lambda image: float(image.shape[1]))


def test_picture_table_and_numbers(tiny, photo, capsys):
    flags = ['--models', 'one', 'two=file.pth', '--quality', '30', '90']
    files = ['-o', 'photo.png', '--json', 'photo.json', '--markdown', 'photo.md']
    assert photo_comparison.main(flags + files) == 0
    rows = json.loads(Path('photo.json').read_text())['rows']
    assert [(row['image'], row['quality'], row['method']) for row in rows] == [
        (image, quality, method) for image in 'ab' for quality in (30, 90) for method in ('bicubic', 'one', 'two')
    ]
    psnr = {(row['image'], row['quality'], row['method']): row['psnr'] for row in rows}
    assert psnr['a', 30, 'bicubic'] < psnr['a', 90, 'bicubic']
    assert psnr['a', 30, 'one'] == psnr['a', 30, 'two'] != psnr['a', 30, 'bicubic']
    header, _, first, second = (line.strip('| ').split('|') for line in Path('photo.md').read_text().splitlines())
    assert [title.strip() for title in header][1:4] == ['PSNR, bicubic', 'PSNR, one', 'PSNR, two']
    assert float(second[1]) == pytest.approx((psnr['a', 90, 'bicubic'] + psnr['b', 90, 'bicubic']) / 2, abs=0.006)
    assert [float(cell) for cell in first[4:]] == [58.0] * 3  # mean of the widths
    assert capsys.readouterr().out == Path('photo.md').read_text()
    image = np.asarray(Image.open('photo.png'))
    height, width = 2 * 40 + 28, 2 * 40 + 8
    assert image.shape == (2 * height, 5 * width, 3)  # quality 10 is not asked for
    # The last panel is the original.
    shown = image[4 : 4 + 80 : 2, 4 * width + 4 : 4 * width + 4 + 80 : 2]
    assert np.array_equal(shown, photo(48, 64)[4:44, 8:48])
    assert photo_comparison.main(flags + files) == 1
    assert 'photo.png' in capsys.readouterr().err


def test_an_unknown_model_is_one_line(tiny, monkeypatch, capsys):
    monkeypatch.undo()
    assert photo_comparison.main(['--models', 'none-such']) == 1
    error = capsys.readouterr().err
    assert "unknown model 'none-such'" in error and error.count('\n') == 1


def test_a_picture_needs_a_quality_that_is_shown(tiny, capsys):
    with pytest.raises(SystemExit):
        photo_comparison.main(['--quality', '55', '-o', 'photo.png'])
    assert 'one of 10, 30, 90' in capsys.readouterr().err


@pytest.mark.skipif(not compat.is_installed(), reason='BasicSR, which brings NIQE, is not installed')
def test_niqe_rises_with_compression():
    image = photo_comparison.image_file.read(photo_comparison.photograph_folder() / 'coffee.png')[:200, :200]
    quality_of = photo_comparison.niqe()
    assert 0 < quality_of(image) < quality_of(photo_comparison.compressed(image, 10))
