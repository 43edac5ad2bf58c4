"""The shims: each does its work, does nothing where it is not needed, and hides nothing."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import types

import lmdb
import pytest
import torch

import spinsr.archs  # noqa: F401

# isort: split
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR
from basicsr.utils import FileClient

from spinsr import compat

FUNCTIONAL_TENSOR = 'torchvision.transforms.functional_tensor'


def python(code, folder, **environment):
    return subprocess.run(
        [sys.executable, '-c', code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_install_is_silent_and_leaves_basicsr_alone(tmp_path):
    code = (
        'import importlib.util, sys\n'
        'finders = list(sys.meta_path)\n'
        'from spinsr import compat\n'
        'compat.install(); compat.install()\n'
        'registry = compat.registries()\n'
        'assert compat.registries() is registry\n'
        "assert importlib.util.find_spec('basicsr') is not None\n"
        "assert {'basicsr', 'basicsr.utils.registry', 'torch', 'torchvision'}.isdisjoint(sys.modules)\n"
        'import basicsr.train as train\n'
        "assert train.load_resume_state.__module__ == 'spinsr.compat'\n"
        'assert sys.meta_path == finders, sys.meta_path\n'
        'own = train.load_resume_state\n'
        'compat.install()\n'
        'assert train.load_resume_state is own\n'
        'assert sys.meta_path == finders\n'
        'import basicsr\n'
        'assert basicsr.utils.registry is registry is compat.registries()\n'
        "assert 'EDSR' in registry.ARCH_REGISTRY\n"
    )
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


@pytest.mark.slow
def test_broken_torchvision_is_named(tmp_path):
    package = tmp_path / 'torchvision'
    package.mkdir()
    (package / '__init__.py').write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    done = python('import spinsr.archs; import basicsr', tmp_path, PYTHONPATH=str(tmp_path))
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith('ImportError: torchvision must come from the same index as torch')
    assert 'operator torchvision::nms does not exist' in last
    assert 'pip install --force-reinstall torch==' in last
    assert 'functional_tensor' not in last


@pytest.mark.parametrize(
    ('vision', 'needs', 'advice'),
    [
        pytest.param('0.20.0', ['numpy', 'torch==2.5.0'], 'torch==2.5.0 torchvision==0.20.0', id='other-release'),
        pytest.param('0.29.2+cu130', ['torch (==2.15.0)'], 'torch==2.15.0 torchvision==0.29.2', id='other-build'),
        pytest.param(None, [], 'torch==2.15.0 torchvision', id='not-installed'),
    ],
)
def test_advice_names_the_pair(monkeypatch, vision, needs, advice):
    def version(name):
        if vision is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return vision

    monkeypatch.setattr(importlib.metadata, 'version', version)
    monkeypatch.setattr(importlib.metadata, 'requires', lambda name: needs)
    message = compat._torchvision_advice('2.15.0+cpu', OSError('x'))
    assert message.endswith(f'pip install --force-reinstall {advice}')


def test_functional_tensor_is_given_back(monkeypatch):
    monkeypatch.setitem(sys.modules, FUNCTIONAL_TENSOR, types.ModuleType(FUNCTIONAL_TENSOR))
    monkeypatch.delitem(sys.modules, FUNCTIONAL_TENSOR)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    compat.provide_functional_tensor()
    from torchvision.transforms.functional_tensor import rgb_to_grayscale

    gray = rgb_to_grayscale(torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1))
    assert gray.item() == pytest.approx(0.587, abs=1e-4)


def test_functional_tensor_that_exists_is_left_alone(monkeypatch):
    module = compat._new_module(FUNCTIONAL_TENSOR, 'of torchvision')
    monkeypatch.setitem(sys.modules, FUNCTIONAL_TENSOR, module)
    compat.provide_functional_tensor()
    assert sys.modules[FUNCTIONAL_TENSOR] is module
    assert not hasattr(module, 'rgb_to_grayscale')


def test_ndimage_filters_are_given_back(monkeypatch):
    name = 'scipy.ndimage.filters'
    scipy_ndimage = importlib.import_module('scipy.ndimage')
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(scipy_ndimage, 'filters', None, raising=False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda module: None if module == name else find_spec(module))
    compat.provide_ndimage_filters()
    from scipy.ndimage.filters import convolve

    assert convolve is scipy_ndimage.convolve


@pytest.fixture
def no_distutils(monkeypatch):
    before = {name: module for name, module in sys.modules.items() if name.partition('.')[0] == 'distutils'}
    for name in before:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    yield
    for name in [name for name in sys.modules if name.partition('.')[0] == 'distutils']:
        del sys.modules[name]
    sys.modules.update(before)


def test_distutils_version_is_given_back(no_distutils):
    compat.provide_distutils_version()
    from distutils.version import LooseVersion

    assert LooseVersion('0.29.2+cpu') >= LooseVersion('0.9.0')
    with pytest.raises(ImportError):
        importlib.import_module('distutils.ccompiler')


def test_distutils_that_exists_is_left_alone(monkeypatch):
    module = compat._new_module('distutils', 'of setuptools')
    monkeypatch.setitem(sys.modules, 'distutils', module)
    compat.provide_distutils_version()
    assert sys.modules['distutils'] is module
    assert not hasattr(module, 'version')


@pytest.mark.parametrize(
    ('lower', 'higher'),
    [
        pytest.param('0.9.0', '0.29.2', id='numbers-not-text'),
        pytest.param('2.5', '2.5.1', id='longer'),
        pytest.param('2.5.1+cu999', '2.6.0+cpu', id='local-part'),
    ],
)
def test_loose_version_orders(lower, higher):
    assert compat.LooseVersion(lower) < compat.LooseVersion(higher)
    assert compat.LooseVersion(higher) >= lower
    assert compat.LooseVersion(lower) == lower


def write_state(folder, iteration, scheduler=None):
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([weight], 1e-3)
    weight.sum().backward()
    optimizer.step()
    schedulers = [scheduler(optimizer).state_dict()] if scheduler else []
    state = {'epoch': 1, 'iter': iteration, 'optimizers': [optimizer.state_dict()], 'schedulers': schedulers}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / f'{iteration}.state')


def resume_options(folder, auto=True, state=None):
    return {'auto_resume': auto, 'path': {'training_states': str(folder), 'models': 'models', 'resume_state': state}}


@pytest.mark.parametrize(
    'scheduler',
    [
        pytest.param(lambda optimizer: MultiStepRestartLR(optimizer, [2, 3]), id='MultiStep'),
        pytest.param(lambda optimizer: CosineAnnealingRestartLR(optimizer, [9]), id='Cosine'),
    ],
)
def test_state_with_a_scheduler_loads(tmp_path, scheduler):
    write_state(tmp_path, 4, scheduler)
    state = compat.load_resume_state(resume_options(tmp_path))
    assert state['iter'] == 4
    assert state['schedulers'][0]['last_epoch'] == 0


def test_state_of_a_gpu_loads_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:0')
    write_state(tmp_path, 4)
    state = compat.load_resume_state(resume_options(tmp_path))
    assert state['optimizers'][0]['state'][0]['exp_avg'].device.type == 'cpu'


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_state_of_the_cpu_resumes_on_a_gpu(tmp_path):
    import basicsr.train

    write_state(tmp_path, 4)
    state = basicsr.train.load_resume_state(resume_options(tmp_path, auto=False, state=str(tmp_path / '4.state')))
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2, device='cuda'))], 1e-3)
    optimizer.load_state_dict(state['optimizers'][0])
    assert optimizer.state_dict()['state'][0]['exp_avg'].device.type == 'cuda'


def test_auto_resume_takes_the_last_state(tmp_path):
    write_state(tmp_path, 9)
    write_state(tmp_path, 10)
    opt = resume_options(tmp_path)
    assert compat.load_resume_state(opt)['iter'] == 10
    assert opt['path']['resume_state'] == str(tmp_path / '10.state')


@pytest.mark.parametrize('auto', [True, False], ids=['auto', 'no-flag'])
def test_nothing_to_resume(tmp_path, auto):
    assert compat.load_resume_state(resume_options(tmp_path / 'missing', auto)) is None


def test_somebody_elses_resume_is_left_alone():
    def own(opt):
        return None

    train = types.SimpleNamespace(load_resume_state=own)
    compat._replace_load_resume_state(train)
    assert train.load_resume_state is own


def test_basicsr_stays_in_charge_with_cuda(monkeypatch):
    def own(opt):
        return 'of BasicSR'

    own.__module__ = 'basicsr.train'
    train = types.SimpleNamespace(load_resume_state=own)
    compat._replace_load_resume_state(train)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert train.load_resume_state({}) == 'of BasicSR'


def test_two_datasets_read_one_lmdb(tmp_path):
    path = str(tmp_path / 'pairs.lmdb')
    with lmdb.open(path, map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b'baby', b'image')
    first = FileClient('lmdb', db_paths=[path, path], client_keys=['lq', 'gt'])
    second = FileClient('lmdb', db_paths=path)
    assert bytes(first.get('baby', 'gt')) == bytes(second.get('baby')) == b'image'
