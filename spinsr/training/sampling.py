"""Training samples that depend on the seed, the epoch and their position in it, and on nothing else.

BasicSR seeds the workers of its loader: which crop an image gets depends on the worker that reads it, is the same in
every epoch, and changes when training is resumed. Here the generators are seeded for every sample by itself, so any
number of workers and processes sees the same samples, and an epoch can be entered in its middle.
"""

from collections.abc import Iterator, Sequence, Sized
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from spinsr import compat

compat.install()

from basicsr.data.paired_image_dataset import PairedImageDataset  # noqa: E402
from basicsr.data.single_image_dataset import SingleImageDataset  # noqa: E402
from basicsr.utils import FileClient  # noqa: E402

from spinsr.data import image_file  # noqa: E402
from spinsr.utils.errors import DataError  # noqa: E402
from spinsr.utils.random_state import seeded  # noqa: E402

# Seeds of samples are mixed of (seed, epoch, position). A fourth number, above 0, keeps others apart: that of the
# networks is in spinsr.train.
_OF_PATCHES = 2
_OF_CHANNELS = 3


class Place(NamedTuple):
    """Where a sample stands: what the sampler gives to the data set in place of a bare index."""

    epoch: int
    position: int
    index: int


class PlaceSampler(Sampler[Place]):
    """The places of one process, epoch by epoch, in whole batches of all processes.

    The order of an epoch is a random permutation of `size` images, each taken `ratio` times; batch i of all processes
    together is positions i * batch * num_replicas and on, and what is left at the end of an epoch is dropped.

    Args:
        data: What has the images.
        batch: Images of a batch of one process.
        seed: The training's seed.
        num_replicas: Processes.
        rank: This process.
        ratio: How often an epoch takes every image.
    """

    def __init__(
        self, data: Sized, batch: int, seed: int, num_replicas: int = 1, rank: int = 0, ratio: float = 1
    ) -> None:
        self.size = len(data)
        self.batch, self.seed, self.num_replicas, self.rank = batch, seed, num_replicas, rank
        self.total = int(np.ceil(self.size * ratio))
        self.epoch = 0
        self._entered = (0, 0)

    @property
    def batches(self) -> int:
        """Batches of a whole epoch."""
        return self.total // (self.batch * self.num_replicas)

    def enter(self, epoch: int, position: int) -> None:
        """Begins at a position of an epoch, all processes counted; later epochs begin at 0."""
        self.epoch = epoch
        self._entered = (epoch, position)

    def set_epoch(self, epoch: int) -> None:
        """What BasicSR's loop calls at the start of an epoch."""
        self.epoch = epoch

    @property
    def start(self) -> int:
        """The position at which the current epoch begins."""
        epoch, position = self._entered
        return position if epoch == self.epoch else 0

    def batches_left(self) -> int:
        """Batches from the start of the current epoch to its end."""
        return max(self.total - self.start, 0) // (self.batch * self.num_replicas)

    def __len__(self) -> int:
        return self.batches * self.batch

    def __iter__(self) -> Iterator[Place]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        order = torch.randperm(self.total, generator=generator).tolist()
        stop = self.start + self.batches_left() * self.batch * self.num_replicas
        for position in range(self.start + self.rank, stop, self.num_replicas):
            yield Place(self.epoch, position, order[position] % self.size)


