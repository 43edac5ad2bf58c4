"""`spinsr env`: versions and devices, for a bug report."""

import argparse
import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import psutil

from spinsr._version import __version__
from spinsr.inference import devices
from spinsr.utils import memory

# What changes results or whether something runs; the rest of the requirements does neither.
PACKAGES = ('torch', 'torchvision', 'triton', 'basicsr', 'numpy', 'opencv-python', 'opencv-python-headless')
OPTIONAL = ('triton', 'opencv-python-headless')
MORE_PACKAGES = ('pillow', 'scikit-image', 'scipy', 'lmdb', 'safetensors', 'onnx', 'onnxruntime', 'spandrel', 'pyiqa')
VARIABLES = (
    *('SPINSR_', 'BASICSR_', 'CUDA_', 'PYTORCH_', 'TORCH_', 'TRITON_', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS'),
    *('MALLOC_', 'GLIBC_TUNABLES', 'THP_MEM_ALLOC_ENABLE'),
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'env',
        help='versions, devices, memory and ops backends, for a bug report',
        description='Prints versions, devices, memory and ops backends. Paste the output into a bug report.',
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    for name, value in _facts():
        print(f'{name + ":":<24}{value}')
    return 0


def _facts() -> Iterator[tuple[str, str]]:
    yield 'spinsr', __version__
    yield 'Python', f'{platform.python_version()} ({platform.python_implementation()})'
    yield 'system', platform.platform()
    yield 'processor', f'{_processor()}, {os.cpu_count()} cores'
    total, available = psutil.virtual_memory().total, memory.available()
    yield 'memory', f'{_gib(total)}, {_gib(available)} available to this process'
    for name in (*PACKAGES, *MORE_PACKAGES):
        version = _version(name)
        # opencv-python-headless replaces opencv-python; triton exists only on some systems.
        if version is not None or (name in PACKAGES and name not in OPTIONAL):
            yield name, version or 'not installed'
    yield from _torch_facts()
    variables = sorted(name for name in os.environ if name.startswith(VARIABLES) and name not in devices.set_by_spinsr)
    yield 'variables', ', '.join(f'{name}={os.environ[name]}' for name in variables) or 'none set'


def _torch_facts() -> Iterator[tuple[str, str]]:
    try:
        import torch

        from spinsr.ops.common.backend import resolve_backend
    # A torch of another platform, or without its libraries, fails in more ways than ImportError; that is the report.
    except Exception as error:
        yield 'torch', f'does not import: {type(error).__name__}: {error}'
        return
    yield 'threads', str(torch.get_num_threads())
    if torch.cuda.is_available():
        build = f'ROCm {torch.version.hip}' if torch.version.hip else f'CUDA {torch.version.cuda}'
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = f'compute capability {properties.major}.{properties.minor}'
            yield f'cuda:{index}', f'{properties.name}, {_gib(properties.total_memory)}, {capability}, {build}'
    else:
        yield 'cuda', f'not available; torch is built for {torch.version.cuda or torch.version.hip or "the CPU only"}'
    yield 'mps', 'available' if torch.backends.mps.is_available() else 'not available'
    for name in (None, 'auto', 'triton'):
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        try:
            yield f'ops, {name or "default"}', resolve_backend(name, device)
        except RuntimeError as error:
            yield f'ops, {name or "default"}', str(error)


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line for line in lines if line.startswith('model name')).partition(':')[2].strip()
    return platform.processor() or platform.machine()


def _gib(size: int) -> str:
    return f'{size / 2**30:.1f} GiB'
