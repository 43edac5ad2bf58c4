"""The precision that a network is computed in where the user leaves the choice to spinsr."""

import weakref
from typing import NamedTuple

import torch
from torch import nn

from spinsr.inference.options import AUTO
from spinsr.ops.common.precision import multiplies_bf16

# In dB of PSNR on Y. bf16 that costs more is never chosen.
LARGEST_LOSS = 0.01
_forgetting: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # have a hook
_losses: weakref.WeakKeyDictionary[nn.Module, float] = weakref.WeakKeyDictionary()


class Choice(NamedTuple):
    """A precision, a key of `spinsr.inference.options.PRECISIONS`, and why."""

    precision: str
    reason: str


def set_loss(net: nn.Module, loss: float) -> None:
    """Notes what bf16 costs this network, for `choose`: PSNR of `spinsr evaluate` minus that with `--precision bf16`.

    It belongs to the weights: `load_state_dict` deletes it.

    Args:
        net: A network in float32. Those that spinsr ships have it from `spinsr.load`.
        loss: In dB of PSNR, the largest mean over a benchmark.
    """
    if net not in _forgetting:
        _forgetting.add(net)
        net.register_load_state_dict_post_hook(_forget)
    _losses[net] = loss


def _forget(net: nn.Module, _keys: object) -> None:
    _losses.pop(net, None)


def choose(net: nn.Module, bits: int = 8) -> Choice:
    """'bf16' if that is faster and costs at most `LARGEST_LOSS`, else 'fp32'.

    bf16 is chosen on a CPU with instructions for it (AVX512-BF16 or AMX), for results of 8 bits and a network in
    float32 with a loss (`set_loss`) of at most `LARGEST_LOSS`. On a GPU nothing was measured, so it is fp32.

    Args:
        net: As for `spinsr.inference.upscale.upscale`.
        bits: Of a channel of the result, 8 or 16.
    """
    if not type(net).__module__.startswith('spinsr.archs'):
        return Choice('fp32', 'bf16 was not measured for compiled networks, ONNX Runtime and networks of others')
    parameter = next(net.parameters(), None)
    if parameter is None or parameter.device.type != 'cpu':
        return Choice('fp32', 'bf16 was not measured on this device')
    if parameter.dtype != torch.float32:
        return Choice('fp32', f'the network is in {str(parameter.dtype).removeprefix("torch.")}')
    if not multiplies_bf16():
        return Choice('fp32', 'this processor has no instructions for bf16')
    if bits > 8:
        return Choice('fp32', f'results have {bits} bits')
    loss = _losses.get(net)
    if loss is None:
        return Choice('fp32', 'what bf16 costs was not measured for this network')
    if loss > LARGEST_LOSS:
        return Choice('fp32', f'bf16 costs {loss} dB of PSNR')
    return Choice('bf16', f'faster on this processor, costs {loss} dB of PSNR on Set5 or Set14')


def resolve(precision: str, net: nn.Module, bits: int = 8) -> str:
    """`precision`, or what `choose` chooses if it is 'auto'."""
    return choose(net, bits).precision if precision == AUTO else precision
