"""A teacher's outputs in an LMDB: exact, of whole images, continued after an interruption, never mixed."""

import hashlib
import json

import cv2
import lmdb
import numpy as np
import pytest
import torch

import spinsr
from spinsr.cli import main
from spinsr.data import image_file
from spinsr.data.own_images import prepare_images
from spinsr.data.teacher_outputs import Teacher, describe, read_meta
from spinsr.inference import teacher
from spinsr.inference.teacher import prepare_teacher

TINY = {'num_feat': 4, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 2}
RCAN = Teacher('RCAN', TINY, 'a.pth', '01', 2)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return spinsr.load('RCAN', 2, weights=None, **TINY)


@pytest.fixture
def dataset(tmp_path, write_photo):
    """Three pairs at x2: LR of 24x30, 30x24 and 24x24."""
    for index, (height, width) in enumerate(((48, 60), (60, 48), (48, 48))):
        write_photo(tmp_path / 'mine' / f'{index}.png', height, width, index)
    prepare_images([tmp_path / 'mine'], tmp_path / 'data', (2,))
    return tmp_path / 'data'


def content(path):
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as images:
        return {key.decode(): value for key, value in images.cursor()}


def decode16(data):
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image.dtype == np.uint16
    return image[..., ::-1]


def test_outputs_are_those_of_whole_images_at_16_bits(dataset, net):
    path = prepare_teacher(dataset, net, RCAN)
    assert path == dataset / 'train_teacher_X2.lmdb'
    lr, outputs = content(dataset / 'train_LR_bicubic_X2.lmdb'), content(path)
    assert outputs.keys() == lr.keys() == {'mine_0', 'mine_1', 'mine_2'}
    for key, data in lr.items():
        x = torch.from_numpy(image_file.decode(data, key).astype(np.float32) / 255).permute(2, 0, 1)[None]
        with torch.no_grad():
            y = net(x)[0].clamp(0, 1).permute(1, 2, 0)
        # Half a step of 16 bits.
        np.testing.assert_allclose(decode16(outputs[key]) / 65535, y, rtol=0, atol=0.51 / 65535)


def test_beside_the_outputs_stands_whose_they_are(dataset, net):
    path = prepare_teacher(dataset, net, RCAN)
    assert json.loads((path / 'teacher.json').read_text()) == RCAN._asdict()
    assert read_meta(path) == RCAN
    lines = (path / 'meta_info.txt').read_text().splitlines()
    assert lines == ['mine_0.png (48,60,3) 0', 'mine_1.png (60,48,3) 0', 'mine_2.png (48,48,3) 0']
    assert read_meta(dataset / 'train_HR.lmdb') is None


def test_output_is_clamped(dataset, net):
    torch.nn.init.constant_(net.conv_last.bias, 1e3)
    outputs = content(prepare_teacher(dataset, net, RCAN))
    assert all((decode16(data) == 65535).all() for data in outputs.values())


