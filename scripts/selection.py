"""How many top-N pixels differ between backends and precisions, on the features of real images.

    python scripts/selection.py BENCHMARK_FOLDER [--backends torch,triton] [--weights FILE]

BENCHMARK_FOLDER holds LR_bicubic/X4/*.png. Each block of SPIN x4 (the weights of seed 0, or FILE) associates the
features that reach it there; the pixels selected by each backend in float32 are held against `reference` in float32.
Pixels may only swap where their log-odds differ by rounding: the largest gap between a pixel that was taken and the
one that it replaced is printed beside the counts. TRITON_INTERPRET=1 runs the Triton kernels without a GPU.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

import spinsr
from spinsr import ops
from spinsr.archs.spin_arch import SPIN, SuperpixelInteractionBlock
from spinsr.data import image_file


def block_features(net: SPIN, image: Tensor) -> list[tuple[int, Tensor]]:
    """Cell size and input features (1, H, W, C) of each block."""
    features = []
    hooks = [
        block.aggregation.register_forward_hook(lambda module, args, _: features.append((module.stoken_size, args[0])))
        for block in cast(Iterable[SuperpixelInteractionBlock], net.blocks)
    ]
    with torch.no_grad():
        net(image)
    for hook in hooks:
        hook.remove()
    return features


def compare(x: Tensor, cell: int, backend: str) -> tuple[int, int, float]:
    """Selected pixels, those that `reference` does not select, and the largest gap in log-odds among them."""
    exact = ops.associate(x, cell, backend='reference')
    chosen, expected = ops.top_n(ops.associate(x, cell, backend=backend)), ops.top_n(exact)
    log_odds = exact.dense_log_odds()
    shape = log_odds.shape
    is_chosen, is_expected = (torch.zeros(shape, dtype=torch.bool).scatter_(2, i, True) for i in (chosen, expected))
    extra = is_chosen & ~is_expected
    last = log_odds.masked_fill(~is_expected, float('inf')).amin(2, keepdim=True)  # the weakest that belongs
    gap = (last - log_odds)[extra]
    return chosen.numel(), int(extra.sum()), gap.max().item() if len(gap) else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='a benchmark folder, such as Set5')
    parser.add_argument('--backends', default='torch', help='comma-separated (default: torch)')
    parser.add_argument('--weights', help='of SPIN x4; random ones by default')
    args = parser.parse_args()
    paths = sorted((args.folder / 'LR_bicubic' / 'X4').glob('*.png'))
    if not paths:
        parser.error(f'there are no images {args.folder}/LR_bicubic/X4/*.png')
    torch.manual_seed(0)
    net = spinsr.load('SPIN', weights=args.weights) if args.weights else SPIN().eval()
    assert isinstance(net, SPIN)
    for backend in args.backends.split(','):
        total, swapped, gap = 0, 0, 0.0
        for path in paths:
            image = torch.from_numpy(image_file.read(path)).permute(2, 0, 1).unsqueeze(0).float() / 255
            for cell, x in block_features(net, image):
                one = compare(x, cell, backend)
                total, swapped, gap = total + one[0], swapped + one[1], max(gap, one[2])
        print(f'{backend}: {swapped} of {total:,} selected pixels differ from reference; largest gap {gap:.1e}')


if __name__ == '__main__':
    main()
