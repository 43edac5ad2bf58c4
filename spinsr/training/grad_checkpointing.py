"""Training in less memory: blocks are computed once more for the gradient, instead of keeping what they computed."""

import functools
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute_blocks(net: nn.Module) -> None:
    """Lets the blocks of a network keep their inputs alone for the gradient; in place, and only where there is one.

    The blocks are the children of the nn.ModuleList or nn.Sequential that holds the most modules: the blocks of SPIN
    and RDBESA, the groups of RCAN and SAN. Results and the names of the weights stay as they are; a training step
    computes the blocks twice (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016).

    Args:
        net: The network. Its blocks get a class that is made here, and so cannot be pickled; their state dict can.

    Raises:
        ValueError: It has no nn.ModuleList or nn.Sequential of its own whose modules can be called, or these have batch
            normalisation, which would count each batch twice.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.ReLU())
        >>> recompute_blocks(net)
        >>> net(torch.rand(2, 3)).shape
        torch.Size([2, 3])
    """
    sequences = [child for child in net.children() if isinstance(child, (nn.ModuleList, nn.Sequential))]
    # A list within a list is never called, so that nothing would be computed twice.
    sequences = [child for child in sequences if len(child) and not any(isinstance(x, nn.ModuleList) for x in child)]
    name = type(net).__name__
    if not sequences:
        raise ValueError(f'{name} has no sequence of blocks (nn.ModuleList or nn.Sequential)')
    blocks = max(sequences, key=lambda child: sum(1 for _ in child.modules()))
    if any(isinstance(module, _BatchNorm) for module in blocks.modules()):
        raise ValueError(f'the blocks of {name} have batch normalisation, which would count each batch twice')
    for block in set(blocks):
        block.__class__ = _recomputed(type(block))


@functools.cache
def _recomputed(cls: type[nn.Module]) -> type[nn.Module]:
    """A class of the same name whose forward is computed once more for the gradient.

    A class, since a forward of the instance would be that of the original in the replicas of nn.DataParallel.
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return cls.forward(self, *args, **kwargs)
        return checkpoint(functools.partial(cls.forward, self), *args, use_reentrant=False, **kwargs)

    return type(cls.__name__, (cls,), {'forward': forward, '__module__': cls.__module__, '__doc__': cls.__doc__})
