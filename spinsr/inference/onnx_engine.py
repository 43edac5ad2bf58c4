"""Networks by ONNX Runtime instead of PyTorch, on the CPU in float32.

A network is exported at its first image, for any size where its format allows that (`spinsr.export.to_onnx`, which
compares the result with PyTorch), and kept in a cache folder.
"""

import functools
import hashlib
import importlib.util
import inspect
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spinsr._version import __version__
from spinsr.archs.pretrained import arguments_of
from spinsr.export.onnx import sides_of, to_onnx
from spinsr.utils.text import printable

logger = logging.getLogger('spinsr')

PACKAGES = ('onnx', 'onnxruntime', 'onnxscript', 'platformdirs')
SESSIONS = 2  # kept at once: the self-ensemble has two sizes
_PLAIN = (bool, int, float, str, tuple, list, type(None))


class OnnxNetwork(nn.Module):
    """Maps (1, C, H, W) to (1, C, scale*H, scale*W) as `net` does, by ONNX Runtime.

    Args:
        net: On the CPU, in float32; its weights are those of now.

    Raises:
        ValueError: It is on another device, of another type, or its format says that it cannot be exported.
        ImportError: One of `PACKAGES` is not installed.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        for name, value in net.named_parameters():
            if value.device.type != 'cpu' or value.dtype != torch.float32:
                kind = f'{str(value.dtype).removeprefix("torch.")} on {value.device}'
                raise ValueError(f"engine 'onnx' runs networks in float32 on the CPU, got {kind} ({name})")
        for package in PACKAGES:
            if importlib.util.find_spec(package) is None:
                raise ImportError(f"engine 'onnx' needs the package {package}: pip install 'spinsr[export]'")
        self.net, self.sides, self.digest = net, sides_of(net), digest(net)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network.

        Raises:
            ValueError: The network cannot be exported for images of this size.
            MemoryError: Memory ran out.
            OSError: The file cannot be written.
        """
        session = _session(self._file(x.shape[2], x.shape[3]), torch.get_num_threads())
        try:
            (out,) = session.run(None, {'image': np.ascontiguousarray(x.numpy())})
        except Exception as error:  # the runtime has classes of its own
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            if isinstance(error, MemoryError) or 'allocat' in reason:
                raise MemoryError(f'out of memory in ONNX Runtime: {reason}') from error
            raise RuntimeError(f'ONNX Runtime failed: {reason}') from error
        return torch.from_numpy(out)

    def _file(self, height: int, width: int) -> Path:
        """The file for images of a size, written at its first use."""
        least, most = self.sides or (math.inf, None)
        any_size = min(height, width) >= least and (most is None or max(height, width) <= most)
        size = 'any' if any_size else f'{height}x{width}'
        path = cache_folder() / f'{type(self.net).__name__}-{size}-{self.digest}.onnx'
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            images = 'images of any size' if any_size else f'{height}x{width} images (HxW)'
            name = type(self.net).__name__
            logger.warning("engine 'onnx': exporting %s for %s, once; this can take minutes", name, images)
            try:
                with torch.inference_mode(False):
                    to_onnx(self.net, path, size=None if any_size else (height, width), overwrite=True)
            except ValueError as error:
                raise ValueError(f"{error}; tiles of another size may work, and engine 'torch' runs it") from error
        return path


def cache_folder() -> Path:
    """Where exported networks are kept: $SPINSR_CACHE, else a folder of the user's caches."""
    import platformdirs

    return Path(os.environ.get('SPINSR_CACHE') or platformdirs.user_cache_dir('spinsr', False)) / 'onnx'


def digest(net: nn.Module) -> str:
    """Tells networks apart: by classes and their source files, attributes, weights, and versions of the exporter."""
    import onnxruntime

    versions = __version__, torch.__version__, onnxruntime.__version__
    found = hashlib.sha256(f'{versions} {arguments_of(net)}'.encode())
    for kind in dict.fromkeys(type(module) for module in net.modules()):
        found.update(f'{kind.__module__}.{kind.__qualname__}'.encode() + _source(kind))
    for name, module in net.named_modules():
        found.update(name.encode())
        # Weights, also those that are no parameters, and numbers such as a count of heads, which no shape tells.
        values = {**vars(module), **module._parameters, **module._buffers}
        for key, value in sorted(values.items()):
            if isinstance(value, Tensor):
                found.update(f'{key} {value.dtype} {tuple(value.shape)}'.encode())
                found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            elif isinstance(value, _PLAIN) and key != 'training':
                found.update(f'{key} {value!r}'.encode())
            elif inspect.isroutine(value):
                found.update(f'{key} {value.__module__}.{value.__qualname__}'.encode())
    return found.hexdigest()[:32]


@functools.cache
def _source(kind: type) -> bytes:
    """The file of a class; nothing for those of torch, whose version is known, and for those without a file."""
    if kind.__module__.startswith('torch.'):
        return b''
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):
        return b''


def _load(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # the runtime has classes of its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f'{printable(path)} cannot be loaded: {reason}; delete it, and it is written again') from error


_session: Callable[[Path, int], Any] = functools.lru_cache(SESSIONS)(_load)
