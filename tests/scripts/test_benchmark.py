"""scripts/benchmark.py: whole runs of small networks, and of workers that only pretend (no torch, no waiting)."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / 'scripts'
sys.path.insert(0, str(SCRIPTS))
benchmark = importlib.import_module('benchmark')
session = importlib.import_module('benchmark_session')
report = importlib.import_module('benchmark_report')
worker = importlib.import_module('benchmark_worker')

SMALL = ['num_feat=8', 'num_block=1', 'qk_dim=4', 'mlp_dim=8', 'stoken_size=[4]']

PLUGIN = """
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from spinsr.ops import resolve_backend

print('a plugin may print')


@ARCH_REGISTRY.register()
class TwoFaced(nn.Module):
    def __init__(self, upscale):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))
        self.upscale = upscale

    def forward(self, x):
        dense = resolve_backend() == 'reference'
        if dense:
            torch.ones(300, 1000, 1000, dtype=torch.uint8)
        x = x.repeat_interleave(self.upscale, 2).repeat_interleave(self.upscale, 3)
        return x * self.factor + (3e-5 if dense else 0)
"""

PRETENDER = """
import json, os, signal, sys, time
settings = json.loads(sys.stdin.readline())
backend, does = os.environ['SPINSR_OPS_BACKEND'], json.loads(os.environ['PRETEND'])
name = backend if settings['worker'] == 'Runner' else 'gauge'
def answer(value):
    print(json.dumps(value), flush=True)
def log(event):
    with open('log', 'a') as file:
        file.write(f'{name} {event}\\n')
log(os.getpid())
answer(does.get('facts') or {'baseline_rss_bytes': 1, 'threads': 1, 'torch': '2', 'python': '3', 'machine': 'paper'})
runs = 0
for line in iter(sys.stdin.readline, ''):
    command = json.loads(line)
    if command['do'] == 'run':
        runs += 1
        log('run')
        if does.get(name) == 'die' and runs == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if does.get(name) == 'crash' and runs == 2:
            sys.exit('the last line of stderr')
        if does.get(name) == 'error':
            answer({'error': 'RuntimeError: no kernels', 'refused': False})
            continue
        if does.get(name) == 'hang' and runs == 2:
            time.sleep(60)
        seconds = runs * 2.0 if name == 'reference' else runs
        answer({'seconds': seconds, 'peak_rss_bytes': runs, 'peak_device_bytes': None})
    elif command['do'] == 'save':
        import numpy as np
        np.savez(command['path'], output=np.full(4, does.get(name, 0), np.float32))
        answer({})
    elif command['do'] == 'count':
        answer({'macs': 600 if name == 'reference' else 500, 'why': None})
    else:
        answer({'seconds': [1.0, 3.0, 2.0], 'macs': 1000})
