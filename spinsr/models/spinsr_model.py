"""SRModel for long trainings: mixed precision, clipping, accumulation, checkpoints that a crash cannot spoil."""

import contextlib
import inspect
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from basicsr.losses import build_loss
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.data import DataLoader

from spinsr import convert
from spinsr.analysis import superpixels
from spinsr.archs.spin_arch import SPIN
from spinsr.inference import upscale as upscaling
from spinsr.training import checkpoints, distillation, distributed, freezing, muon, network_hooks, progressive_learning
from spinsr.training.grad_checkpointing import recompute_blocks
from spinsr.training.sampling import cut_patches, shuffle_channels
from spinsr.utils.errors import OptionError, TrainingError
from spinsr.utils.validation import ABOVE_0, FLAG, NAMES, SECTION, as_whole, one_of, whole

# Sections of train whose losses SRModel does not have.
_MORE_LOSSES = ('fft_opt', 'tv_opt', 'contrastive_opt', 'distill_opt')
# The options of BasicSR's schedulers, as they call them.
_SCHEDULE = ('milestones', 'gamma', 'restarts', 'restart_weights', 'periods', 'cumulative_period', 'eta_min')
# Validation pictures that a set sends to TensorBoard.
_PICTURES = 4


@MODEL_REGISTRY.register()
class SpinsrModel(SRModel):
    """BasicSR's SRModel, with what a training of several days needs. By default it computes what SRModel computes.

    One exception: tensors that a file leaves out (`strict_load_g: false`) start with the same values in the EMA as in
    the network. SRModel's EMA starts with other random numbers and keeps part of them for thousands of iterations.

    Options in addition to SRModel's, with their defaults:

    - `train: precision: fp32`: bf16 or fp16 (with loss scaling) by autocast; weights and loss stay in float32.
    - `train: grad_clip: ~`: the largest norm of the gradient of all weights together.
    - `train: accumulate: 1`: the batch goes through the network in so many parts, and their gradients are added.
    - `train: max_nonfinite: 10`: an iteration whose loss or gradient is not finite leaves weights and EMA as they are;
      after so many in a row training stops.
    - `train: compile: false`, `train: channels_last: false`.
    - `train: recompute: false`: blocks are computed once more for the gradient, which takes less memory and more time.
    - `train: optim_g: type:` takes AdamW and Muon (`spinsr.training.muon`), too.
    - `train: fft_opt: ~`, `train: tv_opt: ~`, `train: contrastive_opt: ~`: a loss each beside `pixel_opt` and
      `perceptual_opt`, of result and target (FFTLoss), of the result alone (WeightedTVLoss), and of result, target and
      LR image (ContrastiveLoss).
    - Losses of further outputs of a network, in the sections that it declares (`spinsr.training.network_hooks`).
    - `train: freeze_params: ~`, `train: freeze_iters: ~`: names of modules or parameters, or patterns of either, which
      stay as they are for so many iterations, the first ones.
    - `train: shuffle_channels: false`: the colours of every image, of result and targets alike, in random order.
    - `train: distill_opt: ~`: a loss of the result and the teacher's, which the data set gives (DistillationDataset);
      `pixel_opt` may then be absent, and so may HR (`read_gt: false` of the data set).
    - `train: distill_iters: ~`: `distill_opt` counts in so many iterations only, the first ones.
    - `train: pixel_after: 0`: `pixel_opt` counts after so many iterations only.
    - `datasets: train: gt_sizes: ~`, `iters: ~`, `mini_batch_sizes: ~`: patches that grow, each size for so many
      iterations, and, where the third is given, with so many images on each device.
    - `val: tile: ~`, `val: self_ensemble: false`: as for `spinsr.inference.upscale.super_resolve`.
    - `val: superpixels: ~`: a block of SPIN, from 0, whose superpixels go to TensorBoard with the validation pictures.
    - `logger: keep_last: ~`: as many checkpoints stay, older ones are deleted.
    - `path: pretrain_network_g` may be a file of the authors of SPIN, SAN or RCAN.

    Args:
        opt: BasicSR's options.

    Raises:
        OptionError: An option has a value that is not allowed, or a file does not fit the network.
    """

    # Section of train -> what its loss is called with.
    CALLS: ClassVar[dict[str, tuple[str, ...]]] = {
        'pixel_opt': ('output', 'gt'),
        'fft_opt': ('output', 'gt'),
        'tv_opt': ('output',),
        'contrastive_opt': ('output', 'gt', 'lq'),
        'distill_opt': ('output', 'teacher'),
    }
    # Optimizer that is not BasicSR's or torch's -> the module that builds it and knows what its options may be.
    OPTIMIZERS: ClassVar[dict[str, Any]] = {'Muon': muon}
    # What the network files of a checkpoint begin with.
    LABELS = ('net_g',)
    # What it reads of `datasets: train`, beside the data set and its loader.
    OF_TRAINING_SET = progressive_learning.KEYS
    # Section -> option -> what it may be; each is an attribute of the model.
    OPTIONS: ClassVar[dict[str, dict[str, Any]]] = {
        'train': {
            'precision': one_of(*upscaling.PRECISIONS),
            'grad_clip': ABOVE_0,
            'accumulate': whole(1, default=1),
            'max_nonfinite': whole(1, default=10),
            'compile': FLAG,
            'channels_last': FLAG,
            'recompute': FLAG,
            'freeze_params': NAMES,
            'freeze_iters': whole(1, None),
            'shuffle_channels': FLAG,
            **dict.fromkeys(_MORE_LOSSES, SECTION),
            'distill_iters': whole(1, None),
            'pixel_after': whole(0, default=0),
        },
        'val': {'tile': whole(upscaling.SMALLEST_TILE, None), 'self_ensemble': FLAG, 'superpixels': whole(0, None)},
        'logger': {'keep_last': whole(1, None)},
    }

    precision: str
    grad_clip: float | None
    accumulate: int
    max_nonfinite: int
    compile: bool
    channels_last: bool
    recompute: bool
    freeze_params: list[str] | None
    freeze_iters: int | None
    shuffle_channels: bool
    distill_opt: dict[str, Any] | None
    distill_iters: int | None
    pixel_after: int
    tile: int | None
    self_ensemble: bool
    superpixels: int | None
    keep_last: int | None
    # Of BasicSR's, as options and batches set them.
    cri_pix: Any
    cri_perceptual: Any

    def __init__(self, opt: dict[str, Any]) -> None:
        for section, rules in self.OPTIONS.items():
            for name, rule in rules.items():
                value = (opt.get(section) or {}).get(name, rule.default)
                value = as_whole(value) if rule.is_whole else value
                if not rule.holds(value):
                    raise OptionError(f'{section}:{name} must be {rule.wanted}, got {value!r}')
                setattr(self, name, value)
        dataset = (opt.get('datasets') or {}).get('train') or {}
        self.stages: list[progressive_learning.Stage] = []
        if progressive_learning.grows(dataset):
            scale = dataset.get('scale') or opt.get('scale', 1)
            if problem := progressive_learning.problem(dataset, scale, self.accumulate):
                raise OptionError('datasets:train:{}: {}'.format(*problem))
            self.stages = progressive_learning.stages(dataset)
        # What the data loader needs to continue, set by spinsr.train: it is saved with every state.
        self.place: dict[str, int] = {}
        self.nonfinite = self.nonfinite_in_a_row = 0
        self.best_metric_results: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        # Of each image that is sent to TensorBoard: name -> picture, (3, H, W), in [0, 1].
        self._pictures: list[dict[str, Tensor]] = []
        self._draws = False
        self._files: list[str] = []
        self._stage: progressive_learning.Stage | None = None
        device = 'cuda' if opt['num_gpu'] != 0 else 'cpu'
        self.scaler = torch.amp.GradScaler(device, enabled=self.precision == 'fp16')
        super().__init__(opt)
        if self.superpixels is not None:
            self._check_superpixels(self.superpixels)

    # Network, losses and optimizer

    def init_training_settings(self) -> None:
        """Builds what training needs: SRModel's, and the losses that it does not have."""
        if problem := distillation.problem(self.opt['train']):
            raise OptionError('train:{}: {}'.format(*problem))
        sections = {name: getattr(self, name) for name in _MORE_LOSSES} | self._sections_of_network()
        self.more_losses = {name: build_loss(part).to(self.device) for name, part in sections.items() if part}
        pixel_opt = self.opt['train'].get('pixel_opt')
        if not pixel_opt and self.distill_opt:
            # SRModel needs a loss that it knows.
            self.opt['train']['pixel_opt'] = self.distill_opt
        super().init_training_settings()
        self.opt['train']['pixel_opt'] = pixel_opt
        if not pixel_opt:
            self.cri_pix = None
        network = type(self.get_bare_model(self.net_g))
        for name, criterion in {'pixel_opt': self.cri_pix, **self.more_losses}.items():
            if criterion and (problem := loss_problem(type(self), name, type(criterion), network)):
                raise OptionError(f'train:{name}: {problem}')
        self.frozen = self._frozen_parameters()

    def _sections_of_network(self) -> dict[str, Any]:
        """The sections of train whose losses need more than the image of the network, and set `calls`."""
        of_network = network_hooks.losses(type(self.get_bare_model(self.net_g)))
        self.calls = {**self.CALLS, **of_network}
        sections = {name: self.opt['train'].get(name) for name in of_network}
        for name, part in sections.items():
            if not SECTION.holds(part):
                raise OptionError(f'train:{name} must be {SECTION.wanted}, got {part!r}')
        self.auxiliary = any(sections.values())
        return sections

    def _frozen_parameters(self) -> list[nn.Parameter]:
        parameters, train = dict(self.get_bare_model(self.net_g).named_parameters()), self.opt['train']
        if problem := freezing.problem(train, parameters):
            raise OptionError('train:{}: {}'.format(*problem))
        return [parameters[name] for name in freezing.frozen(train, parameters)]

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Moves a network to the device, as the options ask, and wraps it for several GPUs or processes."""
        net = net.to(self.device)
        if self.channels_last:
            net = net.to(memory_format=torch.channels_last)
        if self.is_train and self.recompute:
            try:
                recompute_blocks(net)
            except ValueError as error:
                raise OptionError(f'train:recompute: {error}') from error
        if self.is_train and self.compile:
            # A graph for each size of the patches: one for all sizes fails in torch 2.14's compiler (RCAN's gradient).
            net.compile(dynamic=False)
        if self.opt['dist']:
            return DistributedDataParallel(
                net,
                device_ids=[torch.cuda.current_device()] if self.device.type == 'cuda' else None,
                find_unused_parameters=self.opt.get('find_unused_parameters', False),
            )
        return DataParallel(net) if self.opt['num_gpu'] > 1 else net

    def print_network(self, net: nn.Module) -> None:
        """Logs the size of a network; its structure, hundreds of lines of it, at the level DEBUG."""
        bare = self.get_bare_model(net)
        count = sum(parameter.numel() for parameter in bare.parameters())
        get_root_logger().info(f'Network: {type(bare).__name__}, with parameters: {count:,d}')
        get_root_logger().debug(str(bare))

    def learning_networks(self) -> list[nn.Module]:
        """The networks whose weights the optimizer changes, net_g first."""
        return [self.net_g]

    def setup_optimizers(self) -> None:
        """One optimizer for all networks that learn: BasicSR's, or Muon."""
        options = self.opt['train']['optim_g']
        networks = [self.get_bare_model(net) for net in self.learning_networks()]
        if options.get('type') != 'Muon':
            super().setup_optimizers()
            for net in networks[1:]:
                self.optimizer_g.add_param_group({'params': list(net.parameters())})
            return
        named = [item for net in networks for item in net.named_parameters()]
        logger = get_root_logger()
        for name, parameter in named:
            if not parameter.requires_grad:
                logger.warning(f'Params {name} will not be optimized.')
        self.optimizer_g = muon.build(named, options)
        self.optimizers.append(self.optimizer_g)
        for group in self.optimizer_g.param_groups:
            words = f'{len(group["params"])} tensors, {sum(p.numel() for p in group["params"]):,d} parameters'
            logger.info(f'{"Muon" if group["use_muon"] else "Adam"}: {words}, learning rate {group["lr"]}')

    def get_optimizer(self, optim_type: str, params: list[nn.Parameter], lr: float, **kwargs: Any) -> Any:
        """Adam as BasicSR, and AdamW."""
        if optim_type == 'AdamW':
            return torch.optim.AdamW(params, lr, **kwargs)
        return super().get_optimizer(optim_type, params, lr, **kwargs)

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        """Loads a file into a network; the authors' files of SPIN, SAN and RCAN are converted first.

        Args:
            net: The network.
            load_path: The file: BasicSR's, or the authors'.
            strict: Every name and shape must agree; else what does not agree is left as it is.
            param_key: Which state dict of BasicSR's file; 'params' if the file has none of this name.

        Raises:
            OptionError: The file is not a checkpoint of this network.
        """
        bare = self.get_bare_model(net)
        arch = type(bare).__name__
        keys = (key for key, value in self.opt['path'].items() if value == load_path)
        where = next((key for key in keys if key.startswith('pretrain_network')), 'pretrain_network_g')
        format = convert.find_format(type(bare))
        logger = get_root_logger()
        try:
            checkpoints.verify(load_path)
            checkpoint = convert.read_checkpoint(load_path)
            if not isinstance(checkpoint, Mapping):
                raise TypeError(f'a checkpoint must be a mapping, got {type(checkpoint).__name__}')
            if param_key not in checkpoint and 'params' in checkpoint:
                logger.info(f'{load_path} has no {param_key}: its params are loaded.')
                param_key = 'params'
            state = checkpoint.get(param_key, checkpoint)
            names = bare.state_dict().keys()
            state = _state_dict(state, format.name, strict) if format else convert.unwrap(state, names.__eq__)
            logger.info(f'Loading {arch} model from {load_path}, with param key: [{param_key}].')
            self._print_different_keys_loading(bare, state, strict)
            if net is getattr(self, 'net_g_ema', None):
                # What the file leaves out begins as in the network, not as other random numbers.
                bare.load_state_dict(self.get_bare_model(self.net_g).state_dict())
            bare.load_state_dict(state, strict=strict)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            reason = ' '.join(str(error).split())
            raise OptionError(f'path:{where}: {load_path} cannot be loaded into {arch}: {reason}') from error

    def _check_superpixels(self, block: int) -> None:
        net = self.get_bare_model(self.net_g)
        blocks = len(net.blocks) if isinstance(net, SPIN) else 0
        if blocks and net.conv_first.in_channels != 3:
            raise OptionError(f'val:superpixels must be of RGB images, got num_in_ch {net.conv_first.in_channels}')
        if block >= blocks:
            has = f'has blocks 0 to {blocks - 1}' if blocks else 'is not a SPIN'
            raise OptionError(f'val:superpixels must be a block of SPIN, got {block}: {type(net).__name__} {has}')

    # An iteration

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Takes a batch: `lq`, `gt`, the names of the files that they came from and, for `distill_opt`, `teacher`."""
        if hasattr(self, 'gt'):
            del self.gt  # BasicSR keeps that of the batch before, and compares with it
        super().feed_data(data)
        self.targets = {'gt': self.gt} if 'gt' in data else {}
        if self.is_train and self.distill_opt and 'teacher' in data:
            self.targets['teacher'] = data['teacher'].to(self.device)
        if self.channels_last:
            self.lq = self.lq.contiguous(memory_format=torch.channels_last)
        self._files = list(data.get('lq_path', ()))

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of the optimizer on the batch that was fed.

        Args:
            current_iter: The iteration, counted from 1.

        Raises:
            OptionError: The batch cannot be divided by `accumulate`, or lacks what a loss needs.
            TrainingError: `max_nonfinite` iterations in a row were not finite.
        """
        self._check_targets()
        network_hooks.begin_iteration(self.get_bare_model(self.net_g), current_iter)
        if self.stages:
            self._take_stage(current_iter)
        if self.shuffle_channels:
            self._shuffle_channels(current_iter)
        self.optimizer_g.zero_grad()
        losses = self._backward(current_iter)
        if self.frozen and current_iter <= (self.freeze_iters or 0):
            for parameter in self.frozen:
                # Not requires_grad = False: DistributedDataParallel waits for the gradient of every parameter.
                parameter.grad = None
        self.scaler.unscale_(self.optimizer_g)
        norm = self._gradient_norm()
        finite = torch.stack([norm, *losses.values()]).isfinite().all()
        # An overflow of the scaled gradient is how fp16 finds its scale; it is an ordinary step that the scaler omits.
        searching = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        regular = torch.stack(list(losses.values())).isfinite().all() if searching else finite
        regular = distributed.all_true(regular)
        if regular:
            self.nonfinite_in_a_row = 0
            self.scaler.step(self.optimizer_g)
        else:
            self._skip(current_iter)
        self.scaler.update()
        self.log_dict = self.reduce_loss_dict(losses)
        # The loss of another process may be what is not finite.
        if self.ema_decay > 0 and regular and finite:
            self.model_ema(decay=self.ema_decay)

    def _check_targets(self) -> None:
        words = {'gt': 'HR', 'teacher': 'the outputs of a teacher, as DistillationDataset gives them'}
        for section, names in {**self.calls, 'perceptual_opt': ('output', 'gt')}.items():
            for name in words.keys() & set(names) - self.targets.keys():
                if self.opt['train'].get(section):
                    kind = self.opt['datasets']['train']['type']
                    raise OptionError(f'train:{section} needs {words[name]}; datasets:train ({kind}) gives none')

    def _take_stage(self, current_iter: int) -> None:
        """Leaves of the batch what the stage of an iteration wants."""
        stage = [one for one in self.stages if one.first <= current_iter][-1]
        if stage != self._stage:
            words = f'patches of {stage.gt_size}x{stage.gt_size} (HR), {stage.batch} on each device'
            get_root_logger().info(f'Iteration {current_iter}: {words}, since iteration {stage.first}.')
            self._stage = stage
        devices = len(self.lq) // self.opt['datasets']['train']['batch_size_per_gpu']
        images, seed = devices * stage.batch, self.opt['manual_seed']
        targets = list(self.targets.values())
        self.lq, targets = cut_patches(self.lq, targets, stage.gt_size, images, seed, current_iter)
        self.targets = dict(zip(self.targets, targets, strict=True))
        if 'gt' in self.targets:
            self.gt = self.targets['gt']
        self._files = self._files[:images]

    def _shuffle_channels(self, current_iter: int) -> None:
        images = [self.lq, *self.targets.values()]
        self.lq, *targets = shuffle_channels(images, self.opt['manual_seed'], self.opt['rank'], current_iter)
        self.targets = dict(zip(self.targets, targets, strict=True))
        if 'gt' in self.targets:
            self.gt = self.targets['gt']

    def _backward(self, current_iter: int) -> OrderedDict[str, Tensor]:
        """Adds up the gradients of the parts of the batch, and returns the losses of the whole."""
        if len(self.lq) % self.accumulate:
            raise OptionError(
                f'the batch must be divisible by train:accumulate, got {len(self.lq)} images and {self.accumulate}'
            )
        batch = {'lq': self.lq, **self.targets}
        chunks = {name: images.chunk(self.accumulate) for name, images in batch.items()}
        parts = [dict(zip(chunks, part, strict=True)) for part in zip(*chunks.values(), strict=True)]
        total: OrderedDict[str, Tensor] = OrderedDict()
        for index, part in enumerate(parts):
            with self._no_sync(index < len(parts) - 1):
                with self._autocast():
                    output = self.net_g(part['lq'], auxiliary=True) if self.auxiliary else self.net_g(part['lq'])
                output, more = output if self.auxiliary else (output, {})
                more = {name: value.float() for name, value in more.items()}
                losses = self._losses({'output': output.float(), **more, **part}, current_iter)
                self.scaler.scale(cast(Tensor, sum(losses.values()))).backward()
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + loss.detach()
        self.output = output.detach()
        return total

    def _losses(self, given: Mapping[str, Tensor], current_iter: int) -> dict[str, Tensor]:
        """The losses of a part, weighted so that those of all parts add up to the loss of the batch."""
        losses, train = {}, self.opt['train']
        output, gt, lq = given['output'], given.get('gt'), given['lq']
        if distillation.compares_with_hr(train, current_iter):
            losses['l_pix'] = self._pixel_loss(output, given['gt'], lq) * self._share(self.cri_pix)
        if self.cri_perceptual:
            share = self._share(self.cri_perceptual)
            for name, loss in zip(('l_percep', 'l_style'), self.cri_perceptual(output, gt), strict=True):
                if loss is not None:
                    losses[name] = loss * share
        arguments: dict[str, Any] = {**given, 'iteration': current_iter}
        for name, criterion in self.more_losses.items():
            if name == 'distill_opt' and not distillation.distills(train, current_iter):
                continue
            loss = criterion(*(arguments[argument] for argument in self.calls[name]))
            losses[f'l_{name.removesuffix("_opt")}'] = loss * self._share(criterion)
        return losses

    def _pixel_loss(self, output: Tensor, gt: Tensor, lq: Tensor) -> Tensor:
        return self.cri_pix(output, gt)

    def _share(self, criterion: nn.Module) -> float:
        if getattr(criterion, 'reduction', 'mean') == 'sum':
            # DistributedDataParallel takes the mean over the processes.
            return float(self.opt['world_size']) if self.opt['dist'] else 1.0
        return 1 / self.accumulate

    def _no_sync(self, last_comes_later: bool) -> contextlib.AbstractContextManager:
        """Gradients are exchanged between processes with the last part only."""
        if last_comes_later and isinstance(self.net_g, DistributedDataParallel):
            return self.net_g.no_sync()
        return contextlib.nullcontext()

    def _autocast(self) -> contextlib.AbstractContextManager:
        dtype = upscaling.PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    def _gradient_norm(self) -> Tensor:
        """The norm of the whole gradient, before it is clipped."""
        gradients = [p.grad for group in self.optimizer_g.param_groups for p in group['params'] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.grad_clip is not None:
            parameters = [p for group in self.optimizer_g.param_groups for p in group['params']]
            torch.nn.utils.clip_grads_with_norm_(parameters, self.grad_clip, norm)
        return norm

    def _skip(self, current_iter: int) -> None:
        self.nonfinite += 1
        self.nonfinite_in_a_row += 1
        get_root_logger().warning(
            f'iteration {current_iter}: loss or gradient not finite, the step is skipped '
            f'({self.nonfinite_in_a_row} in a row, {self.nonfinite} in all); images: {", ".join(self._files)}'
        )
        if self.nonfinite_in_a_row >= self.max_nonfinite:
            raise TrainingError(
                f'loss or gradient was not finite in {self.max_nonfinite} iterations in a row, the last one '
                f'{current_iter}; a lower learning rate or train:grad_clip may help, the last checkpoint is as it was'
            )

    # Validation

    def test(self) -> None:
        """Puts the fed image through the EMA of the network, or the network if it has no EMA; never compiles."""
        with torch.compiler.set_stance('force_eager') if self.compile else contextlib.nullcontext():
            self.output = upscaling.super_resolve(
                self.lq, self._validated, tile=self.tile, self_ensemble=self.self_ensemble
            )

    @property
    def _validated(self) -> nn.Module:
        return self.net_g_ema if hasattr(self, 'net_g_ema') else self.get_bare_model(self.net_g)

    def _initialize_best_metric_results(self, dataset_name: str) -> None:
        """Begins the record of a data set, or continues that of the state: metrics may have been added since."""
        saved = self.best_metric_results.pop(dataset_name, {})
        super()._initialize_best_metric_results(dataset_name)
        record = self.best_metric_results[dataset_name]
        record.update((metric, best) for metric, best in saved.items() if metric in record)

    def validation(self, dataloader: DataLoader, current_iter: int, tb_logger: Any, save_img: bool = False) -> None:
        """Validates, and sends some pictures to TensorBoard; BasicSR counts one iteration too many after the last."""
        current_iter = min(current_iter, int(self.opt['train']['total_iter'])) if self.is_train else current_iter
        self._draws = self.is_train and bool(tb_logger)
        super().validation(dataloader, current_iter, tb_logger, save_img)
        dataset: Any = dataloader.dataset
        for pictures in self._pictures:
            for name, picture in pictures.items():
                tb_logger.add_image(f'{dataset.opt["name"]}/{name}', picture, current_iter)
        self._pictures = []

    def get_current_visuals(self) -> OrderedDict[str, Tensor]:
        """The fed image, the result and the target, on the CPU."""
        visuals = super().get_current_visuals()
        if self._draws and len(self._pictures) < _PICTURES:
            name = self._files[0].rpartition('/')[2] if self._files else str(len(self._pictures))
            pictures = {name: visuals['result'][0].clamp(0, 1)}
            if self.superpixels is not None:
                pictures |= self._draw_superpixels(name, visuals['lq'], self.superpixels)
            self._pictures.append(pictures)
        return visuals

    def _draw_superpixels(self, name: str, lq: Tensor, block: int) -> dict[str, Tensor]:
        """All pictures of the superpixels of (1, 3, H, W), or of a tile in its middle, and of its middle pixel."""
        image = (lq[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        if self.tile is not None:
            image = image[tuple(slice(max(size - self.tile, 0) // 2, None) for size in image.shape[:2])]
            image = image[: self.tile, : self.tile]
        found = superpixels.find_superpixels(image, self._validated, block)
        middle = image.shape[0] // 2, image.shape[1] // 2
        pictures = superpixels.draw(found, self.opt['scale'], middle, int(found.labels[middle]))
        # Without the numbers of pixel and superpixel: a picture keeps its name, whatever the network learns.
        return {
            f'{name}_{re.sub(r"_[0-9]+", "", key)}': torch.from_numpy(one).permute(2, 0, 1) / 255
            for key, one in pictures.items()
        }

    # Checkpoints

    def save(self, epoch: int, current_iter: int) -> None:
        """Writes a checkpoint: the network file, then the state, and deletes the oldest beyond `keep_last`.

        Args:
            epoch: The epoch.
            current_iter: The iteration; -1 for the network file `latest` alone.

        Raises:
            CheckpointError: It cannot be written; those before it are as they were.
        """
        super().save(epoch, current_iter)
        if self.keep_last is not None and current_iter != -1 and distributed.is_main():
            path = self.opt['path']
            checkpoints.prune(path['training_states'], path['models'], self.keep_last, self.LABELS, current_iter)

    @master_only
    def save_network(
        self,
        net: nn.Module | list[nn.Module],
        net_label: str,
        current_iter: int,
        param_key: str | list[str] = 'params',
    ) -> None:
        """Writes the state dicts of one or more networks to one file, as BasicSR names it."""
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        name = f'{net_label}_{"latest" if current_iter == -1 else current_iter}.pth'
        content = {key: _on_cpu(self.get_bare_model(net)) for net, key in zip(nets, keys, strict=True)}
        self._digests[name] = checkpoints.write(f'{self.opt["path"]["models"]}/{name}', content)

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Writes everything that training needs to continue, beside the network."""
        if current_iter == -1:
            return
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'scaler': self.scaler.state_dict(),
            'nonfinite': [self.nonfinite, self.nonfinite_in_a_row],
            'best_metric_results': _plain(self.best_metric_results),
            'seed': self.opt['manual_seed'],
            checkpoints.NETWORKS: {
                name: digest for name, digest in self._digests.items() if name.endswith(f'_{current_iter}.pth')
            },
            **self.place,
        }
        checkpoints.write(f'{self.opt["path"]["training_states"]}/{current_iter}.state', state)
        self._digests.clear()

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Takes up what a state holds; one that BasicSR wrote has the optimizers and schedulers only."""
        self._check_optimizers(resume_state['optimizers'])
        # The schedule is the option file's; what a state holds of it is how far it has come.
        own = [vars(scheduler).copy() for scheduler in self.schedulers]
        super().resume_training(resume_state)
        for scheduler, options in zip(self.schedulers, own, strict=True):
            changed = {
                key: options[key] for key in _SCHEDULE if key in options and getattr(scheduler, key) != options[key]
            }
            if changed:
                get_root_logger().warning(f'The schedule is not that of the state: {", ".join(changed)} changed.')
                vars(scheduler).update(changed)
        if resume_state.get('scaler'):
            self.scaler.load_state_dict(resume_state['scaler'])
        self.nonfinite, self.nonfinite_in_a_row = resume_state.get('nonfinite', (0, 0))
        self.best_metric_results = dict(resume_state.get('best_metric_results', {}))

    def _check_optimizers(self, saved: list[Mapping[str, Any]]) -> None:
        """Refuses the state of another optimizer, or of one whose groups have other sizes."""
        # BasicSR says where their numbers differ.
        for label, state, optimizer in zip(self.LABELS, saved, self.optimizers, strict=False):
            letter = label[-1]
            kind, groups = type(optimizer).__name__, state['param_groups']
            if problem := checkpoints.optimizer_problem(groups, kind):
                raise OptionError(f'train:optim_{letter}:type: {problem}')
            sizes = [[len(group['params']) for group in part] for part in (groups, optimizer.param_groups)]
            if sizes[0] != sizes[1]:
                where = f'train:optim_{letter}:adam:params' if kind == 'Muon' else f'network_{letter}'
                raise OptionError(
                    f'{where}: must be that of the state to resume, whose optimizer has groups of {sizes[0]} tensors, '
                    f'got {sizes[1]}'
                )


def loss_problem(model: type, name: str, loss: type[nn.Module], network: type | None = None) -> str:
    """Why a loss cannot stand in a section of train, '' where it can: it wants something that it is not given."""
    calls = {'pixel_opt': ('output', 'gt')} if model is SRModel else getattr(model, 'CALLS', {})
    if issubclass(model, SpinsrModel):
        calls = {**calls, **network_hooks.losses(network)}
    given = calls.get(name)
    if given is None:
        return ''
    wanted = list(inspect.signature(loss.forward).parameters.values())[1:]
    places = [p for p in wanted if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in places if p.default is p.empty]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in wanted)
    # Only results and targets are passed on without being asked for: anything else could be mistaken for a weight.
    enough = len(needed) if len(given) > 2 else len(places)
    if takes_any or len(needed) <= len(given) <= enough:
        return ''
    return f'{loss.__name__} needs {", ".join(needed)}, but {model.__name__} gives it {", ".join(given)}'


def _state_dict(state_dict: Mapping, arch: str, strict: bool) -> dict[str, Tensor]:
    try:
        return convert.convert_state_dict(state_dict, arch)
    except ValueError:
        if strict:
            raise
        # A warm start from a network with other parts: what has the same name is taken, as in BasicSR.
        return convert.unwrap(state_dict)


def _plain(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The best metrics without NumPy's numbers, which no weights_only file may hold."""
    return {
        dataset: {metric: {**best, 'val': float(best['val'])} for metric, best in record.items()}
        for dataset, record in results.items()
    }


def _on_cpu(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
