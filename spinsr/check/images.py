"""The images of the data sets: paired, readable, of the sizes that training and testing need.

The classes whose files are known are PairedImageDataset, SingleImageDataset, BicubicImageDataset, DegradationDataset,
MultiScaleDataset and DistillationDataset; of another one nothing is looked at. Sizes come from the headers, so that
sub-images by the ten thousand take seconds.
"""

import contextlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from spinsr.check.finding import Finding, datasets, error, section, warning
from spinsr.check.list_file import list_problem
from spinsr.check.values import is_template
from spinsr.data import formats, png
from spinsr.data.image_file import DAMAGE, PNG_END, is_file, unreadable
from spinsr.data.teacher_outputs import read_meta, teacher_file
from spinsr.utils.validation import is_whole

_HEAD = 65536  # bytes of an LMDB's value in which the header is looked for
_ENDS = {'PNG': PNG_END, 'JPEG': b'\xff\xd9'}
# The last one is that by whose names the others are found.
_SIDES = {
    'PairedImageDataset': ('lq', 'gt'),
    'SingleImageDataset': ('lq',),
    'BicubicImageDataset': ('gt',),
    'DegradationDataset': ('gt',),
    'MultiScaleDataset': ('gt',),
    'DistillationDataset': ('lq', 'teacher', 'gt'),
}
_MAKE_LR = ('BicubicImageDataset', 'DegradationDataset', 'MultiScaleDataset')
_TURNED = (5, 6, 7, 8)  # values of EXIF's orientation that exchange height and width


class Header(NamedTuple):
    """What the header of an image says."""

    height: int
    width: int
    is_deep: bool
    is_transparent: bool


class Images(NamedTuple):
    """What was seen of a data set."""

    findings: list[Finding]
    count: int
    largest: tuple[int, int] | None  # (h, w) of the LR image with the most pixels


class _Source:
    """The images of a folder or an LMDB, by name."""

    def __init__(self, root: str, is_lmdb: bool) -> None:
        self.root, self.is_lmdb = Path(root), is_lmdb
        if is_lmdb:
            from basicsr.utils import FileClient

            client = FileClient('lmdb', db_paths=[str(root)], client_keys=['images']).client
            # With buffers nothing is copied: of most images only the header is looked at.
            self._values = client._client['images'].begin(buffers=True)

    def names(self) -> list[str]:
        if self.is_lmdb:
            # BasicSR's rule: the key is what stands before the first dot.
            with open(self.root / 'meta_info.txt', encoding='utf-8') as file:
                return [line.split('.')[0] for line in file]
        return sorted(entry.name for entry in os.scandir(self.root) if is_file(entry) and entry.name[0] != '.')

    def header(self, name: str, decode: bool) -> Header:
        """Reads a header. Raises ValueError for what is missing, no image, or damaged."""
        where = f'{name} of {self.root}' if self.is_lmdb else str(self.root / name)
        if self.is_lmdb:
            value = self._values.get(name.encode())
            if value is None:
                raise ValueError(f'{where} is missing, but meta_info.txt names it')
            tail = bytes(value[-len(PNG_END) :])
            try:
                return _header(io.BytesIO(value[:_HEAD]), tail, lambda: bytes(value), where, decode)
            except ValueError:
                if len(value) <= _HEAD:
                    raise
            # Of a TIFF and of a JPEG with much metadata the header may be anywhere.
            return _header(io.BytesIO(value), tail, lambda: bytes(value), where, decode)
        try:
            with open(self.root / name, 'rb') as file:
                file.seek(-min(len(PNG_END), os.fstat(file.fileno()).st_size), os.SEEK_END)
                tail = file.read()
                file.seek(0)
                return _header(file, tail, (self.root / name).read_bytes, where, decode)
        except OSError as problem:
            raise ValueError(f'{where} cannot be read: {problem.strerror or problem}') from problem


