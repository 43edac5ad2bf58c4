"""PSNR, SSIM and other full-reference metrics on benchmark folders, each number under the name of its protocol.

The protocols of the literature differ by more than the methods do that are compared in them (docs/evaluate.md has the
formulas), so several are computed side by side. PSNR and SSIM equal those of BasicSR. Their Y is float32, which on Set5
and Set14 moves PSNR by less than 4e-7 dB from a Y in float64; the MATLAB script of RCAN's authors keeps Y in single
precision, too.
"""

import csv
import functools
import importlib
import inspect
import io
import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from spinsr.data import bicubic, image_file, photograph
from spinsr.evaluation.protocols import DEFAULT, METRIC_PROTOCOL, NO_REFERENCE_PROTOCOL, PROTOCOLS
from spinsr.evaluation.psnr_ssim import SSIM_WINDOW, luma, psnr, ssim
from spinsr.inference.upscale import rgb8, super_resolve, super_resolve_colours
from spinsr.utils.text import markdown_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """An image of a benchmark at one scale.

    Args:
        dataset: The benchmark's name.
        scale: Upscaling factor.
        name: The HR file's name without its ending.
        hr: (scale*h, scale*w, 3), uint8, RGB; cut to the size of LR times the scale.
        lr: (h, w, 3), uint8, RGB.
    """

    dataset: str
    scale: int
    name: str
    hr: np.ndarray
    lr: np.ndarray


# A pair to its super-resolved image (scale*h, scale*w, 3), RGB: uint8, or float in 0 … 255 where it is not yet rounded.
Upscaler = Callable[[Pair], np.ndarray]


def network(nets: Mapping[int, nn.Module], **options: Any) -> Upscaler:
    """Images from networks.

    Args:
        nets: Networks from `spinsr.load` by scale.
        **options: Keywords of `spinsr.inference.upscale.super_resolve`: self_ensemble, …

    Raises:
        TypeError: An option does not exist.
    """
    inspect.signature(super_resolve).bind_partial(**options)

    def upscale(pair: Pair) -> np.ndarray:
        x = torch.from_numpy(pair.lr).permute(2, 0, 1).unsqueeze(0) / 255
        try:
            y = super_resolve_colours(x, nets[pair.scale], **options)
        except Exception as error:  # networks of others fail in their own ways
            size = f'{pair.lr.shape[0]}x{pair.lr.shape[1]} (HxW)'
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f'the network fails on the LR image of {size}: {reason}') from error
        if not y.isfinite().all():
            raise ValueError('network output contains NaN or Inf')
        return (y[0] * 255).clamp(0, 255).permute(1, 2, 0).numpy()

    return upscale


def upsample(pair: Pair) -> np.ndarray:
    """Images from bicubic upscaling, equal to MATLAB's imresize on uint8."""
    return bicubic.upsample(pair.lr, pair.scale)


def images(folder: str | os.PathLike) -> Upscaler:
    """Images made elsewhere.

    They lie in the first of these folders that exists, s being the scale: FOLDER/DATASET/xs, FOLDER/DATASET/Xs,
    FOLDER/DATASET, FOLDER/xs, FOLDER/Xs, FOLDER. The image of NAME is called NAME, NAMExs or NAME_xs; where there is
    none of that name, NAME or NAMExs with more after one of `_-. ` (baby_RCAN_x4), unless that names other scales only.

    Args:
        folder: `{scale}` in it stands for the scale.
    """
    owners: dict[Path, str] = {}
    listed: dict[Path, list[Path]] = {}

    def find(pair: Pair) -> np.ndarray:
        root = Path(os.fspath(folder).replace('{scale}', str(pair.scale)))
        scales = (f'x{pair.scale}', f'X{pair.scale}')
        places = [root / part for part in (*(f'{pair.dataset}/{s}' for s in scales), pair.dataset, *scales)]
        place = next((place for place in places if place.is_dir()), root)
        if place not in listed:
            listed[place] = image_file.list_images(place)
        found = [path for path in listed[place] if _belongs(path.stem, pair.name, pair.scale)]
        plain = (pair.name, f'{pair.name}x{pair.scale}', f'{pair.name}_x{pair.scale}')
        found = [path for path in found if path.stem in plain] or found
        if not found:
            raise ValueError(f'{place} holds no image called {", ".join(plain)} or {pair.name}_… of x{pair.scale}')
        if len(found) > 1:
            raise ValueError(f'{place} must hold one image of {pair.name}, got {", ".join(p.name for p in found)}')
        owner = owners.setdefault(found[0], pair.name)
        if owner != pair.name:
            raise ValueError(f'{place} holds no image of its own for {pair.name}: {found[0].name} is that of {owner}')
        image = image_file.read(found[0])
        if image.shape != pair.hr.shape:
            raise ValueError(f'{found[0]} must be {_hw(pair.hr)} as the HR image, got {_hw(image)}')
        return image

    return find


