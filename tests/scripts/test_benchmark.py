"""scripts/benchmark.py: a whole run in processes, what each process does, and when backends disagree."""

import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / 'scripts'
sys.path.insert(0, str(SCRIPTS))
benchmark = importlib.import_module('benchmark')

SMALL = ['--scale', '2', '--lr-size', '9x11', '--dtype', 'float64', '--threads', '1']
ARGS = ['--arch-args', 'num_feat=8', 'num_block=1', 'qk_dim=4', 'mlp_dim=8', 'stoken_size=[4]']
RCAN = ['--arch', 'RCAN', '--arch-args', 'num_feat=8', 'num_group=1', 'num_block=1', 'squeeze_factor=4']

PLUGIN = """
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from spinsr.ops import resolve_backend

print('a plugin may print')

@ARCH_REGISTRY.register()
class TwoFaced(torch.nn.Module):
    def __init__(self, upscale):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        is_dense = resolve_backend() == 'reference'
        if is_dense:
            torch.ones(300, 1000, 1000, dtype=torch.uint8)
        return torch.nn.functional.interpolate(x, scale_factor=2) * self.factor + (3e-5 if is_dense else 0)
"""


class Instant(benchmark.Worker):
    """A worker without a process, whose runs take 1, 2, ... seconds; the reference takes twice as long."""

    log, faults = [], {}

    def __init__(self, args, backend):
        self.backend, self.runs, self.process = backend, 0, self

    def kill(self):
        pass

    def ask(self, command):
        if command == 'run':
            self.runs += 1
            self.log.append(self.backend)
            if self.runs == 2 and self.backend in self.faults:
                raise benchmark.WorkerError(self.faults[self.backend])
        seconds = self.runs * (2.0 if self.backend == 'reference' else 1.0)
        answers = {'run': seconds, 'peak': (self.runs, None), 'results': {'output': np.zeros(4)}, 'count': (500, '')}
        return answers[command]


@pytest.fixture
def instant(monkeypatch, tmp_path):
    """Runs the script on instant workers; returns the exit status and the JSON file."""
    monkeypatch.setattr(benchmark, 'Worker', Instant)
    monkeypatch.setattr(benchmark, 'SETTLE', 0)
    monkeypatch.setattr(benchmark, 'matmul_rate', lambda args: 500.0)
    monkeypatch.setattr(Instant, 'log', [])

    def run(*more, **faults):
        monkeypatch.setattr(Instant, 'faults', faults)
        status = benchmark.main([*SMALL, '--json', str(tmp_path / 'out.json'), *more, *ARGS])
        return status, json.loads((tmp_path / 'out.json').read_text())

    yield run
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', torch.get_num_threads())))


def test_backends_take_turns_and_the_warm_up_is_not_counted(instant, capsys):
    status, out = instant('--repeats', '4')
    one, other = 'reference', 'auto'
    assert (status, Instant.log) == (0, [one, other, other, one, one, other, other, one, one, other])
    assert out['results']['reference']['seconds'] == [4, 6, 8, 10]
    assert (out['results']['auto']['seconds_median'], out['results']['auto']['seconds_iqr']) == (3.5, 1.5)
    assert (out['ratio'], out['floor_seconds'], out['results']['auto']['times_floor']) == (2, 1, 3.5)
    assert 'ratio: 2.000 (reference / auto)' in capsys.readouterr().out


@pytest.mark.parametrize('backend', ['reference', 'auto'])
def test_a_backend_that_fails_is_named_and_the_other_reported(instant, backend, capsys):
    status, out = instant(**{backend: 'killed by signal 9: out of memory?'})
    other = {'reference': 'auto', 'auto': 'reference'}[backend]
    assert (status, out['ratio'], out['results'][backend]) == (1, None, None)
    assert len(out['results'][other]['seconds']) == 5
    assert f'backend {backend} failed: killed by signal 9: out of memory?' in capsys.readouterr().out


