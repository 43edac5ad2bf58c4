"""Optional hooks of a network for its training: losses of further outputs, and a call before each iteration.

All three belong in the class of the network:

- `TRAINING_LOSSES`, a class attribute: section of `train` -> what the loss of that section is called with: names of
  further outputs, and of what SpinsrModel has (`output`, `gt`, `lq`, `iteration`).
- `forward(x, auxiliary=True)`: the image and a dict of the further outputs, (B, ...) or a scalar each. It is called so
  in training where the option file has one of these sections. Without `auxiliary` the network returns only the image.
- `begin_iteration(iteration)`: called before each iteration of training, counted from 1, for what changes with it, a
  temperature for example. It may depend only on the iteration, so that training resumes exactly. What it sets should be
  a buffer with persistent=False, which follows the device and does not make torch.compile compile again.

Example:
    >>> import torch
    >>> class Dual(torch.nn.Conv2d):
    ...     TRAINING_LOSSES = {'low_opt': ('low', 'gt')}
    ...
    ...     def forward(self, x, auxiliary=False):
    ...         image = super().forward(x)
    ...         return (image, {'low': x}) if auxiliary else image
    >>> losses(Dual)
    {'low_opt': ('low', 'gt')}
"""

from collections.abc import Mapping
from typing import Any


def losses(network: type | None) -> Mapping[str, tuple[str, ...]]:
    """The sections of train that a class of networks declares, each with what its loss is called with."""
    return getattr(network, 'TRAINING_LOSSES', {})


def begin_iteration(net: Any, iteration: int) -> None:
    """Calls net.begin_iteration if the network defines it; iterations count from 1."""
    if hasattr(net, 'begin_iteration'):
        net.begin_iteration(iteration)
