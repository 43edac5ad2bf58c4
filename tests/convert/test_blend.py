"""`spinsr blend` and `spinsr.convert.blend`."""

import pytest
import torch

from spinsr.archs import ARCH_REGISTRY
from spinsr.cli import main
from spinsr.convert import read_checkpoint, to_official
from spinsr.convert.blend import blend

SMALL = {'num_feat': 8, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4, 'upscale': 2}


def weights(seed, **further):
    torch.manual_seed(seed)
    return ARCH_REGISTRY.get('RCAN_spinsr')(**SMALL | further).state_dict()


@pytest.fixture
def files(tmp_path):
    one, other = weights(0), weights(1)
    torch.save(to_official(one, 'RCAN'), tmp_path / 'a.pt')
    torch.save({'params': one, 'params_ema': other}, tmp_path / 'b.pth')
    return one, other, [str(tmp_path / name) for name in ('a.pt', 'b.pth', 'out.safetensors')]


def test_command_blends_files_of_two_forms(files, capsys):
    one, other, (a, b, out) = files
    assert main(['blend', a, b, out, '--alpha', '0.25']) == 0
    written = read_checkpoint(out)
    assert written.keys() == one.keys()
    for name, value in written.items():
        torch.testing.assert_close(value, 0.75 * one[name] + 0.25 * other[name])
    line = f'{out}: RCAN x2, 0.75 x {a} + 0.25 x {b} (params_ema); '
    assert capsys.readouterr().out.startswith(line)


@pytest.mark.parametrize('alpha', [0, 1])
def test_the_ends_are_the_files(alpha):
    # Far apart, so that 1 * a + 0 * b and rounding would show.
    ends = {'w': torch.tensor([1e30, 1.0])}, {'w': torch.tensor([1.0, 0.1])}
    assert torch.equal(blend(*ends, alpha)['w'], ends[alpha]['w'])


def test_half_types_stay_and_do_not_overflow():
    one, other = ({'w': torch.tensor([value], dtype=torch.float16)} for value in (60000, 60000))
    assert torch.equal(blend(one, other, 0.5)['w'], one['w'])


@pytest.mark.parametrize(
    ('further', 'message'),
    [
        ({'upscale': 4}, 'the same network at the same scale, got RCAN x2 and RCAN x4'),
        ({'num_feat': 12}, 'must have the same shape in both, got '),
        ({'num_block': 2}, 'both must have the same tensors; only one has '),
    ],
    ids=['scale', 'width', 'depth'],
)
def test_other_networks_are_refused(further, message, files, tmp_path, capsys):
    *_, (a, _, out) = files
    torch.save(weights(1, **further), tmp_path / 'c.pth')
    assert main(['blend', a, str(tmp_path / 'c.pth'), out]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.pt', 'b.pth', 'c.pth']


def test_integers_that_differ_are_refused():
    one, other = ({'n': torch.tensor([n])} for n in (1, 2))
    assert torch.equal(blend(one, one, 0.5)['n'], one['n'])
    with pytest.raises(ValueError, match='n holds integers'):
        blend(one, other, 0.5)


def test_nothing_is_overwritten_without_the_flag(files, tmp_path):
    *_, (a, b, _) = files
    (tmp_path / 'mine.pth').write_text('mine')
    assert main(['blend', a, b, str(tmp_path / 'mine.pth')]) == 1
    assert (tmp_path / 'mine.pth').read_text() == 'mine'
    assert main(['blend', a, b, str(tmp_path / 'mine.pth'), '--overwrite']) == 0
    assert read_checkpoint(tmp_path / 'mine.pth').keys() == {'params'}


@pytest.mark.parametrize('alpha', ['-0.1', '1.1', 'nan', 'half'])
def test_shares_out_of_range_are_usage_errors(alpha, files):
    *_, paths = files
    with pytest.raises(SystemExit) as stop:
        main(['blend', *paths, f'--alpha={alpha}'])
    assert stop.value.code == 2