def test_one_backend_alone_has_no_ratio_and_is_no_failure(instant):
    status, out = instant('--backends', 'auto')
    assert (status, out['ratio'], list(out['results'])) == (0, None, ['auto'])


@pytest.mark.slow
def test_processes_differ_in_memory_and_a_disagreement_has_no_ratio(tmp_path, monkeypatch, capfd):
    (tmp_path / 'plugin.py').write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ['--arch', 'TwoFaced', '--import', 'plugin', '--mode', 'train', '--lr-size', '8x12', '--scale', '2']
    assert benchmark.main([*command, '--repeats', '2', '--json', 'out.json']) == 1
    out = json.loads(Path('out.json').read_text())
    assert out['ratio'] is None and out['batch'] == 8
    assert out['no_ratio_because'] == 'auto differs in the mean |difference| of output'
    assert out['agreement']['auto'][0]['value'] == pytest.approx(3e-5, rel=0.01)
    taken = {name: x['peak_rss_bytes'] - x['baseline_rss_bytes'] for name, x in out['results'].items()}
    assert taken['reference'] > 250e6 and taken['auto'] < 150e6
    assert 'a plugin may print' not in capfd.readouterr().out.partition('TwoFaced x2')[2]


@pytest.mark.slow
def test_a_process_that_is_killed_is_named(tmp_path):
    worker = benchmark.Worker(benchmark.parse([*SMALL, *ARGS]), 'auto')
    assert worker.ask('peak')[0] > 50e6
    worker.process.kill()
    with pytest.raises(benchmark.WorkerError, match='killed by signal 9: out of memory'):
        worker.ask('run')


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['infer', 'train'])
def test_backends_of_spin_agree_in_output_and_gradients(mode, monkeypatch):
    results = []
    for backend in ('reference', 'auto'):
        monkeypatch.setenv('SPINSR_OPS_BACKEND', backend)
        runner = benchmark.Runner(benchmark.parse([*SMALL, '--mode', mode, '--batch', '2', *ARGS]))
        assert runner.run() > 0
        results.append(runner.results())
    assert results[1]['output'].shape == (2, 3, 18, 22)
    checks = benchmark.differences(*results, 'float64')
    assert [check['holds'] for check in checks] == [True] * (2 if mode == 'train' else 1), checks


def test_each_is_compared_with_the_reference(instant, capsys):
    status, out = instant('--backends', 'reference,auto,auto+bf16', '--dtype', 'float32')
    assert (status, out['ratio'], out['ratios']) == (0, 2.0, {'auto': 2.0, 'auto+bf16': 2.0})
    assert 'auto+bf16: 2.000 times as fast as reference' in capsys.readouterr().out


@pytest.mark.parametrize('mode', ['infer', 'train'])
def test_bf16_is_autocast_and_results_are_float32(mode):
    command = ['--lr-size', '9x11', '--mode', mode, '--batch', '1', *RCAN]
    plain, half = (benchmark.Runner(benchmark.parse(command), options) for options in ((), ('bf16',)))
    for runner in (plain, half):
        runner.run()
    results = [runner.results() for runner in (plain, half)]
    assert all(x.dtype == np.float32 for x in results[1].values())
    assert not np.array_equal(results[0]['output'], results[1]['output'])
    checks = benchmark.differences(*results, 'float32', is_half=True)
    assert all(check['holds'] for check in checks), checks
    assert not benchmark.differences(*results, 'float32')[0]['holds']


@pytest.mark.parametrize('backend', ['reference', 'auto'])
def test_recompute_is_counted_except_for_reference(backend, monkeypatch):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', backend)
    command = [*SMALL, '--mode', 'train', '--batch', '1']
    once, again = (benchmark.Runner(benchmark.parse([*command, *x, *RCAN])).count()[0] for x in ([], ['--recompute']))
    assert (again > once) == (backend == 'auto')


