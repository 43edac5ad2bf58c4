"""What tiles cost: time and memory of a network on one image, whole and in tiles of several sizes.

    python scripts/tile_cost.py --network SPIN --lr-size 270x480 --tiles 64 128 192 256

Each size has a process of its own, because peak memory is a number of a process; they take turns. The image is a
natural one, as in scripts/benchmark.py, in float32. Exit status: 0 all done, 1 something failed, 2 wrong usage,
130 interrupted.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from processes import Worker, WorkerError, add_arguments, check_arguments

from spinsr.inference.options import SMALLEST_TILE
from spinsr.utils import memory
from spinsr.utils.atomic_write import write_bytes
from spinsr.utils.text import markdown_table

TILES = (64, 128, 192, 256)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a Markdown table, and returns the exit status."""
    args = parse(argv)
    tiles: list[int | None] = [*([] if args.no_whole else [None]), *args.tiles]
    workers = {tile: Worker(functools.partial(Tiles, tile, args)) for tile in tiles}
    try:
        rows = measure(workers, args.repeats)
    except WorkerError as error:
        print(f'tile_cost.py: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('tile_cost.py: interrupted', file=sys.stderr)
        return 130
    finally:
        for worker in workers.values():
            worker.close()
    height, width = args.lr_size
    print(
        f'{args.network} x{args.scale}, LR {height}x{width}, {args.threads} CPU thread(s), {args.repeats} runs each\n'
    )
    print(to_markdown(rows, args.lr_size), end='')
    if args.json:
        write_bytes(args.json, (json.dumps({**vars(args), 'rows': rows}, indent=1, default=str) + '\n').encode())
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0], epilog='See docs/performance.md.')
    add = parser.add_argument
    add('--network', default='SPIN', metavar='NAME', help='as in scripts/engines.py (default: SPIN)')
    add_arguments(parser, lr_size=(270, 480), repeats=3)
    add('--tiles', type=int, nargs='*', default=list(TILES), metavar='N', help=f'default: {" ".join(map(str, TILES))}')
    add('--no-whole', action='store_true', help='leave out the whole image')
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    if args.no_whole and not args.tiles:
        parser.error('--no-whole needs --tiles, got none')
    if args.tiles and min(args.tiles) < SMALLEST_TILE:
        parser.error(f'--tiles must be at least {SMALLEST_TILE}, got {min(args.tiles)}')
    return args


def measure(workers: Mapping[int | None, Any], repeats: int) -> list[dict[str, Any]]:
    """Runs all workers in turns; a row for each."""
    rows = {tile: {'tile': tile, 'tiles': worker.ask('warm_up'), 'seconds': []} for tile, worker in workers.items()}
    for turn in range(repeats):
        # To and fro, so that a machine that slows down does not slow the same one every time.
        for tile in list(workers)[:: -1 if turn % 2 else 1]:
            rows[tile]['seconds'].append(workers[tile].ask('run'))
    for tile, worker in workers.items():
        rows[tile]['peak_memory'] = worker.ask('peak')
    return list(rows.values())


class Tiles:
    """A network with its image, in tiles of one size; None is the whole image."""

    def __init__(self, tile: int | None, args: argparse.Namespace):
        import torch
        from benchmark import natural_batch
        from engines import build

        torch.set_num_threads(args.threads)
        self.net, self.tile, self.image = build(args.network, args.scale), tile, natural_batch(1, *args.lr_size)
        self.clock = time.process_time if args.processor_time else time.perf_counter

    def warm_up(self) -> int:
        """Runs one tile; returns how many the image has."""
        from spinsr.inference.upscale import super_resolve, tile_starts

        if self.tile is None:
            super_resolve(self.image[..., :64, :64], self.net)
            return 1
        super_resolve(self.image[..., : self.tile, : self.tile], self.net)
        rows, columns = (tile_starts(length, min(self.tile, length)) for length in self.image.shape[2:])
        return len(rows) * len(columns)

    def run(self) -> float:
        """Seconds of the image."""
        from spinsr.inference.upscale import super_resolve

        start = self.clock()
        super_resolve(self.image, self.net, tile=self.tile)
        return self.clock() - start

    def peak(self) -> int | None:
        """Peak memory of the process in bytes."""
        return memory.peak_resident()


def to_markdown(rows: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> str:
    """The table of the rows; times are relative to the first row, turn by turn."""
    head = ('--tile', 'tiles', 'time', 'per LR megapixel', f'relative to {name(rows[0])}', 'peak memory')
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        seconds = statistics.median(row['seconds'])
        ratios = [one / base for one, base in zip(row['seconds'], rows[0]['seconds'], strict=True)]
        lines.append(
            (
                name(row),
                str(row['tiles']),
                f'{seconds:.3g} s',
                f'{seconds / (size[0] * size[1] / 1e6):.3g} s',
                f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})',
                f'{(row["peak_memory"] or 0) / 1e6:,.0f} MB',
            )
        )
    return markdown_table(lines)


def name(row: Mapping[str, Any]) -> str:
    """What a row is called."""
    return 'whole' if row['tile'] is None else str(row['tile'])


if __name__ == '__main__':
    sys.exit(main())
