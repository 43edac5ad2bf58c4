"""What the papers publish: parameters and PSNR of small and large networks, with where each row was read.

The rows of the networks of spinsr are in their formats (`ArchFormat.published`), those of others here.
"""

from collections.abc import Iterator
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
        protocol: In which they were computed; '' where that is not known.
    """

    name: str
    scale: int
    parameters: int
    psnr: dict[str, float]
    source: str
    protocol: str = ''


DATASETS = ('Set5', 'Set14', 'B100', 'Urban100', 'Manga109')


def numbers(psnr: str) -> dict[str, float]:
    """PSNR by dataset of a line as in `PublishedResult.psnr`."""
    return {key: float(text) for key, text in zip(DATASETS, psnr.split(), strict=True) if text != '-'}


def _row(name: str, scale: int, parameters: int, psnr: str, source: str) -> Published:
    return Published(name, scale, parameters, numbers(psnr), source)


# Rows of the SPIN paper's Table 1 whose own papers were not at hand.
_SWINIR_TABLE = 'as cited by SwinIR, ICCVW 2021, Table 3'
_NO_PSNR = 'parameters in the SPIN paper, ICCV 2023, Table 1; no source at hand confirmed its PSNR'

# A dash: not published, or not confirmed by any source.
_OTHERS = (
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
    _row('DRSAN', 4, 410_000, '32.15 28.54 27.54 26.06 -', 'a smaller one, as cited by github.com/Aitical/CFSR'),
)

# What `_OTHERS` need beside their numbers. No code of the authors for LatticeNet, MADNet and GLADSR was found.
SOURCES = {
    'LatticeNet': Source('LatticeNet (Luo et al., ECCV 2020)', 2020, weights='none'),
    'MADNet': Source('MADNet (Lan et al., IEEE Transactions on Cybernetics)', weights='none'),
    'GLADSR': Source('GLADSR, as cited by SPIN, ICCV 2023', weights='none'),
    'DRSAN': Source(
        'Dynamic Residual Self-Attention Network (Park et al., arXiv:2112.04488)',
        2021,
        'https://github.com/saturnian77/DRSAN',
        weights='repository (TensorFlow)',
    ),
}


def _first_of_each() -> Iterator[Published]:
    """The rows of our formats, without further results of one size.

    Of a network that was trained on several sets of images, and of a network and its form for inference.
    """
    seen: set[tuple] = set()
    for format in formats():
        for r in format.published:
            name = r.name or format.name
            keys = {(name, r.scale), (format.name, r.parameters, r.scale)}
            if not keys & seen:
                yield _row(name, r.scale, r.parameters, r.psnr, r.source)
            seen |= keys


_OURS = tuple(_first_of_each())


def elsewhere() -> tuple[Published, ...]:
    """The rows of networks that spinsr does not have: of each network here, the format knows better."""
    ours = {name for format in formats() for name in (format.name, *format.configurations)}
    ours |= {row.name for row in _OURS}
    return tuple(row for row in _OTHERS if row.name not in ours)


PUBLISHED = (*_OURS, *elsewhere())
