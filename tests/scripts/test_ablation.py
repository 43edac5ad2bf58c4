"""scripts/ablation.py: what its rows build, what it calls a difference, and that it goes on where it stopped."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spinsr import check
from spinsr.cli import main as spinsr
from spinsr.data import image_file
from spinsr.training import progressive_learning

from ..tiny_benchmark import photo, write_benchmark

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'ablation.py'
sys.path.insert(0, str(SCRIPT.parent))
ablation = importlib.import_module('ablation')


STUDIES_ROWS = [(name, row) for name, study in ablation.STUDIES.items() for row in study.rows]


def arguments(folder, *more):
    data, benchmark = folder / 'data', folder / 'Tiny'
    return ['--data', str(data), '--benchmark', str(benchmark), '-o', str(folder / 'out'), *more]


def leaves(section, prefix=''):
    """section:key -> value, as rows name them."""
    found = {}
    for key, value in section.items():
        found |= leaves(value, f'{prefix}{key}:') if isinstance(value, dict) else {f'{prefix}{key}': value}
    return found


@pytest.mark.parametrize(('study', 'row'), STUDIES_ROWS, ids=lambda name: ablation.slug(name))
def test_every_row_builds_and_differs_from_the_default_as_it_says(study, row, tmp_path):
    from spinsr.archs import ARCH_REGISTRY

    args = ablation.parse(arguments(tmp_path, '--study', study, '--iterations', '300'))
    opt, default = ablation.options(args, row, 1), ablation.options(args, args.study.default, 1)
    network = {key: value for key, value in opt['network_g'].items() if key != 'type'}
    assert [finding for finding in check.quick(opt, is_train=True) if finding.level == 'error'] == []
    assert not progressive_learning.grows(opt['datasets']['train'])
    with torch.device('meta'):
        ARCH_REGISTRY.get(opt['network_g']['type'])(**network)
    row_changes = args.study.rows[row]
    own, usual = leaves(opt), leaves(default)
    changed = {key for key in own.keys() | usual.keys() if own.get(key) != usual.get(key)} - {'name'}
    assert all(key.startswith(tuple(row_changes)) for key in changed)
    assert all(any(key.startswith(of) for key in changed) for of in row_changes)
    stated = {key: 150 if value is ablation.HALF else value for key, value in leaves(row_changes).items()}
    assert {key: own[key] for key in stated} == stated
    assert opt['manual_seed'] == 1


def test_row_of_another_study_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        ablation.parse(arguments(tmp_path, '--study', 'recipe_SPIN', '--rows', 'patches'))
    assert "'patches' is not a row of recipe_SPIN" in capsys.readouterr().err


def test_means_and_differences_by_hand():
    scores = {'SPIN': {0: 30.0, 1: 32.0}, 'parallel': {0: 30.5, 1: 32.7}, 'patches': {0: 29.9, 1: 32.1}}
    summary = ablation.summarize(scores)
    # Seed 1 less seed 0 is 2, 2.2, 2.2, on the mean 2.1333; half of what is left is the noise of either score. Squares
    # 2 (0.0667^2 + 2 * 0.0333^2) = 0.0133 over two degrees of freedom, twice that for a difference; t = 4.3027.
    spread = math.sqrt(2 * (0.04 / 3) / 2)
    assert summary['spread_of_differences'] == pytest.approx(spread)
    rows = summary['rows']
    assert rows['SPIN'] == {'seeds': 2, 'mean': 31.0, 'sd': pytest.approx(math.sqrt(2))}
    assert rows['parallel']['difference'] == pytest.approx(0.6)
    assert rows['parallel']['limit'] == pytest.approx(4.30265 * spread / math.sqrt(2), rel=1e-5)
    assert [rows[row]['is_difference'] for row in ('parallel', 'patches')] == [True, False]


def test_noise_of_the_default_counts_once():
    """All rows agree but the default: what their differences share says no more of the noise than one row does."""
    rows = {f'row {n}': {0: 30.0, 1: 30.0, 2: 30.0} for n in range(9)}
    squares, degrees = ablation.noise({'SPIN': {0: 30.0, 1: 30.3, 2: 29.7}, **rows})
    # Of the default's 0.18, a tenth goes into the means of the seeds.
    assert squares == pytest.approx(0.18 * 0.9)
    assert degrees == 9 * 2


def test_rows_with_a_seed_missing_count_with_what_they_have():
    squares, degrees = ablation.noise({'SPIN': {0: 1.0, 1: 2.0}, 'a': {0: 1.5, 1: 2.7}, 'b': {1: 9.0}, 'c': {2: 4.0}})
    assert squares == pytest.approx(4 * 0.05**2)
    assert degrees == 1


def test_one_seed_is_never_a_difference():
    summary = ablation.summarize({'SPIN': {0: 30.0}, 'parallel': {0: 35.0, 1: 36.0}})
    assert summary['rows']['parallel']['difference'] == 5
    assert not summary['rows']['parallel']['is_difference']
    assert ablation.verdict(summary['rows']['parallel']) == '+5.000, too few seeds to judge'


def test_changed_options_never_resume_what_the_old_ones_left(tmp_path, monkeypatch):
    """Stopped between the new option file and the training's own renaming of the old folder."""
    out, commands = tmp_path / 'out', []
    monkeypatch.setattr(ablation.Workers, 'run', lambda self, command, *_: commands.append(command) or 1)
    for folder in ('options', 'logs', 'experiments/SPIN_0'):
        (out / folder).mkdir(parents=True)
    (out / 'experiments' / 'SPIN_0' / 'old').touch()
    (out / 'options' / 'SPIN_0.yml').write_text('other')
    workers = ablation.Workers(ablation.parse(arguments(tmp_path)))
    assert [workers.finish('SPIN', 0), workers.finish('SPIN', 0)] == [True, True]
    assert ['--auto_resume' in command for command in commands] == [False, True]
    assert not (out / 'experiments' / 'SPIN_0').exists()
    assert len(list((out / 'experiments').glob('SPIN_0_archived_*/old'))) == 1


