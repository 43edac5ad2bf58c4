"""Protocols by hand, against BasicSR and float64; benchmark folders and images made elsewhere, whole and damaged."""

import csv
import doctest
import io
import json
import math
import sys
from types import SimpleNamespace
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import nn

import spinsr.archs  # noqa: F401  # makes BasicSR importable
from spinsr.data import image_file
from spinsr.data.bicubic import downsample, mod_crop, upsample
from spinsr.evaluation import benchmark as evaluation
from spinsr.evaluation.benchmark import (
    PROTOCOLS,
    evaluate,
    evaluate_without_hr,
    images,
    load_metrics,
    network,
    score,
    to_csv,
    to_json,
    to_markdown,
)
from spinsr.evaluation.protocols import DEFAULT
from spinsr.inference.upscale import super_resolve

from ..tiny_benchmark import SIZES, photo, write_benchmark

from basicsr.metrics import calculate_psnr, calculate_ssim  # isort: skip  # after spinsr

each_protocol = pytest.mark.parametrize('protocol', PROTOCOLS)


class Nearest(nn.Module):
    """Every pixel repeated, times a gain, plus an offset in units of 1/255."""

    def __init__(self, upscale: int = 2, offset: float = 0.0):
        super().__init__()
        self.upscale = upscale
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, x):
        return x.repeat_interleave(self.upscale, 2).repeat_interleave(self.upscale, 3) + self.offset / 255


def ring(start, stop):
    """A ring of pixels that many away from the edge of 40x40."""
    mask = np.zeros((40, 40, 1), bool)
    mask[start : 40 - start, start : 40 - start] = True
    mask[stop : 40 - stop, stop : 40 - stop] = False
    return mask


def y_double(image):
    return image.astype(float) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


GREY = np.full((40, 40, 3), 100, np.uint8)
RED = np.array([10, 0, 0], np.uint8)


@pytest.mark.parametrize(
    ('sr', 'protocol', 'expected'),
    [
        (GREY + 1, 'rgb', 20 * math.log10(255)),
        (GREY + 1, 'ntire', 20 * math.log10(255)),
        (GREY + 1, 'y_crop_scale', 20 * math.log10(255 * 255 / 219)),
        (GREY + RED, 'y_crop_scale', 20 * math.log10(255 * 255 / 654.81)),
        (GREY + RED, 'rgb', 10 * math.log10(255**2 * 3 / 100)),
        (GREY + 0.4, 'y_crop_scale', math.inf),
        (GREY + 0.6, 'y_crop_scale', 20 * math.log10(255 * 255 / 219)),
        (GREY + 0.4, 'spin_published', 20 * math.log10(255 * 255 / 219 / 0.4)),
        (GREY + ring(0, 2).astype(np.uint8), 'rgb', math.inf),
        (GREY + ring(0, 2).astype(np.uint8), 'y_crop_scale', math.inf),
        (GREY + ring(0, 2).astype(float), 'spin_published', math.inf),
        (GREY + ring(2, 3).astype(np.uint8), 'rgb', 10 * math.log10(255**2 * 36**2 / (36**2 - 34**2))),
        (GREY + ring(0, 8).astype(np.uint8), 'ntire', math.inf),
        (GREY + ring(8, 9).astype(np.uint8), 'ntire', 10 * math.log10(255**2 * 24**2 / (24**2 - 22**2))),
    ],
    ids=[
        *('rgb', 'ntire', 'y_is_of_219_steps', 'y_weight_of_red', 'mean_over_channels'),
        *('rounded_down', 'rounded_up', 'not_rounded'),
        *('rgb_border', 'y_border', 'spin_border', 'rgb_inside', 'ntire_border', 'ntire_inside'),
    ],
)
def test_psnr_by_hand_at_x2(sr, protocol, expected):
    # Y in float32 is off by up to 1.5e-5, which shows in flat images that differ by a step of 1 or less.
    assert score(sr, GREY, 2, protocol)['psnr'] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ('protocol', 'a', 'b'),
    [('rgb', 100, 130), ('ntire', 100, 130), ('y_crop_scale', 16 + 219 * 100 / 255, 16 + 219 * 130 / 255)],
    ids=['rgb', 'ntire', 'y_crop_scale'],
)
def test_ssim_of_flat_images_by_hand(protocol, a, b):
    c1 = (0.01 * 255) ** 2
    expected = (2 * a * b + c1) / (a**2 + b**2 + c1)
    assert score(GREY + 30, GREY, 2, protocol)['ssim'] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize('size', [(31, 33), (30, 47), (64, 29)], ids=str)
