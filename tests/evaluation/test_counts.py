"""The kept counts: those of the networks as they are now, and of no other network."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spinsr.archs import ARCH_REGISTRY
from spinsr.cli import main
from spinsr.cli.complexity import _kept
from spinsr.convert.registry import formats
from spinsr.evaluation import complexity, counts, zoo
from spinsr.inference.load import resolve
from spinsr.weights.models import MODELS

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
keep_counts = importlib.import_module('keep_counts')

SIZE = (180, 320)
RENEW = 'counts.json is out of date; python scripts/keep_counts.py rewrites it'


@pytest.fixture
def no_counting(monkeypatch):
    def recount(network, height, width):
        raise ValueError(f'{network.arch} x{network.scale} {height}x{width}')

    monkeypatch.setattr(complexity, 'recount', recount)


def test_the_whole_zoo_is_kept(no_counting):
    rows = [row for variant in zoo.variants() for row in zoo.rows(variant, 4)]
    assert {'SPIN', 'SAN', 'SwinIR', 'EDSR', 'ECBSR'} <= {row.network for row in rows}, RENEW


def test_a_name_in_the_file_is_that_of_the_network():
    named = [entry for entry in counts.read() if 'name' in entry and entry['of'] == 'spinsr']
    networks = [resolve(entry['name'], entry['scale'], None) for entry in named]
    described = [counts.describe(one, *entry['size']) for one, entry in zip(networks, named, strict=True)]
    assert list(map(counts.key, named)) == list(map(counts.key, described)), RENEW


@pytest.mark.parametrize('model', MODELS, ids=lambda model: f'{model.name}_x{model.scale}')
def test_shipped_models_are_kept(model, no_counting):
    size = counts.usual_size(model.scale)
    assert complexity.count_network(resolve(weights=model.path), *size)['parameters'] == model.parameters, RENEW


@pytest.mark.parametrize('name', ['SPIN', 'IMDN_RTC', 'ShuffleMixer-tiny', 'ETDS-M'])
def test_kept_counts_are_those_of_today(name):
    network = resolve(name, 4, None)
    assert complexity.recount(network, *SIZE) == counts.find(network, *SIZE), RENEW


@pytest.mark.slow
@pytest.mark.parametrize('format', formats(), ids=lambda format: format.name)
def test_all_kept_counts_are_those_of_today(format):
    today = [keep_counts.counted(one) for one in keep_counts.wanted() if one.network.cls is format.cls]
    arch = f'{format.cls.__module__}.{format.cls.__qualname__}'
    kept = [entry for entry in counts.read() if entry['class'] == arch]
    assert counts.to_json(filter(None, today)) == counts.to_json(kept), RENEW


@pytest.mark.parametrize(
    'changes',
    [{'num_iter': 2}, {'num_heads': True}, {'upscale': 2}, {'stoken_size': [12] * 8}, {'num_feet': 40}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_network_with_another_argument_is_not_found(changes):
    network = resolve('SPIN', 4, None)
    assert counts.find(network, *SIZE) is not None
    assert counts.find(dataclasses.replace(network, arguments=changes), *SIZE) is None


def test_defaults_that_are_written_out_are_found():
    assert counts.find(resolve('SPIN', 4, None, num_block=8), *SIZE) is not None


def test_another_size_scale_or_class_is_not_found():
    network = resolve('SPIN', 4, None)

    class Derived(network.cls):
        pass

    assert counts.find(network, *reversed(SIZE)) is None
    assert counts.find(dataclasses.replace(network, scale=3), *SIZE) is None
    assert counts.find(dataclasses.replace(network, cls=Derived), *SIZE) is None


def test_the_command_looks_up_after_the_import_of_torch_too(no_counting, capsys):
    assert main(['complexity', '--no-latency', '--device', 'cpu']) == 0
    assert '88.7 G' in capsys.readouterr().out


def test_a_network_that_takes_the_name_of_another_is_counted(monkeypatch):
    class EDSR(torch.nn.Conv2d):
        def __init__(self, upscale=4, **arguments):
            super().__init__(3, 3, 1)

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'EDSR', EDSR)
    (variant,) = zoo.variants(['EDSR-baseline'])
    assert {row.parameters for row in zoo.rows(variant, 4)} == {12}


def test_another_version_of_basicsr_is_counted(monkeypatch):
    (variant,) = zoo.variants(['EDSR-baseline'])
    arguments = {'num_in_ch': 3, 'num_out_ch': 3}
    assert counts.find_outside(variant.format.arch, arguments, 4, *SIZE) is not None
    assert counts.find_outside(variant.format.arch.replace('basicsr', 'other'), arguments, 4, *SIZE) is None
    monkeypatch.setattr(counts, '_basicsr', lambda: '1.4.3')
    assert counts.find_outside(variant.format.arch, arguments, 4, *SIZE) is None


def test_who_changes_a_count_does_not_change_what_is_kept():
    network = resolve('SPIN', 4, None)
    counts.find(network, *SIZE).clear()
    counts.find_published('SPIN', 4, *SIZE).clear()
    assert counts.find(network, *SIZE) == counts.find_published('SPIN', 4, *SIZE) != {}


def test_the_command_needs_no_torch(capsys):
    command = ['complexity', '--arch', 'SPIN', 'RCAN', '--no-latency']
    code = f"import sys; from spinsr.cli import main; main({command}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert main(command) == 0
    assert capsys.readouterr().out == done.stdout


@pytest.mark.parametrize(
    'flags',
    [['--arch', 'RLFN-S'], ['--size', '9x9'], ['--scale', '5'], ['--arch-args', 'num_block=9'], ['--device', 'cpu']],
    ids=lambda flags: flags[0][2:],
)
def test_a_command_that_asks_for_more_is_not_answered_without_torch(flags, tmp_path, monkeypatch):
    """RLFN-S is a folder here, whose network may be another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, 'spinsr.archs')
    assert _kept(parsed([])) is not None
    (tmp_path / 'RLFN-S').mkdir()
    assert _kept(parsed(flags)) is None


def parsed(flags):
    import argparse

    from spinsr.cli.complexity import add_parser

    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(['complexity', '--no-latency', *flags])