def test_interrupted_run_goes_on_and_ends_with_the_same_bytes(tmp_path, dataset, net, monkeypatch):
    whole = prepare_teacher(dataset, net, RCAN, tmp_path / 'whole.lmdb')
    own, calls = teacher._output, []

    def stops_at_the_second(image, net, described, name):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(image, net, described, name)

    monkeypatch.setattr(teacher, '_output', stops_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        prepare_teacher(dataset, net, RCAN)
    assert not (dataset / 'train_teacher_X2.lmdb').exists()

    path = prepare_teacher(dataset, net, RCAN)

    assert len(calls) == 4, 'the first image was not made again'
    assert content(path) == content(whole)


def test_lr_that_has_changed_meanwhile_is_done_again(dataset, net, monkeypatch):
    own, calls = teacher._output, []

    def output(image, net, described, name):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(image, net, described, name)

    monkeypatch.setattr(teacher, '_output', output)
    with pytest.raises(KeyboardInterrupt):
        prepare_teacher(dataset, net, RCAN)
    lr = dataset / 'train_LR_bicubic_X2.lmdb'
    with lmdb.open(str(lr)) as env, env.begin(write=True) as images:
        images.put(b'mine_0', image_file.encode_png(np.zeros((24, 30, 3), np.uint8), 1))
    prepare_teacher(dataset, net, RCAN)
    assert [name.split()[0] for name in calls[3:]] == ['mine_0', 'mine_2']


def test_finished_outputs_are_left_alone(dataset, net, monkeypatch):
    path = prepare_teacher(dataset, net, RCAN)
    before = (path / 'data.mdb').stat().st_mtime_ns
    monkeypatch.setattr(teacher, '_output', None)
    assert prepare_teacher(dataset, net, RCAN._replace(weights='renamed.pth')) == path
    assert (path / 'data.mdb').stat().st_mtime_ns == before


@pytest.mark.parametrize(
    'change',
    [{'sha256': '02'}, {'arch': 'SPIN'}, {'arch_args': {}}, {'tile': 32}],
    ids=['weights', 'arch', 'arguments', 'tile'],
)
@pytest.mark.parametrize('finished', [True, False], ids=['finished', 'unfinished'])
def test_another_teacher_is_an_error(dataset, net, monkeypatch, finished, change):
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr(teacher, '_output', lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                prepare_teacher(dataset, net, RCAN)
        else:
            prepare_teacher(dataset, net, RCAN)
    with pytest.raises(ValueError, match=r'train_teacher_X2\.lmdb(\.part)? is of RCAN x2 \(a\.pth, .*remove it'):
        prepare_teacher(dataset, net, RCAN._replace(**change))
    assert prepare_teacher(dataset, net, RCAN._replace(**change), dataset / 'other.lmdb').is_dir()


def test_damaged_teacher_json_is_named(dataset, net):
    path = prepare_teacher(dataset, net, RCAN)
    (path / 'teacher.json').write_text('{"arch": ')
    with pytest.raises(ValueError, match=r'teacher\.json cannot be read'):
        prepare_teacher(dataset, net, RCAN)
    (path / 'teacher.json').unlink()
    with pytest.raises(ValueError, match=r'exists and has no teacher\.json'):
        prepare_teacher(dataset, net, RCAN)


def test_hr_that_does_not_fit_is_found_before_the_work(dataset, net):
    meta_info = dataset / 'train_HR.lmdb' / 'meta_info.txt'
    lines = meta_info.read_text()
    meta_info.write_text(lines.replace('(48,60,3)', '(48,64,3)'))
    with pytest.raises(ValueError, match=r'mine_0 of .*train_HR\.lmdb must be 48x60'):
        prepare_teacher(dataset, net, RCAN)
    meta_info.write_text(lines.replace('mine_1', 'mine_7'))
    with pytest.raises(ValueError, match='same keys, got mine_1 in one'):
        prepare_teacher(dataset, net, RCAN)
    assert not list(dataset.glob('train_teacher*'))


def test_damaged_lr_is_named_and_the_rest_stays(dataset, net):
    with lmdb.open(str(dataset / 'train_LR_bicubic_X2.lmdb')) as env, env.begin(write=True) as images:
        images.put(b'mine_2', images.get(b'mine_2')[:-30])
    with pytest.raises(ValueError, match=r'mine_2 of .*train_LR_bicubic_X2\.lmdb cannot be read completely'):
        prepare_teacher(dataset, net, RCAN)
    assert {'mine_0', 'mine_1'} <= content(dataset / 'train_teacher_X2.lmdb.part').keys()


def test_network_of_another_scale_is_an_error(dataset):
    net = spinsr.load('RCAN', 4, weights=None, **TINY)
    with pytest.raises(ValueError, match=r'output of mine_0 must be 48x60 \(HxW\) at scale 2, got 96x120'):
        prepare_teacher(dataset, net, RCAN)


def test_nan_is_an_error(dataset, net):
    torch.nn.init.constant_(net.conv_last.bias, float('nan'))
    with pytest.raises(ValueError, match='mine_0 of .* NaN or infinity'):
        prepare_teacher(dataset, net, RCAN)


class Small(torch.nn.Module):
    """A network for which memory runs out above 32 pixels of a side."""

    def forward(self, x):
        if max(x.shape[2:]) > 32:
            raise torch.OutOfMemoryError
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize(('tile', 'advice'), [(None, r'tiles \(--tile\)'), (40, 'smaller tiles')])
def test_image_that_does_not_fit_into_memory_is_an_error_not_tiles(tmp_path, write_photo, tile, advice):
    write_photo(tmp_path / 'mine' / 'a.png', 96, 96)
    prepare_images([tmp_path / 'mine'], tmp_path / 'data', (2,))
    with pytest.raises(MemoryError, match=rf'mine_a of .*out of memory for a 48x48 image .*; use {advice}'):
        prepare_teacher(tmp_path / 'data', Small(), RCAN._replace(tile=tile))
    assert prepare_teacher(tmp_path / 'data', Small(), RCAN._replace(tile=32), tmp_path / 'tiled.lmdb')


@pytest.mark.parametrize(
    ('lr', 'output'),
    [
        ('train_LR_bicubic_X2.lmdb', 'train_teacher_X2.lmdb'),
        ('train_LR_bicubic_X2_sub.lmdb', 'train_teacher_X2_sub.lmdb'),
        ('DIV2K_train_LR_bicubic_X2_sub.lmdb', 'DIV2K_train_teacher_X2_sub.lmdb'),
    ],
)
def test_lr_of_every_preparation_is_found(tmp_path, dataset, net, lr, output):
    (dataset / 'train_LR_bicubic_X2.lmdb').rename(dataset / lr)
    (dataset / 'DIV2K_valid_LR_bicubic_X2.lmdb').mkdir()
    hr = lr.replace('LR_bicubic_X2', 'HR')
    (dataset / 'train_HR.lmdb').rename(dataset / hr)
    assert prepare_teacher(dataset, net, RCAN).name == output
    meta_info = dataset / hr / 'meta_info.txt'
    meta_info.write_text(meta_info.read_text().replace('mine_1', 'mine_7'))
    with pytest.raises(ValueError, match='the same keys'):
        prepare_teacher(dataset / lr, net, RCAN, tmp_path / 'more.lmdb')


def test_no_lr_and_several_are_said(dataset):
    with pytest.raises(ValueError, match=r'no train_LR_bicubic_X4\.lmdb found in .*spinsr prepare images'):
        teacher.find_lr(dataset, 4)
    (dataset / 'train_LR_bicubic_X2_sub.lmdb').mkdir()
    with pytest.raises(ValueError, match='several LMDBs of LR: train_LR_bicubic_X2.lmdb, train_LR_bicubic_X2_sub.lmdb'):
        teacher.find_lr(dataset, 2)


def test_command_takes_any_network_and_notes_its_weights(tmp_path, dataset, net, capsys):
    torch.save({'params': net.state_dict()}, tmp_path / 'tiny.pth')
    arguments = [f'{key}={value}' for key, value in TINY.items()]
    command = ['prepare', 'teacher', str(dataset), '--arch', 'RCAN', '--weights', str(tmp_path / 'tiny.pth')]
    command += ['--scale', '2', '--device', 'cpu', '--arch-args', *arguments]
    assert main(command) == 0
    assert capsys.readouterr().out == f'{dataset}/train_teacher_X2.lmdb\n'
    digest = hashlib.sha256((tmp_path / 'tiny.pth').read_bytes()).hexdigest()
    assert read_meta(dataset / 'train_teacher_X2.lmdb') == Teacher('RCAN', TINY, 'tiny.pth', digest, 2)

    torch.nn.init.zeros_(net.conv_last.bias)
    torch.save({'params': net.state_dict()}, tmp_path / 'tiny.pth')
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == '' and 'remove it, or choose another name with -o' in captured.err.splitlines()[-1]
    assert main([*command, '-o', str(tmp_path / 'second.lmdb')]) == 0


def test_description_is_what_json_gives_back(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'weights')
    found = describe('SPIN', tmp_path / 'a.pth', 4, arch_args={'stoken_size': (12, 16)})
    assert found == Teacher('SPIN', {'stoken_size': [12, 16]}, 'a.pth', hashlib.sha256(b'weights').hexdigest(), 4)
