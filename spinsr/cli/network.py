"""The flags that choose a network, the network that they choose, and the memory that it may take."""

import argparse
import contextlib
import os
from typing import Any

from spinsr.training import imports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --arch, --weights, --arch-args, --import and --device."""
    group = parser.add_argument_group('network')
    group.add_argument(
        '--arch',
        metavar='NAME',
        default='SPIN',
        help="SPIN (the default), SAN, RCAN, or any other name in BasicSR's ARCH_REGISTRY",
    )
    group.add_argument(
        '--weights',
        metavar='FILE',
        default='default',
        help="BasicSR's .pth, the authors' file, or .safetensors (default: those that spinsr ships, of SPIN)",
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
        help='further arguments of the network: num_block=4',
    )
    imports.add_import(group)
    group.add_argument(
        '--device',
        metavar='DEVICE',
        default='auto',
        help='cpu, cuda, cuda:1, mps; auto (the default): cuda where there is one',
    )


def load(args: argparse.Namespace, scale: int) -> Any:
    """Builds the network that the flags describe.

    Raises:
        ValueError, TypeError, OSError, ImportError: As `spinsr.load`; or the device does not exist here.
    """
    import_modules(args)
    import spinsr

    weights = args.weights if args.weights == 'default' else os.path.expanduser(args.weights)
    return spinsr.load(args.arch, scale, weights, device(args.device), **dict(args.arch_args))


def import_modules(args: argparse.Namespace) -> None:
    """Imports what --import names, from the working directory too, after BasicSR has been made importable.

    Raises:
        ImportError: A module does not exist, or fails.
    """
    import spinsr.archs  # noqa: F401

    imports.import_modules(args.imports)


def device(name: str) -> Any:
    """torch.device of a --device.

    Raises:
        ValueError: Unknown, or not on this machine.
    """
    import torch

    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        chosen = torch.device(name)
        torch.zeros(1, device=chosen)
    # torch raises RuntimeError for a wrong name, AssertionError where it was built without CUDA.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f'--device {name}: {str(error).splitlines()[0]}') from error
    return chosen


def limited_memory(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """`spinsr.inference.upscale.limited_memory` where --device is the CPU."""
    from spinsr.inference import upscale as upscaling

    return upscaling.limited_memory() if device(args.device).type == 'cpu' else contextlib.nullcontext()


def argument(text: str) -> tuple[str, Any]:
    """What argparse makes of one KEY=VALUE."""
    from spinsr.training.option_files import parse_value

    key, equals, value = text.partition('=')
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f'must be key=value, got {text!r}')
    return key, parse_value(value)