@pytest.mark.parametrize('kind', ['colour', 'grey_like', 'nearly_equal'])
@pytest.mark.parametrize('scale', [2, 4])
@pytest.mark.parametrize(
    ('protocol', 'y', 'extra'), [('y_crop_scale', True, 0), ('rgb', False, 0), ('ntire', False, 6)]
)
def test_equal_to_basicsr_on_the_same_files(tmp_path, size, kind, scale, protocol, y, extra):
    hr = photo(*size)
    if kind == 'grey_like':
        hr = np.ascontiguousarray(np.repeat(hr[..., :1], 3, 2))
    sr = hr.copy()
    step = 1 if kind == 'nearly_equal' else 23
    sr[::3, ::2] = np.where(sr[::3, ::2] > 128, sr[::3, ::2] - step, sr[::3, ::2] + step)
    image_file.write_png(tmp_path / 'hr.png', hr)
    image_file.write_png(tmp_path / 'sr.png', sr)
    files = [cv2.imread(str(tmp_path / name)) for name in ('sr.png', 'hr.png')]
    border = scale + extra
    expected = {'psnr': calculate_psnr(*files, border, test_y_channel=y)}
    if min(size) - 2 * border >= 11:
        expected['ssim'] = calculate_ssim(*files, border, test_y_channel=y)
    ours = score(image_file.read(tmp_path / 'sr.png'), image_file.read(tmp_path / 'hr.png'), scale, protocol)
    assert {key: ours[key] for key in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('size', [(31, 33), (64, 29)], ids=str)
def test_equal_to_float64_and_another_ssim(size):
    hr = photo(*size)
    sr = upsample(downsample(mod_crop(hr, 1), 1), 1) ^ 8
    a, b = (y_double(image)[3:-3, 3:-3] for image in (sr, hr))
    options = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False, 'data_range': 255}
    expected = {
        'psnr': 10 * np.log10(255**2 / np.mean((a - b) ** 2)),
        'ssim': structural_similarity(a, b, **options),
    }
    assert score(sr, hr, 3, 'y_crop_scale') == pytest.approx(expected, abs=1e-5)


def test_float_image_beyond_the_range_is_clipped_when_rounded():
    sr = np.full((40, 40, 3), 300.0)
    sr[20:] = -40.0
    hr = np.full((40, 40, 3), 255, np.uint8)
    hr[20:] = 0
    assert score(sr, hr, 2, 'rgb')['psnr'] == math.inf


@pytest.mark.parametrize(
    ('side', 'psnr', 'ssim'),
    [(1, False, False), (4, False, False), (5, True, False), (14, True, False), (15, True, True)],
)
def test_small_images_have_no_score_where_nothing_is_left(side, psnr, ssim):
    result = score(photo(side, 40) ^ 1, photo(side, 40), 2, 'rgb')
    assert (result['psnr'] is not None, result['ssim'] is not None) == (psnr, ssim)


def test_unrounded_protocol_refuses_rounded_images():
    with pytest.raises(ValueError, match='spin_published is for unrounded outputs'):
        score(GREY, GREY, 2, 'spin_published')


@pytest.mark.parametrize('shape', [(40, 41, 3), (40, 40), (40, 40, 4)], ids=str)
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match='shape of HR'):
        score(np.zeros(shape, np.uint8), GREY, 2, 'rgb')


@pytest.mark.parametrize('scales', [(), (2, 3)], ids=['lr_made', 'lr_read'])
def test_bicubic_over_folders_and_scales(tmp_path, scales):
    hr = write_benchmark(tmp_path / 'Mine', scales=scales)
    write_benchmark(tmp_path / 'Other', {'one': (33, 34)})
    results = evaluate([tmp_path / 'Mine', tmp_path / 'Other'], [2, 3], evaluation.upsample, method='bicubic')
    rows = [(result['dataset'], result['scale'], result['method']) for result in results]
    assert rows == [('Mine', 2, 'bicubic'), ('Mine', 3, 'bicubic'), ('Other', 2, 'bicubic'), ('Other', 3, 'bicubic')]
    cut = mod_crop(hr['bird'], 3)
    expected = score(upsample(downsample(cut, 3), 3), cut, 3, 'y_crop_scale')
    entry = results[1]['protocols']['y_crop_scale']
    assert entry['images']['bird'] == expected
    psnrs = [entry['images'][name]['psnr'] for name in SIZES]
    assert entry['psnr'] == pytest.approx(sum(psnrs) / 2, abs=1e-12) and psnrs[0] != psnrs[1]


