"""`spinsr install-basicsr`, with a package that stands in for pip and builds a source as pip does."""

import importlib.metadata
import importlib.util

import pytest

from spinsr.cli import main

PIP = """\
import os, subprocess, sys
with open(os.environ['CALLS'], 'a') as file:
    print(*sys.argv[1:], file=file)
if 'basicsr==1.4.2' in sys.argv:
    subprocess.run([sys.executable, '-c', ''], cwd=os.environ['SOURCE'], check=True)  # the build
    open(os.path.join(sys.argv[sys.argv.index('--wheel-dir') + 1], 'basicsr-1.4.2-py3-none-any.whl'), 'w').close()
    sys.exit(int(os.environ['STATUS']))
"""
SETUP = """\
def get_version():
    with open(version_file, 'r') as f:
        exec(compile(f.read(), version_file, 'exec'))
    return locals()['__version__']
setup(name='basicsr')
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The user's folder and pip's unpacked source, both of BasicSR, and a stand-in for pip."""
    for name in ('user', 'source'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'setup.py').write_text(SETUP)
        (tmp_path / name / 'VERSION').write_text('1.4.2')
        (tmp_path / name / 'requirements.txt').write_text('numpy')
    (tmp_path / 'path' / 'pip').mkdir(parents=True)
    (tmp_path / 'path' / 'pip' / '__init__.py').touch()
    (tmp_path / 'path' / 'pip' / '__main__.py').write_text(PIP)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'path'))
    monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))
    monkeypatch.setenv('SOURCE', str(tmp_path / 'source'))
    monkeypatch.setenv('STATUS', '0')
    monkeypatch.chdir(tmp_path / 'user')
    return tmp_path


def test_corrects_the_source_that_is_built_and_not_the_users(project, capsys):
    assert main(['install-basicsr', '--force']) == 0
    assert "scope['__version__']" in (project / 'source' / 'setup.py').read_text()
    assert (project / 'user' / 'setup.py').read_text() == SETUP
    calls = (project / 'calls').read_text().splitlines()
    assert '--target' in calls[0]
    assert '--no-build-isolation' in calls[1]
    assert calls[2].endswith('basicsr-1.4.2-py3-none-any.whl')


def test_leaves_an_installed_release_alone(project, capsys):
    assert main(['install-basicsr']) == 0
    assert not (project / 'calls').exists()
    assert capsys.readouterr().out == 'BasicSR 1.4.2 is installed.\n'


def test_tells_of_a_failure(project, monkeypatch, capsys):
    monkeypatch.setenv('STATUS', '3')
    assert main(['install-basicsr', '--force']) == 1
    assert 'failed with exit status 3' in capsys.readouterr().err


def test_asks_for_pip(project, monkeypatch, capsys):
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '1.3.0')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert main(['install-basicsr']) == 1
    assert 'python -m ensurepip' in capsys.readouterr().err
