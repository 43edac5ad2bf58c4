"""SpinsrModel for a network of several scales, such as CARN's: every step takes one of them at random."""

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

from spinsr.data.multi_scale_dataset import SCALES
from spinsr.models.spinsr_model import SpinsrModel
from spinsr.training.sampling import mixed_seed
from spinsr.utils.errors import OptionError

# Keeps these seeds apart from those of `spinsr.training.sampling`.
_OF_SCALES = 4


@MODEL_REGISTRY.register()
class MultiScaleModel(SpinsrModel):
    """Training of one network for the `scales` of a MultiScaleDataset.

    The scale of a step depends on `manual_seed` and the iteration alone, so it is the same in all processes and after
    training is resumed. The network's attribute `upscale` selects one of its `scales`; between the steps, and so in
    validation, the network has the scale of the option file. Patches that grow (`gt_sizes`) are refused.

    Args:
        opt: BasicSR's options; `datasets: train` is a MultiScaleDataset.

    Raises:
        OptionError: As SpinsrModel; the training set has no `scales`, or the network lacks one of them.
    """

    OPTIONS = SpinsrModel.OPTIONS

    def __init__(self, opt: dict[str, Any]) -> None:
        scales = ((opt.get('datasets') or {}).get('train') or {}).get('scales') or ()
        if not SCALES.holds(scales):
            raise OptionError(f'datasets:train:scales must be {SCALES.wanted}, got {scales!r}')
        self.scales = tuple(scales)
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}
        # A step does not use the upsamplers of the other scales.
        opt['find_unused_parameters'] = True
        super().__init__(opt)
        if self.is_train and not self.scales:
            raise OptionError('MultiScaleModel needs datasets:train:scales, as of MultiScaleDataset')
        network, known = opt['network_g']['type'], getattr(self.get_bare_model(self.net_g), 'scales', ())
        if len(known) < 2:
            raise OptionError(
                f'MultiScaleModel needs a network for several scales (network_g:multi_scale: true), got {network}'
            )
        if not set(self.scales) <= set(known):
            raise OptionError(f'datasets:train:scales must be among those of {network}, {known}, got {self.scales}')

    def scale_of(self, iteration: int) -> int:
        """The scale of a step; iterations count from 1."""
        seed = mixed_seed(self.opt['manual_seed'], 0, iteration, _OF_SCALES)
        return self.scales[int(torch.randint(len(self.scales), (), generator=torch.Generator().manual_seed(seed)))]

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Takes a batch with pairs at every scale."""
        super().feed_data(data)
        others = (scale for scale in self.scales if f'lq_x{scale}' in data)
        self._pairs = {scale: (data[f'lq_x{scale}'], data[f'gt_x{scale}']) for scale in others}

    def optimize_parameters(self, current_iter: int) -> None:
        """As SpinsrModel, at the scale of the iteration."""
        net, scale = self.get_bare_model(self.net_g), self.scale_of(current_iter)
        if scale in self._pairs:
            self.lq, self.gt = (part.to(self.device) for part in self._pairs[scale])
            self.targets['gt'] = self.gt
        before, net.upscale = net.upscale, scale
        try:
            super().optimize_parameters(current_iter)
        finally:
            net.upscale = before
