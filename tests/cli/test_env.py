"""`spinsr env`."""

import importlib.metadata
import os
import subprocess
import sys

from spinsr import __version__
from spinsr.cli import main


def facts(capsys):
    """Runs the command; its lines by name."""
    assert main(['env']) == 0
    lines = [line.partition(': ') for line in capsys.readouterr().out.splitlines()]
    return {name: text.strip() for name, _, text in lines}


def test_names_versions_devices_and_backends(monkeypatch, capsys):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
    lines = facts(capsys)
    assert lines['spinsr'] == __version__
    assert lines['torch'] == importlib.metadata.version('torch')
    assert lines['basicsr'] == '1.4.2'
    assert lines['ops, default'] == 'reference'
    assert lines['ops, auto'] == 'torch'
    assert 'SPINSR_OPS_BACKEND=reference' in lines['variables']


def test_names_only_the_variables_of_the_user():
    environment = {name: text for name, text in os.environ.items() if not name.startswith('PYTORCH_')}
    environment['PYTORCH_ENABLE_XPU_FALLBACK'] = '0'
    environment['CUDA_VISIBLE_DEVICES'] = ''
    script = 'import sys; from spinsr.cli import main; sys.exit(main(["env"]))'
    done = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True, check=True)
    (variables,) = (line for line in done.stdout.splitlines() if line.startswith('variables:'))
    assert 'PYTORCH_ENABLE_XPU_FALLBACK=0' in variables
    assert 'PYTORCH_ENABLE_MPS_FALLBACK' not in variables


def test_reports_a_torch_that_does_not_import(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'torch', None)
        lines = facts(capsys)
    assert lines['torch'].startswith('does not import: ')
