import json
import subprocess
import sys

import pytest

# One process for all stages, since each import of torch and BasicSR costs seconds.
SCRIPT = """
import json, sys
heavy = ('torch', 'torchvision', 'basicsr', 'triton', 'scipy', 'skimage', 'cv2', 'sympy', 'torch._dynamo')
stages = {}
import spinsr
dir(spinsr), spinsr.__version__
stages['package'] = [name for name in heavy if name in sys.modules]
import spinsr.ops
import importlib, pkgutil
import spinsr.modules
for module in pkgutil.iter_modules(spinsr.modules.__path__):
    importlib.import_module('spinsr.modules.' + module.name)
stages['parts'] = [name for name in heavy if name in sys.modules]
import spinsr.archs
import spinsr.archs
stages['archs'] = [name for name in heavy if name in sys.modules]
spinsr.load
from spinsr.archs import ARCH_REGISTRY
from basicsr.utils import registry
stages['shared'] = registry.ARCH_REGISTRY is ARCH_REGISTRY and 'EDSR' in ARCH_REGISTRY and 'SPIN' in ARCH_REGISTRY
json.dump(stages, open(sys.argv[1], 'w'))
"""


@pytest.mark.slow
def test_imports_are_light_and_silent(tmp_path):
    report = tmp_path / 'stages.json'
    command = [sys.executable, '-W', 'ignore', '-c', SCRIPT, str(report)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (process.returncode, process.stdout, process.stderr) == (0, '', '')
    stages = json.loads(report.read_text())
    assert stages['package'] == []
    assert stages['parts'] == ['torch']
    assert stages['archs'] == ['torch']
    assert stages['shared']