def _header(file: BinaryIO, tail: bytes, whole: Any, where: str, decode: bool) -> Header:
    head = file.read(33)
    file.seek(0)
    try:
        if head.startswith(png.SIGNATURE):
            # Not by Pillow, which reads texts first and gives up where they are long.
            height, width, depth = png.read_header(head)
            formats.check_size(height, width, formats.MAX_PIXELS)
            is_transparent = head[25] in (4, 6) or any(name == b'tRNS' for name, *_ in png.chunks(file.read(_HEAD)))
            header, kind = Header(height, width, depth > 8, is_transparent), 'PNG'
        else:
            with formats.open_image(file) as image:
                height, width, kind = image.height, image.width, image.format
                if kind in ('JPEG', 'TIFF', 'WEBP') and formats.orientation(image) in _TURNED:
                    height, width = width, height
                is_transparent = 'A' in image.mode or 'transparency' in image.info
                header = Header(height, width, formats.bit_depth(image, head) > 8, is_transparent)
    except DAMAGE as problem:
        raise unreadable(where, problem) from problem
    # Bytes after the end are legal, if odd: only decoding tells whether the image is complete.
    if decode or not tail.endswith(_ENDS.get(kind or '', b'')):
        _decode(whole(), where)
    return header


def _decode(data: bytes, where: str) -> None:
    try:
        with formats.open_data(data, where).image as image:
            formats.load(image)
    except DAMAGE as problem:
        raise unreadable(where, problem) from problem


class _Problems:
    """Findings of a data set, those of one kind counted in one line."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._found: dict[str, list] = {}

    def add(self, level: str, kind: str, message: str) -> None:
        self._found.setdefault(kind, [level, message, 0])[2] += 1

    def findings(self) -> list[Finding]:
        more = {kind: f' (and {count - 1} more)' if count > 1 else '' for kind, (_, _, count) in self._found.items()}
        return [Finding(level, self._where, message + more[kind]) for kind, (level, message, _) in self._found.items()]


def images(options: Mapping[str, Any], *, decode: bool = False, progress: bool = False) -> Iterator[tuple[str, Images]]:
    """Looks at every image of every data set whose files are there.

    Args:
        options: The option file.
        decode: Decode every image, not only its header: slow, and finds every damage.
        progress: Show a progress bar.

    Yields:
        The key of a data set, and what was seen of it.
    """
    for where, phase, dataset in datasets(options):
        scale = options.get('scale', dataset.get('scale'))
        roots = [dataset.get(f'dataroot_{side}') for side in _SIDES.get(str(dataset.get('type')), ())]
        if not is_whole(scale) or scale < 1:
            scale = None
        if all(isinstance(root, str) and Path(os.path.expanduser(root)).is_dir() for root in roots) and roots:
            try:
                yield where, _look(where, phase, dataset, scale, decode, progress)
            # lmdb's errors derive from Exception alone; all of these come from opening the data set.
            except Exception as problem:
                if not isinstance(problem, ValueError | OSError) and type(problem).__module__ != 'lmdb':
                    raise
                yield where, Images([error(where, f'cannot be read: {problem}')], 0, None)


def unpaired(options: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds by their names the images in folders that BasicSR would not pair: it asserts, deep inside, that it can."""
    for where, _, dataset in datasets(options):
        sides = _SIDES.get(str(dataset.get('type')), ())
        if len(sides) < 2 or section(dataset, 'io_backend').get('type') == 'lmdb':
            continue
        named = {side: dataset.get(f'dataroot_{side}') for side in sides}
        roots = {side: os.path.expanduser(root) for side, root in named.items() if isinstance(root, str)}
        if len(roots) == len(sides) and all(Path(root).is_dir() for root in roots.values()):
            problems = _Problems(where)
            sources = {side: _Source(root, False) for side, root in roots.items()}
            with contextlib.suppress(FileNotFoundError):  # meta_info_file: `files` says it
                _names(dataset, sources, problems)
            yield from problems.findings()


