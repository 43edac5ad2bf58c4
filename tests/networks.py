"""The networks under test, one entry each: all that the tests must know about a new arch besides its format."""

from typing import NamedTuple

import torch
from torch import nn

from spinsr.convert.registry import find_format


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
    'IMDN': Network(
        small={'num_feat': 32, 'num_block': 2},
        parameters={2: 694_404, 3: 703_059, 4: 715_176},
    ),
    'IMDN_AS': Network(
        small={'num_feat': 32, 'num_block': 3},
        parameters={1: 752_104},
    ),
    'IMDN_RTC': Network(
        small={'num_feat': 8, 'num_block': 2},
        parameters={2: 20_190},
    ),
    'RFDN': Network(
        small={'num_feat': 16, 'num_block': 1},
        parameters={2: 417_212, 3: 423_977, 4: 433_448},
    ),
    'BSRN': Network(
        small={'num_feat': 32, 'num_block': 1},
        parameters={2: 331_628, 3: 340_283, 4: 352_400},
    ),
    'BSRN_S': Network(
        small={'num_feat': 8, 'num_block': 2},
        parameters={4: 156_288},
    ),
    'SAFMN': Network(
        small={'num_feat': 8, 'num_block': 2},
        parameters={2: 227_820, 3: 232_695, 4: 239_520},
    ),
    'SMFANet': Network(
        small={'num_feat': 6, 'num_block': 2},
        parameters={2: 185_628, 3: 190_503, 4: 197_328},
    ),
    'ShuffleMixer': Network(
        small={'num_feat': 8, 'num_block': 1, 'kernel_size': 3},
        parameters={2: 393_939, 3: 414_739, 4: 410_579},
    ),
    'ELAN': Network(
        small={'num_feat': 12, 'num_block': 2, 'num_layer': 2, 'window_size': (2, 4, 8)},
        parameters={2: 8_254_092, 3: 8_278_407, 4: 8_312_448},
    ),
    'ESRT': Network(
        small={'num_feat': 8, 'num_block': 1, 'squeeze_factor': 1, 'num_heads': 3},
        parameters={2: 677_771, 3: 770_251, 4: 751_755},
    ),
    'OmniSR': Network(
        small={'num_feat': 8, 'num_group': 1, 'window_size': 4},
        parameters={2: 784_604, 3: 793_259, 4: 805_376},
    ),
    'Swin2SR': Network(
        small={'embed_dim': 12, 'depths': (2,), 'num_heads': (3,), 'window_size': 4},
        parameters={2: 1_005_348, 3: 1_013_463, 4: 1_024_824},
    ),
    'TCFDB': Network(
        small={'num_feat': 8, 'num_block': 1, 'num_layer': 2, 'num_heads': 2, 'window_size': 4, 'num_esa': 4},
        parameters={2: 510_704, 3: 518_819, 4: 530_180},
    ),
    'RAMiT': Network(
        small={'num_feat': 16, 'depths': (2, 1, 1, 1), 'window_size': 2, 'slim': True},
        parameters={2: 939_844, 3: 948_499, 4: 960_616},
    ),
    'LAPAR': Network(
        small={'num_feat': 6, 'num_block': 1},
        parameters={2: 547_866, 3: 594_266, 4: 659_226},
    ),
    'ETDS': Network(
        small={'num_feat': 10, 'num_block': 2},
        parameters={2: 55_340, 3: 59_690, 4: 65_780},
    ),
    'ETDSInference': Network(
        small={'num_feat': 10, 'num_block': 2},
        parameters={2: 60_008, 3: 65_288, 4: 72_608},
    ),
    'RLFN': Network(
        small={'num_feat': 8, 'num_mid': 12, 'num_block': 2, 'num_esa': 4},
        parameters={2: 526_856, 3: 533_891, 4: 543_740},
    ),
}

