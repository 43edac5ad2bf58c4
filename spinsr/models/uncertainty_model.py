"""SpinsrModel beside a network that estimates how uncertain every pixel is, and losses that use it."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from basicsr.archs import build_network
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

from spinsr.models.spinsr_model import SpinsrModel
from spinsr.utils.errors import OptionError

# Loss -> whether the estimator learns.
_STEPS = {'UncertaintyEstimationLoss': True, 'UncertaintyDrivenLoss': False}


@MODEL_REGISTRY.register()
class UncertaintyModel(SpinsrModel):
    """Training with an uncertainty-driven loss (Ning et al., NeurIPS 2021), in two runs.

    `network_s` takes the LR image and gives s, one number for each value of the HR image. With `train: pixel_opt: type:
    UncertaintyEstimationLoss` it learns together with `network_g`; with `UncertaintyDrivenLoss` it stands still as
    `path: pretrain_network_s` has it. In the paper s comes from a branch of the network itself; here it has a network
    of its own, so `network_g` may be any. Its ELU, by which s >= -1, is the authors'.

    Args:
        opt: BasicSR's options, `network_s` among them.

    Raises:
        OptionError: Another loss, no `network_s`, or no weights for one that does not learn.
    """

    CALLS: ClassVar[dict[str, tuple[str, ...]]] = {**SpinsrModel.CALLS, 'pixel_opt': ('output', 'gt', 's')}
    LABELS = ('net_g', 'net_s')
    OPTIONS = SpinsrModel.OPTIONS

    def init_training_settings(self) -> None:
        """Builds the estimator, and what SpinsrModel needs for training."""
        path = self.opt['path']
        kind = (self.opt['train'].get('pixel_opt') or {}).get('type')
        if kind not in _STEPS:
            raise OptionError(f'train:pixel_opt:type must be one of {", ".join(_STEPS)}, got {kind!r}')
        if not self.opt.get('network_s'):
            raise OptionError('UncertaintyModel needs the section network_s')
        self.estimates = _STEPS[kind]
        if not self.estimates and not path.get('pretrain_network_s'):
            raise OptionError(f'path:pretrain_network_s must name the estimator of the first step for {kind}, got None')
        net = build_network(self.opt['network_s'])
        # DistributedDataParallel refuses a network that does not learn.
        net = self.model_to_device(net) if self.estimates else net.to(self.device).requires_grad_(False).eval()
        self.net_s = net
        self.print_network(net)
        if path.get('pretrain_network_s'):
            strict, key = path.get('strict_load_s', True), path.get('param_key_s', 'params')
            self.load_network(net, path['pretrain_network_s'], strict, key)
        super().init_training_settings()

    def learning_networks(self) -> list[torch.nn.Module]:
        """The network, and the estimator while it learns."""
        return [self.net_g, self.net_s] if self.estimates else [self.net_g]

    def log_scale(self, lq: Tensor) -> Tensor:
        """s >= -1, (B, C, rH, rW), for an LR batch (B, C, H, W) in [0, 1]."""
        with torch.set_grad_enabled(self.estimates), self._autocast():
            return F.elu(self.net_s(lq).float())

    def _pixel_loss(self, output: Tensor, gt: Tensor, lq: Tensor) -> Tensor:
        return self.cri_pix(output, gt, self.log_scale(lq))

    def save(self, epoch: int, current_iter: int) -> None:
        """Writes a checkpoint as SpinsrModel, the estimator first."""
        self.save_network(self.net_s, 'net_s', current_iter)
        super().save(epoch, current_iter)