@pytest.mark.parametrize('folder', ['.', 'Link', '../Set5'])
def test_dataset_is_called_as_its_folder(tmp_path, monkeypatch, folder):
    write_benchmark(tmp_path / 'Set5', {'a': (12, 12)})
    (tmp_path / 'Set5' / 'Link').symlink_to('.')
    monkeypatch.chdir(tmp_path / 'Set5')
    (result,) = evaluate([folder], [2], evaluation.upsample)
    assert result['dataset'] == ('Link' if folder == 'Link' else 'Set5')


def test_lr_is_read_where_it_is_there(tmp_path):
    write_benchmark(tmp_path / 'Mine', scales=[2])
    image_file.write_png(tmp_path / 'Mine' / 'LR_bicubic' / 'X2' / 'babyx2.png', np.zeros((18, 21, 3), np.uint8))
    seen = []
    evaluate([tmp_path / 'Mine'], [2], lambda pair: seen.append(pair) or pair.hr)
    assert [(pair.name, pair.lr.any()) for pair in seen] == [('baby', False), ('bird', True)]


@pytest.mark.parametrize('self_ensemble', [False, True])
def test_network_in_every_protocol(tmp_path, self_ensemble):
    hr = write_benchmark(tmp_path / 'Mine')
    net = Nearest(3, 120.3)  # so that some values must be clipped
    (result,) = evaluate([tmp_path / 'Mine'], [3], network({3: net}, self_ensemble=self_ensemble))
    assert list(result['protocols']) == list(DEFAULT)
    cut = mod_crop(hr['baby'], 3)
    x = torch.from_numpy(downsample(cut, 3)).permute(2, 0, 1)[None] / 255
    y = (super_resolve(x, net, self_ensemble=self_ensemble)[0] * 255).clamp(0, 255).permute(1, 2, 0).numpy()
    expected = {name: score(y, cut, 3, name) for name in DEFAULT}
    assert {name: entry['images']['baby'] for name, entry in result['protocols'].items()} == expected
    assert expected['spin_published'] != expected['y_crop_scale']


def test_mean_of_spin_published_is_rounded_up(tmp_path):
    image_file.write_png(tmp_path / 'Mine' / 'HR' / 'grey.png', GREY)
    (result,) = evaluate([tmp_path / 'Mine'], [2], network({2: Nearest(2, 0.4)}), protocols=['spin_published'])
    entry = result['protocols']['spin_published']
    assert entry['images']['grey']['psnr'] == pytest.approx(57.4117, abs=1e-3)
    assert (entry['psnr'], entry['ssim']) == (57.42, 1.0)


def refuse(x):
    raise RuntimeError('this size is refused')


@pytest.mark.parametrize(
    ('forward', 'message'),
    [
        (lambda x: x, r'baby.png: the super-resolved image must have the shape of HR'),
        (lambda x: x.repeat(1, 1, 2, 2) * math.nan, r'baby.png: .*NaN or Inf'),
        (refuse, r'baby.png: the network fails on the LR image of 18x21 \(HxW\): this size is refused'),
    ],
    ids=['size', 'nan', 'refused'],
)
def test_network_that_fails_names_the_image(tmp_path, forward, message):
    write_benchmark(tmp_path / 'Mine')
    net = Nearest()
    net.forward = forward
    with pytest.raises(ValueError, match=message):
        evaluate([tmp_path / 'Mine'], [2], network({2: net}))


def test_misspelt_option_of_the_network_is_an_error(tmp_path):
    write_benchmark(tmp_path / 'Mine')
    with pytest.raises(TypeError, match='self_ensembel'):
        evaluate([tmp_path / 'Mine'], [2], network({2: Nearest()}, self_ensembel=True))


