"""One HTML page about a network: its results on a folder of images, their scores, and its training curves.

The page is self-contained. `pictures` makes its pictures, `curves` draws a training, `page` renders the template
page.html with page.css and page.js in it.
"""

import contextlib
import copy
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from spinsr._version import __version__
from spinsr.analysis import superpixels
from spinsr.archs.spin_arch import SPIN
from spinsr.data import bicubic, image_file, photograph
from spinsr.evaluation import benchmark, complexity, counts
from spinsr.inference import upscale as upscaling
from spinsr.inference.load import Network
from spinsr.report import curves, page, pictures

# Of how many images there are pictures, if nothing else is asked for.
SHOWN = 12
# The output whose multiply-adds are counted, as in the papers: H, W.
COUNTED = (720, 1280)


def make_report(
    folder: str | os.PathLike,
    net: nn.Module,
    *,
    log: str | os.PathLike | None = None,
    weights: str = '',
    arch_args: Mapping[str, Any] | None = None,
    block: int = 0,
    shown: int = SHOWN,
    failed: Callable[[str], None] | None = None,
    network: Network | None = None,
) -> str:
    """Makes the page of a network and a folder.

    Args:
        folder: Low-resolution images, or a benchmark as for `spinsr.evaluation.benchmark.evaluate`: a folder that has
            one called HR. A benchmark is scored as a whole.
        net: From `spinsr.load`, or any module from (1, 3, H, W) to (1, 3, scale*H, scale*W) in [0, 1].
        log: A TensorBoard log, tb_logger/NAME, whose curves are drawn.
        weights: What the page calls the weights.
        arch_args: Arguments of the network that are not its defaults, to be named.
        block: Block of SPIN, from 0, whose superpixels are drawn.
        shown: Of how many images, the first by name, there are pictures.
        failed: Called with one line for every image of a folder without HR that cannot be shown; the others are.
            Without it the first failure is raised. A benchmark with such an image always fails.
        network: What `net` was built from, as `spinsr.inference.load.resolve` returns it. Its multiply-adds are then
            looked up where they are kept (`spinsr.evaluation.counts`), which saves seconds.

    Returns:
        HTML.

    Raises:
        ValueError: The folder does not exist, holds no images, or an image in it cannot be used; no image can be shown;
            the network does not accept RGB images or returns NaN; the block does not exist; `shown` is below 1; or
            `log` is not a TensorBoard log.
        ImportError: `log` is given and the package tensorboard is missing.
    """
    folder = Path(folder)
    if shown < 1:
        raise ValueError(f'shown must be at least 1, got {shown=}')
    if isinstance(net, SPIN) and not 0 <= block < len(net.blocks):
        raise ValueError(f'the block must be 0 to {len(net.blocks) - 1}, got {block}')
    # Before the work, so that typing errors show at once.
    series = curves.read_log(log) if log is not None else []
    protocols = curves.read_protocols(log) if log is not None else {}
    method, scale = type(net).__name__, upscaling.scale_of(net)
    draw = _Drawer(net, method, scale, block)
    if (folder / 'HR').is_dir():
        scores, entries, count = _benchmark(folder, net, draw, shown)
    else:
        scores, (entries, count) = {}, _folder(folder, net, draw, shown, failed)
    cost = _cost(net, scale, network)
    facts = {'Images': str(count)}
    if scores:
        before, after = (scores[name][page.MAIN_PROTOCOL] for name in scores)
        above = page.gain(after, before)
        facts[f'PSNR, {page.MAIN_PROTOCOL}'] = f'{page.score(after["psnr"], 2)} dB' + (above and f' ({above})')
        facts[f'SSIM, {page.MAIN_PROTOCOL}'] = page.score(after['ssim'], 4)
    return page.render(
        page.Report(
            title=f'{method} ×{scale} on {Path(os.path.abspath(folder)).name}',
            method=method,
            scale=scale,
            count=count,
            entries=entries,
            scores=scores,
            charts=[curves.chart(one, protocols) for one in series],
            # Why something could not be counted is for the end of the page.
            facts=facts | {name: text for name, text in cost.items() if text[0].isdigit()},
            details=_details(net, weights, arch_args or {}, scale) | cost,
            block=block if isinstance(net, SPIN) else None,
        )
    )


