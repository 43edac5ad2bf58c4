"""Damage of an LMDB that must be found before it is opened: LMDB maps the file, and dies with the process on a hole.

`data.mdb` begins with two meta pages, of which the one with the larger transaction number counts. It says how many
pages the file has.
"""

import os
import re
import struct
from pathlib import Path
from typing import NamedTuple

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_PAGE_HEADER = 16
# Page 0 begins with its header; then magic, version, address, map size, two databases, last page, transaction.
# A database: padding (in the first one the page size), flags, depth, and the numbers of pages, entries and its root.
_DATABASE = 'IHH5Q'
_META = struct.Struct(f'=II2Q{_DATABASE}{_DATABASE}2Q')
_NO_PAGE = 2**64 - 1
_BRANCH, _BIG = 1, 1  # flags of a page and of an entry
_PAGE_SIZES = tuple(2**power for power in range(8, 17))
# BasicSR takes as the key of a line of meta_info.txt what stands before its first dot, and ignores the rest.
_LINE = re.compile(r'([^.]+)\..*')


class _Meta(NamedTuple):
    page_size: int
    last_page: int
    roots: tuple[int, int]
    entries: int
    transaction: int


def problem(path: str | os.PathLike) -> str:
    """What is wrong with an LMDB in BasicSR's layout, '' if nothing is; reads two pages and meta_info.txt.

    Args:
        path: The folder, with data.mdb and meta_info.txt.
    """
    return data_problem(path) or meta_info_problem(path)


def data_problem(path: str | os.PathLike) -> str:
    """Why LMDB would crash or fail on data.mdb, '' if it would not.

    Args:
        path: The folder.
    """
    file = Path(path) / 'data.mdb'
    try:
        size = file.stat().st_size
        meta = _read_meta(file)
        # Pages at the end may be free and never written; LMDB does not read them.
        wanted = (meta.last_page + 1) * meta.page_size if meta else 0
        is_cut = meta is not None and size < wanted and _needs_more(file, meta, size)
    except OSError as error:
        return f'{file} cannot be read: {error.strerror or error}'
    if meta is None:
        return f'{file} is not an LMDB, or its start is damaged'
    if is_cut:
        return f'{file} is cut off: {size:,d} of {wanted:,d} bytes; copy or make it again'
    if any(root != _NO_PAGE and root > meta.last_page for root in meta.roots):
        return f'{file} is damaged: its root lies outside of the file; copy or make it again'
    return ''


def meta_info_problem(path: str | os.PathLike) -> str:
    """What is wrong with meta_info.txt, '' if nothing is.

    Args:
        path: The folder.
    """
    file = Path(path) / 'meta_info.txt'
    try:
        lines = file.read_text(encoding='utf-8').splitlines()
        meta = _read_meta(Path(path) / 'data.mdb')
    except UnicodeDecodeError:
        return f'{file} is not a text file in UTF-8'
    except OSError as error:
        return f'{error.filename or file} cannot be read: {error.strerror or error}'
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if not match:
            text = line if len(line) <= 60 else line[:60] + '…'
            return f'{file}, line {number} must be like: 0001_s001.png (480,480,3) 1; got {text!r}'
        if not match[1].isascii():
            return f'{file}, line {number}: a key must be ASCII, got {match[1]!r}'
    if meta is not None and len(lines) > meta.entries:
        return f'{file} names {len(lines):,d} images, but data.mdb has {meta.entries:,d}'
    return ''


def _needs_more(file: Path, meta: _Meta, size: int) -> bool:
    """Whether a file that is shorter than its last page lacks a page that an entry needs; walks the tree."""
    if size % meta.page_size or size < 2 * meta.page_size:
        return True
    pages, seen = [meta.roots[1]], {_NO_PAGE}
    with open(file, 'rb') as stream:
        while pages:
            number = pages.pop()
            if number in seen:
                continue
            seen.add(number)
            stream.seek(min(number * meta.page_size, size))
            page = stream.read(meta.page_size)
            try:
                flags, end = struct.unpack_from('=2H', page, 10)
                for (place,) in struct.iter_unpack('=H', page[_PAGE_HEADER:end]):
                    low, high, node_flags, key_size = struct.unpack_from('=4H', page, place)
                    if flags & _BRANCH:
                        pages.append(low | high << 16 | node_flags << 32)
                    elif node_flags & _BIG:  # the value has pages of its own, the first one with a header
                        (first,) = struct.unpack_from('=Q', page, place + 8 + key_size)
                        if first * meta.page_size + _PAGE_HEADER + (low | high << 16) > size:
                            return True
            except struct.error:
                return True
    return False


def _read_meta(file: Path) -> _Meta | None:
    """The newer meta page; None for a file that is not an LMDB."""
    with open(file, 'rb') as stream:
        first = _meta(stream.read(_PAGE_HEADER + _META.size))
        if first is None:
            return None
        stream.seek(first.page_size)
        second = _meta(stream.read(_PAGE_HEADER + _META.size))
    return first if second is None or second.transaction < first.transaction else second


def _meta(page: bytes) -> _Meta | None:
    if len(page) < _PAGE_HEADER + _META.size:
        return None
    magic, version, _, _, *databases, last_page, transaction = _META.unpack_from(page, _PAGE_HEADER)
    size, free_root, entries, root = databases[0], databases[7], databases[14], databases[15]
    if magic != _MAGIC or version != _VERSION or size not in _PAGE_SIZES:
        return None
    return _Meta(size, last_page, (free_root, root), entries, transaction)