def evaluate(
    benchmarks: Sequence[str | os.PathLike],
    scales: Sequence[int],
    upscaler: Upscaler,
    *,
    method: str = '',
    protocols: Sequence[str] | None = None,
    metrics: Mapping[str, Callable[..., Any]] | None = None,
    failed: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Scores a method on benchmark folders.

    Args:
        benchmarks: Folders with HR/NAME.png and, if wanted, LR_bicubic/Xs/NAMExs.png; where the folder of a scale is
            absent its LR images are made from HR, as MATLAB would. Their last part is the dataset's name.
        scales: Upscaling factors.
        upscaler: Where the images come from: `network(…)`, `images(…)`, `upsample`, or any function like them.
        method: What the tables call it.
        protocols: Names in PROTOCOLS; None means `protocols.DEFAULT`, without the unrounded ones where the images are
            uint8.
        metrics: Further metrics, from `load_metrics`.
        failed: Called with one line for every dataset and scale that cannot be scored; the others are. Without it the
            first failure is raised.

    Returns:
        For each dataset and scale {'dataset', 'scale', 'method', 'protocols': {PROTOCOL: {'psnr', 'ssim', 'images':
        {NAME: {'psnr', 'ssim'}}}}}; with metrics also 'metrics': {METRIC: {'protocol': 'rgb', 'value', 'images': {NAME:
        value}}}. The values beside 'images' are means over the images. PSNR in dB; infinite for equal images. None
        where an image is too small, see `score`.

    Raises:
        ValueError: No benchmarks or scales, two benchmarks of one name, an unknown protocol; or, without `failed`, an
            image is missing, damaged, unpaired or of a wrong size, the network cannot take it, or a protocol wants
            unrounded images and these are rounded.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / 'Mine'
        >>> image_file.write_png(folder / 'HR' / 'a.png', np.zeros((24, 24, 3), np.uint8))
        >>> result = evaluate([folder], [2], upsample, protocols=['rgb'])[0]
        >>> result['dataset'], result['protocols']['rgb']['images']
        ('Mine', {'a': {'psnr': inf, 'ssim': 1.0}})
    """
    folders = {Path(os.path.abspath(folder)).name: Path(folder) for folder in benchmarks}
    if len(folders) < len(benchmarks) or not benchmarks or not scales:
        given = ', '.join(map(str, benchmarks)) or 'none'
        raise ValueError(f'benchmarks must be folders of different names, for some scales, got {given}, {scales=}')
    for name in protocols or ():
        if name not in PROTOCOLS:
            raise ValueError(f'protocols must be among {", ".join(PROTOCOLS)}, got {name!r}')

    def attempt(dataset: str, scale: int, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (ValueError, OSError) as error:
            if failed is None:
                raise
            failed(f'{dataset} x{scale}: {error}')
            return None

    # All files are looked at first: hours of work should not end at a file that is missing.
    jobs = []
    for dataset, folder in folders.items():
        for scale in scales:
            files = attempt(dataset, scale, lambda folder=folder, scale=scale: _find_files(folder, scale))
            if files is not None:
                jobs.append((dataset, scale, files))
    results = []
    for dataset, scale, files in jobs:
        evaluated = functools.partial(_evaluate_set, dataset, scale, files, upscaler, protocols, metrics or {})
        entry = attempt(dataset, scale, evaluated)
        if entry is not None:
            results.append({'dataset': dataset, 'scale': scale, 'method': method, **entry})
    return results


def evaluate_without_hr(
    folders: Sequence[str | os.PathLike],
    scales: Sequence[int],
    upscaler: Upscaler | None,
    metrics: Mapping[str, Callable[..., Any]],
    *,
    method: str = '',
    failed: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Scores a method on images that have no HR, with metrics that need no reference.

    Args:
        folders: Low-resolution images: of FOLDER/LR_bicubic/Xs where that exists, else of FOLDER. Their last part is
            the dataset's name.
        scales: Upscaling factors.
        upscaler: As for `evaluate`; None: the images are results already, and `scales` does not matter.
        metrics: From `load_metrics(…, reference=False)`.
        method: What the tables call it.
        failed: As for `evaluate`.

    Returns:
        For each dataset and scale {'dataset', 'scale', 'method', 'protocols': {}, 'metrics': {METRIC: {'protocol':
        'rgb_whole', 'value', 'images': {NAME: value}}}}: of the whole image, rounded to uint8. The scale of results is
        None.

    Raises:
        ValueError: No folders or scales, two folders of one name; or, without `failed`, a folder holds no images, an
            image cannot be read or is named as another, or the network or a metric does not take it.
    """
    named = {Path(os.path.abspath(folder)).name: Path(folder) for folder in folders}
    if len(named) < len(folders) or not folders or not scales:
        given = ', '.join(map(str, folders)) or 'none'
        raise ValueError(f'folders must have different names, for some scales, got {given}, {scales=}')
    results = []
    for dataset, folder in named.items():
        for scale in scales if upscaler else [None]:
            try:
                scored = _evaluate_folder(dataset, folder, scale, upscaler, metrics)
            except (ValueError, OSError) as error:
                if failed is None:
                    raise
                failed(f'{dataset}{f" x{scale}" if scale else ""}: {error}')
                continue
            results.append({'dataset': dataset, 'scale': scale, 'method': method, 'protocols': {}, 'metrics': scored})
    return results


def score(sr: np.ndarray, hr: np.ndarray, scale: int, protocol: str) -> dict[str, float | None]:
    """PSNR and SSIM of an image in a protocol.

    Args:
        sr: (H, W, 3), RGB; uint8, or float in 0 … 255, which is rounded where the protocol asks for it.
        hr: (H, W, 3), uint8, RGB.
        scale: Upscaling factor; the border depends on it.
        protocol: A name in PROTOCOLS.

    Returns:
        {'psnr': dB, infinite for equal images, 'ssim': at most 1}. None where nothing is left inside the border, and
        for SSIM where less than its window of 11x11 is.

    Raises:
        ValueError: The images differ in shape; or the protocol wants unrounded images, and sr is uint8.

    Example:
        >>> hr = np.full((24, 24, 3), 100, np.uint8)
        >>> round(score(hr + 1, hr, 2, 'rgb')['psnr'], 4)
        48.1308
    """
    if sr.shape != hr.shape or sr.ndim != 3 or sr.shape[2] != 3:
        raise ValueError(f'the super-resolved image must have the shape of HR, {hr.shape}, got {sr.shape}')
    rules = PROTOCOLS[protocol]
    if not rules.unrounded:
        sr = _rounded(sr)
    elif sr.dtype == np.uint8:
        raise ValueError(f'{protocol} is for unrounded outputs of a network, and these images are rounded to 8 bits')
    border = scale + rules.extra_border
    height, width = (side - 2 * border for side in hr.shape[:2])
    inside = min(height, width)
    if inside < 1:
        return {'psnr': None, 'ssim': None}
    images = [image[border : border + height, border : border + width] for image in (sr, hr)]
    if rules.y:
        images = [luma(image) for image in images]
    return {'psnr': psnr(*images), 'ssim': ssim(*images) if inside >= SSIM_WINDOW else None}


def load_metrics(
    names: Sequence[str], device: str | torch.device = 'cpu', *, reference: bool = True
) -> dict[str, Callable[..., Any]]:
    """Metrics of pyiqa by name.

    Args:
        names: Full-reference metrics such as lpips, dists, gmsd and fsim, which compare the images of the protocol
            `rgb`: rounded to uint8, RGB, without a border as wide as the scale. Or no-reference metrics, such as niqe.
        device: Where they run.
        reference: Whether they must need a reference, or must not.

    Raises:
        ImportError: pyiqa is not installed.
        ValueError: pyiqa has no such metric, it is of the other kind, or its weights cannot be downloaded.
    """
    if not names:
        return {}
    try:
        pyiqa = importlib.import_module('pyiqa')
    except ModuleNotFoundError as error:
        if error.name != 'pyiqa':
            raise
        raise ImportError(f'the metrics {", ".join(names)} need pyiqa: pip install pyiqa') from error
    metrics = {}
    for name in names:
        try:
            metrics[name] = pyiqa.create_metric(name, device=torch.device(device))
        # An unknown name is an AssertionError or a KeyError, by version; a download of weights fails in many ways.
        except Exception as error:
            download = '; it downloads its weights or parameters at the first use' if isinstance(error, OSError) else ''
            reason = str(error) or type(error).__name__
            raise ValueError(f'pyiqa cannot make the metric {name!r}: {reason}{download}') from error
        mode, wanted = metrics[name].metric_mode, 'FR' if reference else 'NR'
        if mode != wanted:
            kind = 'full-reference (FR)' if reference else 'no-reference (NR)'
            hint = {'NR': '; without HR images: --no-gt', 'FR': '; with HR images: without --no-gt'}.get(mode, '')
            raise ValueError(f'metrics must be {kind}, got {name!r}, which is {mode}{hint}')
    return metrics


def to_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of `evaluate`'s results: a row for each dataset and scale, a column for each protocol and metric."""
    protocols = list(dict.fromkeys(name for result in results for name in result['protocols']))
    metrics = {
        name: f'pyiqa {name} ({entry["protocol"]})'
        for result in results
        for name, entry in result.get('metrics', {}).items()
    }
    rows = [['method', 'dataset', 'scale', *protocols, *metrics.values()]]
    for result in results:
        row = [result['method'], result['dataset'], f'x{result["scale"]}' if result['scale'] else '-']
        for name in protocols:
            mean = result['protocols'].get(name, {'psnr': None, 'ssim': None})
            row.append(f'{_text(mean["psnr"], 2 if PROTOCOLS[name].unrounded else 3)}/{_text(mean["ssim"], 4)}')
        row += [_text(result.get('metrics', {}).get(name, {}).get('value'), 4) for name in metrics]
        rows.append(row)
    caption = 'PSNR (dB) / SSIM, m' if protocols else 'M'
    caption += 'eans over the images, in the protocol that heads the column'
    return f'{caption}\n\n{markdown_table(rows)}'


def to_csv(results: Sequence[Mapping[str, Any]]) -> str:
    """A line for each dataset, scale, protocol and image, and one for the mean, whose image is called `mean`.

    Metrics of pyiqa are in the lines of the protocol `rgb`, those without a reference in lines of `rgb_whole`, in
    columns called pyiqa_NAME. Infinity is written Infinity; undefined values are left empty.
    """
    lines: list[dict[str, Any]] = []
    columns: dict[str, None] = dict.fromkeys(('dataset', 'scale', 'method', 'protocol', 'image', 'psnr', 'ssim'))
    for result in results:
        scores: dict[tuple[str, str], dict[str, Any]] = {}
        for protocol, entry in result['protocols'].items():
            for image, values in [*entry['images'].items(), ('mean', entry)]:
                scores[protocol, image] = {key: _plain(values[key]) for key in ('psnr', 'ssim')}
        for metric, entry in result.get('metrics', {}).items():
            columns[f'pyiqa_{metric}'] = None
            for image, value in [*entry['images'].items(), ('mean', entry['value'])]:
                scores.setdefault((entry['protocol'], image), {})[f'pyiqa_{metric}'] = _plain(value)
        first = {key: result[key] for key in ('dataset', 'scale', 'method')}
        lines += [{**first, 'protocol': key[0], 'image': key[1], **values} for key, values in scores.items()]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def to_json(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as JSON, which cannot hold infinity: it becomes the string "Infinity", undefined values null."""
    return json.dumps(_plain(results), indent=2, ensure_ascii=False, allow_nan=False) + '\n'


def _find_files(folder: Path, scale: int) -> dict[str, tuple[Path, Path | None]]:
    """HR and LR file of each image by name, headers looked at; None for LR that is to be made."""
    lr_folder = folder / 'LR_bicubic' / f'X{scale}'
    given = lr_folder.exists()
    files: dict[str, tuple[Path, Path | None]] = {}
    for hr in image_file.list_images(folder / 'HR'):
        if hr.stem in files:
            raise ValueError(f'images must have different names, got {files[hr.stem][0]} and {hr}')
        size = image_file.inspect(hr)
        if min(size) < scale:
            raise ValueError(f'{hr}: sides must be at least the scale {scale}, got {size[0]}x{size[1]} (HxW)')
        lr = lr_folder / f'{hr.stem}x{scale}.png' if given else None
        if lr is not None:
            lr_size = image_file.inspect(lr)
            if lr_size != (size[0] // scale, size[1] // scale):
                raise ValueError(
                    f'{lr} must be the HR image ({size[0]}x{size[1]}, HxW) made {scale} times smaller, '
                    f'got {lr_size[0]}x{lr_size[1]}'
                )
        files[hr.stem] = (hr, lr)
    if given:
        used = {lr for _, lr in files.values()}
        for lr in image_file.list_images(lr_folder):
            if lr not in used:
                raise ValueError(f'{lr} has no HR image in {folder / "HR"}')
    return files


def _read_pair(dataset: str, scale: int, name: str, hr_file: Path, lr_file: Path | None) -> Pair:
    hr = bicubic.mod_crop(image_file.read(hr_file), scale)
    lr = bicubic.downsample(hr, scale) if lr_file is None else image_file.read(lr_file)
    # The files were looked at before, and can have changed since.
    if hr.shape != (lr.shape[0] * scale, lr.shape[1] * scale, 3):
        raise ValueError(f'{lr_file} must be the HR image ({_hw(hr)}) made {scale} times smaller, got {_hw(lr)}')
    return Pair(dataset, scale, name, hr, lr)


def _evaluate_set(
    dataset: str,
    scale: int,
    files: Mapping[str, tuple[Path, Path | None]],
    upscaler: Upscaler,
    protocols: Sequence[str] | None,
    metrics: Mapping[str, Callable[..., Any]],
) -> dict[str, Any]:
    scores: dict[str, dict[str, dict[str, float | None]]] = {}
    measured: dict[str, dict[str, float]] = {name: {} for name in metrics}
    with tqdm(files.items(), desc=f'{dataset} x{scale}', unit='image', disable=None, leave=False) as progress:
        for name, (hr_file, lr_file) in progress:
            pair = _read_pair(dataset, scale, name, hr_file, lr_file)
            try:
                sr = upscaler(pair)
                rounded = sr.dtype == np.uint8
                for protocol in protocols or [p for p in DEFAULT if not (rounded and PROTOCOLS[p].unrounded)]:
                    scores.setdefault(protocol, {})[name] = _score(pair, sr, protocol, upscaler)
                for metric, function in metrics.items():
                    measured[metric][name] = _measure(metric, function, _rounded(sr), pair.hr, scale)
            except ValueError as error:
                raise ValueError(f'{hr_file}: {error}') from error
    result: dict[str, Any] = {'protocols': {name: _with_mean(name, values) for name, values in scores.items()}}
    for name, entry in result['protocols'].items():
        small = [image for image, values in entry['images'].items() if None in values.values()]
        if small:
            logger.warning('%s x%d, %s: too small to be scored: %s', dataset, scale, name, ', '.join(small))
    if metrics:
        result['metrics'] = {
            name: {'protocol': METRIC_PROTOCOL, 'value': _mean(list(values.values())), 'images': values}
            for name, values in measured.items()
        }
    return result


def _evaluate_folder(
    dataset: str,
    folder: Path,
    scale: int | None,
    upscaler: Upscaler | None,
    metrics: Mapping[str, Callable[..., Any]],
) -> dict[str, Any]:
    place = folder / 'LR_bicubic' / f'X{scale}'
    paths = image_file.list_images(place if place.is_dir() else folder, photograph.FORMATS)
    measured: dict[str, dict[str, float]] = {name: {} for name in metrics}
    seen: dict[str, Path] = {}
    for path in tqdm(paths, desc=f'{dataset} x{scale}' if scale else dataset, unit='image', disable=None, leave=False):
        if (other := seen.setdefault(path.stem, path)) is not path:
            raise ValueError(f'images must have different names, got {other} and {path}')
        # torch warns of read-only arrays.
        image = np.require(rgb8(photograph.read(path).pixels), requirements=['C', 'W'])
        try:
            if upscaler and scale:
                hr = np.empty((0, 0, 3), np.uint8)  # not read
                image = _rounded(upscaler(Pair(dataset, scale, path.stem, hr, image)))
            for name, function in metrics.items():
                measured[name][path.stem] = _apply(name, function, image)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
    return {
        name: {'protocol': NO_REFERENCE_PROTOCOL, 'value': _mean(list(values.values())), 'images': values}
        for name, values in measured.items()
    }


def _score(pair: Pair, sr: np.ndarray, protocol: str, upscaler: Upscaler) -> dict[str, float | None]:
    if (multiple := PROTOCOLS[protocol].multiple) > 1:
        hr = bicubic.mod_crop(pair.hr, math.lcm(multiple, pair.scale))
        pair = replace(pair, hr=hr, lr=bicubic.downsample(hr, pair.scale))
        sr = upscaler(pair)
    return score(sr, pair.hr, pair.scale, protocol)


def _measure(name: str, metric: Callable[..., Any], sr: np.ndarray, hr: np.ndarray, scale: int) -> float:
    inside = slice(scale, -scale)
    return _apply(name, metric, *(image[inside, inside] for image in (sr, hr)), shown=hr)


def _apply(name: str, metric: Callable[..., Any], *images: np.ndarray, shown: np.ndarray | None = None) -> float:
    """A metric of pyiqa of one or two images (H, W, 3), uint8, RGB; `shown` is the image whose size an error names."""
    tensors = (torch.from_numpy(np.ascontiguousarray(one)).permute(2, 0, 1).unsqueeze(0) / 255 for one in images)
    try:
        return float(metric(*tensors))
    # Most metrics have a smallest size, and say so in their own ways.
    except (RuntimeError, AssertionError, IndexError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f'{name} fails on {_hw(images[0] if shown is None else shown)}: {reason}') from error


def _with_mean(protocol: str, images: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    means = {key: _mean([values[key] for values in images.values()]) for key in ('psnr', 'ssim')}
    if PROTOCOLS[protocol].unrounded:
        means = {key: _rounded_up(means[key], digits) for key, digits in (('psnr', 2), ('ssim', 4))}
    return {**means, 'images': images}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _rounded_up(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value + 0.5 * 10**-digits, digits)


def _rounded(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else np.rint(image).clip(0, 255).astype(np.uint8)


def _belongs(stem: str, name: str, scale: int) -> bool:
    rest = stem.removeprefix(name)
    if not stem.startswith(name) or not re.match(rf'(x{scale})?([_\-. ]|$)', rest, re.IGNORECASE):
        return False
    scales = re.findall(r'(?:^|[_\-. ])x(\d+)(?![^_\-. ])', rest, re.IGNORECASE)
    return not scales or str(scale) in scales


def _hw(image: np.ndarray) -> str:
    return f'{image.shape[0]}x{image.shape[1]} (HxW)'


def _text(value: float | None, digits: int) -> str:
    return 'n/a' if value is None else f'{value:.{digits}f}'


def _plain(value: Any) -> Any:
    """What JSON and CSV can hold."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return 'Infinity' if value == math.inf else value
