"""The measures of superpixels by hand, the baselines, and the script's table."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import spinsr
from spinsr.analysis import superpixel_metrics as quality
from spinsr.analysis.superpixels import find_superpixels

from ..tiny_benchmark import photo, write_benchmark

SCRIPTS = Path(__file__).parents[2] / 'scripts'
TINY = {'num_feat': 8, 'num_block': 2, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': (6, 4), 'num_iter': 2}


def halves(size, edge, low=40, high=200):
    """(size, size, 3), uint8: dark left of the edge, bright from there on."""
    image = np.full((size, size, 3), low, np.uint8)
    image[:, edge:] = high
    return image


def waves(height, width):
    """(H, W, 3), uint8: smooth, for SLIC does not divide noise."""
    y, x = np.mgrid[:height, :width]
    return np.rint(128 + 60 * np.sin(x / 5)[..., None] * np.cos(y[..., None] / 7 + np.arange(3))).astype(np.uint8)


def split(size, edge):
    """(size, size): label 0 left of the edge, 1 from there on."""
    return np.tile((np.arange(size) >= edge).astype(int), (size, 1))


def test_explained_variation_by_hand():
    """Values 0, 2, 4, 10 around their mean 4: 16 + 4 + 0 + 36; two regions around 1 and 7: 2 * 9 + 2 * 9."""
    image = np.repeat(np.array([[0, 2, 4, 10]])[..., None], 3, axis=2).astype(np.uint8)
    assert quality.explained_variation(image, np.array([[5, 5, 9, 9]])) == pytest.approx(36 / 56)


def test_explained_variation_is_that_of_all_channels():
    image = np.zeros((1, 4, 3))
    image[0, :, 0] = [0, 0, 2, 2]
    image[0, :, 1] = [0, 2, 0, 2]
    assert quality.explained_variation(image, np.array([[0, 0, 1, 1]])) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ('labels', 'expected'),
    [(np.zeros((9, 8), int), 0.0), (np.arange(72).reshape(9, 8), 1.0)],
    ids=['one-region', 'pixels'],
)
def test_ends_of_explained_variation(labels, expected):
    assert quality.explained_variation(photo(9, 8), labels) == pytest.approx(expected, abs=1e-12)


def test_a_finer_division_explains_more():
    image = photo(24, 24)
    values = [quality.explained_variation(image, quality.grid(24, 24, n, n)) for n in (1, 2, 4, 8)]
    assert values == sorted(set(values))


def test_boundary_contrast_by_hand():
    """Of 24 steps between neighbours in 4x4 pixels 4 cross the edge, and only these change."""
    image = halves(4, 2)
    assert quality.boundary_contrast(image, split(4, 2)) == pytest.approx(24 / 4)
    assert quality.boundary_contrast(image, split(4, 1)) == 0
    assert quality.boundary_contrast(image, np.arange(16).reshape(4, 4)) == pytest.approx(1)


@pytest.mark.parametrize(
    ('image', 'labels'),
    [(halves(4, 2), np.zeros((4, 4), int)), (halves(4, 0), split(4, 2))],
    ids=['no-boundary', 'one-colour'],
)
def test_boundary_contrast_of_nothing_is_1(image, labels):
    assert quality.boundary_contrast(image, labels) == 1


@pytest.mark.parametrize(
    ('size', 'shift', 'found'),
    [(32, 0, True), (32, 1, True), (32, 2, False), (32, -1, False)]
    + [(400, 2, True), (400, -1, True), (400, 3, False), (400, -2, False)],
)
def test_contour_recall_of_one_edge(size, shift, found):
    """A boundary is two pixels wide; in the larger image it may be round(0.0025 * 566) = 1 pixel away."""
    image = halves(size, size // 2)
    image[:, size // 2] = 120  # where Canny's detector then has the contour, and nowhere else
    assert quality.contour_recall(image, split(size, size // 2 + shift)) == (1 if found else 0)


def test_contour_recall_is_the_part_that_was_found():
    labels = split(32, 16)
    labels[16:] = 0
    assert quality.contour_recall(halves(32, 16), labels) == pytest.approx(0.5, abs=0.06)


def test_an_image_without_contours_has_them_all_found():
    assert quality.contour_recall(halves(32, 0), split(32, 16)) == 1
    assert quality.contour_recall(halves(32, 16), np.zeros((32, 32), int)) == 0


def test_boundary_density_by_hand():
    assert quality.boundary_density(split(8, 3)) == 2 / 8
    assert quality.boundary_density(np.zeros((8, 8), int)) == 0


def test_regions_and_their_parts_are_counted():
    labels = np.array([[0, 0, 3], [3, 0, 0], [0, 3, 3]])
    found = quality.evaluate(photo(3, 3), labels)
    assert (found.regions, found.parts) == (2, 5)


def test_evaluate_has_each_measure():
    image, labels = photo(24, 20), quality.grid(24, 20, 3, 2)
    found = quality.evaluate(image, labels)
    assert found == (
        6,
        6,
        quality.explained_variation(image, labels),
        quality.boundary_contrast(image, labels),
        quality.contour_recall(image, labels),
        quality.boundary_density(labels),
    )


def test_labels_of_another_image_are_refused():
    with pytest.raises(ValueError, match=r'same size, got image.shape=\(4, 5, 3\), labels.shape=\(5, 4\)'):
        quality.evaluate(photo(4, 5), np.zeros((5, 4), int))


@pytest.mark.parametrize('connected', [True, False], ids=['connected', 'free'])
@pytest.mark.parametrize('regions', [1, 20, 50])
def test_slic_has_nearly_as_many_regions(regions, connected):
    image = waves(60, 50)
    found = quality.evaluate(image, quality.slic(image, regions, connected))
    assert found.regions == pytest.approx(regions, rel=0.1)
    assert not connected or found.parts == found.regions


def test_free_slic_leaves_regions_in_pieces():
    image = photo(60, 50)
    found = quality.evaluate(image, quality.slic(image, 20, connected=False))
    assert found.parts > 2 * found.regions


def test_slic_beats_the_grid_and_finds_an_edge():
    image = halves(48, 19)
    slic, grid = quality.slic(image, 16), quality.grid(48, 48, 4, 4)
    assert quality.explained_variation(image, slic) > quality.explained_variation(image, grid) + 0.05
    assert quality.contour_recall(image, slic) > quality.contour_recall(image, grid) + 0.5


def test_no_region_is_refused():
    with pytest.raises(ValueError, match='regions=0'):
        quality.slic(photo(4, 4), 0)


def test_grid_is_of_rectangles_as_equal_as_can_be():
    labels = quality.grid(5, 4, 2, 2)
    assert labels.tolist() == [[0, 0, 1, 1]] * 3 + [[2, 2, 3, 3]] * 2


def test_compare_sets_each_block_beside_the_baselines():
    net = spinsr.load('SPIN', 2, None, **TINY)
    image = waves(24, 30)
    rows = list(quality.compare(image, net))
    assert [(row['block'], row['cell'], row['method']) for row in rows] == [
        (block, cell, method) for block, cell in ((0, 6), (1, 4)) for method in ('grid', 'slic', 'slic, free', 'spin')
    ]
    own = quality.evaluate(image, find_superpixels(image, net, 1).labels)._asdict()
    assert {key: rows[-1][key] for key in own} == own
    assert [row['regions'] for row in rows if row['method'] == 'grid'] == [4 * 5, 6 * 7]
    assert all(row['regions'] == pytest.approx(rows[4 * row['block'] + 3]['regions'], rel=0.2) for row in rows)


@pytest.fixture
def script(monkeypatch):
    # Not to take the place of the module of the package.
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module('superpixel_quality')
    sys.modules.pop('superpixel_quality')


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_benchmark(tmp_path / 'Two', scales=[4])
    torch.save(spinsr.load('SPIN', 4, None).state_dict(), 'net.pth')
    return tmp_path


def test_script_writes_the_means_and_every_image(script, place, capsys):
    outputs = ['--markdown', 'out.md', '--json', 'out.json']
    assert script.main(['Two', '--weights', 'net.pth', *outputs]) == 0
    text = Path('out.md').read_text(encoding='utf-8')
    assert capsys.readouterr().out == text
    content = json.loads(Path('out.json').read_text(encoding='utf-8'))
    rows = content.pop('rows')
    assert content == {'folder': 'Two', 'input': 'LR', 'scale': 4}
    assert {row['image'] for row in rows} == {'babyx4', 'birdx4'}
    assert len(rows) == 2 * 8 * 4
    lines = [[cell.strip() for cell in line.strip('| \n').split('|')] for line in text.splitlines()]
    assert lines[0][:5] == ['block', 'cell', 'method', 'regions', 'parts']
    assert len(lines) == 2 + 8 * 4
    values = [row['explained_variation'] for row in rows if (row['block'], row['method']) == (7, 'spin')]
    assert lines[-1][:3] == ['7', '24', 'spin']
    assert float(lines[-1][5]) == pytest.approx(np.mean(values), abs=5e-4)


@pytest.mark.parametrize(
    ('arguments', 'status', 'line'),
    [
        (['Two', '--weights', 'none.pth'], 1, 'none.pth'),
        (['Two', '--weights', 'net.pth', '--json', 'net.pth'], 1, 'net.pth exists; --overwrite replaces it'),
        (['Two', '--weights', 'net.pth', '--scale', '2'], 2, 'no images found: Two/LR_bicubic/X2/*.png'),
    ],
    ids=['no-weights', 'file-is-there', 'no-images'],
)
def test_script_says_what_is_wrong_in_one_line(script, place, capsys, arguments, status, line):
    try:
        found = script.main(arguments)
    except SystemExit as error:
        found = error.code
    assert found == status
    assert line in capsys.readouterr().err.splitlines()[-1]