def test_failures_are_told_and_the_others_done(tmp_path):
    write_benchmark(tmp_path / 'Bad', {'a': (40, 40), 'b': (2, 40)})
    write_benchmark(tmp_path / 'Good')
    lines = []
    results = evaluate([tmp_path / 'Bad', tmp_path / 'Good'], [2, 3], evaluation.upsample, failed=lines.append)
    assert [(result['dataset'], result['scale']) for result in results] == [('Bad', 2), ('Good', 2), ('Good', 3)]
    assert lines == [f'Bad x3: {tmp_path}/Bad/HR/b.png: sides must be at least the scale 3, got 2x40 (HxW)']


def test_all_files_are_looked_at_before_the_work(tmp_path):
    write_benchmark(tmp_path / 'Good')
    write_benchmark(tmp_path / 'Bad', {'a': (1, 40)})
    events = []

    def upscaler(pair):
        events.append(pair.name)
        return pair.hr

    evaluate([tmp_path / 'Good', tmp_path / 'Bad'], [2], upscaler, failed=events.append)
    assert events[0].startswith('Bad x2: ') and events[1:] == list(SIZES)


@pytest.mark.parametrize(
    ('benchmarks', 'scales', 'protocols', 'message'),
    [
        ([], [2], None, 'benchmarks must be'),
        (['Set5'], [], None, 'for some scales'),
        (['a/Set5', 'b/Set5'], [2], None, 'different names'),
        (['Set5'], [2], ['psnr'], "protocols must be among y_crop_scale, .* got 'psnr'"),
    ],
    ids=['no_benchmark', 'no_scale', 'one_name_twice', 'protocol'],
)
def test_wrong_arguments(benchmarks, scales, protocols, message):
    with pytest.raises(ValueError, match=message):
        evaluate(benchmarks, scales, evaluation.upsample, protocols=protocols, failed=lambda line: None)


def hr_text(folder):
    (folder / 'HR' / 'bird.png').write_text('no image')


def hr_truncated(folder):
    path = folder / 'HR' / 'bird.png'
    path.write_bytes(path.read_bytes()[:-200])


def hr_gone(folder):
    (folder / 'HR' / 'bird.png').unlink()


def hr_empty(folder):
    for path in (folder / 'HR').iterdir():
        path.unlink()


def hr_one_pixel(folder):
    image_file.write_png(folder / 'HR' / 'bird.png', np.zeros((1, 1, 3), np.uint8))


def hr_tiff_of_16_bits(folder):
    Image.fromarray(np.zeros((41, 38), np.uint16)).save(folder / 'HR' / 'deep.tiff')


def hr_twice(folder):
    Image.fromarray(photo(41, 38)).save(folder / 'HR' / 'bird.bmp')


def lr_gone(folder):
    (folder / 'LR_bicubic' / 'X2' / 'birdx2.png').unlink()


def lr_truncated(folder):
    path = folder / 'LR_bicubic' / 'X2' / 'birdx2.png'
    path.write_bytes(path.read_bytes()[:-200])


def lr_corrupt(folder):
    path = folder / 'LR_bicubic' / 'X2' / 'birdx2.png'
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lr_missized(folder):
    image_file.write_png(folder / 'LR_bicubic' / 'X2' / 'birdx2.png', np.zeros((21, 19, 3), np.uint8))


def lr_folder_empty(folder):
    for path in (folder / 'LR_bicubic' / 'X2').iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (hr_text, 'HR/bird.png is not an image'),
        (hr_truncated, 'HR/bird.png cannot be read completely'),
        (hr_gone, 'LR_bicubic/X2/birdx2.png has no HR image'),
        (hr_empty, 'no images .*HR'),
        (hr_one_pixel, 'HR/bird.png: sides must be at least the scale 2, got 1x1'),
        (hr_tiff_of_16_bits, 'HR/deep.tiff must have 8 bits a channel'),
        (hr_twice, r'different names, got .*bird.bmp and .*bird.png'),
        (lr_gone, 'LR_bicubic/X2/birdx2.png is missing'),
        (lr_truncated, 'LR_bicubic/X2/birdx2.png cannot be read completely'),
        (lr_corrupt, 'LR_bicubic/X2/birdx2.png cannot be read completely'),
        (lr_missized, r'birdx2.png must be the HR image \(41x38, HxW\) made 2 times smaller, got 21x19'),
        (lr_folder_empty, 'LR_bicubic/X2/babyx2.png is missing'),
    ],
)
def test_damaged_benchmarks_fail_as_a_whole(tmp_path, damage, message):
    folder = tmp_path / 'Mine'
    write_benchmark(folder, scales=[2])
    damage(folder)
    with pytest.raises(ValueError, match=message):
        evaluate([folder], [2], evaluation.upsample)


