"""The networks under test, one entry each: all that the tests must know about a new arch beside its format."""

from typing import NamedTuple

import torch
from torch import nn


class Network(NamedTuple):
    """What the tests cannot find out by themselves.

    Args:
        small: Arguments that make the network small.
        parameters: Exact numbers by scale, at the defaults; the scales are those of the recipe, if there is one.
    """

    small: dict
    parameters: dict[int, int]


_SPIN = {'num_feat': 16, 'num_block': 2, 'num_heads': 2, 'qk_dim': 8, 'mlp_dim': 24, 'stoken_size': (4, 6)}

NETWORKS = {
    'SPIN': Network(
        small=_SPIN,
        parameters={2: 497_275, 3: 569_475, 4: 555_035},
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
    ),
    'RCAN_spinsr': Network(
        small={'num_feat': 16, 'num_group': 2, 'num_block': 2, 'squeeze_factor': 4},
        parameters={2: 15_444_643, 3: 15_629_283, 4: 15_592_355, 8: 15_740_067},
    ),
    'AWSRN': Network(
        small={'num_feat': 4, 'num_mid': 6, 'num_block': 2, 'num_unit': 2},
        parameters={2: 1_396_872, 3: 1_476_147, 4: 1_587_132},
    ),
    'CARN': Network(
        small={'num_feat': 8, 'groups': 2},
        parameters={2: 964_163, 3: 1_148_803, 4: 1_111_875},
    ),
    'IPT': Network(
        small={'num_feat': 4, 'patch_size': 8, 'token_size': 2, 'num_layer': 2, 'num_heads': 2},
        parameters={2: 115_460_419, 3: 115_645_059, 4: 115_608_131},
    ),
    'SMSR': Network(
        small={'num_feat': 8, 'num_block': 2, 'squeeze_factor': 4, 'gumbel_noise': False},
        parameters={2: 987_306, 3: 995_961, 4: 1_008_078},
    ),
    'RDBESA': Network(
        small={'num_feat': 16, 'num_block': 2, 'squeeze_factor': 2},
        parameters={2: 527_068, 3: 535_723, 4: 547_840},
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
