"""Option files: found, read, forced, listed and copied."""

import itertools
import time

import pytest

from spinsr import cli, weights
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
        pytest.param('- a\n- b\n', ' must be a YAML mapping', id='list'),
        pytest.param('', 'got NoneType', id='empty'),
        pytest.param('a: 1\nb: [1\nc: 2\n', ', line 3: not valid YAML', id='syntax'),
        pytest.param('a: !!python/object/apply:os.getcwd []\n', 'not valid YAML', id='code'),
        pytest.param('a: 1\nb: 2\na: 3\n', ", line 3: duplicate key 'a' (first at line 1)", id='duplicate'),
        pytest.param('a:\n  b: 1\n  "b": 2\n', ", line 3: duplicate key 'b' (first at line 2)", id='duplicate-below'),
        pytest.param('a: 1\n2: 3\n', ', line 2: a key must be text, got 2', id='number-as-key'),
        pytest.param('a: {on: 3}\n', ', line 1: a key must be text, got True', id='flag-as-key'),
        pytest.param('a: {[1]: 3}\n', ', line 1: a key must be text, got [1]', id='list-as-key'),
        pytest.param('a: 1\nb: ' + '9' * 5000, ', line 2: not a valid int: ', id='endless-number'),
        pytest.param('a: 0x' + 'f' * 5000, ', line 1: a number of more than 18 digits', id='endless-hexadecimal'),
        pytest.param('a: 2020-99-99', ", line 1: not a valid timestamp: '2020-99-99'", id='no-date'),
        pytest.param('a: !!bool x', ", line 1: not a valid bool: 'x'", id='no-flag'),
        pytest.param("a: !!int ''", ", line 1: not a valid int: ''", id='no-number'),
        pytest.param('a: ' + '[' * 1500 + ']' * 1500, ', line 1: nested more than 50 levels deep', id='deep-list'),
        pytest.param(''.join(f'{" " * n}a:\n' for n in range(200)), ', line 51: nested more than', id='deep-section'),
        pytest.param('a: &a [*a]', ', line 1: the value of an anchor contains itself', id='endless-alias'),
        pytest.param(f'a: {"x" * 2**20}', ' is larger than 1024 KB', id='large'),
        pytest.param('a: \0', ': not valid YAML: ', id='zero-byte'),
    ],
)
def test_what_is_not_an_option_file_is_one_line(tmp_path, text, line):
    path = tmp_path / 'x.yml'
    path.write_text(text)
    with pytest.raises(OptionError) as caught:
        option_files.read(path)
    message = str(caught.value)
    assert message.startswith(f'option file {path}') and line in message
    assert '\n' not in message and len(message) < 300 + len(str(path))


@pytest.mark.parametrize('link', ['[{}]', '{{<<: [{}]}}'], ids=['lists', 'merged'])
def test_aliases_that_multiply_are_refused_before_they_do(tmp_path, link):
    names = 'abcdefghij'
    lines = [f'{one}: &{one} {link.format(", ".join([f"*{last}"] * 9))}' for last, one in itertools.pairwise(names)]
    path = tmp_path / 'x.yml'
    path.write_text('\n'.join(['a: &a {x: 1}', *lines]))
    begin = time.process_time()
    with pytest.raises(OptionError, match='more than 100000 values'):
        option_files.read(path)
    assert time.process_time() - begin < 5


def test_aliases_and_merges_are_read(tmp_path):
    path = tmp_path / 'x.yml'
    path.write_text('a: &a {x: 1, y: 2}\np: {q: &b {<<: *a, x: 3}}\nc: {<<: *b, x: 4}\nd: [*a, *a]\n')
    a = {'x': 1, 'y': 2}
    assert option_files.read(path) == {'a': a, 'p': {'q': {'x': 3, 'y': 2}}, 'c': {'x': 4, 'y': 2}, 'd': [a, a]}


def test_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / 'x.yml'
    path.write_bytes(b'\xef\xbb\xbfname: a')
    assert option_files.read(path) == {'name': 'a'}


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
        pytest.param('train:lr', 'must be section:key=value', id='no-value'),
        pytest.param(f'train:lr={"9" * 5000}', 'a number of more than 18 digits', id='endless-number'),
        pytest.param(f'train:lr={"[" * 1500}{"]" * 1500}', 'nested more than 50 levels', id='deep-list'),
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


