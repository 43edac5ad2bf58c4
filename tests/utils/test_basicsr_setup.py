"""The correction of BasicSR's source, on a source of the same form."""

import subprocess
import sys
from pathlib import Path

import pytest

from spinsr.utils.basicsr_setup import correct

SETUP = """\
import sys
version_file = 'version.py'


def get_version():
    with open(version_file, 'r') as f:
        exec(compile(f.read(), version_file, 'exec'))
    return locals()['__version__']


def setup(name, version, **arguments):
    print(name, version, sorted(arguments))


if __name__ == '__main__':
    setup(
        name='basicsr',
        version=get_version(),
        setup_requires=['cython', 'numpy', 'torch'],
        zip_safe=False)
"""


def basicsr_source(folder: Path, version: str = '1.4.2') -> Path:
    """Writes a source that looks like BasicSR's."""
    folder.mkdir(exist_ok=True)
    (folder / 'setup.py').write_text(SETUP)
    (folder / 'VERSION').write_text(f'{version}\n')
    (folder / 'version.py').write_text(f"__version__ = '{version}'\n")
    (folder / 'requirements.txt').write_text('addict\nlmdb\nnumpy>=1.17\nscipy\ntb-nightly\nyapf\n')
    return folder


def test_corrected_source_finds_its_version_and_needs_no_build_tools(tmp_path):
    assert correct(str(basicsr_source(tmp_path)))
    assert 'locals()' not in (tmp_path / 'setup.py').read_text()
    output = subprocess.run([sys.executable, 'setup.py'], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert output.stdout == "basicsr 1.4.2 ['zip_safe']\n"
    assert (tmp_path / 'requirements.txt').read_text().split() == ['lmdb', 'numpy>=1.17', 'scipy', 'tensorboard']


def test_cuda_extensions_keep_their_build_requirements(tmp_path, monkeypatch):
    monkeypatch.setenv('BASICSR_EXT', 'True')
    correct(str(basicsr_source(tmp_path)))
    assert "setup_requires=['cython', 'numpy', 'torch']" in (tmp_path / 'setup.py').read_text()


@pytest.mark.parametrize('change', ['version', 'name', 'absent'])
def test_other_folders_are_left_alone(tmp_path, change):
    basicsr_source(tmp_path, '1.5.0' if change == 'version' else '1.4.2')
    if change == 'name':
        (tmp_path / 'setup.py').write_text(SETUP.replace('basicsr', 'other'))
    elif change == 'absent':
        (tmp_path / 'VERSION').unlink()
    before = {path: path.read_text() for path in tmp_path.iterdir()}
    assert not correct(str(tmp_path))
    assert {path: path.read_text() for path in tmp_path.iterdir()} == before
