"""How a network is trained, as data: a `Recipe`, declared in the `ArchFormat` of the network.

`spinsr.training.recipes` writes BasicSR's option files from it. The fields have the names of BasicSR's keys where such
a key exists; optimizers, schedulers and losses are BasicSR's sections, which the functions here make.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Section = Mapping[str, Any]

# For `comments`: {'pixel_opt:loss_weight': ON_255}.
ON_255 = (
    "The authors' loss is on 0..255, ours on 0..1. The factor affects Adam only through its eps; 255.0 reproduces "
    'theirs.'
)
AUTHORS_FLIPS = "Flips and transposition, each with probability 0.5, as in the authors' code."


@dataclass(frozen=True, kw_only=True)
class Data:
    """A training set in LMDBs.

    Attributes:
        name: As the log and the option file call it.
        hr: The LMDB of the HR images.
        lr: The LMDB of the LR images; {scale} stands for the upscaling factor. '' for a class that makes them itself.
        made_by: The command that makes it.
        type: BasicSR's name of the class.
    """

    name: str
    hr: str
    lr: str
    made_by: str
    type: str = 'PairedImageDataset'


DIV2K = Data(
    name='DIV2K',
    hr='datasets/div2k/DIV2K_train_HR_sub.lmdb',
    lr='datasets/div2k/DIV2K_train_LR_bicubic_X{scale}_sub.lmdb',
    made_by='spinsr prepare div2k',
)
# For a network that is trained for several scales; LR is made when an image is read.
DIV2K_AT_SEVERAL_SCALES = dataclasses.replace(DIV2K, lr='', type='MultiScaleDataset')
# DIV2K and Flickr2K.
DF2K = Data(
    name='DF2K',
    hr='datasets/df2k/DIV2K_train_HR_sub.lmdb',
    lr='datasets/df2k/DIV2K_train_LR_bicubic_X{scale}_sub.lmdb',
    made_by='spinsr prepare div2k DF2K --subset -o datasets/df2k (docs/data.md)',
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Training starts from the last weights of another training of the same network.

    Attributes:
        scale: Upscaling factor of that training; None for the same one. The training at this scale has no start.
        stage: Its stage; '' for the first.
        comment: Why, for the option file.
    """

    scale: int | None = None
    stage: str = ''
    comment: str = ''


def adam(lr: float, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0) -> Section:
    """`optim_g` of Adam."""
    return {'type': 'Adam', 'lr': lr, 'weight_decay': weight_decay, 'betas': betas}


def adamw(lr: float, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 1e-4) -> Section:
    """`optim_g` of AdamW."""
    return {'type': 'AdamW', 'lr': lr, 'weight_decay': weight_decay, 'betas': betas}


def multistep(*milestones: int, gamma: float = 0.5) -> Section:
    """`scheduler` that multiplies the learning rate by `gamma` at each milestone; constant without milestones."""
    return {'type': 'MultiStepLR', 'milestones': milestones, 'gamma': gamma}


def halved_every(iterations: int, total_iter: int) -> Section:
    """`scheduler` that halves the learning rate after every so many iterations."""
    return multistep(*range(iterations, total_iter, iterations))


def cosine(*periods: int, eta_min: float, restart_weights: tuple[float, ...] = ()) -> Section:
    """`scheduler` of cosine decays to `eta_min`, one after the other; each restarts at lr times its restart weight."""
    weights = restart_weights or (1,) * len(periods)
    return {'type': 'CosineAnnealingRestartLR', 'periods': periods, 'restart_weights': weights, 'eta_min': eta_min}


def l1(weight: float = 1.0) -> Section:
    """A loss: the mean absolute difference."""
    return {'type': 'L1Loss', 'loss_weight': weight, 'reduction': 'mean'}


def mse(weight: float = 1.0) -> Section:
    """A loss: the mean squared difference."""
    return {'type': 'MSELoss', 'loss_weight': weight, 'reduction': 'mean'}


