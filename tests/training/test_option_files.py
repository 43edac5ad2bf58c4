"""Option files: found, read, forced, listed and copied."""

import argparse

import pytest

from spinsr import weights
from spinsr.cli import options as command
from spinsr.training import option_files
from spinsr.utils.errors import OptionError


def test_an_existing_file_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'train_SPIN_x4.yml').write_text('name: mine')
    assert option_files.read(option_files.find('train_SPIN_x4.yml')) == {'name': 'mine'}


@pytest.mark.parametrize(
    'name', ['train_SPIN_x4.yml', 'options/train_SPIN_x4.yml', './train_SPIN_x4.yml', 'train_SPIN_x4']
)
def test_a_shipped_file_is_found_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert option_files.find(name) == option_files.shipped()['train_SPIN_x4.yml']


@pytest.mark.parametrize(
    'name',
    ['ablation/train_SPIN_x4_patch.yml', 'options/ablation/train_SPIN_x4_patch', 'train_SPIN_x4_patch.yml']
    + ['train_SPIN_x4_patch'],
)
def test_a_shipped_file_in_a_folder_is_found_with_and_without_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert option_files.find(name) == option_files.shipped()['ablation/train_SPIN_x4_patch.yml']


def test_an_unknown_name_in_a_folder_names_the_nearest_there():
    with pytest.raises(OptionError, match="did you mean 'train_SPIN_x4_patch.yml'"):
        option_files.find('ablation/train_SPIN_x4_patc.yml')


def test_names_are_unique_without_their_folder():
    names = [path.name for path in option_files.shipped().values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize('name', ['train_SPN_x4.yml', 'somewhere/train_SPIM_x4.yml'])
def test_an_unknown_name_names_the_nearest(name):
    with pytest.raises(OptionError, match="did you mean 'train_SPIN_x4.yml'"):
        option_files.find(name)


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        pytest.param('- a\n- b\n', 'is a YAML mapping', id='list'),
        pytest.param('', 'got NoneType', id='empty'),
        pytest.param('a: 1\nb: [1\nc: 2\n', 'line 3: not YAML', id='syntax'),
        pytest.param('a: !!python/object/apply:os.getcwd []\n', 'not YAML', id='code'),
    ],
)
def test_what_is_no_option_file(tmp_path, text, line):
    path = tmp_path / 'x.yml'
    path.write_text(text)
    with pytest.raises(OptionError, match=line):
        option_files.read(path)


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1e-3', 0.001),
        ('2.5', 2.5),
        ('!!float 3', 3.0),
        ('-1', -1),
        ('16', 16),
        ('true', True),
        ('False', False),
        ('~', None),
        ('none', None),
        ('[1, 2e-1, a]', [1, 0.2, 'a']),
        ('{}x4', '{}x4'),
        ('auto', 'auto'),
        ('1:30', '1:30'),
    ],
)
def test_forced_values(text, value):
    options = {'train': {'lr': 0}}
    option_files.force(options, [f'train:lr={text}'])
    assert options == {'train': {'lr': value}}
    assert type(options['train']['lr']) is type(value)


def test_forced_text_may_hold_an_equals_sign():
    options = {'name': 'a', 'path': {'x': None}}
    option_files.force(options, ['name=123', 'path:x=a=b'])
    assert options == {'name': '123', 'path': {'x': 'a=b'}}


@pytest.mark.parametrize(
    ('entry', 'line'),
    [
        pytest.param('train:l=1', "no key 'train:l'; did you mean 'train:lr'", id='leaf'),
        pytest.param('trian:lr=1', "did you mean 'train:lr'", id='section'),
        pytest.param('train:lr:x=1', "no key 'train:lr:x'", id='below-a-value'),
        pytest.param('train:lr', 'takes section:key=value', id='no-value'),
    ],
)
def test_forced_key_must_exist(entry, line):
    options = {'train': {'lr': 0}}
    with pytest.raises(OptionError, match=line):
        option_files.force(options, [entry])
    assert options == {'train': {'lr': 0}}


@pytest.mark.parametrize(
    ('value', 'found'),
    [
        ('SPIN_x4.safetensors', str(weights.default_weights('SPIN', 4))),
        ('mine.pth', 'mine.pth'),
        ('SPIN_x9.safetensors', 'SPIN_x9.safetensors'),
        ('~', None),
    ],
    ids=['shipped', 'own', 'neither', 'none'],
)
def test_shipped_weights_are_found_by_name(tmp_path, monkeypatch, value, found):
    monkeypatch.chdir(tmp_path)
    path, options = option_files.load('train_SPIN_x4', [f'path:pretrain_network_g={value}', 'name=a'])
    assert (path, options['name']) == (option_files.folder() / 'train_SPIN_x4.yml', 'a')
    assert options['path']['pretrain_network_g'] == found


def test_weights_in_the_working_directory_come_before_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'SPIN_x4.safetensors').touch()
    _, options = option_files.load('train_SPIN_x4', ['path:pretrain_network_g=SPIN_x4.safetensors'])
    assert options['path']['pretrain_network_g'] == 'SPIN_x4.safetensors'


@pytest.mark.parametrize('text', ['name: a', 'path: x'], ids=['no-path', 'path-is-text'])
def test_a_file_without_paths_is_loaded_as_it_is(tmp_path, text):
    path = tmp_path / 'x.yml'
    path.write_text(text)
    assert option_files.load(path) == (path, option_files.read(path))


def test_command_lists(capsys):
    assert command.run(_args()) == 0
    assert capsys.readouterr().out.split() == list(option_files.shipped())


def test_command_copies_and_never_overwrites(tmp_path, capsys):
    target = tmp_path / 'mine'
    assert command.run(_args(copy=target)) == 0
    assert {path.name for path in target.rglob('*.yml')} == {name.split('/')[-1] for name in option_files.shipped()}
    assert command.run(_args(copy=target)) == 0

    changed = target / 'train_SPIN_x4.yml'
    changed.write_text('name: mine')
    with pytest.raises(FileExistsError, match='train_SPIN_x4.yml exists and differs'):
        command.run(_args(copy=target))
    assert changed.read_text() == 'name: mine'

    assert command.run(_args(copy=target, overwrite=True)) == 0
    assert changed.read_bytes() == option_files.shipped()['train_SPIN_x4.yml'].read_bytes()


def _args(copy=None, overwrite=False):
    return argparse.Namespace(copy=copy, overwrite=overwrite)