class _Drawer:
    """Makes the pictures of one image."""

    def __init__(self, net: nn.Module, method: str, scale: int, block: int):
        self.net, self.method, self.scale, self.block = net, method, scale, block

    def __call__(self, name: str, lr: np.ndarray, sr: np.ndarray, hr: np.ndarray | None = None) -> page.Entry:
        """All of them (H, W, 3), uint8, RGB."""
        images = {'bicubic': bicubic.upsample(lr, self.scale), self.method: sr}
        if hr is not None:
            images['HR'] = hr
        layers = images | {'LR': lr}  # in its own size; the page enlarges it
        uris, lossless = pictures.encode_together([pictures.shrink(image) for image in layers.values()])
        maps = {}
        if isinstance(self.net, SPIN):
            found = superpixels.find_superpixels(lr, self.net, self.block)
            maps['superpixels'] = superpixels.draw_boundaries(sr, found.labels)
            maps['mean colours'] = superpixels.enlarge(found.mean_colours(), self.scale)
        if hr is not None:
            maps |= {f'error of {label}': pictures.draw_error(images[label], hr) for label in list(images)[:2]}
        boxes = pictures.choose_crops(images['bicubic'], hr)
        return page.Entry(
            name,
            sr.shape[:2],
            [page.Picture(label, uri, label == 'LR') for label, uri in zip(layers, uris, strict=True)],
            lossless,
            [page.Picture(label, pictures.encode_jpeg(pictures.shrink(image))) for label, image in maps.items()],
            [(box, [page.Picture(key, pictures.encode_png(box.cut(images[key]))) for key in images]) for box in boxes],
        )


def _benchmark(folder: Path, net: nn.Module, draw: _Drawer, shown: int) -> tuple[dict[str, Any], list[page.Entry], int]:
    entries: list[page.Entry] = []
    upscale = benchmark.network({draw.scale: net})

    def upscale_and_draw(pair: benchmark.Pair) -> np.ndarray:
        sr = upscale(pair)
        if len(entries) < shown:
            entries.append(draw(pair.name, pair.lr, np.rint(sr).astype(np.uint8), pair.hr))
        return sr

    scores = {
        name: benchmark.evaluate([folder], [draw.scale], upscaler, method=name)[0]['protocols']
        for name, upscaler in {'bicubic': benchmark.upsample, draw.method: upscale_and_draw}.items()
    }
    return scores, entries, len(scores[draw.method][page.MAIN_PROTOCOL]['images'])


def _folder(
    folder: Path, net: nn.Module, draw: _Drawer, shown: int, failed: Callable[[str], None] | None
) -> tuple[list[page.Entry], int]:
    paths = image_file.list_images(folder, photograph.FORMATS)
    entries: list[page.Entry] = []
    for path in tqdm(paths[:shown], 'Report', unit='image', disable=None, leave=False):
        try:
            lr = upscaling.rgb8(photograph.read(path).pixels)
            entries.append(draw(path.name, lr, upscaling.upscale(lr, net)))
        except (ValueError, RuntimeError, MemoryError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            reason = reason if str(path) in reason else f'{path}: {reason}'
            if failed is None:
                raise ValueError(reason) from error
            failed(reason)
    if not entries:
        raise ValueError(f'{folder} holds no image that can be shown')
    return entries, len(paths)


def _cost(net: nn.Module, scale: int, network: Network | None) -> dict[str, str]:
    height, width = (round(side / scale) for side in COUNTED)
    name = f'Multiply-adds, input {width} × {height}'
    parameters = f'{sum(parameter.numel() for parameter in net.parameters()):,}'
    try:
        counted = network and counts.find(network, height, width)
        counted = counted or complexity.count(copy.deepcopy(net).cpu(), height, width)
    except ValueError as error:
        return {'Parameters': parameters, name: f'not counted: {error}'}
    return {'Parameters': parameters, name: f'{counted["multiply_adds"] / 1e9:,.1f} G'}


def _details(net: nn.Module, weights: str, arch_args: Mapping[str, Any], scale: int) -> dict[str, str]:
    # As in `spinsr.inference.upscale`: a network without parameters runs on the CPU.
    parameter = next(net.parameters(), torch.empty(0))
    details = {'Network': f'{type(net).__name__} ×{scale}'} | ({'Weights': weights} if weights else {})
    if arch_args:
        details['Arguments'] = ', '.join(f'{key}={value}' for key, value in arch_args.items())
    versions = {'spinsr': __version__, 'torch': torch.__version__}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions['BasicSR'] = importlib.metadata.version('basicsr')
    versions['Python'] = platform.python_version()
    details['Versions'] = ', '.join(f'{name} {version}' for name, version in versions.items())
    details['Ran on'] = f'{parameter.device.type}, {str(parameter.dtype).removeprefix("torch.")}, {platform.machine()}'
    return details