class ExactDataset(Dataset):
    """A data set of BasicSR, or of another plugin, whose samples are reproducible and checked.

    Args:
        dataset: The data set; its attributes are this one's too.
        seed: The training's seed.

    Raises:
        DataError: From `[place]`: a file or key that is missing or damaged, images that do not fit each other or the
            crop, values that are not finite. The message names the file or key.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        if isinstance(dataset, PairedImageDataset):
            # BasicSR lists a folder in the order of the file system, which is another on another machine.
            dataset.paths.sort(key=lambda path: path['gt_path'])

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, place: Place | int) -> Any:
        """The sample of a place of the sampler, or, in validation, of an index."""
        self._open()
        if not isinstance(place, Place):
            return self._checked(place)
        with seeded(mixed_seed(self.seed, place.epoch, place.position)):
            return self._checked(place.index)

    def _checked(self, index: int) -> Any:
        try:
            sample = self.dataset[index]
        except DataError:
            raise
        except Exception as error:
            raise DataError(f'{self._name(index)}: {_reason(error)}') from error
        for key, value in sample.items() if isinstance(sample, dict) else ():
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                raise DataError(f'{self._name(index)}: {key} has values that are not finite')
        return sample

    def _name(self, index: int) -> str:
        """The files of a sample, as far as the data set tells."""
        paths = getattr(self.dataset, 'paths', None)
        if paths is None or not 0 <= index < len(paths):
            return f'sample {index} of {self.opt.get("name")}'
        path = paths[index]
        names = [str(value) for value in path.values()] if isinstance(path, dict) else [str(path)]
        return ' and '.join(dict.fromkeys(names))

    def _open(self) -> None:
        """Opens the file client of BasicSR's data sets, in the process that reads; nothing damaged goes through it.

        Other data sets may read files that are not images.
        """
        data = self.dataset
        if isinstance(data, PairedImageDataset | SingleImageDataset) and data.file_client is None:
            options = {key: value for key, value in data.io_backend_opt.items() if key != 'type'}
            data.file_client = cast(Any, _StrictClient(FileClient(data.io_backend_opt['type'], **options)))


class _StrictClient:
    """BasicSR's FileClient, which gives None for a key that is missing; OpenCV fills what a file lacks with grey."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._seen: set[tuple[str, str]] = set()

    def get(self, path: str, client_key: str = 'default') -> bytes:
        try:
            data = self._client.get(path, client_key)
        except OSError as error:
            raise DataError(f'{path} cannot be read: {error.strerror or error}') from error
        if data is None:
            raise DataError(f'{path} ({client_key}) is missing in the LMDB, but meta_info.txt names it')
        try:
            # Every time by its checksums; whether a PNG lacks a chunk, which costs half of decoding it, only once.
            image_file.verify(data, path, inflate=(path, client_key) not in self._seen)
        except ValueError as error:
            raise DataError(str(error)) from error
        self._seen.add((path, client_key))
        return data


def cut_patches(
    lq: Tensor, targets: Sequence[Tensor], gt_size: int, images: int, seed: int, iteration: int
) -> tuple[Tensor, list[Tensor]]:
    """A part of a batch, at one random place, which depends on seed and iteration alone.

    Args:
        lq: (B, C, h, w).
        targets: (B, C, r h, r w) each, at least `gt_size` high and wide: HR, and what has its size.
        gt_size: Side of the HR patches that are wanted, a multiple of r.
        images: How many of the B images are wanted, the first ones.
        seed: The training's seed.
        iteration: The iteration.

    Returns:
        (images, C, gt_size / r, gt_size / r), and (images, C, gt_size, gt_size) of each target, in the memory format
        of the batch.
    """
    scale = targets[0].shape[-1] // lq.shape[-1]
    side = gt_size // scale
    generator = torch.Generator().manual_seed(mixed_seed(seed, 0, iteration, _OF_PATCHES))
    top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in lq.shape[-2:])
    gt_top, gt_left = top * scale, left * scale
    return (
        lq[:images, :, top : top + side, left : left + side].clone(),
        [hr[:images, :, gt_top : gt_top + gt_size, gt_left : gt_left + gt_size].clone() for hr in targets],
    )


def shuffle_channels(images: Sequence[Tensor], seed: int, rank: int, iteration: int) -> list[Tensor]:
    """The colours of each image in a random order, which depends on seed, process and iteration alone.

    Args:
        images: (B, C, ...) each; the b-th images of all of them have the same order.
        seed: The training's seed.
        rank: The process.
        iteration: The iteration.

    Returns:
        Tensors of the same shapes, in their memory formats.
    """
    batch, channels = images[0].shape[:2]
    generator = torch.Generator().manual_seed(mixed_seed(seed, rank, iteration, _OF_CHANNELS))
    order = torch.rand(batch, channels, generator=generator).argsort(1)
    shuffled = []
    for image in images:
        index = order.to(image.device).view(batch, channels, *(1,) * (image.ndim - 2)).expand_as(image)
        shuffled.append(torch.empty_like(image).copy_(image.gather(1, index)))
    return shuffled


def _reason(error: Exception) -> str:
    # BasicSR raises ValueError with two arguments where one was meant.
    text = ''.join(map(str, error.args)) if isinstance(error, ValueError) else str(error)
    return ' '.join(text.split()) or type(error).__name__


def mixed_seed(*numbers: int) -> int:
    """One seed of 63 bits from several numbers; neighbours give seeds that have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
