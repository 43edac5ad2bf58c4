"""Every network that spinsr knows, in its published configurations, and networks that are known by their results only.

A network appears here as soon as it has a format (`spinsr.convert.registry`).
"""

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spinsr.archs import ARCH_REGISTRY
from spinsr.convert.registry import (
    ArchFormat,
    PublishedResult,
    Sizes,
    Source,
    find_configuration,
    find_format,
    formats,
    get_format,
)
from spinsr.evaluation import benchmark, complexity, counts
from spinsr.evaluation.published_results import DATASETS, SOURCES, Published, elsewhere, numbers
from spinsr.inference.load import Network, resolve
from spinsr.utils.text import markdown_table, nearest, printable


@dataclass(frozen=True)
class Variant:
    """A network in one published configuration.

    Attributes:
        name: As the paper calls it; `spinsr.load` takes it.
        format: None for a network that spinsr does not have.
    """

    name: str
    format: ArchFormat | None = None

    @property
    def source(self) -> Source:
        """Paper, repository, licences."""
        return self.format.source if self.format else SOURCES[self.name]

    def published(self, scale: int) -> list[Published]:
        """The published results at a scale; several where it was trained on several sets of images."""
        if self.format is None:
            return [row for row in elsewhere() if (row.name, row.scale) == (self.name, scale)]
        protocol = self.format.protocol
        return [
            Published(
                row.name or self.name, scale, row.parameters, numbers(row.psnr), row.source, row.protocol or protocol
            )
            for row in self.format.published
            if row.scale == scale and _configuration(row, self.format) == self.name
        ]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network at one scale with one published result, or without one.

    Attributes:
        network: Its public name; '' where spinsr does not have it.
        variant: The configuration.
        name: What the source of the results calls it, as 'SMFANet+ (DF2K)'.
        scale: Upscaling factor.
        year: Of the paper; None if it is not known.
        parameters: Counted here; as published for a network that spinsr does not have.
        multiply_adds: Counted here for `size`; None for a network that spinsr does not have.
        size: (H, W) of the input, in LR pixels.
        psnr: dB by dataset, as published.
        results: Where they were read; '' without any.
        protocol: In which they were computed.
        source: Paper, repository, licences, weights.
        latency, peak_memory: As `spinsr.evaluation.complexity.measure` returns them; None where they were not measured.
    """

    network: str
    variant: str
    name: str
    scale: int
    year: int | None
    parameters: int
    multiply_adds: int | None
    size: tuple[int, int]
    psnr: Mapping[str, float]
    results: str
    protocol: str
    source: Source
    latency: float | None = None
    peak_memory: int | None = None


def variants(names: Sequence[str] = ()) -> list[Variant]:
    """All networks in all their configurations, or those of these names.

    Args:
        names: Of networks, each then with all its configurations, or of single configurations.

    Raises:
        ValueError: An unknown name.
    """
    known = [variant for format in formats() if not _repeats_another(format) for variant in _variants_of(format)]
    known += [Variant(name) for name in dict.fromkeys(row.name for row in elsewhere())]
    if not names:
        return known
    chosen = []
    for name in names:
        found = [
            variant for variant in known if variant.format and name in (variant.format.name, variant.format.registered)
        ] or [variant for variant in known if name == variant.name]
        if not found:
            hint = nearest(name, [variant.name for variant in known])
            raise ValueError(f'unknown network {printable(repr(name))}; {hint}')
        chosen += found
    return list({variant.name: variant for variant in chosen}.values())


def rows(variant: Variant, scale: int, *, measure: Mapping[str, Any] | None = None) -> list[Row]:
    """The lines of a network at one scale, for an output of about 1280x720 pixels.

    Args:
        variant: Of `variants`.
        scale: Upscaling factor.
        measure: Keywords of `spinsr.evaluation.complexity.measure` (runs, device, …), to measure latency and memory;
            None only counts.

    Returns:
        One for each published result; one for a network without; none if spinsr does not have the network and it has
        no result at this scale.

    Raises:
        ValueError: The network cannot be built at this scale, counted, or measured.
    """
    published, size = variant.published(scale), size_of(variant, scale)
    about = {'scale': scale, 'year': variant.source.year, 'size': size, 'source': variant.source}
    if variant.format is None:
        return [
            Row(
                network='',
                variant=row.name,
                name=row.name,
                parameters=row.parameters,
                multiply_adds=None,
                psnr=row.psnr,
                results=row.source,
                protocol='',
                **about,
            )
            for row in published
        ]
    counted = _count(variant, scale, size)
    measured: Mapping[str, Any] = {}
    if measure is not None:
        measured = complexity.measure(variant.name, scale, *size, **measure)
    return [
        Row(
            network=variant.format.name,
            variant=variant.name,
            name=row.name if row else variant.name,
            parameters=counted['parameters'],
            multiply_adds=counted['multiply_adds'],
            psnr=row.psnr if row else {},
            results=row.source if row else '',
            protocol=row.protocol if row else '',
            latency=measured.get('latency'),
            peak_memory=measured.get('peak_memory'),
            **about,
        )
        for row in published or [None]
    ]


def _count(variant: Variant, scale: int, size: tuple[int, int]) -> dict[str, int]:
    assert variant.format is not None
    # A plugin may have registered another network under the name of one of BasicSR's.
    if isinstance(variant.format.arch, str) and variant.format.registered not in ARCH_REGISTRY:
        _, arguments = find_configuration(variant.name)
        kept = counts.find_outside(variant.format.arch, arguments, scale, *size)
        if kept is not None:
            return kept
    return complexity.count_network(resolve(variant.name, scale, None), *size)


def size_of(variant: Variant, scale: int) -> tuple[int, int]:
    """(H, W) of the input for an output of 1280x720; larger where a network takes whole windows and does not pad."""
    sizes = variant.format.sizes if variant.format else Sizes()
    multiple = 1 if sizes.pads else sizes.multiple
    height, width = (-(-round(side / scale) // multiple) * multiple for side in (720, 1280))
    return height, width


def variant_of(network: Network) -> Variant | None:
    """The published configuration that has the shapes of a network with weights; None if none has."""
    format = find_format(network.cls)
    if format is None or network.state_dict is None:
        return None
    shapes = {name: tensor.shape for name, tensor in network.state_dict.items()}
    for variant in _variants_of(format):
        try:
            net = valueless(resolve(variant.name, network.scale, None))
        except (ValueError, TypeError):  # a configuration that does not exist at this scale
            continue
        if {name: tensor.shape for name, tensor in net.state_dict().items()} == shapes:
            return variant
    return None


def valueless(network: Network) -> nn.Module:
    """Builds a network on the meta device: in milliseconds, without values.

    Raises:
        ValueError, TypeError: As `Network.build`.
    """
    return network.build('meta')


def evaluate_file(
    path: str | os.PathLike,
    benchmarks: Sequence[str | os.PathLike],
    *,
    name: str = '',
    device: str | torch.device = 'cpu',
    failed: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Scores a file of weights at its own scale, in the protocol of the network's published results.

    Args:
        path: A .pth, .pt or .safetensors file of a network with a format.
        benchmarks: Folders, as for `spinsr.evaluation.benchmark.evaluate`.
        name: What the results call the file; its path by default.
        device: Where the network runs.
        failed: As for `spinsr.evaluation.benchmark.evaluate`.

    Returns:
        As `spinsr.evaluation.benchmark.evaluate`, and in each 'weights', 'arch', 'variant' (None for a network without
        a published configuration of this size), 'parameters', 'protocol', and 'published', a list of {'name', 'psnr',
        'source'}.

    Raises:
        ValueError, TypeError, OSError, ImportError: The file cannot be read, its network is not detected, or it does
            not fit the network; as `spinsr.load`.
    """
    described = resolve(None, None, path)
    net, variant = described.build(device), variant_of(described)
    published = variant.published(described.scale) if variant else []
    protocol = published[0].protocol if published else get_format(described.cls).protocol
    results = benchmark.evaluate(
        benchmarks,
        [described.scale],
        benchmark.network({described.scale: net}),
        method=name or os.fspath(path),
        protocols=[protocol],
        failed=failed,
    )
    about = {
        'weights': os.fspath(path),
        'arch': described.arch,
        'variant': variant.name if variant else None,
        'parameters': sum(parameter.numel() for parameter in net.parameters()),
        'protocol': protocol,
    }
    return [
        result
        | about
        | {
            'published': [
                {'name': row.name, 'psnr': row.psnr[result['dataset']], 'source': row.source}
                for row in published
                if result['dataset'] in row.psnr
            ]
        }
        for result in results
    ]


