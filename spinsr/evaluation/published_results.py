"""What the papers publish: parameters and PSNR of small and large networks, with where each row was read.

The rows of the networks of spinsr are in their formats (`ArchFormat.published`), those of others here.
"""

from typing import NamedTuple

from spinsr.convert.registry import Source, formats


class Published(NamedTuple):
    """One network at one scale.

    Attributes:
        name: As its paper calls it.
        scale: Upscaling factor.
        parameters: As published; for RCAN and SAN, whose papers round to 16M and 15.7M, as their code has them.
        psnr: dB on Y by dataset, as published. Protocols differ between papers by about 0.01 dB (docs/evaluate.md).
        source: Where the numbers come from.
    """

    name: str
    scale: int
    parameters: int
    psnr: dict[str, float]
    source: str


DATASETS = ('Set5', 'Set14', 'B100', 'Urban100', 'Manga109')


def numbers(psnr: str) -> dict[str, float]:
    """PSNR by dataset of a line as in `PublishedResult.psnr`."""
    return {key: float(text) for key, text in zip(DATASETS, psnr.split(), strict=True) if text != '-'}


def _row(name: str, scale: int, parameters: int, psnr: str, source: str) -> Published:
    return Published(name, scale, parameters, numbers(psnr), source)


_SWINIR = 'ICCVW 2021, github.com/JingyunLiang/SwinIR; trained on DIV2K'
# Rows of the SPIN paper's Table 1 whose own papers were not at hand.
_SWINIR_TABLE = 'as cited by SwinIR, ICCVW 2021, Table 3'
_NO_PSNR = 'parameters in the SPIN paper, ICCV 2023, Table 1; no source at hand confirmed its PSNR'

# A dash: not published, or not confirmed by any source.
_OTHERS = (
    _row('SwinIR-light', 2, 878_000, '38.14 33.86 32.31 32.76 39.12', _SWINIR),
    _row('SwinIR-light', 3, 886_000, '34.62 30.54 29.20 28.66 33.98', _SWINIR),
    _row('SwinIR-light', 4, 897_000, '32.44 28.77 27.69 26.47 30.92', _SWINIR),
    _row('SwinIR', 4, 11_800_000, '32.72 28.94 27.83 27.07 31.67', _SWINIR),
    _row('LatticeNet', 2, 756_000, '38.15 33.78 32.25 32.43 -', _SWINIR_TABLE),
    _row('LatticeNet', 3, 765_000, '34.53 30.39 29.15 28.33 -', _SWINIR_TABLE),
    _row('LatticeNet', 4, 777_000, '32.30 28.68 27.62 26.25 -', _SWINIR_TABLE),
    _row('MADNet', 2, 878_000, '- - - - -', _NO_PSNR),
    _row('MADNet', 3, 930_000, '- - - - -', _NO_PSNR),
    _row('MADNet', 4, 1_002_000, '- - - - -', _NO_PSNR),
    _row('GLADSR', 2, 812_000, '- - - - -', _NO_PSNR),
    _row('GLADSR', 3, 821_000, '- - - - -', _NO_PSNR),
    _row('GLADSR', 4, 826_000, '- - - - -', _NO_PSNR),
    _row('DRSAN', 2, 690_000, '- - - - -', _NO_PSNR),
    _row('DRSAN', 3, 740_000, '- - - - -', _NO_PSNR),
    _row('DRSAN', 4, 730_000, '- - - - -', _NO_PSNR),
)

_SWINIR_SOURCE = Source(
    'SwinIR: Image Restoration Using Swin Transformer (Liang et al., ICCVW 2021)',
    2021,
    'https://github.com/JingyunLiang/SwinIR',
    'Apache-2.0',
    weights='release',
)
# What `_OTHERS` need beside their numbers. No code of the authors for LatticeNet, MADNet and GLADSR was found.
SOURCES = {
    'SwinIR-light': _SWINIR_SOURCE,
    'SwinIR': _SWINIR_SOURCE,
    'LatticeNet': Source('LatticeNet (Luo et al., ECCV 2020)', 2020, weights='none'),
    'MADNet': Source('MADNet (Lan et al., IEEE Transactions on Cybernetics)', weights='none'),
    'GLADSR': Source('GLADSR, as cited by SPIN, ICCV 2023', weights='none'),
    'DRSAN': Source(
        'Dynamic Residual Self-Attention Network (Park et al., arXiv:2112.04488)',
        2021,
        'https://github.com/saturnian77/DRSAN',
    ),
}

# By name and scale: a network and its form for inference have the same results.
_OURS = {
    (r.name or f.name, r.scale): _row(r.name or f.name, r.scale, r.parameters, r.psnr, r.source)
    for f in formats()
    for r in f.published
}


def elsewhere() -> tuple[Published, ...]:
    """The rows of networks that spinsr does not have: of each network here, the format knows better."""
    ours = {name for format in formats() for name in (format.name, *format.configurations)}
    ours |= {name for name, _ in _OURS}
    return tuple(row for row in _OTHERS if row.name not in ours)


PUBLISHED = (*_OURS.values(), *elsewhere())
