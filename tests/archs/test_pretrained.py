"""`from_pretrained`, `save_pretrained`, `push_to_hub`, and `spinsr.load` of a folder."""

import copy
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import spinsr
from spinsr.archs import ARCH_REGISTRY, pretrained
from spinsr.archs.rcan_arch import RCAN
from spinsr.archs.spin_arch import SPIN
from spinsr.archs.spin_variants_arch import SPINVariant
from spinsr.convert import formats
from spinsr.weights import default_weights

SMALL = {'num_feat': 16, 'num_block': 2, 'num_heads': 2, 'qk_dim': 8, 'mlp_dim': 24, 'stoken_size': (4, 6)}


def spin(**further):
    return SPIN(**SMALL | {'upscale': 2} | further).eval()


def same(net, other):
    x = torch.rand(1, 3, 9, 14)
    with torch.no_grad():
        return type(net) is type(other) and torch.equal(net(x), other(x))


@pytest.fixture
def folder(tmp_path):
    net = spin()
    net.save_pretrained(tmp_path / 'new' / 'net')
    return net, tmp_path / 'new' / 'net'


@pytest.mark.parametrize('read', [SPIN.from_pretrained, spinsr.load], ids=['from_pretrained', 'load'])
def test_a_folder_gives_the_network_back(read, folder):
    net, path = folder
    # stoken_size and num_heads are in no shape: without config.json the output would be another.
    assert same(net, read(path)) and same(net, read(str(path)))
    assert not read(path).training


def test_what_is_in_the_folder(folder):
    _, path = folder
    assert sorted(file.name for file in path.iterdir()) == ['README.md', 'config.json', 'model.safetensors']
    config = json.loads((path / 'config.json').read_text())
    assert (config['arch'], config['stoken_size'], config['upscale']) == ('SPIN', [4, 6], 2)
    assert config['num_iter'] == 3  # a default, which a later version might change
    card = (path / 'README.md').read_text()
    assert card.startswith('---\n') and '# SPIN x2' in card and 'ArcticHare105' in card and 'license' not in card


def test_a_card_is_kept_and_weights_are_replaced(folder):
    _, path = folder
    (path / 'README.md').write_text('mine')
    other = spin()
    other.save_pretrained(path)
    assert (path / 'README.md').read_text() == 'mine'
    assert same(other, SPIN.from_pretrained(path))


@pytest.mark.slow
def test_the_card_of_shipped_weights_has_their_results_and_licence(tmp_path):
    spinsr.load('SPIN', 4).save_pretrained(tmp_path)
    card = (tmp_path / 'README.md').read_text()
    assert '32.03 dB on Set5' in card and 'license_name: spinsr-weights' in card
    assert default_weights('SPIN', 4).name in card


def test_every_network_of_spinsr_has_the_methods():
    # Those of BasicSR are named by a text.
    ours = [format.arch for format in formats() if isinstance(format.arch, type)]
    assert ours
    for cls in ours:
        assert cls.from_pretrained.__self__ is cls and callable(cls.save_pretrained) and callable(cls.push_to_hub)


def test_the_registered_name_is_not_needed(tmp_path):
    net = RCAN(num_feat=8, num_group=1, num_block=1, squeeze_factor=4, upscale=2).eval()
    net.save_pretrained(tmp_path)
    assert json.loads((tmp_path / 'config.json').read_text())['arch'] == 'RCAN'
    assert same(net, spinsr.load(tmp_path)) and ARCH_REGISTRY.get('RCAN_spinsr') is RCAN


def test_copies_and_pickles_remember_and_nothing_else_changes(tmp_path):
    net = spin()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert same(net, other) and pretrained.arguments_of(other) == pretrained.arguments_of(net)
    assert not [name for name in net.state_dict() if 'argument' in name]
    assert 'argument' not in repr(net) and repr(net).startswith('SPIN(')


def test_a_class_remembers_its_own_arguments(tmp_path):
    net = SPINVariant(**SMALL, upscale=2, top_n=5)  # its constructor calls SPIN's
    assert pretrained.arguments_of(net)['top_n'] == 5

    class Mine(SPIN):
        def __init__(self, width):
            super().__init__(**SMALL | {'num_feat': width})

    with pytest.raises(ValueError, match='Mine does not know the arguments'):
        Mine(16).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_arguments_replace_those_of_the_file(folder):
    _, path = folder
    assert SPIN.from_pretrained(path, num_iter=1).blocks[0].aggregation.num_iter == 1
    with pytest.raises(TypeError, match='num_itr'):
        SPIN.from_pretrained(path, num_itr=1)


