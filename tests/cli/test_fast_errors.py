"""Mistakes in the arguments are answered before torch and BasicSR are imported, which takes seconds."""

import json
import subprocess
import sys

SCRIPT = """
import contextlib, io, json, sys

import spinsr.test, spinsr.train
from spinsr.cli import main

def run(function, line):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            status = function(line.split())
        except SystemExit as error:
            status = error.code
    heavy = [name for name in ('torch', 'torchvision', 'basicsr', 'scipy') if name in sys.modules]
    return [status, heavy, errors.getvalue()]

results = {line: run(main, line) for line in LINES}
for module in (spinsr.train, spinsr.test):
    for line in ('-opt missing.yml', '-opt train_SPIN_x4.yml --force_yml nothing=1'):
        results[f'{module.__name__} {line}'] = run(module.main, line)
print(json.dumps(results))
"""
LINES = [
    'upscale missing.png',
    'upscale a.png -o a.png',
    'upscale a.png --tile 3',
    'upscale a.png --scale 0',
    'upscale a.png --scale 7',
    'upscale a.png --weights missing.pth',
    'upscale a.png --precision fp8',
    'upscale a.png --import missing_module',
    'evaluate --benchmark missing',
    'evaluate --benchmark bench bench',
    'evaluate --benchmark bench --protocol none',
    'evaluate --benchmark bench --weights missing.pth',
    'evaluate --benchmark bench --sr missing',
    'evaluate --benchmark bench --json a.png',
    'report missing -o page.html',
    'report bench -o a.png',
    'report bench -o page.html --log missing',
    'report bench -o page.html --weights missing.pth',
    'superpixels missing.png -o out',
    'superpixels a.png -o out --weights missing.pth',
    'superpixels a.png -o out --block -1',
    'complexity --weights missing.pth',
    'complexity --json a.png',
    'complexity --plot plot.png --scores missing.json',
    'convert missing.pth out.pth',
    'convert a.png out.bin',
    'export missing.pth out.onnx',
    'export a.png out.onnx --opset 3',
    'check -opt missing.yml',
    'prepare images missing',
    'prepare teacher missing --tile 3',
    'prepare teacher missing',
]


def test_mistakes_show_before_torch_is_imported(tmp_path):
    (tmp_path / 'a.png').touch()
    (tmp_path / 'bench' / 'HR').mkdir(parents=True)
    (tmp_path / 'script.py').write_text(f'LINES = {LINES!r}\n' + SCRIPT)
    done = subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert {line: heavy for line, (_, heavy, _) in results.items() if heavy} == {}
    assert [line for line, (status, _, text) in results.items() if status not in (1, 2) or 'error: ' not in text] == []