# BasicSR's own networks; the names of small networks and the numbers as above, at the defaults of their formats.
BASICSR = {
    'SwinIR': Network(
        small={
            'img_size': 8,
            'embed_dim': 8,
            'depths': (2, 1),
            'num_heads': (2, 4),
            'window_size': 4,
            'upsampler': 'pixelshuffledirect',
        },
        parameters={2: 11_752_487, 3: 11_937_127, 4: 11_900_199, 8: 12_047_911},
    ),
    'EDSR': Network(
        small={'num_feat': 8, 'num_block': 2},
        parameters={2: 1_369_859, 3: 1_554_499, 4: 1_517_571},
    ),
    'ECBSR': Network(
        small={'num_block': 1, 'num_channel': 4},
        parameters={2: 47_088, 3: 61_578, 4: 95_472},
    ),
}

# Exact numbers of parameters of the published configurations that are not the defaults, by scale.
CONFIGURATIONS = {
    'AWSRN-M': {2: 1_063_742, 3: 1_143_017, 4: 1_254_002},
    'AWSRN-S': {2: 397_482, 3: 476_757, 4: 587_742},
    'AWSRN-SD': {2: 348_098, 3: 388_013, 4: 443_894},
    'CARN-multi': {2: 1_591_939, 3: 1_591_939, 4: 1_591_939},
    'CARN-M': {2: 257_027, 3: 303_427, 4: 294_147},
    'CARN-M-multi': {2: 414_787, 3: 414_787, 4: 414_787},
    'DLGSANet-tiny': {2: 565_710, 3: 572_205, 4: 581_298},
    'DLGSANet-light': {2: 745_188, 3: 751_683, 4: 760_776},
    'ECBSR-M4C8': {4: 60_088},
    'ECBSR-M10C16': {4: 148_560},
    'ECBSR-M10C32': {4: 426_784},
    'ECBSR-M16C64': {4: 2_304_576},
    'EDSR-large': {2: 40_729_603, 3: 43_680_003, 4: 43_089_923},
    'ELAN-light': {2: 582_012, 3: 590_127, 4: 601_488},
    'ETDS-T': {2: 12_110, 3: 14_300, 4: 17_366},
    'ETDS-S': {2: 38_352, 3: 42_702, 4: 48_792},
    'ETDS-L': {2: 143_850, 3: 150_360, 4: 159_474},
    'ETDSInference-T': {2: 13_944, 3: 16_920, 4: 21_360},
    'ETDSInference-S': {2: 41_512, 3: 46_792, 4: 54_112},
    'ETDSInference-L': {2: 152_184, 3: 159_768, 4: 169_968},
    'IPT-multi': {4: 118_892_370},
    'LAPAR-B': {2: 250_184, 3: 276_344, 4: 312_968},
    'LAPAR-C': {2: 87_318, 3: 98_998, 4: 115_350},
    'RAMiT-1': {2: 823_164, 3: 831_819, 4: 843_936},
    'RAMiT-slimSR': {2: 581_008, 3: 587_503, 4: 596_596},
    'RFDN-paper': {2: 534_036, 3: 540_531, 4: 549_624},
    'RFDN-L': {2: 625_962, 3: 632_997, 4: 642_846},
    'RLFN-S': {2: 454_620, 3: 461_115, 4: 470_208},
    'RLFN-NTIRE': {2: 302_278, 3: 308_503, 4: 317_218},
    'SAFMN-L': {2: 5_559_308, 3: 5_576_603, 4: 5_600_816},
    'SMFANet+': {2: 480_300, 3: 486_795, 4: 495_888},
    'ShuffleMixer-tiny': {2: 108_435, 3: 113_715, 4: 112_659},
    'SwinIR-light': {2: 910_152, 3: 918_267, 4: 929_628},
    'SwinIR-real': {4: 11_715_559},
    'SwinIR-real-large': {4: 28_013_059},
    'Swin2SR-classical': {2: 12_091_571, 3: 12_276_211, 4: 12_239_283},
    'Swin2SR-compressed': {4: 12_244_598},
    'Swin2SR-real': {4: 12_054_643},
    'Swin2SR-real-large': {4: 28_785_859},
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


def told(name: str) -> dict:
    """Arguments of the small network that its weights do not tell."""
    return {key: value for key, value in SMALL[bare(name)].items() if key in find_format(name).untold}
