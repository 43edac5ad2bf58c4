"""Networks by ONNX Runtime instead of PyTorch, on the CPU in float32.

A network is exported at its first image, for any size where its format allows that (`spinsr.export.to_onnx`, which
compares the result with PyTorch), and kept in a cache folder.
"""

import collections
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import logging
import marshal
import math
import os
import pickle
import shutil
import tempfile
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spinsr._version import __version__
from spinsr.archs.pretrained import arguments_of
from spinsr.export.onnx import check_backend, first_line, require_memory, sides_of, to_onnx
from spinsr.utils.text import printable

logger = logging.getLogger('spinsr')

PACKAGES = ('onnx', 'onnxruntime', 'onnxscript', 'platformdirs')
SESSIONS = 2  # kept at once: the self-ensemble has two sizes
# Of this package, what takes part in an export.
_FOLDERS = ('archs', 'export', 'modules', 'ops')
# Values whose repr says everything; subclasses may hold more.
_PLAIN = (bool, int, float, complex, str, bytes, range, slice, type(None), type(...))
_PLAIN += (torch.dtype, torch.device, torch.layout, torch.memory_format)


class OnnxNetwork(nn.Module):
    """Maps (1, C, H, W) to (1, C, scale*H, scale*W) as `net` does, by ONNX Runtime.

    Args:
        net: On the CPU, in float32; its weights must not change afterwards.

    Raises:
        ValueError: It is on another device, of another type, its format says that it cannot be exported, another ops
            backend than 'torch' is in force, or `digest` cannot tell it from others.
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
        check_backend()
        self.net, self.sides, self.digest = net, sides_of(net), digest(net)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network.

        Raises:
            ValueError: The network cannot be exported for images of this size, or autocast is enabled.
            MemoryError: Memory ran out.
            OSError: The file cannot be written.
        """
        if torch.is_autocast_enabled('cpu'):
            raise ValueError("engine 'onnx' computes in fp32, got autocast to a half type; leave it and precision out")
        session = _session(self._file(x.shape[2], x.shape[3]), torch.get_num_threads())
        try:
            (out,) = session.run(None, {'image': np.ascontiguousarray(x.numpy())})
        except Exception as error:  # the runtime has classes of its own
            require_memory(error)
            raise RuntimeError(f'ONNX Runtime failed: {first_line(error)}') from error
        return torch.from_numpy(out)

    def _file(self, height: int, width: int) -> Path:
        """The file for images of a size, written at its first use."""
        least, most = self.sides or (math.inf, None)
        any_size = min(height, width) >= least and (most is None or max(height, width) <= most)
        size = 'any' if any_size else f'{height}x{width}'
        path = cache_folder() / f'{type(self.net).__name__}-{size}-{self.digest}.onnx'
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            images = 'images of any size' if any_size else f'{height}x{width} images (HxW)'
            name = type(self.net).__name__
            logger.warning("engine 'onnx': exporting %s for %s, once; this can take minutes", name, images)
            # A folder of its own, because another process may export the same network at the same time.
            folder = Path(tempfile.mkdtemp('.part', '.', path.parent))
            try:
                with torch.inference_mode(False):
                    to_onnx(self.net, folder / path.name, size=None if any_size else (height, width))
                os.replace(folder / path.name, path)
            except ValueError as error:
                advice = '' if any_size else 'tiles of another size may work, and '
                raise ValueError(f"{error}; {advice}engine 'torch' runs it") from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return path


def cache_folder() -> Path:
    """Where exported networks are kept: $SPINSR_CACHE, else a folder of the user's caches."""
    import platformdirs

    return Path(os.environ.get('SPINSR_CACHE') or platformdirs.user_cache_dir('spinsr', False)) / 'onnx'