def test_multiply_adds_by_hand():
    # For a pixel: conv_first, 2 of the block, 1 of the group, 1 after the body, the upsampling and the last, four times
    # as many pixels; for the image: the channel attention.
    pixel = 9 * (3 * 8 + 4 * 8 * 8 + 8 * 32 + 4 * 8 * 3)
    assert benchmark.Runner(benchmark.parse([*SMALL, *RCAN])).count() == (9 * 11 * pixel + 2 * 8 * 2, '')


def test_an_op_without_a_formula_makes_the_count_unknown():
    @torch.library.custom_op('spinsr_test::twice', mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    runner = benchmark.Runner(benchmark.parse([*SMALL, *RCAN]))
    runner.net.register_forward_hook(lambda module, inputs, output: twice(output))
    assert 'spinsr_test.twice' in runner.count()[1]


def test_input_is_a_natural_image_continued_by_reflection():
    batch = benchmark.natural_batch(4, 700, 600)  # larger than the image, 512x512
    assert batch.shape == (4, 3, 700, 600) and len({image.sum().item() for image in batch}) == 4
    assert torch.equal(batch[0, :, 512:, :512], batch[0, :, 324:512, :512].flip(1))
    assert torch.equal(batch[1].flip(2)[:, :415, :451], batch[0, :, 97:512, 61:512])


@pytest.mark.parametrize(
    ('dtype', 'off', 'holds'),
    [
        ('float32', [0, 3e-5, 0, 0], True),  # one pixel that was swapped
        ('float32', [2e-5] * 4, False),
        ('float64', [0, 0, 0, 9e-10], True),
        ('float64', [0, 0, 0, 2e-9], False),
        ('float32', [0, 0, 0, np.nan], False),
        ('float32', [0, 0], False),
    ],
    ids=['one_pixel', 'all_pixels', 'below', 'above', 'nan', 'shape'],
)
def test_rule_for_outputs(dtype, off, holds):
    (check,) = benchmark.differences({'output': np.zeros(4)}, {'output': np.array(off)}, dtype)
    assert check['holds'] == holds


@pytest.mark.parametrize(
    ('gradients', 'holds'),
    [
        ({'a': 1.001, 'b': 1e-7}, True),
        ({'a': 1.02, 'b': 1e-7}, False),
        ({'a': 1.0, 'b': 2e-5}, True),  # rounding error beside the large one
        ({'a': 1.0, 'b': 2e-4}, False),
        ({'a': 1.0}, False),
        ({'a': 1.0, 'b': 1e-7, 'c': 1.0}, False),
    ],
    ids=['near', 'far', 'small', 'small_but_far', 'missing', 'more'],
)
def test_rule_for_gradients(gradients, holds):
    base = {'output': np.zeros(1), 'a': np.ones(1), 'b': np.array([1e-7])}
    other = {'output': np.zeros(1), **{name: np.array([x]) for name, x in gradients.items()}}
    assert benchmark.differences(base, other, 'float32')[1]['holds'] == holds


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--backends', 'auto,auto'], 'got auto,auto'),
        (['--backends', 'fast'], 'auto, reference, torch, triton'),
        (['--backends', 'auto+bf16,auto+bf16'], 'got auto+bf16,auto+bf16'),
        (['--backends', 'auto+bf16+compile,auto+compile+bf16'], 'got auto+bf16+compile'),
        (['--backends', 'auto+fp8'], '+bf16 or +compile'),
        (['--backends', 'auto+bf16', '--dtype', 'float64'], '+bf16 requires --dtype float32'),
        (['--json', 'no/such/folder.json'], 'existing folder, got no/such/folder.json'),
        (['--recompute'], '--recompute requires --mode train'),
        (['--arch', 'SPINN'], "'SPIN'"),
        (['--device', 'abacus'], 'abacus'),
        (['--import', 'no_such_plugin'], 'no_such_plugin'),
        (['--arch-args', 'num_feats=8'], 'num_feats'),
        (['--weights', 'nowhere.pth'], 'nowhere.pth'),
    ],
    ids=lambda x: x[0][2:] if isinstance(x, list) else '',
)
def test_usage(args, message, capsys):
    with pytest.raises(SystemExit) as error:
        benchmark.main(args)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
