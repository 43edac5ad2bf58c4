"""The data loaders of a training, made so that it runs exactly total_iter iterations.

BasicSR rounds the iterations of an epoch up, but its loader drops the last batch; it leaves out that DataParallel takes
a batch for every GPU; and a data set smaller than a batch gives no iteration at all. On small data its training ends
early and says nothing.
"""

import math
from collections.abc import Mapping
from logging import Logger
from typing import Any

from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import DataLoader

from spinsr.option_files import OptionError

# With one batch an epoch, the loader's workers would start anew, with the same seed, for every iteration.
_BATCHES_WHEN_ENLARGED = 100


def create_train_val_dataloader(
    opt: dict[str, Any], logger: Logger, resume_state: Mapping[str, Any] | None = None
) -> tuple[DataLoader, EnlargedSampler, list[DataLoader], int, int]:
    """Builds the loaders as BasicSR's function of the same name does.

    Args:
        opt: BasicSR's options.
        logger: Where the statistics go.
        resume_state: The state that training goes on from; its data or batch may have been of another size.

    Returns:
        The training loader, its sampler, the validation loaders, the last epoch and total_iter: BasicSR's loop runs
        from the state's epoch (or 0) to the last epoch, that included.

    Raises:
        OptionError: If a data set is empty.
    """
    train_loader, train_sampler = _train_loader(opt, logger)
    val_loaders = []
    for phase, dataset_opt in opt['datasets'].items():
        if phase.partition('_')[0] == 'val':
            val_set = build_dataset(dataset_opt)
            if len(val_set) == 0:
                raise OptionError(f'datasets:{phase}: there is no image in {dataset_opt.get("dataroot_gt")}')
            val_loaders.append(
                build_dataloader(
                    val_set, dataset_opt, num_gpu=opt['num_gpu'], dist=opt['dist'], seed=opt['manual_seed']
                )
            )
            logger.info(f'Number of val images/folders in {dataset_opt["name"]}: {len(val_set)}')

    total_iters = int(opt['train']['total_iter'])
    total_epochs = last_epoch(len(train_loader), total_iters, resume_state)
    logger.info(
        'Training statistics:'
        f'\n\tNumber of train images: {len(train_loader.dataset)}'
        f'\n\tBatch size: {train_loader.batch_size} x {opt["world_size"]} process(es)'
        f'\n\tIterations per epoch: {len(train_loader)}'
        f'\n\tTotal epochs: {total_epochs + 1}; iters: {total_iters}.'
    )
    return train_loader, train_sampler, val_loaders, total_epochs, total_iters


def last_epoch(iters_per_epoch: int, total_iters: int, resume_state: Mapping[str, Any] | None = None) -> int:
    """The number of the last epoch that training needs, counted from 0.

    A resumed training starts its epoch anew, so what is left is counted from the state's epoch.

    Example:
        >>> last_epoch(10, 100), last_epoch(10, 101), last_epoch(10, 100, {'epoch': 7, 'iter': 75})
        (9, 10, 9)
    """
    epoch, done = (resume_state['epoch'], resume_state['iter']) if resume_state else (0, 0)
    return epoch + math.ceil(max(total_iters - done, 0) / iters_per_epoch) - 1


def _train_loader(opt: dict[str, Any], logger: Logger) -> tuple[DataLoader, EnlargedSampler]:
    dataset_opt = opt['datasets']['train']
    if opt['num_gpu'] == 0:
        dataset_opt['pin_memory'] = False
        if dataset_opt.get('prefetch_mode') == 'cuda':
            logger.info('prefetch_mode: cuda needs a GPU; the plain loader is used.')
            dataset_opt['prefetch_mode'] = None
    train_set = build_dataset(dataset_opt)
    if len(train_set) == 0:
        raise OptionError(f'datasets:train: there is no image in {dataset_opt.get("dataroot_gt")}')
    ratio = enlarge_ratio(opt, len(train_set))
    if ratio != (dataset_opt.get('dataset_enlarge_ratio') or 1):
        logger.info(f'The {len(train_set)} training images are fewer than a batch: dataset_enlarge_ratio is {ratio}.')
    sampler = EnlargedSampler(train_set, opt['world_size'], opt['rank'], ratio)
    loader = build_dataloader(
        train_set,
        dataset_opt,
        num_gpu=opt['num_gpu'],
        dist=opt['dist'],
        sampler=sampler,
        seed=opt['manual_seed'],
    )
    return loader, sampler


def enlarge_ratio(opt: Mapping[str, Any], num_images: int) -> float:
    """How often an epoch takes every image: dataset_enlarge_ratio, more where that gives less than one batch.

    Args:
        opt: BasicSR's options.
        num_images: The size of the training set.
    """
    dataset_opt = opt['datasets']['train']
    ratio = dataset_opt.get('dataset_enlarge_ratio') or 1
    # DataParallel splits a batch of this size over the GPUs; with a launcher every process loads its own.
    batch = dataset_opt['batch_size_per_gpu'] * (1 if opt['dist'] else max(opt['num_gpu'], 1))
    if math.ceil(num_images * ratio / opt['world_size']) >= batch:
        return ratio
    return math.ceil(batch * opt['world_size'] * _BATCHES_WHEN_ENLARGED / num_images)
