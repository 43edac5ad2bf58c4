"""Which device is chosen, as far as a CPU can tell: the others are pretended to be there."""

import types
import warnings

import pytest
import torch

from spinsr.inference import devices


@pytest.mark.parametrize(
    ('available', 'chosen'),
    [(('cuda', 'mps', 'xpu'), 'cuda'), (('mps', 'xpu'), 'mps'), (('xpu',), 'xpu'), ((), 'cpu')],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_auto_takes_the_first_that_is_available(monkeypatch, available, chosen):
    for kind in devices.ACCELERATORS:
        fake = types.SimpleNamespace(is_available=lambda kind=kind: kind in available)
        monkeypatch.setattr(torch.backends if kind == 'mps' else torch, kind, fake)
    assert devices.select('auto') == torch.device(chosen)


@pytest.mark.parametrize('name', ['gpu', 'cuda:99'])
def test_a_device_that_is_not_here_is_an_error(name):
    with pytest.raises(ValueError, match=f'--device {name}: '):
        devices.select(name)


def test_each_op_that_falls_back_is_said_once(caplog):
    with devices.said_once(torch.device('mps')):
        for op, words in (('aten::frac', 'will fall'), ('aten::sort', 'is falling'), ('aten::frac', 'will fall')):
            warnings.warn(f"The operator '{op}' is not supported and {words} back to the CPU", stacklevel=1)
        assert torch.is_warn_always_enabled()  # else torch warns of the first op only
    assert not torch.is_warn_always_enabled()
    assert caplog.messages == [
        'mps lacks aten::frac: this op runs on the CPU, which is slower',
        'mps lacks aten::sort: this op runs on the CPU, which is slower',
    ]
    with devices.said_once(torch.device('mps')), pytest.warns(UserWarning, match='else'):
        warnings.warn('something else', stacklevel=1)
