"""What variants of a network cost: inference, a training step, and what it keeps for the gradient, beside the default.

    python scripts/variant_cost.py -opt ablation/train_SPIN_x4_mixture.yml ablation/train_SPIN_x4_patch.yml

times `network_g` of each option file (default: all of options/ablation) and of --default in turns, in one process, and
prints a Markdown table. Time is processor time of the process, so that other work on the machine counts for less.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from spinsr import launch
from spinsr.cli.arguments import positive, size
from spinsr.training import option_files
from spinsr.utils.errors import UserError
from spinsr.utils.text import markdown_table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('-opt', nargs='+', metavar='FILE', help='option files, or names of shipped ones')
    parser.add_argument('--default', default='train_SPIN_x4.yml', metavar='FILE', help='default: %(default)s')
    parser.add_argument(
        '--lr-size', type=size, default=(90, 160), metavar='HxW', help='of the inference (default: 90x160)'
    )
    parser.add_argument(
        '--patch', type=size, default=(64, 64), metavar='HxW', help='of the training step, one patch (default: 64x64)'
    )
    parser.add_argument('--rounds', type=positive, default=5, help='turns that count (default: %(default)s)')
    parser.add_argument('--threads', type=positive, default=1, help='CPU threads (default: %(default)s)')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = args.opt or [name for name in sorted(option_files.shipped()) if name.startswith('ablation/')]
    try:
        launch.register()
        nets = {name: build(name) for name in (args.default, *names)}
    except (UserError, ValueError, TypeError, OSError) as error:
        sys.stderr.write(f'variant_cost.py: error: {error}\n')
        return 1
    image, patch = torch.rand(1, 3, *args.lr_size), torch.rand(1, 3, *args.patch)
    kept = {name: bytes_kept(net, patch) for name, net in nets.items()}
    inference = measure({name: lambda net=net: infer(net, image) for name, net in nets.items()}, args.rounds)
    training = measure({name: lambda net=net: step(net, patch) for name, net in nets.items()}, args.rounds)
    print(
        f'inference of {image.shape[2]}x{image.shape[3]}, training step on {patch.shape[2]}x{patch.shape[3]},', end=' '
    )
    print(f'{args.threads} CPU thread(s), torch {torch.__version__}, Python {platform.python_version()}\n')
    rows: list[tuple[str, ...]] = [('option file', 'parameters', 'inference', 'training step', 'kept for the gradient')]
    for name, net in nets.items():
        parameters = sum(p.numel() for p in net.parameters())
        times = [cell(one, name, args.default) for one in (inference, training)]
        rows.append((name, f'{parameters:,}', *times, f'{kept[name] / 1e6:.0f} MB'))
    print(markdown_table(rows), end='')
    return 0


def build(name: str) -> nn.Module:
    """`network_g` of an option file, with weights of seed 0."""
    from basicsr.archs import build_network

    torch.manual_seed(0)
    return build_network(option_files.read(option_files.find(Path(name)))['network_g'])


def infer(net: nn.Module, image: torch.Tensor) -> None:
    net.eval()
    with torch.inference_mode():
        net(image)


def step(net: nn.Module, patch: torch.Tensor) -> None:
    net.train()
    net.zero_grad()
    net(patch).abs().mean().backward()


def bytes_kept(net: nn.Module, patch: torch.Tensor) -> int:
    """Bytes of what autograd keeps between forward and backward, parameters not counted, shared memory once."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    net.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = net(patch)
    total = sum(kept.values())
    del result  # until here nothing that was kept has been freed, and no address has been used twice
    return total


def measure(variants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each turn of each variant; a first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            start = time.process_time()
            run()
            if turn:
                times[name].append(time.process_time() - start)
    return times


def cell(times: dict[str, list[float]], name: str, default: str) -> str:
    if name == default:
        return f'1 ({statistics.median(times[name]):.2f} s)'
    ratios = [own / base for own, base in zip(times[name], times[default], strict=True)]
    return f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'


if __name__ == '__main__':
    sys.exit(main())