def test_file_that_changes_during_the_work(tmp_path):
    write_benchmark(tmp_path / 'Mine', scales=[2])

    def upscaler(pair):
        image_file.write_png(tmp_path / 'Mine' / 'LR_bicubic' / 'X2' / 'birdx2.png', np.zeros((4, 4, 3), np.uint8))
        return pair.hr

    with pytest.raises(ValueError, match=r'birdx2.png must be the HR image .* got 4x4 \(HxW\)'):
        evaluate([tmp_path / 'Mine'], [2], upscaler)


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match='not a directory: .*nowhere/HR'):
        evaluate([tmp_path / 'nowhere'], [2], evaluation.upsample)


def test_odd_names_endings_and_kinds_of_images(tmp_path):
    folder = tmp_path / 'Ünter wegs 画像'
    write_benchmark(folder, {'Käse brot': (33, 34)})
    Image.fromarray(photo(33, 34)).convert('RGBA').save(folder / 'HR' / 'alpha.webp', lossless=True)
    Image.fromarray(photo(33, 34)[..., 0]).save(folder / 'HR' / 'grey.png')
    (folder / 'HR' / 'notes.txt').write_text('no image, no matter')
    (result,) = evaluate([folder], [2], evaluation.upsample)
    assert result['dataset'] == 'Ünter wegs 画像'
    assert sorted(result['protocols']['rgb']['images']) == ['Käse brot', 'alpha', 'grey']


@pytest.fixture
def pair():
    hr = photo(40, 44)
    return evaluation.Pair('Set5', 4, 'baby', hr, downsample(hr, 4))


@pytest.mark.parametrize(
    'name',
    [
        *('baby.png', 'babyx4.png', 'baby_x4.bmp', 'Set5/baby.png', 'x4/baby.png', 'X4/baby.tif'),
        *('Set5/x4/baby_RCAN_x4.png', 'Set5/X4/baby_x4_SR.png', 'Set5/babyx4_test_SPIN_x4.png', 'baby-mine.png'),
    ],
)
def test_images_are_found(tmp_path, pair, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pair.hr).save(tmp_path / name)
    image_file.write_png((tmp_path / name).with_name('babyface.png'), pair.lr)
    image_file.write_png((tmp_path / name).with_name('baby_RCAN_x2.png'), pair.lr)
    assert np.array_equal(images(tmp_path)(pair), pair.hr)


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['bird.png'], 'holds no image called baby, babyx4, baby_x4'),
        (['babyface.png', 'babyx2.png', 'baby_x3_y.png', 'mybaby.png'], 'holds no image called baby'),
        (['baby_A_x4.png', 'baby_B_x4.png'], 'must hold one image of baby, got baby_A_x4.png, baby_B_x4.png'),
        (['baby.png', 'baby_x4.png'], 'must hold one image of baby, got baby.png, baby_x4.png'),
        ([], 'no images '),
    ],
    ids=['missing', 'others', 'two', 'two_plain', 'empty'],
)
def test_images_that_are_missing_or_ambiguous(tmp_path, pair, names, message):
    for name in names:
        image_file.write_png(tmp_path / name, pair.hr)
    with pytest.raises(ValueError, match=message):
        images(tmp_path)(pair)


def test_plain_name_goes_before_a_longer_one(tmp_path, pair):
    image_file.write_png(tmp_path / 'baby_2.png', pair.lr)
    image_file.write_png(tmp_path / 'baby.png', pair.hr)
    assert np.array_equal(images(tmp_path)(pair), pair.hr)


def test_image_of_another_name_is_not_taken_twice(tmp_path):
    write_benchmark(tmp_path / 'Mine', {'vol': (40, 40), 'vol_2': (40, 40)})
    image_file.write_png(tmp_path / 'sr' / 'vol_2.png', photo(40, 40))
    with pytest.raises(ValueError, match='no image of its own for vol_2: vol_2.png is that of vol'):
        evaluate([tmp_path / 'Mine'], [4], images(tmp_path / 'sr'))


