"""SpinsrModel with a discriminator: BasicSR's ESRGANModel with all that a training of days needs."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor

from spinsr.models.spinsr_model import SpinsrModel
from spinsr.training import distributed
from spinsr.utils.errors import OptionError
from spinsr.utils.validation import SECTION, Rule


@MODEL_REGISTRY.register()
class AdversarialModel(SpinsrModel, ESRGANModel):
    """Training against a discriminator with a relativistic loss, as BasicSR's ESRGANModel computes it.

    Without further options a training gives the same weights as ESRGANModel. It has the options of SpinsrModel, except
    `accumulate` and `recompute`; `precision`, `grad_clip` and `freeze_params` are of `network_g`, while the
    discriminator computes in float32. A checkpoint holds both networks, both optimizers and both schedules, so a
    resumed training continues bit for bit.

    Needed are `network_d`, `train: optim_d` and `train: gan_opt`. Not read: `net_d_iters` and `net_d_init_iters`; both
    networks learn in every iteration.

    Args:
        opt: BasicSR's options.

    Raises:
        OptionError: A section is missing, or an option has a value that is not allowed.
    """

    CALLS: ClassVar[dict[str, tuple[str, ...]]] = {**SpinsrModel.CALLS, 'gan_opt': ('output', 'gt')}
    LABELS = ('net_g', 'net_d')
    OPTIONS: ClassVar[dict[str, dict[str, Any]]] = {
        **SpinsrModel.OPTIONS,
        'train': {
            **SpinsrModel.OPTIONS['train'],
            'gan_opt': SECTION,
            'optim_d': SECTION,
            'accumulate': Rule(lambda value: value == 1, '1: the discriminator needs the whole batch', 1, True),
            'recompute': Rule(lambda value: value is False, 'false with a discriminator', False),
        },
    }

    def init_training_settings(self) -> None:
        """Builds the discriminator, and what SpinsrModel needs for training."""
        train = self.opt['train']
        needed = {
            'network_d': self.opt.get('network_d'),
            **{f'train:{key}': train.get(key) for key in ('gan_opt', 'optim_d')},
        }
        for name, part in needed.items():
            if not part:
                raise OptionError(f'AdversarialModel needs the section {name}')
        super().init_training_settings()

    def setup_optimizers(self) -> None:
        """An optimizer for each of the networks."""
        super().setup_optimizers()
        if len(self.optimizers) == 1:  # SpinsrModel builds Muon itself, without the discriminator's
            options = self.opt['train']['optim_d']
            kind = options.pop('type')
            self.optimizer_d = self.get_optimizer(kind, list(self.net_d.parameters()), **options)
            self.optimizers.append(self.optimizer_d)

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of the network, then one of the discriminator, on the batch that was fed.

        Args:
            current_iter: The iteration, counted from 1.

        Raises:
            OptionError: The batch lacks what a loss needs.
            TrainingError: `max_nonfinite` iterations in a row were not finite.
        """
        self.net_d.requires_grad_(False)
        super().optimize_parameters(current_iter)
        self.net_d.requires_grad_(True)
        self.log_dict.update(self.reduce_loss_dict(self._teach_discriminator(current_iter)))

    def _losses(self, given: Mapping[str, Tensor], current_iter: int) -> dict[str, Tensor]:
        losses = super()._losses(given, current_iter)
        real = self.net_d(given['gt']).detach()
        fake = self.net_d(given['output'])
        of_real = self.cri_gan(real - fake.mean(), False, is_disc=False)
        of_fake = self.cri_gan(fake - real.mean(), True, is_disc=False)
        losses['l_gan'] = (of_real + of_fake) / 2
        return losses

    def _teach_discriminator(self, current_iter: int) -> OrderedDict[str, Tensor]:
        self.optimizer_d.zero_grad()
        output = self.output.float()
        # BasicSR's order of passes: each moves the vectors of the spectral norm.
        fake = self.net_d(output).detach()
        real = self.net_d(self.gt)
        of_real = self.cri_gan(real - fake.mean(), True, is_disc=True) * 0.5
        of_real.backward()
        fake = self.net_d(output)
        of_fake = self.cri_gan(fake - real.detach().mean(), False, is_disc=True) * 0.5
        of_fake.backward()
        gradients = [p.grad for p in self.net_d.parameters() if p.grad is not None]
        values = torch.stack([torch.nn.utils.get_total_norm(gradients), of_real.detach(), of_fake.detach()])
        if distributed.all_true(values.isfinite().all()):
            self.optimizer_d.step()
        else:
            get_root_logger().warning(
                f'iteration {current_iter}: loss or gradient of the discriminator not finite, its step is skipped'
            )
        return OrderedDict(
            l_d_real=of_real.detach(),
            l_d_fake=of_fake.detach(),
            out_d_real=real.detach().mean(),
            out_d_fake=fake.detach().mean(),
        )
