"""Training in less memory: blocks are computed once more for the gradient, instead of keeping what they computed."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(net: nn.Module) -> None:
    """Lets the blocks of a network keep their inputs alone for the gradient; in place, and only where there is one.

    The blocks are the children of the nn.ModuleList or nn.Sequential that holds the most modules: the blocks of SPIN
    and RDBESA, the groups of RCAN and SAN. Results and the names of the weights stay as they are; a training step
    computes the blocks twice (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016).

    Args:
        net: The network.

    Raises:
        ValueError: It has no nn.ModuleList or nn.Sequential of its own.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.ReLU())
        >>> recompute_blocks(net)
        >>> net(torch.rand(2, 3)).shape
        torch.Size([2, 3])
    """
    sequences = [child for child in net.children() if isinstance(child, (nn.ModuleList, nn.Sequential))]
    if not sequences:
        raise ValueError(f'{type(net).__name__} has no sequence of blocks (nn.ModuleList or nn.Sequential)')
    for block in max(sequences, key=lambda child: sum(1 for _ in child.modules())):
        block.forward = functools.partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