"""


def run_script(*args, cwd):
    path = f'{SCRIPTS.parent}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    return subprocess.run(
        [sys.executable, str(SCRIPTS / 'benchmark.py'), *args],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )


def ratios(value):
    """How many keys are called ratio, at any depth."""
    if isinstance(value, dict):
        return ('ratio' in value) + sum(map(ratios, value.values()))
    return sum(map(ratios, value)) if isinstance(value, list) else 0


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Runs main() on workers that pretend; what they do otherwise than usual is given by backend."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, 'SETTLE', 0)
    monkeypatch.setattr(session, 'WORKER', tmp_path / 'pretender.py')
    (tmp_path / 'pretender.py').write_text(PRETENDER)

    def run(*args, **does):
        monkeypatch.setenv('PRETEND', json.dumps(does))
        before = signal.getsignal(signal.SIGTERM)
        try:
            status = benchmark.main([*args, '--json', 'out.json'])
        finally:
            signal.signal(signal.SIGTERM, before)
        return status, json.loads(Path('out.json').read_text())

    return run


@pytest.fixture(scope='module')
def inference(tmp_path_factory):
    """SPIN, in float64: in float32 a near-tie in so small an image might be refused on some machine."""
    folder = tmp_path_factory.mktemp('inference')
    args = ['--lr-size', '24x28', '--scale', '2', '--dtype', 'float64', '--repeats', '3']
    done = run_script(*args, '--arch-args', *SMALL, '--json', 'out.json', cwd=folder)
    return done, json.loads((folder / 'out.json').read_text())


@pytest.fixture(scope='module')
def training(tmp_path_factory):
    """An arch of a plugin that answers differently with the backend, and that needs memory with one."""
    folder = tmp_path_factory.mktemp('training')
    (folder / 'plugin.py').write_text(PLUGIN)
    args = ['--arch', 'TwoFaced', '--import', 'plugin', '--mode', 'train', '--lr-size', '8x12', '--repeats', '2']
    done = run_script(*args, '--json', 'out.json', cwd=folder)
    return done, json.loads((folder / 'out.json').read_text()), folder


def test_schema(inference):
    done, out = inference
    for name in ('reference', 'auto'):
        result = out['results'][name]
        assert result['seconds_median'] == pytest.approx(np.median(result['seconds']))
        assert len(result['seconds']) == 3 and result['seconds_iqr'] >= 0
        assert result['peak_rss_bytes'] >= result['baseline_rss_bytes'] > 50e6
        assert result['macs'] > 1e6 and result['times_floor'] > 0
    medians = {name: out['results'][name]['seconds_median'] for name in ('reference', 'auto')}
    assert out['ratio'] == pytest.approx(medians['reference'] / medians['auto'])
    assert ratios(out) == 1
    assert out['floor_seconds'] * out['macs_per_second'] == pytest.approx(out['results']['auto']['macs'], rel=0.5)
    assert (out['arch'], out['scale'], out['lr_size'], out['mode'], out['batch']) == ('SPIN', 2, [24, 28], 'infer', 1)
    assert (out['repeats'], out['dtype'], out['threads'], out['torch']) == (3, 'float64', 1, torch.__version__)
    assert out['machine'] and out['python'] and out['command'].startswith('python scripts/benchmark.py --lr-size 24x28')


def test_table(inference):
    done, out = inference
    assert 'SPIN x2, LR 24x28, infer, batch 1, float64, 3 runs each in turns' in done.stdout
    assert f'ratio      {out["ratio"]:.3f} (reference / auto)' in done.stdout


def test_backends_agree(inference):
    done, out = inference
    (check,) = out['agreement']['auto']
    assert check['holds'] and 0 <= check['value'] < 1e-9
    assert (done.returncode, done.stderr, out['failed']) == (0, '', {})


@pytest.mark.slow
def test_no_ratio_when_the_outputs_differ(training):
    done, out, _ = training
    assert done.returncode == 1
    assert out['ratio'] is None and ratios(out) == 1
    rule = 'mean |difference| of the outputs'
    assert out['no_ratio_because'].startswith(f'auto differs: {rule} must be within 1e-05, got 3.00e-05')
    assert f'no ratio   {out["no_ratio_because"]}' in done.stdout
    assert 'ratio      ' not in done.stdout
    assert out['results']['auto'] and out['results']['reference']


@pytest.mark.slow
def test_training_compares_gradients_of_eight_images(training):
    _, out, _ = training
    assert (out['mode'], out['batch']) == ('train', 8)
    assert 'gradient factor' in out['agreement']['auto'][1]['rule']


@pytest.mark.slow
def test_each_backend_has_its_own_peak_of_memory(training):
    result = training[1]['results']
    assert result['reference']['peak_rss_bytes'] - result['reference']['baseline_rss_bytes'] > 280e6
    assert result['auto']['peak_rss_bytes'] - result['auto']['baseline_rss_bytes'] < 100e6


@pytest.mark.slow
def test_only_the_json_file_is_left(training):
    assert {path.name for path in training[2].iterdir()} - {'__pycache__'} == {'out.json', 'plugin.py'}


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--lr-size', '180'], "must be HEIGHTxWIDTH in LR pixels, as 180x320, got '180'"),
        (['--lr-size', '0x5'], "got '0x5'"),
        (['--repeats', '0'], "must be an integer of at least 1, got '0'"),
        (['--backends', 'auto,auto'], "must be different names, got 'auto,auto'"),
        (['--arch-args', 'num_feat'], "must be KEY=VALUE, got 'num_feat'"),
        (['--json', 'no/such/folder.json'], "must be a file in a folder that exists, got 'no/such/folder.json'"),
        (['--mode', 'both'], "invalid choice: 'both'"),
        (['--recompute'], '--recompute is for --mode train'),
    ],
    ids=lambda value: '_'.join(value) if isinstance(value, list) else '',
)
def test_bad_arguments_are_a_usage_error(args, message, capsys):
    with pytest.raises(SystemExit) as error:
        benchmark.main(args)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


SETTINGS = {
    'arch': 'SPIN',
    'scale': 2,
    'lr_size': [9, 11],
    'batch': 2,
    'mode': 'infer',
    'dtype': 'float32',
    'recompute': False,
    'threads': None,
    'device': 'cpu',
    'weights': None,
    'arch_args': [text.split('=') for text in SMALL],
    'imports': [],
    'backends': ['reference', 'auto'],
}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'backends': ['fast']}, "--backends: 'fast' is none of auto, reference, torch, triton"),
        ({'arch': 'SPINN'}, "--arch: 'SPINN' is not registered; did you mean 'SPIN'?"),
        ({'device': 'abacus'}, '--device abacus: '),
        ({'imports': ['no_such_plugin']}, "--import no_such_plugin: No module named 'no_such_plugin'"),
        ({'arch_args': [['num_feats', '8']]}, 'num_feats'),
        ({'scale': 7}, '7'),
        ({'weights': 'nowhere.pth'}, 'nowhere.pth'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_gauge_refuses(change, message):
    with pytest.raises(worker.Refused) as error:
        worker.Gauge({**SETTINGS, **change})
    assert message in str(error.value)


@pytest.mark.parametrize('mode', ['infer', 'train'])
def test_backends_of_spin_agree_in_output_and_gradients(mode, monkeypatch, tmp_path):
    arrays = {}
    for backend in ('reference', 'auto'):
        monkeypatch.setenv('SPINSR_OPS_BACKEND', backend)
        runner = worker.Runner({**SETTINGS, 'mode': mode, 'dtype': 'float64'})
        runner.run()
        runner.save(str(tmp_path / f'{backend}.npz'))
        arrays[backend] = np.load(tmp_path / f'{backend}.npz')
    names = {'output'}
    if mode == 'train':
        names |= {f'gradient {name}' for name, _ in runner.net.named_parameters()}
    assert set(arrays['auto'].files) == names
    assert arrays['auto']['output'].dtype == 'float64' and arrays['auto']['output'].shape == (2, 3, 18, 22)
    checks = session.disagreements(arrays['reference'], arrays['auto'], 'float64')
    assert len(checks) == (2 if mode == 'train' else 1)
    assert all(check.holds for check in checks), checks


@pytest.mark.parametrize('backend', ['reference', 'auto'])
def test_blocks_are_computed_twice_but_not_those_of_reference(backend, monkeypatch):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', backend)
    arguments = [['num_in_ch', '3'], ['num_out_ch', '3'], ['num_feat', '8'], ['num_group', '1'], ['num_block', '1']]
    settings = {**SETTINGS, 'arch': 'RCAN', 'arch_args': [*arguments, ['squeeze_factor', '4']], 'mode': 'train'}
    once, again = (worker.Runner({**settings, 'recompute': flag}).count()['macs'] for flag in (False, True))
    assert (again > once) == (backend == 'auto')


def test_multiply_adds_of_a_convolution_by_hand():
    arguments = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4}
    arguments = [[name, str(value)] for name, value in arguments.items()]
    runner = worker.Runner({**SETTINGS, 'arch': 'RCAN', 'arch_args': arguments, 'batch': 1})
    # Per pixel: conv_first, 2 of the block, 1 of the group, 1 after the body, the upsampling and the last, four times
    # as many pixels; for the image: the channel attention.
    pixel = 9 * (3 * 8 + 4 * 8 * 8 + 8 * 32 + 4 * 8 * 3)
    assert runner.count() == {'macs': 9 * 11 * pixel + 2 * 8 * 2, 'why': None}


def test_an_op_without_a_formula_makes_the_count_unknown():
    @torch.library.custom_op('spinsr_test::twice', mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    runner = worker.Runner(SETTINGS)
    runner.net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
    runner.net.register_forward_hook(lambda module, inputs, output: twice(output))
    assert runner.count() == {'macs': None, 'why': 'torch has no formula for spinsr_test.twice'}


def test_input_is_the_same_natural_image_every_time():
    batch = worker.natural_batch(4, 700, 600)  # beyond the photograph, 512x512
    assert torch.equal(batch, worker.natural_batch(4, 700, 600))
    assert batch.shape == (4, 3, 700, 600) and batch.dtype == torch.float32
    photograph = torch.from_numpy(worker.photograph()).permute(2, 0, 1) / 255
    assert torch.equal(batch[0, :, :512, :512], photograph)
    assert torch.equal(batch[0, :, 512:, :512], photograph[:, 324:].flip(1))
    assert torch.equal(batch[1].flip(2)[:, :415, :451], photograph[:, 97:, 61:])
    assert len({image.sum().item() for image in batch}) == 4


def test_out_of_memory_is_named():
    assert worker.cause(MemoryError()) == 'out of memory: MemoryError'
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert worker.cause(error.value).startswith('out of memory: ')


def arrays(**values):
    return {name.replace('_', ' '): np.array(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ('dtype', 'off', 'holds'),
    [
        ('float32', [0, 3e-5, 0, 0], True),  # one pixel that was swapped
        ('float32', [2e-5, 2e-5, 2e-5, 2e-5], False),
        ('float64', [0, 0, 0, 9e-10], True),
        ('float64', [0, 0, 0, 2e-9], False),
        ('float32', [0, 0, 0, np.nan], False),
        ('float64', [0, 0, 0, np.inf], False),
    ],
    ids=['one_pixel', 'all_pixels', 'below', 'above', 'nan', 'inf'],
)
def test_rule_for_outputs(dtype, off, holds):
    (check,) = session.disagreements(arrays(output=[0.0] * 4), arrays(output=off), dtype)
    assert check.holds == holds


@pytest.mark.parametrize(
    ('dtype', 'large', 'small', 'holds'),
    [
        ('float32', 1.001, 1e-7, True),
        ('float32', 1.02, 1e-7, False),
        ('float32', 1.0, 2e-5, True),  # noise beside the large one
        ('float32', 1.0, 2e-4, False),
        ('float64', 1 + 1e-10, 1e-7, True),
        ('float64', 1 + 1e-8, 1e-7, False),
        ('float32', np.nan, 1e-7, False),
        ('float32', [1.0, 1.0], 1e-7, False),
    ],
    ids=['near', 'far', 'small', 'small_but_far', 'near64', 'far64', 'nan', 'shape'],
)
def test_rule_for_gradients(dtype, large, small, holds):
    base = arrays(output=[0.0], gradient_a=[1.0], gradient_b=[1e-7])
    other = arrays(output=[0.0], gradient_a=np.atleast_1d(large), gradient_b=[small])
    output, gradient = session.disagreements(base, other, dtype)
    assert output.holds and gradient.holds == holds


def test_a_missing_gradient_is_a_difference():
    base, other = arrays(output=[0.0], gradient_a=[1.0]), arrays(output=[0.0])
    assert not session.disagreements(base, other, 'float32')[1].holds
    assert not session.disagreements(other, base, 'float32')[1].holds


@pytest.mark.parametrize(
    ('backends', 'pair'),
    [
        (['auto', 'torch', 'reference'], ('reference', 'auto')),
        (['torch', 'reference'], ('torch', 'reference')),
        (['auto'], None),
        (['reference', 'torch', 'triton'], None),
    ],
    ids=['both', 'two', 'one', 'three'],
)
def test_whose_ratio(backends, pair):
    assert report.pair_of(backends) == pair


def test_runs_are_interleaved_and_the_warm_up_is_not_counted(pretend):
    status, out = pretend('--repeats', '4')
    events = [line for line in Path('log').read_text().splitlines() if line.endswith(' run')]
    one, other = 'reference run', 'auto run'
    assert status == 0
    assert events == [one, other, other, one, one, other, other, one, one, other]
    assert out['results']['reference']['seconds'] == [4, 6, 8, 10]
    assert (out['results']['auto']['seconds_median'], out['results']['auto']['seconds_iqr']) == (3.5, 1.5)
    assert out['ratio'] == 2
    assert (out['macs_per_second'], out['floor_seconds'], out['results']['auto']['times_floor']) == (500, 1, 3.5)
    assert not Path('.out.json.part').exists()


def test_one_backend_alone_has_no_ratio_and_no_failure(pretend, capsys):
    status, out = pretend('--backends', 'auto')
    assert (status, out['ratio']) == (0, None)
    assert 'no ratio   a ratio is that of reference to auto, or of two backends' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('does', 'reason'),
    [
        ('die', 'killed by signal 9: out of memory?'),
        ('crash', 'ended with status 1: the last line of stderr'),
        ('error', 'RuntimeError: no kernels'),
    ],
)
@pytest.mark.parametrize('backend', ['reference', 'auto'])
def test_worker_that_ends_is_named_and_the_other_reported(backend, does, reason, pretend, capsys):
    status, out = pretend(**{backend: does})
    other = {'reference': 'auto', 'auto': 'reference'}[backend]
    assert status == 1
    assert (out['results'][backend], out['ratio'], out['failed']) == (None, None, {backend: reason})
    assert len(out['results'][other]['seconds']) == 5
    assert capsys.readouterr().err == f'backend {backend}: {reason}\n'


def test_refused_arguments_end_with_status_2(pretend, capsys):
    with pytest.raises(SystemExit) as error:
        pretend(facts={'error': 'no such thing', 'refused': True})
    assert error.value.code == 2
    assert capsys.readouterr().err.endswith('error: no such thing\n')


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=['ctrl_c', 'kill'])
def test_interrupted_run_ends_its_workers(number, status, tmp_path, hears_ctrl_c):
    (tmp_path / 'pretender.py').write_text(PRETENDER)
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
import benchmark, benchmark_session
benchmark_session.WORKER = 'pretender.py'
sys.exit(benchmark.main(['--json', 'out.json']))
"""
    env = {**os.environ, 'PRETEND': json.dumps({'auto': 'hang'})}
    process = subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )
    log, deadline = tmp_path / 'log', time.monotonic() + 30
    while not log.exists() or log.read_text().count('auto run') < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=10)
    pids = [int(words[1]) for words in map(str.split, log.read_text().splitlines()) if words[1] != 'run']
    assert process.returncode == status
    assert stderr == ('benchmark: interrupted\n' if status == 130 else '')
    assert len(pids) == 3 and not any(map(alive, pids))
    assert not (tmp_path / 'out.json').exists()
