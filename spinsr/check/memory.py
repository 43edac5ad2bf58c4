"""How much memory a training step and the largest image of a validation take, without taking it.

The network runs on fake tensors, which have a shape and no content, while the bytes of all living tensors are counted.
What a library takes inside an operation, and what the allocator keeps, is not seen: a measured factor stands for it.
"""

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spinsr.check import registries
from spinsr.check.finding import Finding, note, section, warning
from spinsr.check.values import largest_step, network_scale
from spinsr.training import muon
from spinsr.training.grad_checkpointing import recompute_blocks
from spinsr.utils import memory as memory_use
from spinsr.utils.validation import is_whole

_GB = 1e9
# Of the process's memory to the bytes of the tensors, measured on the CPU (docs/check.md): 1.3 to 1.8.
_OVERHEAD = 1.4


def memory(options: Mapping[str, Any], largest: tuple[int, int] | None = None, *, is_train: bool) -> Iterator[Finding]:
    """Says about how much memory the file needs, and warns where there is less.

    Args:
        options: The option file.
        largest: (h, w) of the largest LR image that is validated or tested, where it is known.
        is_train: For training, else for testing.
    """
    network, count = section(options, 'network_g'), options.get('num_gpu', 'auto')
    device = 'cuda' if torch.cuda.is_available() and count != 0 else 'cpu'
    available, source = _available(device)
    process = memory_use.resident() if device == 'cpu' else 0  # torch and BasicSR, which the training loads too
    parts: list[tuple[str, str, Callable[[], int]]] = []
    (batch, gt_size), scale = largest_step(options), network_scale(network)[1]
    optimizer = section(options, 'train', 'optim_g')
    has_ema = section(options, 'train').get('ema_decay', 0) not in (0, None)
    if is_train and all(is_whole(value) and value > 0 for value in (batch, gt_size, scale)):
        side = gt_size // scale
        words = f'a training step (batch {batch}, LR {side}x{side})'
        # SRModel does not read it.
        recompute = section(options, 'train').get('recompute') is True and options.get('model_type') != 'SRModel'
        more = {'ema': has_ema, 'recompute': recompute, 'optimizer': optimizer}
        parts.append(('network_g', words, lambda: training_bytes(network, batch, side, side, **more)))
    if largest is not None:
        also = {'trained': is_train, 'ema': has_ema, 'optimizer': optimizer}
        words = f'the largest image to {"validate" if is_train else "test"} (LR {largest[0]}x{largest[1]})'
        parts.append(('val', words, lambda: inference_bytes(network, *largest, **also)))
    for key, words, count_bytes in parts:
        try:
            need = _OVERHEAD * count_bytes() + process
        # Fake tensors refuse networks whose path depends on values, each in its own way.
        except Exception as problem:
            reason = (str(problem).splitlines() or [''])[0] or type(problem).__name__
            yield note(key, f'the memory for {words} cannot be estimated: {reason}')
            continue
        message = f'about {need / _GB:.1f} GB for {words}, {available / _GB:.1f} GB {source}'
        yield warning(key, f'{message}: it may not fit') if need > available else note(key, message)


def build(network: Mapping[str, Any]) -> nn.Module:
    """The network of a section, without memory: on torch's meta device, or under fake tensors."""
    arch = registries.find('ARCH', network['type'])
    with torch.device('meta'):
        return arch(**{key: value for key, value in network.items() if key != 'type'})


def training_bytes(
    network: Mapping[str, Any],
    batch: int,
    height: int,
    width: int,
    *,
    ema: bool = False,
    recompute: bool = False,
    optimizer: Mapping[str, Any] | None = None,
) -> int:
    """The bytes of all tensors at the peak of a training step.

    Counted for one and two images and continued: a step is a straight line in the batch.

    Args:
        network: The section network_g.
        batch: Images B.
        height: Of an LR image, in pixels.
        width: Of an LR image, in pixels.
        ema: Whether a second network keeps the moving average.
        recompute: Whether the blocks are computed once more for the gradient.
        optimizer: The section optim_g; without it Adam.
    """

    def peak(images: int) -> int:
        return _peak(network, images, height, width, with_gradient=True, recompute=recompute)

    one = peak(1)
    step = one if batch == 1 else one + (batch - 1) * (peak(2) - one)
    # The peak has the gradients; beside them the weights, the average, and what the optimizer keeps.
    return step + _weight_bytes(network) * (2 if ema else 1) + _optimizer_bytes(network, optimizer)


def inference_bytes(
    network: Mapping[str, Any],
    height: int,
    width: int,
    *,
    trained: bool = False,
    ema: bool = False,
    optimizer: Mapping[str, Any] | None = None,
) -> int:
    """The bytes of all tensors at the peak of super-resolving one image.

    Args:
        network: The section network_g.
        height: Of the LR image, in pixels.
        width: Of the LR image, in pixels.
        trained: Whether it happens in a training: the gradients and what the optimizer keeps are there too.
        ema: Whether there is a second network too.
        optimizer: The section optim_g; without it Adam.
    """
    networks = 1 + (1 if trained else 0) + (1 if ema else 0)
    kept = _optimizer_bytes(network, optimizer) if trained else 0
    return _peak(network, 1, height, width, with_gradient=False) + _weight_bytes(network) * networks + kept


def _weight_bytes(network: Mapping[str, Any]) -> int:
    return _bytes_of(build(network).parameters())


def _optimizer_bytes(network: Mapping[str, Any], optimizer: Mapping[str, Any] | None) -> int:
    """Two moments of every weight, and one of those of Muon."""
    twice = 2 * _weight_bytes(network)
    if not optimizer or optimizer.get('type') != 'Muon' or any(muon.problems(optimizer)):
        return twice
    return twice - _bytes_of(tensor for _, tensor in muon.split(build(network).named_parameters(), optimizer)[0])


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _peak(
    network: Mapping[str, Any], batch: int, height: int, width: int, *, with_gradient: bool, recompute: bool = False
) -> int:
    arch = registries.find('ARCH', network['type'])
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    # The tables that a network keeps by size are real tensors, made before or now.
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        warnings.simplefilter('ignore')
        net = arch(**{key: value for key, value in network.items() if key != 'type'})
        if recompute:
            recompute_blocks(net)
        with _Peak() as peak, torch.set_grad_enabled(with_gradient):
            output = net(torch.rand(batch, 3, height, width))
            if with_gradient:
                (output - torch.rand_like(output)).abs().mean().backward()
    return peak.bytes


class _Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that are made, and notes the highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self._living = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        identity, size = storage._cdata, storage.nbytes()
        if identity not in self._storages:
            self._storages.add(identity)
            self._living += size
            self.bytes = max(self.bytes, self._living)
            weakref.finalize(storage, self._remove, identity, size)

    def _remove(self, identity: int, size: int) -> None:
        self._storages.discard(identity)
        self._living -= size


def _available(device: str) -> tuple[int, str]:
    if device == 'cuda':
        return torch.cuda.get_device_properties(0).total_memory, 'on the GPU'
    return memory_use.available(), 'available'