def test_training_that_was_stopped_is_not_scored(tmp_path, monkeypatch, capsys):
    def stop(self, *_):
        self.stop()
        return 0

    monkeypatch.setattr(ablation.Workers, 'run', stop)
    (tmp_path / 'out' / 'options').mkdir(parents=True)
    assert ablation.Workers(ablation.parse(arguments(tmp_path))).finish('SPIN', 0)
    assert capsys.readouterr().err == ''


def test_benchmark_that_cannot_be_scored_is_one_line(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise ValueError('no images')

    monkeypatch.setattr(ablation.Workers, 'run', lambda *_: 0)
    monkeypatch.setattr(ablation, 'evaluate', refuse)
    (tmp_path / 'out' / 'options').mkdir(parents=True)
    assert ablation.Workers(ablation.parse(arguments(tmp_path))).finish('SPIN', 0)
    assert capsys.readouterr().err == 'ablation.py: SPIN_0 cannot be scored: no images\n'


def test_folder_that_is_missing_is_one_line(tmp_path, capsys):
    assert ablation.main(arguments(tmp_path)) == 1
    assert capsys.readouterr().err == f'ablation.py: error: not a directory: {tmp_path / "Tiny"}\n'


@pytest.mark.slow
def test_rows_are_trained_scored_and_not_done_again(tmp_path):
    write_benchmark(tmp_path / 'Tiny', {'a': (52, 48)}, scales=[4])
    for name in range(3):
        image_file.write_png(tmp_path / 'images' / f'{name}.png', photo(108, 120, name))
    assert spinsr(['prepare', 'images', str(tmp_path / 'images'), '-o', str(tmp_path / 'data'), '--scale', '4']) == 0
    rows = ['--rows', 'patches', '--seeds', '0', '1', '--iterations', '2', '--jobs', '2']
    command = [sys.executable, str(SCRIPT), *arguments(tmp_path, *rows)]

    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    out = tmp_path / 'out'
    summary = json.loads((out / 'ablation.json').read_text())
    assert set(summary['psnr']['Tiny']) == {'SPIN', 'patches'}
    assert all(np.isfinite(list(seeds.values())).all() for seeds in summary['psnr']['Tiny'].values())
    assert '| patches | 2 | ' in (out / 'ablation.md').read_text()
    assert image_file.read(out / 'ablation.png').shape[2] == 3

    (out / 'scores' / 'patches_1.json').unlink()
    before = {path: path.stat().st_mtime_ns for path in (out / 'scores').iterdir()}
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert [line.partition(':')[0] for line in again.stdout.splitlines() if line.startswith('patches_')] == [
        'patches_1'
    ]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert json.loads((out / 'ablation.json').read_text()) == summary
