"""The networks under test, one line each: all that the tests must know of a new arch beside its option files."""

from typing import NamedTuple

import torch
from torch import nn


class Network(NamedTuple):
    """What the tests cannot find out by themselves.

    Args:
        small: Arguments that make the network small.
        parameters: Exact numbers by scale, at the defaults; the scales are those that have option files.
        patch, batch: LR pixels of a side and images a batch in options/train_<name>_x<scale>.yml; None for a network
            without option files.
        warm_start: x3 and above start from x2 in their option files.
    """

    small: dict
    parameters: dict[int, int]
    patch: int | None = None
    batch: int | None = None
    warm_start: bool = False


_SPIN = {'num_feat': 16, 'num_block': 2, 'num_heads': 2, 'qk_dim': 8, 'mlp_dim': 24, 'stoken_size': (4, 6)}

NETWORKS = {
    'SPIN': Network(
        small=_SPIN,
        parameters={2: 497_275, 3: 569_475, 4: 555_035},
        patch=64,
        batch=16,
    ),
    'SPINVariant': Network(
        small={
            **_SPIN,
            'interaction': 'parallel',
            'top_n': 10,
            'differentiable': True,
            'association': 'exponential',
            'position_weight': 2.5,
            'own_values': 'ignored',
        },
        parameters={2: 497_275, 3: 569_475, 4: 555_035},
    ),
    'SAN': Network(
        small={'num_feat': 16, 'num_group': 2, 'num_block': 2, 'squeeze_factor': 4},
        parameters={2: 15_674_732, 3: 15_859_372, 4: 15_822_444, 8: 15_970_156},
        patch=48,
        batch=8,
        warm_start=True,
    ),
    'RCAN_spinsr': Network(
        small={'num_feat': 16, 'num_group': 2, 'num_block': 2, 'squeeze_factor': 4},
        parameters={2: 15_444_643, 3: 15_629_283, 4: 15_592_355, 8: 15_740_067},
        patch=48,
        batch=16,
        warm_start=True,
    ),
    'RDBESA': Network(
        small={'num_feat': 16, 'num_block': 2, 'squeeze_factor': 2},
        parameters={2: 527_068, 3: 535_723, 4: 547_840},
        patch=64,
        batch=16,
    ),
    'DITN': Network(
        small={'num_feat': 8, 'num_itl': 1, 'num_sal': 1, 'patch_size': 4},
        parameters={2: 424_636, 3: 432_751, 4: 444_112},
    ),
    'DLGSANet': Network(
        small={
            'num_feat': 8,
            'num_group': 1,
            'num_block': 1,
            'group_width': 4,
            'kernel_size': 3,
            'num_heads': 2,
            'tlc_kernel': 7,
        },
        parameters={2: 4_733_724, 3: 4_745_889, 4: 4_762_920},
    ),
    'EMT': Network(
        small={
            'num_feat': 20,
            'num_block': 1,
            'num_layer': 3,
            'num_heads': 2,
            'window_size': ((8, 4), (4, 8)),
            'shift_size': ((4, 2), (2, 4)),
        },
        parameters={2: 670_572, 3: 678_687, 4: 690_048},
    ),
    'ELAN': Network(
        small={'num_feat': 12, 'num_block': 2, 'num_layer': 2, 'window_size': (2, 4, 8)},
        parameters={2: 8_254_092, 3: 8_278_407, 4: 8_312_448},
    ),
    'ESRT': Network(
        small={'num_feat': 8, 'num_block': 1, 'squeeze_factor': 1, 'num_heads': 3},
        parameters={2: 677_771, 3: 770_251, 4: 751_755},
    ),
    'IPT': Network(
        small={'num_feat': 4, 'patch_size': 16, 'patch_dim': 4, 'num_heads': 2, 'num_layer': 1},
        parameters={2: 115_460_419, 3: 115_645_059, 4: 115_608_131},
    ),
    'OmniSR': Network(
        small={'num_feat': 8, 'num_group': 1, 'window_size': 4},
        parameters={2: 784_604, 3: 793_259, 4: 805_376},
    ),
    'Swin2SR': Network(
        small={'embed_dim': 12, 'depths': (2,), 'num_heads': (3,), 'window_size': 4},
        parameters={2: 1_005_348, 3: 1_013_463, 4: 1_024_824},
    ),
    'RAMiT': Network(
        small={'num_feat': 16, 'depths': (2, 1, 1, 1), 'window_size': 2, 'slim': True},
        parameters={2: 939_844, 3: 948_499, 4: 960_616},
    ),
    'RLFN': Network(
        small={'num_feat': 8, 'num_mid': 12, 'num_block': 2, 'num_esa': 4},
        parameters={2: 526_856, 3: 533_891, 4: 543_740},
    ),
}


def bare(name: str) -> str:
    """The name without BasicSR's suffix for a clash, as in spinsr.load and the names of option files."""
    return name.removesuffix('_spinsr')


def settled(net: nn.Module) -> nn.Module:
    """Gives batch normalisation, as a training does, the statistics of images; other networks stay as they are."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches since the reset
        norm.reset_running_stats()
    if norms:
        with torch.no_grad():
            net.train()(torch.rand(4, 3, 16, 16))
    return net.eval()


SMALL = {bare(name): network.small for name, network in NETWORKS.items()}