@pytest.mark.parametrize('name', ['train_RLFN_x4.yml', 'options/train_RLFN_x4.yml', 'train_RLFN_x4'])
def test_a_file_of_a_recipe_is_found_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    file, options = option_files.load(name, ['train:total_iter=10'])
    assert file == option_files.generated()['train_RLFN_x4.yml']
    assert (options['network_g']['type'], options['train']['total_iter']) == ('RLFN', 10)
    assert option_files.origin(file).startswith('train_RLFN_x4.yml was generated from the recipe of RLFN')


def test_a_misspelt_name_of_a_recipe_names_the_nearest():
    with pytest.raises(OptionError, match="did you mean 'train_RLFN_x4.yml'"):
        option_files.find('train_RLNF_x4.yml')


def test_generated_files_are_those_that_are_not_shipped():
    assert not {'train_SPIN_x4.yml', 'test_RCAN_x2.yml', *option_files.shipped()} & set(option_files.generated())
    assert {'train_RDBESA_x2.yml', 'test_RLFN_x4_contrastive.yml'} <= set(option_files.generated())


ALL = sorted([*option_files.shipped(), *option_files.generated()])


@pytest.mark.parametrize(
    ('args', 'names'),
    [
        ([], ALL),
        (['RDBESA'], [f'{phase}_RDBESA_x{scale}.yml' for phase in ('test', 'train') for scale in (2, 3, 4)]),
        (['RLFN-S', 'RDBESA', '--scale', '3'], [name for name in ALL if '_RLFN-S_x3' in name or 'RDBESA_x3' in name]),
        (['SAN', '--scale', '4,8', '2'], [name for name in ALL if '_SAN_x' in name and 'x3' not in name]),
    ],
    ids=['all', 'network', 'networks-and-scale', 'scales'],
)
def test_command_lists(capsys, args, names):
    assert cli.main(['options', *args]) == 0
    assert capsys.readouterr().out.split() == names


@pytest.mark.parametrize('name', ['train_RLFN_x4.yml', 'train_SPIN_x4'], ids=['generated', 'shipped'])
def test_command_prints_one_file(capsys, tmp_path, name):
    assert cli.main(['options', name]) == 0
    path = tmp_path / 'printed.yml'
    path.write_text(capsys.readouterr().out)
    assert option_files.read(path) == option_files.read(option_files.find(name))


@pytest.mark.parametrize(
    ('args', 'line'),
    [
        (['RLNF'], "did you mean 'RLFN'?"),
        (['RDBESA', '--scale', '7'], 'no option file of RDBESA is for scale 7'),
        (['--scale', '9'], 'no option file is for scale 9'),
        (['--import', 'no_such_module'], '--import no_such_module: '),
    ],
    ids=['name', 'scale-of-network', 'scale', 'import'],
)
def test_command_refuses(capsys, args, line):
    assert cli.main(['options', *args]) == 1
    assert line in capsys.readouterr().err


@pytest.mark.parametrize('flag', ['-o', '--copy'])
def test_command_writes_all(tmp_path, flag):
    target = tmp_path / 'mine'
    assert cli.main(['options', flag, str(target)]) == 0
    assert {path.relative_to(target).as_posix() for path in target.rglob('*.yml')} == set(ALL)
    assert (target / 'train_SPIN_x4.yml').read_bytes() == option_files.shipped()['train_SPIN_x4.yml'].read_bytes()


def test_command_never_overwrites(tmp_path, capsys):
    command = ['options', 'RLFN', '--scale', '4', '-o', str(tmp_path)]
    assert [cli.main(command), cli.main(command)] == [0, 0]
    changed = tmp_path / 'train_RLFN_x4.yml'
    text = changed.read_text()
    changed.write_text('name: mine')
    assert cli.main(command) == 1
    assert 'train_RLFN_x4.yml exists and differs; --overwrite' in capsys.readouterr().err
    assert changed.read_text() == 'name: mine'
    assert cli.main([*command, '--overwrite']) == 0
    assert changed.read_text() == text