def digest(net: nn.Module) -> str:
    """Tells networks apart: by all that the graph of a network depends on.

    That is its classes and functions with their source files, its attributes and weights, the sources of spinsr that
    take part in the export, and the versions of the packages that do.

    Raises:
        ValueError: An attribute is of a kind whose values cannot be told apart.
    """
    import onnx
    import onnxruntime

    # onnxscript takes most of a second to import, which a network that is already in the cache does not need.
    scripts = importlib.metadata.version('onnxscript')
    versions = __version__, torch.__version__, onnx.__version__, onnxruntime.__version__, scripts
    found = hashlib.sha256(f'{versions} {_package()} {arguments_of(net)}'.encode())
    for kind in dict.fromkeys(type(module) for module in net.modules()):
        found.update(f'{kind.__module__}.{kind.__qualname__}'.encode() + _source(kind))
    names = {id(module): name for name, module in net.named_modules()}
    for name, module in net.named_modules():
        # Weights, also those that are not parameters, and numbers such as a count of heads, which no shape tells.
        for key, value in vars(module).items():
            if key != 'training' and 'state_dict' not in key:  # what loads and saves weights
                try:
                    found.update(f'\n{name}:{key}='.encode())
                    _add(found, value, names)
                except _UnknownKindError as error:
                    where = f'{type(module).__name__}.{key}'
                    raise ValueError(
                        f"engine 'onnx' must tell networks apart by their attributes, got {error} in {where}, which "
                        "cannot be compared; use engine 'torch'"
                    ) from error
    return found.hexdigest()[:32]


class _UnknownKindError(Exception):
    pass


def _add(found: Any, value: Any, names: dict[int, str]) -> None:
    """Adds a value to a hash: its type, its length where it has one, then what it consists of.

    Args:
        found: The hash.
        value: An attribute of a module, or a part of one.
        names: The network's modules, by id; each is added by itself.

    Raises:
        _UnknownKindError: Nothing says whether such values are equal.
    """
    kind = type(value)
    found.update(f'{kind.__module__}.{kind.__qualname__} '.encode())

    def add_all(parts: Iterable[Any], length: int) -> None:
        found.update(f'{length} '.encode())
        for part in parts:
            _add(found, part, names)

    if id(value) in names:
        found.update(repr(names[id(value)]).encode())
    elif kind in (Tensor, nn.Parameter) and value.layout == torch.strided:
        found.update(f'{value.dtype} {tuple(value.shape)} '.encode())
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy().tobytes())
    elif kind is np.ndarray and not value.dtype.hasobject:
        found.update(f'{value.dtype.descr} {value.shape} '.encode() + value.tobytes())
    elif kind in _PLAIN:
        found.update(repr(value).encode() + b' ')
    elif kind in (tuple, list, torch.Size):
        add_all(value, len(value))
    elif kind in (set, frozenset):
        add_all(sorted(value, key=repr), len(value))
    elif kind in (dict, collections.OrderedDict):
        add_all(value.items(), len(value))  # in their order, which a network may follow
    elif kind is functools.partial:
        add_all((value.func, value.args, value.keywords), 3)
    elif isinstance(value, type):
        found.update(f'{value.__module__}.{value.__qualname__} '.encode() + _source(value))
    elif kind is types.FunctionType:
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        code = marshal.dumps(value.__code__, 2)  # a version without marks for objects that are used twice
        found.update(f'{value.__module__}.{value.__qualname__} '.encode() + _source(value))
        add_all((code, cells, value.__defaults__, value.__kwdefaults__), 4)
    elif kind is types.MethodType:
        add_all((value.__func__, value.__self__), 2)
    elif kind is types.BuiltinFunctionType:
        found.update(f'{value.__module__}.{value.__qualname__} '.encode())
    else:
        # Equal bytes mean equal values; equal values with other bytes are only exported again.
        try:
            found.update(pickle.dumps(value))
        except Exception as error:  # whatever a class raises
            raise _UnknownKindError(f'a {kind.__qualname__}') from error


@functools.cache
def _package() -> str:
    """A digest of the sources of spinsr that take part in an export: a checkout changes without a new version."""
    found, root = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(path for folder in _FOLDERS for path in (root / folder).rglob('*.py')):
        content = path.read_bytes()
        found.update(f'{path.relative_to(root).as_posix()} {len(content)} '.encode() + content)
    return found.hexdigest()


@functools.cache
def _source(kind: Any) -> bytes:
    """The file of a class or function; empty for torch's, whose version is known, and for those without a file."""
    if str(kind.__module__).startswith('torch.'):
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
        require_memory(error)
        rule = f'{printable(path)} cannot be loaded: {first_line(error)}'
        raise ValueError(f'{rule}; delete it, and it is written again') from error


_session: Callable[[Path, int], Any] = functools.lru_cache(SESSIONS)(_load)