def test_image_of_another_size_is_named(tmp_path, pair):
    image_file.write_png(tmp_path / 'baby.png', pair.hr[:-1])
    with pytest.raises(ValueError, match=r'baby.png must be 40x44 \(HxW\) as the HR image, got 39x44'):
        images(tmp_path)(pair)


def test_scale_in_the_name_of_the_folder(tmp_path, pair):
    image_file.write_png(tmp_path / 'mine_4' / 'baby.png', pair.hr)
    assert np.array_equal(images(tmp_path / 'mine_{scale}')(pair), pair.hr)


def test_json_has_no_infinite_numbers_and_null_for_small_images(tmp_path, caplog):
    write_benchmark(tmp_path / 'Mine', {'a': (40, 40), 'b': (12, 40)})
    results = evaluate([tmp_path / 'Mine'], [2], lambda pair: pair.hr, protocols=['rgb', 'ntire'])

    def refuse(constant):
        raise AssertionError(constant)

    (entry,) = json.loads(to_json(results), parse_constant=refuse)
    assert entry == {
        'dataset': 'Mine',
        'scale': 2,
        'method': '',
        'protocols': {
            'rgb': {
                'psnr': 'Infinity',
                'ssim': None,
                'images': {'a': {'psnr': 'Infinity', 'ssim': 1}, 'b': {'psnr': 'Infinity', 'ssim': None}},
            },
            'ntire': {
                'psnr': None,
                'ssim': None,
                'images': {'a': {'psnr': 'Infinity', 'ssim': 1}, 'b': {'psnr': None, 'ssim': None}},
            },
        },
    }
    assert 'Mine x2, rgb: too small to be scored: b' in caplog.text
    assert '| inf/n/a | n/a/n/a |' in to_markdown(results)
    assert 'Mine,2,,ntire,b,,\n' in to_csv(results) and 'Mine,2,,rgb,a,Infinity,1.0\n' in to_csv(results)


def test_results_of_two_methods_in_one_table(tmp_path):
    write_benchmark(tmp_path / 'Mine')
    results = evaluate([tmp_path / 'Mine'], [2], network({2: Nearest()}), method='net', protocols=['spin_published'])
    results += evaluate([tmp_path / 'Mine'], [2], evaluation.upsample, method='bicubic', protocols=['rgb'])
    results[1]['metrics'] = {'gmsd': {'protocol': 'rgb', 'value': 0.5, 'images': {}}}
    rows = [line.split() for line in to_markdown(results).splitlines()[4:]]
    assert [(row[7] == 'n/a/n/a', row[9] == 'n/a/n/a', row[11]) for row in rows] == [
        (False, True, 'n/a'),
        (True, False, '0.5000'),
    ]


@pytest.fixture
def pyiqa(monkeypatch):
    """A module in pyiqa's place: `maxdiff` needs a reference, `quality` none, `huge` only large images."""

    class Metric:
        def __init__(self, name, device):
            self.name, self.device, self.calls = name, device, []
            self.metric_mode = 'NR' if name == 'quality' else 'FR'

        def __call__(self, target, ref=None):
            assert self.name != 'huge', 'image must be larger\nmuch larger'
            self.calls.append((target, ref))
            return target.mean() if ref is None else (target - ref).abs().max()

    def create_metric(name, device):
        if name == 'offline':
            raise URLError('no route')
        assert name in ('maxdiff', 'quality', 'huge'), f'Metric {name} not implemented yet.'
        return Metric(name, device)

    monkeypatch.setitem(sys.modules, 'pyiqa', SimpleNamespace(create_metric=create_metric))