def fft(weight: float) -> Section:
    """A loss for `fft_opt`: the mean absolute difference of the Fourier transforms."""
    return {'type': 'FFTLoss', 'loss_weight': weight, 'reduction': 'mean'}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network's training.

    `by_configuration`, `by_scale` and `stages` hold changes to the other fields, as {'patch': 48}. They apply in this
    order. Changes of `network`, `losses`, `train`, `augment` and `comments` are merged key by key; all others replace.

    Attributes:
        about: What paper and code say, and what is our choice: sentences for the top of the option file.
        scales: Upscaling factors.
        patch: Side of the training patches, in LR pixels, at every scale.
        hr_patch: Side in HR pixels, instead of `patch`; rounded down to a multiple of the scale.
        batch: Patches in a batch, on each device.
        data: The training set.
        augment: Of the training set: flips, and what else its class takes.
        model_type: BasicSR's name of the model.
        network: Arguments of the constructor that differ from the defaults of the configuration.
        ema_decay: Of the averaged weights; 0 for none.
        optim_g: The optimizer.
        scheduler: The schedule of the learning rate.
        total_iter: Iterations.
        warmup_iter: Iterations of the linear warm-up; -1 for none.
        grad_clip: Largest norm of the gradient; None for no clipping.
        precision: 'bf16' or 'fp16'; None for float32.
        losses: The losses, by key: `pixel_opt` and others that the model reads.
        train: Further keys of the section train.
        start: What the training starts from; None for random weights.
        save_checkpoint_freq: Iterations between two checkpoints.
        comments: Comments by key, 'lr' or 'pixel_opt:loss_weight'. One that ends with a full stop goes above the line,
            others behind it. '' removes a comment that every option file has.
        by_configuration: Changes for a configuration of the network, by its public name.
        by_scale: Changes for a scale.
        stages: Changes for a training that follows on the one before, by name; the first stage has no name.
    """

    about: str
    scales: tuple[int, ...] = (2, 3, 4)
    patch: int | None = None
    hr_patch: int | None = None
    batch: int
    data: Data = DIV2K
    augment: Section = field(default_factory=lambda: {'use_hflip': True, 'use_rot': True})
    model_type: str = 'SpinsrModel'
    network: Section = field(default_factory=dict)
    ema_decay: float = 0
    optim_g: Section
    scheduler: Section
    total_iter: int
    warmup_iter: int = -1
    grad_clip: float | None = None
    precision: str | None = None
    losses: Mapping[str, Section] = field(default_factory=lambda: {'pixel_opt': l1()})
    train: Section = field(default_factory=dict)
    start: Start | None = None
    save_checkpoint_freq: int = 5000
    comments: Mapping[str, str] = field(default_factory=dict)
    by_configuration: Mapping[str, Section] = field(default_factory=dict)
    by_scale: Mapping[int, Section] = field(default_factory=dict)
    stages: Mapping[str, Section] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.patch is None) == (self.hr_patch is None):
            raise ValueError(
                f'exactly one of patch and hr_patch must be given, got patch={self.patch}, hr_patch={self.hr_patch}'
            )
        known = {field.name for field in dataclasses.fields(self)} - set(_CHANGES)
        for name in _CHANGES:
            for of, change in getattr(self, name).items():
                if unknown := sorted(set(change) - known):
                    raise ValueError(f'{name}[{of!r}] must have names of fields as keys, got {unknown}')

    def gt_size(self, scale: int) -> int:
        """Side of a patch in HR pixels, a multiple of the scale."""
        return self.patch * scale if self.patch else (self.hr_patch or 0) // scale * scale

    def at(self, scale: int, configuration: str = '', stage: str = '') -> 'Recipe':
        """The recipe of one option file, with all changes applied.

        Args:
            scale: Upscaling factor.
            configuration: Public name of the network's configuration.
            stage: '' for the first.

        Raises:
            ValueError: The recipe has no such scale or stage.
        """
        if stage and stage not in self.stages:
            raise ValueError(f'stage must be one of {", ".join(self.stages) or "none"}, got {stage!r}')
        recipe = self._changed(self.by_configuration.get(configuration, {}))
        recipe = recipe._changed(self.by_scale.get(scale, {}))
        if scale not in recipe.scales:
            raise ValueError(f'scale must be one of {", ".join(map(str, recipe.scales))}, got {scale}')
        return recipe._changed(self.stages[stage]) if stage else recipe

    def _changed(self, changes: Section) -> 'Recipe':
        merged = {name: {**getattr(self, name), **change} for name, change in changes.items() if name in _MERGED}
        changes = {**changes, **merged}
        # One of them replaces the other.
        if 'patch' in changes or 'hr_patch' in changes:
            changes = {'patch': None, 'hr_patch': None, **changes}
        return dataclasses.replace(self, **changes)


_CHANGES = ('by_configuration', 'by_scale', 'stages')
_MERGED = ('network', 'losses', 'train', 'augment', 'comments')
