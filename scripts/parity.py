"""Prints how far our networks are from the authors' own outputs (tests/parity/*.npz), and their parameter counts.

python scripts/parity.py
"""

import ast
import logging
from pathlib import Path

import numpy as np
import torch

import spinsr
import spinsr.convert
from spinsr.archs import ARCH_REGISTRY

FOLDER = Path(__file__).parents[1] / 'tests/parity'
# The authors' constructor arguments in our words.
ARGS = {
    'dim': 'num_feat',
    'block_num': 'num_block',
    'heads': 'num_heads',
    'n_feats': 'num_feat',
    'n_resgroups': 'num_group',
    'n_resblocks': 'num_block',
    'reduction': 'squeeze_factor',
}
SCALES = {'SPIN': (2, 3, 4), 'SAN': (2, 3, 4, 8), 'RCAN_spinsr': (2, 3, 4, 8)}


def main() -> None:
    torch.use_deterministic_algorithms(True)
    logging.getLogger('spinsr').setLevel(logging.ERROR)  # weights come after the networks are built
    print('| network | float64 | float32 |\n| --- | --- | --- |')
    for path in sorted(FOLDER.glob('*_tiny_*.npz')):
        arch, _, _, *drift, scale = path.stem.split('_')
        label = ', '.join([f'{arch.upper()} {scale}', *drift])
        print(f'| {label} | {error(path, torch.float64):.1e} | {error(path, torch.float32):.1e} |')
    print('\n| arch | ' + ' | '.join(f'x{scale}' for scale in SCALES['SAN']) + ' |\n| --- | --- | --- | --- | --- |')
    for name, scales in SCALES.items():
        with torch.device('meta'):
            counts = [sum(p.numel() for p in ARCH_REGISTRY.get(name)(upscale=s).parameters()) for s in scales]
        cells = [f'{count:,}' for count in counts] + [''] * (4 - len(counts))
        print(f'| {name.removesuffix("_spinsr")} | {" | ".join(cells)} |')


def error(path: Path, dtype: torch.dtype) -> float:
    """Largest absolute difference from the authors' output in [0, 1], over all inputs of a file."""
    data = np.load(path)
    arch = path.stem.partition('_')[0].upper()
    args = {ARGS.get(name, name): value for name, value in ast.literal_eval(str(data['cfg'])).items()}
    net = spinsr.load(arch, args.pop('upscale'), weights=None, **args).to(dtype)
    official = {name[2:]: torch.from_numpy(data[name]) for name in data.files if name.startswith('w/')}
    net.load_state_dict(spinsr.convert.convert_state_dict(official, arch))
    inputs = [name for name in data.files if name.startswith('x')]
    with torch.no_grad():
        outputs = [net(torch.from_numpy(data[name]).to(dtype)) for name in inputs]
    return max(
        (output - torch.from_numpy(data[name.replace('x', 'y')])).abs().max().item()
        for name, output in zip(inputs, outputs, strict=True)
    )


if __name__ == '__main__':
    main()
