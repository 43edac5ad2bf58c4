"""The flags that choose a network, the network that they choose, and the memory that it may use."""

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spinsr.training import imports
from spinsr.weights import DEFAULT_ARCH, DEFAULT_SCALE, default_weights, require_file
from spinsr.weights.models import find_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --arch, --weights, --model, --arch-args, --import and --device."""
    group = parser.add_argument_group('network')
    group.add_argument(
        '--arch',
        metavar='NAME',
        help="a network of spinsr, or any other name in BasicSR's ARCH_REGISTRY (default: told from the weights)",
    )
    files = group.add_mutually_exclusive_group()
    files.add_argument(
        '--weights',
        metavar='FILE',
        default='default',
        help="BasicSR's .pth, the authors' file, or .safetensors (default: the weights that spinsr ships)",
    )
    files.add_argument(
        '--model',
        metavar='NAME',
        help='a network with weights that comes with spinsr; spinsr models lists them',
    )
    add_build_arguments(group)


def add_build_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds --arch-args, --import and --device."""
    group.add_argument(
        '--arch-args',
        metavar='KEY=VALUE',
        nargs='+',
        type=argument,
        default=[],
        help='further arguments of the network, where the weights do not tell them: num_heads=2',
    )
    imports.add_import(group)
    group.add_argument(
        '--device',
        metavar='DEVICE',
        default='auto',
        help='cpu, cuda, cuda:1, mps, xpu; auto (the default): the first available of cuda, mps and xpu, else cpu',
    )


def check_files(args: argparse.Namespace, scale: int | None = None) -> None:
    """Makes sure, before torch is imported, that the files and modules which the flags name exist.

    Raises:
        ValueError, OSError, ImportError: As `resolve`.
    """
    imports.require_modules(args.imports)
    if (path := weights(args, scale)) != 'default':
        require_file(path)
    elif args.arch in (None, DEFAULT_ARCH):
        default_weights(DEFAULT_ARCH, scale or DEFAULT_SCALE)


def resolve(args: argparse.Namespace, scale: int | None) -> Any:
    """Finds out which network the flags and the weights describe, a `spinsr.inference.load.Network`, to be built.

    Raises:
        ValueError, TypeError, OSError, ImportError: As `spinsr.load`.
    """
    import_modules(args)
    from spinsr.inference.load import resolve

    return resolve(args.arch, scale, weights(args, scale), **dict(args.arch_args))


def weights(args: argparse.Namespace, scale: int | None) -> str:
    """The path that --model or --weights names, or 'default'.

    Raises:
        ValueError: No such model comes with spinsr.
    """
    if args.model is not None:
        return str(find_model(args.model, scale).path)
    return args.weights if args.weights == 'default' else os.path.expanduser(args.weights)


def shipped_file(args: argparse.Namespace, arch: str, scale: int) -> Path | None:
    """The weights of spinsr that the flags choose; None for a file of the user's.

    Raises:
        ValueError: spinsr ships no weights for this network.
    """
    if args.model is not None:
        return find_model(args.model, scale).path
    return default_weights(arch, scale) if args.weights == 'default' else None


def load(args: argparse.Namespace, scale: int | None) -> Any:
    """Builds the network that the flags and the weights describe.

    Raises:
        ValueError, TypeError, OSError, ImportError: As `spinsr.load`; or the device does not exist here.
    """
    return resolve(args, scale).build(device(args.device))


def import_modules(args: argparse.Namespace) -> None:
    """Imports what --import names, from the working directory too, after BasicSR has been made importable.

    Raises:
        ImportError: A module does not exist, or fails.
    """
    import spinsr.archs  # noqa: F401

    imports.import_modules(args.imports)


def check_arch(args: argparse.Namespace) -> None:
    """Refuses, as argparse would, a --arch whose files cannot be converted or exported."""
    from spinsr.convert.registry import find_format, formats
    from spinsr.utils.text import nearest

    if args.arch is not None and find_format(args.arch) is None:
        hint = nearest(args.arch, (format.name for format in formats()))
        args.error(f'argument --arch: unknown network {args.arch!r}; {hint}')


def device(name: str) -> Any:
    """torch.device of a --device.

    Raises:
        ValueError: Unknown, or not available on this machine.
    """
    from spinsr.inference import devices

    return devices.select(name)


def limited_memory(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """`spinsr.inference.upscale.limited_memory` where --device is the CPU."""
    from spinsr.inference import upscale as upscaling

    return upscaling.limited_memory() if device(args.device).type == 'cpu' else contextlib.nullcontext()


@contextlib.contextmanager
def errors_only() -> Iterator[None]:
    """Hides the warning that a network has no weights, which do not matter where it is counted."""
    logger = logging.getLogger('spinsr')
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def argument(text: str) -> tuple[str, Any]:
    """Parses one KEY=VALUE."""
    from spinsr.training.option_files import parse_value

    key, equals, value = text.partition('=')
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f'must be key=value, got {text!r}')
    return key, parse_value(value)
