"""Counts all published configurations and the models that come with spinsr, and keeps that in counts.json.

    python scripts/keep_counts.py

Run it after a change of a network, of its published configurations, or of how networks are counted: a test compares
every entry of spinsr/evaluation/counts.json with a new count. Needs BasicSR; takes minutes.
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from spinsr.evaluation import complexity, counts, zoo
from spinsr.inference.load import Network, resolve
from spinsr.utils.atomic_write import write_bytes
from spinsr.weights import DEFAULT_SCALE
from spinsr.weights.models import MODELS


class Wanted(NamedTuple):
    """A network to count, for an input of `size`, (H, W); `label` says whose it is, as {'name': 'RLFN-S'}."""

    label: dict[str, str]
    network: Network
    size: tuple[int, int]


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    ).parse_args()
    logging.getLogger('spinsr').setLevel(logging.ERROR)  # that the networks have no weights is as wanted
    try:
        entries = [entry for one in tqdm(list(wanted()), unit='network') if (entry := counted(one))]
        write_bytes(counts.FILE, counts.to_json(entries).encode())
    except (ImportError, OSError, ValueError) as error:
        sys.stderr.write(f'keep_counts.py: error: {error}\n')
        return 1
    print(f'{counts.FILE}: {len(entries)} entries')
    return 0


def wanted() -> Iterator[Wanted]:
    """All of them, each network once for each size; also those that cannot be built at their scale or size."""
    found: dict[str, Wanted] = {}
    for one in (*published(), *shipped()):
        described = counts.describe(one.network, *one.size)
        if described is not None:
            found.setdefault(counts.key(described), one)
    yield from found.values()


def published() -> Iterator[Wanted]:
    """The configurations of `spinsr zoo`, for its inputs and for those of `spinsr complexity`."""
    for variant in zoo.variants():
        if variant.format is None:
            continue
        for scale in sorted({DEFAULT_SCALE, *(row.scale for row in variant.format.published)}):
            network = resolve(variant.name, scale, None)
            for size in (zoo.size_of(variant, scale), counts.usual_size(scale)):
                yield Wanted({'name': variant.name}, network, size)


def shipped() -> Iterator[Wanted]:
    """The models that come with spinsr."""
    for model in MODELS:
        network = resolve(weights=model.path)
        yield Wanted({'model': model.name}, network, counts.usual_size(network.scale))


def counted(wanted: Wanted) -> dict[str, Any] | None:
    """The entry of a network; None for one that cannot be built or counted."""
    try:
        result = complexity.recount(wanted.network, *wanted.size)
    except (ValueError, TypeError) as error:
        label = next(iter(wanted.label.values()))
        sys.stderr.write(f'{label} x{wanted.network.scale} {wanted.size[0]}x{wanted.size[1]}: not counted: {error}\n')
        return None
    described = counts.describe(wanted.network, *wanted.size)
    return {**wanted.label, **described, **result} if described else None


if __name__ == '__main__':
    sys.exit(main())