def test_metrics_see_rounded_rgb_without_the_border(tmp_path, pyiqa):
    hr = write_benchmark(tmp_path / 'Mine', {'a': (40, 44)})['a']
    metrics = load_metrics(['maxdiff'])
    (result,) = evaluate([tmp_path / 'Mine'], [4], network({4: Nearest(4, 0.4)}), protocols=['ntire'], metrics=metrics)
    sr = np.rint(downsample(hr, 4).repeat(4, 0).repeat(4, 1) + 0.4).astype(np.uint8)
    target, ref = metrics['maxdiff'].calls[0]
    for tensor, image in ((target, sr), (ref, hr)):
        assert torch.equal(tensor, torch.from_numpy(image[4:-4, 4:-4]).permute(2, 0, 1)[None] / 255)
    value = (target - ref).abs().max().item()
    assert result['metrics'] == {'maxdiff': {'protocol': 'rgb', 'value': value, 'images': {'a': value}}}
    assert list(result['protocols']) == ['ntire']
    assert 'pyiqa maxdiff (rgb)' in to_markdown([result]) and f'{value:.4f}' in to_markdown([result])
    rows = list(csv.DictReader(io.StringIO(to_csv([result]))))
    assert [(row['protocol'], row['image'], row['pyiqa_maxdiff']) for row in rows] == [
        ('ntire', 'a', ''),
        ('ntire', 'mean', ''),
        ('rgb', 'a', str(value)),
        ('rgb', 'mean', str(value)),
    ]


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('quality', "full-reference .FR., got 'quality', which is NR"),
        ('lpisp', "metric 'lpisp': Metric lpisp not impl"),
        ('offline', "metric 'offline': .*no route.*; it downloads its weights"),
    ],
)
def test_metrics_that_are_refused(pyiqa, name, message):
    with pytest.raises(ValueError, match=message):
        load_metrics([name])


def test_metric_that_fails_names_the_image(tmp_path, pyiqa):
    write_benchmark(tmp_path / 'Mine', {'a': (40, 44)})
    with pytest.raises(ValueError, match=r'a.png: huge fails on 40x44 \(HxW\): image must be larger$'):
        evaluate([tmp_path / 'Mine'], [2], evaluation.upsample, metrics=load_metrics(['huge']))


def test_metrics_without_hr_see_the_whole_rounded_image(tmp_path, pyiqa):
    lr = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    image_file.write_png(tmp_path / 'photos/a.png', lr)
    image_file.write_png(tmp_path / 'photos/b.png', lr // 2)
    metrics = load_metrics(['quality'], reference=False)
    (result,) = evaluate_without_hr([tmp_path / 'photos'], [4], network({4: Nearest(4, 0.4)}), metrics, method='N')
    (seen, _), *_ = metrics['quality'].calls
    expected = np.rint(lr.repeat(4, 0).repeat(4, 1) + 0.4).clip(0, 255).astype(np.uint8)
    assert torch.equal(seen, torch.from_numpy(expected).permute(2, 0, 1)[None] / 255)
    scores = result['metrics']['quality']
    assert scores['value'] == (scores['images']['a'] + scores['images']['b']) / 2 != scores['images']['a']
    assert 'pyiqa quality (rgb_whole)' in to_markdown([result]) and '| x4 ' in to_markdown([result])
    rows = list(csv.DictReader(io.StringIO(to_csv([result]))))
    assert [(row['protocol'], row['image'], row['psnr']) for row in rows] == [
        ('rgb_whole', name, '') for name in ('a', 'b', 'mean')
    ]
    # Results are scored as they are.
    (given,) = evaluate_without_hr([tmp_path / 'photos'], [4], None, metrics)
    assert given['scale'] is None and torch.equal(
        metrics['quality'].calls[2][0], torch.from_numpy(lr).permute(2, 0, 1)[None] / 255
    )


def test_metrics_with_a_reference_are_refused_without_hr(pyiqa):
    with pytest.raises(ValueError, match="no-reference .NR., got 'maxdiff', which is FR"):
        load_metrics(['maxdiff'], reference=False)


def test_missing_pyiqa_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyiqa', None)
    with pytest.raises(ImportError, match='lpips, dists need pyiqa: pip install pyiqa'):
        load_metrics(['lpips', 'dists'])
    assert load_metrics([]) == {}


@pytest.mark.parametrize(
    ('scale', 'psnr', 'ssim'), [(2, 33.673, 0.9303), (3, 30.403, 0.8689), (4, 28.429, 0.8111)], ids=['x2', 'x3', 'x4']
)
def test_bicubic_on_set5(benchmark_folder, scale, psnr, ssim):
    (result,) = evaluate([benchmark_folder / 'Set5'], [scale], evaluation.upsample, protocols=['y_crop_scale'])
    entry = result['protocols']['y_crop_scale']
    assert (round(entry['psnr'], 3), round(entry['ssim'], 4)) == (psnr, ssim)


def test_examples_run():
    assert doctest.testmod(evaluation).failed == 0
