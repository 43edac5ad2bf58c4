"""Mistakes in the arguments are reported before torch and BasicSR are imported, which takes seconds."""

import json
import subprocess
import sys

SCRIPT = """
import contextlib, io, json, os, sys

os.environ.pop('THP_MEM_ALLOC_ENABLE', None)
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
# They are read when torch is imported, or makes its first large tensor.
assert os.environ['PYTORCH_ENABLE_MPS_FALLBACK'] == os.environ['THP_MEM_ALLOC_ENABLE'] == '1'
print(json.dumps(results))
"""
# What is typed -> what the error says.
LINES = {
    'train -opt my.yml': "unknown command 'train'; use python -m spinsr.train -opt FILE",
    'upscal a.png': "unknown command 'upscal'; did you mean 'upscale'?",
    'app --port 0': 'argument --port: must be an integer from 1 to 65535',
    'upscale missing.png': 'missing.png is missing',
    'upscale a.png -o script.py': 'output path is not a directory: script.py',
    'upscale a.png bench/b.png -o c.png': 'the output c.png names one file, got 2 images: name a folder',
    'upscale a.png --width 9 --outscale 2': 'only width and height go together, got outscale, width',
    'upscale a.png --outscale 0': 'argument --outscale: must be a positive number',
    'upscale a.png --name {stem}_{size}_{user}': 'the fields of a name must be among {stem}, {size}',
    'upscale a.png --name {stem} -o c.png': '--name is for a folder of outputs, -o c.png names a file',
    'upscale a.png --tile 3': 'tile must be at least 32, got tile=3',
    'upscale a.png --scale 0': 'argument --scale: must be an integer of at least 1',
    'upscale a.png --scale 7': 'SPIN has no x7: spinsr ships weights for x2, x3, x4',
    'upscale a.png --weights missing.pth': 'no such weights file: missing.pth',
    'upscale a.png --precision fp8': 'argument --precision: ',
    'upscale a.png --import missing_module': '--import missing_module: ',
    'evaluate --benchmark missing': 'not a directory: missing',
    'evaluate --benchmark bench bench': 'benchmarks must be folders of different names',
    'evaluate --benchmark bench --protocol none': 'argument --protocol: must be among',
    'evaluate --benchmark bench --weights missing.pth': 'no such weights file: missing.pth',
    'evaluate --benchmark bench --sr missing': 'not a directory: missing',
    'evaluate --benchmark bench --json a.png': 'a.png exists',
    'report missing -o page.html': 'not a directory: missing',
    'report bench -o a.png': 'a page must end in .html, .htm, got a.png',
    'report bench -o a.html': 'a.html exists',
    'report bench -o page.html --log missing': 'not a directory: missing',
    'report bench -o page.html --weights missing.pth': 'no such weights file: missing.pth',
    'superpixels missing.png -o out': 'missing.png is missing',
    'superpixels a.png -o out --weights missing.pth': 'no such weights file: missing.pth',
    'superpixels a.png -o out --block -1': 'argument --block: must be an integer of at least 0',
    'complexity --weights missing.pth': 'no such weights file: missing.pth',
    'complexity --json a.png': 'a.png exists',
    'complexity --plot plot.png --scores missing.json': 'missing.json is missing',
    'convert missing.pth out.pth': 'no such weights file: missing.pth',
    'convert a.png out.bin': 'a checkpoint must end in .pth',
    'export missing.pth out.onnx': 'no such weights file: missing.pth',
    'export a.png out.onnx --opset 3': 'opset must be at least 18, got 3',
    'check -opt missing.yml': '-opt missing.yml: no such file',
    'prepare images missing': 'not a directory: missing',
    'prepare teacher missing --tile 3': 'tile must be at least 32, got tile=3',
    'prepare teacher missing': 'no train_LR_bicubic_X4.lmdb found in missing',
}


def test_mistakes_show_before_torch_is_imported(tmp_path):
    (tmp_path / 'a.png').touch()
    (tmp_path / 'a.html').touch()
    (tmp_path / 'bench' / 'HR').mkdir(parents=True)
    (tmp_path / 'bench' / 'b.png').touch()
    (tmp_path / 'script.py').write_text(f'LINES = {list(LINES)!r}\n' + SCRIPT)
    done = subprocess.run([sys.executable, 'script.py'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert {line: heavy for line, (_, heavy, _) in results.items() if heavy} == {}
    failed = {line: text for line, (status, _, text) in results.items() if status in (1, 2) and 'error: ' in text}
    assert failed.keys() == results.keys()
    assert {line: failed[line] for line, words in LINES.items() if words not in failed[line]} == {}
