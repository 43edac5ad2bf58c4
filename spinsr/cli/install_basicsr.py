"""`spinsr install-basicsr`: installs BasicSR 1.4.2, which alone does not install on Python 3.13 and later."""

import argparse
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from spinsr.utils import basicsr_setup

RELEASE = '1.4.2'
DESCRIPTION = f"""\
Installs BasicSR {RELEASE}, which training needs, with pip into the environment of this command: from the package index
that pip is set up for (including environment variables such as PIP_INDEX_URL), without a second download of torch,
and on every Python that spinsr supports.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser('install-basicsr', help='install BasicSR, for training', description=DESCRIPTION)
    parser.add_argument('--force', action='store_true', help='install it again if it is there')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ImportError: If pip is missing or fails.
    """
    version = _installed()
    if version == RELEASE and not args.force:
        print(f'BasicSR {version} is installed.')
        return 0
    if importlib.util.find_spec('pip') is None:
        raise ImportError(f'{sys.executable} has no pip; install it with: python -m ensurepip')
    with tempfile.TemporaryDirectory(prefix='spinsr-') as folder:
        # The build tools for this build only: those of the environment may be missing or too old.
        _pip('install', '--quiet', '--target', folder, 'setuptools>=77', 'wheel')
        shutil.copyfile(basicsr_setup.__file__, Path(folder, 'sitecustomize.py'))
        # An isolated build would not see the folder on PYTHONPATH; pip's cache may hold a wheel of the source as it is.
        options = ('--no-deps', '--no-build-isolation', '--no-cache-dir', '--no-binary', 'basicsr')
        _pip('wheel', *options, '--wheel-dir', folder, f'basicsr=={RELEASE}', path=folder)
        (wheel,) = Path(folder).glob('basicsr-*.whl')
        _pip('install', *(('--force-reinstall', '--no-deps') if args.force else ()), str(wheel))
    importlib.invalidate_caches()
    print(f'BasicSR {_installed()} is installed.')
    return 0


def _installed() -> str | None:
    try:
        return importlib.metadata.version('basicsr')
    except importlib.metadata.PackageNotFoundError:
        return None


def _pip(*arguments: str, path: str | None = None) -> None:
    environment = dict(os.environ)
    if path is not None:
        earlier = environment.get('PYTHONPATH')
        environment['PYTHONPATH'] = path + (os.pathsep + earlier if earlier else '')
        environment['SPINSR_INSTALL_FROM'] = os.getcwd()
    status = subprocess.run([sys.executable, '-m', 'pip', *arguments], env=environment, check=False).returncode
    if status:
        raise ImportError(f'pip {" ".join(arguments)} failed with exit status {status}; its messages are above')
