"""Corrects the source of BasicSR 1.4.2 before it is built; `spinsr install-basicsr` runs this file as sitecustomize.

A package installer gives no access to a source between unpacking and building, but it builds in a fresh interpreter
whose working directory is the unpacked source. A copy of this file on PYTHONPATH, named sitecustomize.py, is executed
there first. It uses the standard library alone, and changes nothing outside of a source of BasicSR 1.4.2. Can go when
a release of BasicSR builds on current Python.
"""

import os
import re

# Since Python 3.13 (PEP 667) a function's locals() does not show what exec() defined.
VERSION_BEFORE = "exec(compile(f.read(), version_file, 'exec'))\n    return locals()['__version__']"
VERSION_AFTER = "scope = {}; exec(compile(f.read(), version_file, 'exec'), scope)\n    return scope['__version__']"
# torch and Cython are asked for at build time, but a build without CUDA extensions uses neither.
BUILD_REQUIREMENTS = "        setup_requires=['cython', 'numpy', 'torch'],\n"
# The package does not import the first three; the release of TensorBoard is enough.
REQUIREMENTS = {'addict': None, 'future': None, 'yapf': None, 'tb-nightly': 'tensorboard'}


def correct(folder: str) -> bool:
    """Corrects setup.py and requirements.txt of BasicSR 1.4.2.

    Args:
        folder: The unpacked source. Any other folder is left alone.

    Returns:
        Whether the folder is such a source.
    """
    try:
        setup = _read(folder, 'setup.py')
        requirements = _read(folder, 'requirements.txt')
        if "name='basicsr'" not in setup or _read(folder, 'VERSION').strip() != '1.4.2':
            return False
    except OSError:
        return False
    if os.environ.get('BASICSR_EXT') != 'True':
        setup = setup.replace(BUILD_REQUIREMENTS, '')
    _write(folder, 'setup.py', setup.replace(VERSION_BEFORE, VERSION_AFTER))
    lines = []
    for line in requirements.splitlines():
        name = re.split(r'[^\w.-]', line.strip(), maxsplit=1)[0]
        replacement = REQUIREMENTS.get(name, line)
        if replacement is not None:
            lines.append(replacement)
    _write(folder, 'requirements.txt', '\n'.join(lines) + '\n')
    return True


def _read(folder: str, name: str) -> str:
    with open(os.path.join(folder, name), encoding='utf-8') as file:
        return file.read()


def _write(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), 'w', encoding='utf-8') as file:
        file.write(text)


# The installer itself starts in the user's folder, which may be a checkout of BasicSR.
if __name__ == 'sitecustomize' and os.getcwd() != os.environ.get('SPINSR_INSTALL_FROM'):
    correct(os.getcwd())
