"""The wheel as users get it: in an environment of its own, without the checkout, run from another folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from . import tiny_benchmark, tiny_project

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('LICENSE', 'README.md', 'options', 'pyproject.toml', 'setup.py', 'spinsr')
LOAD_AND_UPSCALE = """\
import numpy as np, spinsr
net = spinsr.load('SPIN', scale=2)
assert spinsr.upscale(np.zeros((9, 11, 3), np.uint8), net).shape == (18, 22, 3)
print(spinsr.__file__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'} | {'OMP_NUM_THREADS': '1'}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The folder of the programs of an environment with the wheel; the requirements are those of this environment."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'  # a build writes into its source
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    pip = (sys.executable, '-m', 'pip')
    run(*pip, 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '--wheel-dir', folder, source, cwd=folder)
    run(sys.executable, '-m', 'venv', '--without-pip', folder / 'env', cwd=folder)
    programs = folder / 'env' / ('Scripts' if os.name == 'nt' else 'bin')
    (wheel,) = folder.glob('spinsr-*.whl')
    run(*pip, '--python', programs / 'python', 'install', '--no-deps', '--no-index', wheel, cwd=folder)
    (site,) = (folder / 'env').glob('**/site-packages')
    # Python executes no .pth file of folders that a .pth file adds, so an editable install of the checkout stays out.
    (site / 'requirements.pth').write_text('\n'.join(path for path in sys.path if path.endswith('site-packages')))
    shutil.rmtree(source)
    return programs


def test_every_folder_with_code_is_a_package():
    """A folder without __init__.py imports in the checkout, and is missing in the wheel."""
    folders = {path.parent for path in (ROOT / 'spinsr').rglob('*.py')}
    assert not [folder for folder in folders if not (folder / '__init__.py').is_file()]


@pytest.mark.slow
def test_loads_and_upscales_from_python(installed, tmp_path):
    file = run(installed / 'python', '-c', LOAD_AND_UPSCALE, cwd=tmp_path).splitlines()[-1]
    assert Path(file).is_relative_to(installed.parent)
    assert (Path(file).parent / 'py.typed').is_file()
    assert (Path(file).parent / 'evaluation' / 'counts.json').is_file()


@pytest.mark.slow
def test_upscales_and_evaluates(installed, tmp_path):
    tiny_benchmark.write_benchmark(tmp_path / 'tiny', scales=[2])
    run(installed / 'spinsr', 'upscale', 'tiny/HR', '--scale', '2', '-o', 'large', cwd=tmp_path)
    assert {path.name for path in (tmp_path / 'large').iterdir()} == {'baby_x2.png', 'bird_x2.png'}
    assert 'PSNR' in run(installed / 'spinsr', 'evaluate', '--benchmark', 'tiny', '--scale', '2', cwd=tmp_path)


@pytest.mark.slow
def test_has_the_option_files(installed, tmp_path):
    listed = run(installed / 'spinsr', 'options', cwd=tmp_path).split()
    run(installed / 'spinsr', 'options', '-o', 'written', cwd=tmp_path)
    for path in (ROOT / 'options').rglob('*.yml'):  # the others are generated
        name = path.relative_to(ROOT / 'options').as_posix()
        assert name in listed
        assert (tmp_path / 'written' / name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_trains(installed, tmp_path):
    tiny_project.write_images(tmp_path, 3)
    options = tiny_project.write_options(
        tmp_path / 'tiny.yml', tiny_project.changed(tiny_project.TRAIN, {'train:total_iter': 5})
    )
    run(installed / 'python', '-m', 'spinsr.train', '-opt', options, cwd=tmp_path)
    assert (tmp_path / 'experiments' / 'tiny' / 'models' / 'net_g_latest.pth').is_file()