def test_huggingface_hubs_mixin_reads_the_folder(folder):
    hub = pytest.importorskip('huggingface_hub', reason='reads by its mixin: the extra hub')
    net, path = folder

    class Hub(hub.PyTorchModelHubMixin, SPIN):
        pass

    x = torch.rand(1, 3, 9, 14)
    with torch.no_grad():
        assert torch.equal(Hub.from_pretrained(path)(x), net(x))


def test_a_repository_is_downloaded(folder, monkeypatch):
    net, path = folder
    asked = []

    def hf_hub_download(repo_id, filename, **options):
        asked.append((repo_id, filename, options['revision']))
        return str(path / filename)

    monkeypatch.setitem(sys.modules, 'huggingface_hub', SimpleNamespace(hf_hub_download=hf_hub_download))
    assert same(net, SPIN.from_pretrained('me/spin-x2', revision='v1'))
    assert {entry[1] for entry in asked} == {'config.json', 'model.safetensors'}
    assert {(entry[0], entry[2]) for entry in asked} == {('me/spin-x2', 'v1')}


def test_a_network_is_uploaded(monkeypatch, tmp_path):
    uploaded = {}

    class HfApi:
        def __init__(self, token):
            uploaded['token'] = token

        def create_repo(self, repo_id, private, exist_ok):
            return SimpleNamespace(repo_id=f'me/{repo_id}')

        def upload_folder(self, repo_id, folder_path, **options):
            uploaded['repo_id'] = repo_id
            uploaded['net'] = SPIN.from_pretrained(folder_path)
            return 'https://address'

    monkeypatch.setitem(sys.modules, 'huggingface_hub', SimpleNamespace(HfApi=HfApi))
    net = spin()
    assert net.push_to_hub('spin-x2', token='secret') == 'https://address'
    assert (uploaded['repo_id'], uploaded['token']) == ('me/spin-x2', 'secret')
    assert same(net, uploaded['net'])


def test_without_huggingface_hub(monkeypatch, folder):
    net, path = folder
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    assert same(net, SPIN.from_pretrained(path))
    for use in (lambda: SPIN.from_pretrained('me/spin-x2'), lambda: net.push_to_hub('me/spin-x2')):
        with pytest.raises(ImportError, match=r'pip install "spinsr\[hub\]"'):
            use()


@pytest.mark.parametrize('name', ['none', '/none/at/all', '../a/b', './a'])
def test_names_that_are_neither_folder_nor_repository(name):
    with pytest.raises(FileNotFoundError, match='neither a folder nor a repository OWNER/NAME'):
        SPIN.from_pretrained(name)


def test_damaged_folders(folder):
    _, path = folder
    with pytest.raises(ValueError, match='holds SPIN, not RCAN; use spinsr.load'):
        RCAN.from_pretrained(path)
    with pytest.raises(ValueError, match='does not fit config.json'):
        SPIN.from_pretrained(path, mlp_dim=25)
    with pytest.raises(ValueError, match='leave weights out'):
        spinsr.load(path, weights=None)
    config = (path / 'config.json').read_text()
    for arch in ('MyNet', 5, None):
        (path / 'config.json').write_text(json.dumps({'arch': arch}))
        with pytest.raises(ValueError, match='config.json: arch must be the name of a network of spinsr, got'):
            spinsr.load(path)
    (path / 'config.json').write_text(config)
    (path / 'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='no model.safetensors'):
        SPIN.from_pretrained(path)
    (path / 'config.json').write_text('[')
    with pytest.raises(ValueError, match='is not JSON'):
        spinsr.load(path)
    (path / 'config.json').unlink()
    with pytest.raises(FileNotFoundError, match='no config.json'):
        SPIN.from_pretrained(path)


def test_importing_the_networks_does_not_import_huggingface_hub():
    code = 'import sys, spinsr.archs; assert "huggingface_hub" not in sys.modules'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 0