def evaluated_to_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The results of `evaluate_file`, measured beside published: a line for each published number."""
    table = [['weights', 'network', 'scale', 'dataset', 'protocol', 'PSNR', 'SSIM', 'published', 'difference', 'from']]
    for result in results:
        mean = result['protocols'][result['protocol']]
        psnr, ssim = mean['psnr'], mean['ssim']
        first = [
            result['method'],
            result['variant'] or result['arch'],
            f'x{result["scale"]}',
            result['dataset'],
            result['protocol'],
            'n/a' if psnr is None else f'{psnr:.3f}',
            'n/a' if ssim is None else f'{ssim:.4f}',
        ]
        for row in result['published']:
            difference = '' if psnr is None else f'{psnr - row["psnr"]:+.3f}'
            table.append([*first, f'{row["psnr"]:.2f}', difference, f'{row["name"]}: {row["source"]}'])
        if not result['published']:
            table.append([*first, '', '', ''])
    return markdown_table(table)


COLUMNS = {
    'network': lambda row: row.network or row.variant,
    'variant': lambda row: row.variant,
    'year': lambda row: row.year or '',
    'scale': lambda row: f'x{row.scale}',
    'parameters': lambda row: f'{row.parameters:,}',
    'multiply-adds': lambda row: '' if row.multiply_adds is None else f'{row.multiply_adds / 1e9:,.1f} G',
    'latency': lambda row: '' if row.latency is None else f'{row.latency:.3g} s',
    'peak memory': lambda row: '' if row.peak_memory is None else f'{row.peak_memory / 1e6:,.0f} MB',
    **{name: lambda row, name=name: f'{row.psnr[name]:.2f}' if name in row.psnr else '' for name in DATASETS},
    'results from': lambda row: row.results if row.name == row.variant else f'{row.name}: {row.results}',
    'code': lambda row: row.source.code_licence or ('no licence' if row.source.repository else ''),
    'weights': lambda row: row.source.weights_licence or ('not stated' if _exist(row.source.weights) else ''),
    'weights from': lambda row: row.source.weights,
    'here': lambda row: 'yes' if row.network else 'results only',
}


def to_markdown(table: Sequence[Row]) -> str:
    """The table; latency and memory only where they were measured."""
    hidden = () if any(row.latency is not None for row in table) else ('latency', 'peak memory')
    columns = {name: cell for name, cell in COLUMNS.items() if name not in hidden}
    return markdown_table([list(columns), *([cell(row) for cell in columns.values()] for row in table)])


def to_csv(table: Sequence[Row]) -> str:
    """A line for each row, with unrounded numbers; empty where a number is missing."""
    text = io.StringIO()
    lines = list(map(_line, table))
    writer = csv.DictWriter(text, lines[0] if lines else [], lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(row: Row) -> dict[str, Any]:
    plain = ('network', 'variant', 'name', 'year', 'scale', 'parameters', 'multiply_adds', 'latency', 'peak_memory')
    return {
        **{name: getattr(row, name) for name in plain},
        'height': row.size[0],
        'width': row.size[1],
        **{name: row.psnr.get(name) for name in DATASETS},
        'protocol': row.protocol,
        'results': row.results,
        'paper': row.source.paper,
        'repository': row.source.repository,
        'code_licence': row.source.code_licence,
        'weights_licence': row.source.weights_licence,
        'weights': row.source.weights,
    }


def _variants_of(format: ArchFormat) -> Iterator[Variant]:
    """The constructor's defaults first, under the name that the paper has for them if it has one."""
    names = [name for name, arguments in format.configurations.items() if arguments]
    return (Variant(name, format) for name in (_default(format), *names))


def _default(format: ArchFormat) -> str:
    return next((name for name, arguments in format.configurations.items() if not arguments), format.name)


def _configuration(row: PublishedResult, format: ArchFormat) -> str:
    name = row.configuration or row.name
    return name if name in format.configurations else _default(format)


def _repeats_another(format: ArchFormat) -> bool:
    """Whether a format is that of a subclass with switches for experiments, by default the same network."""
    if isinstance(format.arch, str):
        return False
    others = (other.arch for other in formats() if other is not format and not isinstance(other.arch, str))
    return any(issubclass(format.arch, other) for other in others)


def _exist(weights: str) -> bool:
    return bool(weights) and not weights.startswith(('none', 'not '))