def _look(
    where: str, phase: str, dataset: Mapping[str, Any], scale: int | None, decode: bool, progress: bool
) -> Images:
    is_lmdb = section(dataset, 'io_backend').get('type') == 'lmdb'
    problems = _Problems(where)
    roots = {side: os.path.expanduser(dataset[f'dataroot_{side}']) for side in _SIDES[dataset['type']]}
    sources = {side: _Source(root, is_lmdb) for side, root in roots.items()}
    names = _names(dataset, sources, problems)
    if not names and not problems.findings() and not _bad_list(dataset, is_lmdb):
        problems.add('error', 'empty', f'no image found in {next(iter(sources.values())).root}')
    largest: tuple[int, int] | None = None
    bar = tqdm(names, desc=where, unit='image', leave=False, disable=None if progress else True)
    for pair in bar:
        headers = _headers(dataset['type'], sources, pair, decode, problems)
        if len(headers) < len(sources):
            continue
        sizes = {side: (header.height, header.width) for side, header in headers.items()}
        if scale:
            _sizes(dataset, phase, scale, sizes, pair, problems)
        height, width = sizes.get('lq') or (side // (scale or 1) for side in sizes['gt'])
        lr = height, width
        largest = max(largest or lr, lr, key=lambda size: size[0] * size[1])
    batch = dataset.get('batch_size_per_gpu')
    if 'teacher' in sources:
        _teacher(sources['teacher'].root, scale, problems)
    findings = problems.findings()
    if phase == 'train' and is_whole(batch) and 0 < len(names) < batch:
        findings.append(warning(where, f'has {len(names)} images for a batch of {batch}: they are repeated within it'))
    return Images(findings, len(names), largest)


def _names(dataset: Mapping[str, Any], sources: dict[str, _Source], problems: _Problems) -> list[dict[str, str]]:
    """The names of each item, by side, as the data set of this class pairs them."""
    side = next(reversed(sources))
    listed = dataset.get('meta_info_file') if not sources[side].is_lmdb else None
    if _bad_list(dataset, sources[side].is_lmdb):
        return []
    if listed:
        with open(os.path.expanduser(listed), encoding='utf-8') as file:
            first = [line.strip().split(' ')[0] for line in file if line.strip()]
        for name, count in Counter(first).items():
            if count > 1:
                problems.add('warning', 'twice', f'{listed} has {name} {count} times: it counts {count} times')
    elif dataset['type'] in _MAKE_LR and not sources['gt'].is_lmdb:
        from spinsr.data.image_file import EXTENSIONS

        first = [name for name in sources['gt'].names() if name.lower().endswith(EXTENSIONS)]
    else:
        first = sources[side].names()
    if len(sources) == 1:
        return [{side: name} for name in sorted(first)[: dataset.get('max_images')]]
    there = set(sources['lq'].names())
    if sources['gt'].is_lmdb:
        common = set(first)
        for other in (source for name, source in sources.items() if name != 'gt'):
            names = set(other.names())
            _unpaired(set(first) - names, sources['gt'], other, problems)
            _unpaired(names - set(first), other, sources['gt'], problems)
            common &= names
        return [dict.fromkeys(sources, name) for name in sorted(common)]
    template, pairs = dataset.get('filename_tmpl', '{}'), []
    if not is_template(template):  # `kinds` says it
        return []
    for name in first:
        stem, ending = os.path.splitext(os.path.basename(name))
        pair = {'lq': f'{template.format(stem)}{ending}', 'gt': name}
        if pair['lq'] in there:
            pairs.append(pair)
        else:
            reason = f'{name} of {sources["gt"].root} has no LR image {pair["lq"]} in {sources["lq"].root}'
            reason += f' (filename_tmpl: {template!r})'
            problems.add('error', 'no LR', reason)
    if not listed:
        _unpaired(there - {pair['lq'] for pair in pairs}, sources['lq'], sources['gt'], problems)
    return _with_outputs(pairs, sources, problems) if 'teacher' in sources else pairs


def _bad_list(dataset: Mapping[str, Any], is_lmdb: bool) -> bool:
    """Whether something is wrong with the list of images; `files` says what."""
    listed = dataset.get('meta_info_file')
    return bool(listed and not is_lmdb and os.path.isfile(os.path.expanduser(listed)) and list_problem(listed))


def _with_outputs(
    pairs: Iterable[dict[str, str]], sources: Mapping[str, _Source], problems: _Problems
) -> list[dict[str, str]]:
    """The pairs of folders that have a teacher's output, with its name."""
    found, root = [], sources['teacher'].root
    for pair in pairs:
        name = teacher_file('', pair['gt'])
        if (root / name).is_file():
            found.append({**pair, 'teacher': name})
        else:
            problems.add('error', 'no output', f'{pair["gt"]} of {sources["gt"].root} has no output {name} in {root}')
    return found


def _teacher(root: Path, scale: int | None, problems: _Problems) -> None:
    """Says whose outputs they are, and whether of the right scale; a folder of files does not tell."""
    if root.suffix != '.lmdb':
        return
    try:
        teacher = read_meta(root)
    except ValueError as problem:
        problems.add('error', 'teacher.json', str(problem))
        return
    if teacher is None:
        problems.add('warning', 'teacher.json', f'{root} has no teacher.json: nothing says whose outputs it holds')
    elif scale and teacher.scale != scale:
        problems.add('error', 'teacher.json', f'{root} is of {teacher}, but the scale is {scale}')
    else:
        problems.add('note', 'teacher.json', f'{root} is of {teacher}')


def _unpaired(names: Iterable[str], source: _Source, other: _Source, problems: _Problems) -> None:
    for name in sorted(names):
        problems.add('error', f'unpaired {source.root}', f'{name} of {source.root} has no partner in {other.root}')


def _headers(
    kind: str, sources: Mapping[str, _Source], pair: Mapping[str, str], decode: bool, problems: _Problems
) -> dict[str, Header]:
    headers = {}
    for side, source in sources.items():
        name = pair[side]
        try:
            header = headers[side] = source.header(name, decode)
        except ValueError as problem:
            problems.add('error', f'unreadable {side}', str(problem))
            continue
        where = f'{name} of {source.root}'
        if header.is_deep and kind in _MAKE_LR:
            problems.add('error', 'deep', f'{where} must have 8 bits a channel, got more')
        elif header.is_deep and side != 'teacher':
            problems.add('warning', 'deep', f'{where} has more than 8 bits a channel: BasicSR reads 8')
        if header.is_transparent:
            problems.add('warning', 'transparent', f'{where} is transparent: only its colours are read')
    return headers


def _sizes(
    dataset: Mapping[str, Any],
    phase: str,
    scale: int,
    sizes: Mapping[str, tuple[int, int]],
    pair: Mapping[str, str],
    problems: _Problems,
) -> None:
    gt, lq, output = (sizes.get(side) for side in ('gt', 'lq', 'teacher'))
    words = {side: f'{pair[side]} ({height}x{width} HxW)' for side, (height, width) in sizes.items()}
    if gt and lq:
        fits = [
            high == low * scale if phase == 'train' else high // scale == low for high, low in zip(gt, lq, strict=True)
        ]
        if not all(fits):
            problems.add('error', 'mis-sized', f'{words["gt"]} is not x{scale} of its LR image {words["lq"]}')
            return
    if output and lq and output != tuple(scale * side for side in lq):
        problems.add('error', 'mis-sized output', f'{words["teacher"]} is not x{scale} of its LR image {words["lq"]}')
        return
    side, name = (dataset.get('gt_size'), 'gt_size') if phase == 'train' else (scale, 'the scale')
    scales = dataset.get('scales')
    if is_whole(side) and isinstance(scales, list) and all(map(is_whole, scales)):
        side, name = side // scale * max(scales, default=scale), 'the HR patch at the largest of scales'
    if gt and is_whole(side) and min(gt) < side:
        problems.add('error', 'small', f'{words["gt"]} is smaller than {name}, {side}')
