"""The data loaders of a training, made so that it runs exactly total_iter iterations and can be entered anywhere.

BasicSR rounds the iterations of an epoch up, but its loader drops the last batch; it leaves out that DataParallel takes
a batch for every GPU; and a data set smaller than a batch gives no iteration at all. On small data its training ends
early and says nothing. A resumed training restarts its epoch, with the crops of the first workers.
"""

import math
from collections.abc import Mapping, Sized
from logging import Logger
from typing import Any, cast

import torch
from basicsr.data import build_dataloader, build_dataset
from torch.utils.data import DataLoader

from spinsr.training.sampling import ExactDataset, PlaceSampler
from spinsr.utils.errors import OptionError

# With one batch an epoch, the loader's workers would restart for every iteration.
_BATCHES_WHEN_ENLARGED = 100


def create_train_val_dataloader(
    opt: dict[str, Any], logger: Logger, resume_state: Mapping[str, Any] | None = None
) -> tuple[DataLoader, PlaceSampler, list[DataLoader], int, int]:
    """Builds the loaders as BasicSR's function of the same name does.

    Args:
        opt: BasicSR's options.
        logger: Where the statistics go.
        resume_state: The state from which training continues; its data or batch may have been of another size. Training
            enters the epoch where its `samples` say, or at the start where BasicSR wrote it.

    Returns:
        The training loader, its sampler, the validation loaders, the last epoch and total_iter: BasicSR's loop runs
        from the state's epoch (or 0) to the last epoch, that included.

    Raises:
        OptionError: If a data set is empty.
    """
    train_loader, train_sampler = _train_loader(opt, logger)
    if resume_state:
        train_sampler.enter(resume_state['epoch'], resume_state.get('samples', 0))
    val_loaders = []
    for phase, dataset_opt in opt['datasets'].items():
        if phase.partition('_')[0] == 'val':
            val_set = ExactDataset(build_dataset(dataset_opt), opt['manual_seed'])
            if len(val_set) == 0:
                raise OptionError(f'datasets:{phase}: no image found in {dataset_opt.get("dataroot_gt")}')
            val_loaders.append(_without_generator(build_dataloader(val_set, dataset_opt, num_gpu=opt['num_gpu'])))
            logger.info(f'Number of val images/folders in {dataset_opt["name"]}: {len(val_set)}')

    total_iters = int(opt['train']['total_iter'])
    done = resume_state['iter'] if resume_state else 0
    total_epochs = last_epoch(train_sampler, total_iters - done)
    logger.info(
        'Training statistics:'
        f'\n\tNumber of train images: {len(cast(Sized, train_loader.dataset))}'
        f'\n\tBatch size: {train_loader.batch_size} x {opt["world_size"]} process(es)'
        f'\n\tIterations per epoch: {len(train_loader)}'
        f'\n\tTotal epochs: {total_epochs + 1}; iters: {total_iters}.'
    )
    return train_loader, train_sampler, val_loaders, total_epochs, total_iters


def last_epoch(sampler: PlaceSampler, iters: int) -> int:
    """The number of the last epoch that training needs, counted from 0, one before the current where it needs none.

    Args:
        sampler: Stands in the epoch, and at the position, where training continues.
        iters: Iterations that are to be done.
    """
    rest = iters - sampler.batches_left()
    if iters <= 0:
        return sampler.epoch - 1
    return sampler.epoch + math.ceil(max(rest, 0) / sampler.batches)


def _train_loader(opt: dict[str, Any], logger: Logger) -> tuple[DataLoader, PlaceSampler]:
    dataset_opt = opt['datasets']['train']
    if opt['num_gpu'] == 0:
        dataset_opt['pin_memory'] = False
        if dataset_opt.get('prefetch_mode') == 'cuda':
            logger.info('prefetch_mode: cuda needs a GPU; the plain loader is used.')
            dataset_opt['prefetch_mode'] = None
    if dataset_opt.get('prefetch_mode') == 'cpu':
        # In its thread an error of the data ends nothing: training waits for the next batch for ever.
        logger.info('prefetch_mode: cpu hides errors in the data; the plain loader is used, its workers read ahead.')
        dataset_opt['prefetch_mode'] = None
    if dataset_opt['num_worker_per_gpu'] == 0:
        dataset_opt['persistent_workers'] = False
    train_set = ExactDataset(build_dataset(dataset_opt), opt['manual_seed'])
    if len(train_set) == 0:
        raise OptionError(f'datasets:train: no image found in {dataset_opt.get("dataroot_gt")}')
    ratio = enlarge_ratio(opt, len(train_set))
    if ratio != (dataset_opt.get('dataset_enlarge_ratio') or 1):
        logger.info(f'The {len(train_set)} training images are fewer than a batch: dataset_enlarge_ratio is {ratio}.')
    sampler = PlaceSampler(train_set, batch_of_process(opt), opt['manual_seed'], opt['world_size'], opt['rank'], ratio)
    loader = build_dataloader(
        train_set, dataset_opt, num_gpu=opt['num_gpu'], dist=opt['dist'], sampler=sampler, seed=opt['manual_seed']
    )
    return _without_generator(loader), sampler


def _without_generator(loader: DataLoader) -> DataLoader:
    """Gives a loader a generator of its own: it draws a seed at every start, which must not move the network's."""
    loader.generator = torch.Generator().manual_seed(0)
    return loader


def batch_of_process(opt: Mapping[str, Any]) -> int:
    """Images that one process takes an iteration; DataParallel splits them over its GPUs.

    Args:
        opt: BasicSR's options.
    """
    return opt['datasets']['train']['batch_size_per_gpu'] * (1 if opt['dist'] else max(opt['num_gpu'], 1))


def enlarge_ratio(opt: Mapping[str, Any], num_images: int) -> float:
    """How often an epoch takes every image: dataset_enlarge_ratio, more where that gives less than one batch.

    Args:
        opt: BasicSR's options.
        num_images: The size of the training set.
    """
    dataset_opt = opt['datasets']['train']
    ratio = dataset_opt.get('dataset_enlarge_ratio') or 1
    batch = batch_of_process(opt) * opt['world_size']
    if math.ceil(num_images * ratio) >= batch:
        return ratio
    return math.ceil(batch * _BATCHES_WHEN_ENLARGED / num_images)
