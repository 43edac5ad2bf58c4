"""LMDBs in BasicSR's layout, written so that an interruption loses one image at most."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import lmdb

COMPRESS_LEVEL = 1
FIRST_MAP_SIZE = 2**28
# Prefix of the keys under which an unfinished LMDB notes its sources; no image's key starts with it.
_NOTE = '\1'


class LmdbWriter:
    """Fills `NAME.lmdb.part` and renames it to `NAME.lmdb` when every image is in.

    The layout is BasicSR's: data.mdb, and meta_info.txt with one line `key.png (h,w,c) compress_level` an image. What
    an earlier run left in the .part folder is used as far as it comes from the same sources; a finished LMDB is never
    changed.

    Args:
        path: The finished LMDB.
        shapes: Height and width of each image to come, by key.
        level: zlib's compression level of the PNG files, as meta_info.txt says it.

    Raises:
        ValueError: `path` exists and is not the LMDB of these keys and shapes.
        OSError: The folder cannot be written.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, int]], level: int = COMPRESS_LEVEL) -> None:
        self.path = path
        self.shapes = shapes
        self._meta_info = ''.join(f'{key}.png ({h},{w},3) {level}\n' for key, (h, w) in shapes.items())
        self.finished = path.exists()
        self._opened: lmdb.Environment | None = None
        if self.finished:
            self._check_finished()
            return
        self._part = part_of(path)
        self._part.mkdir(parents=True, exist_ok=True)
        data = self._part / 'data.mdb'
        # The map grows with the data: a map of a terabyte, as is common, becomes a file of that size on some systems.
        size = FIRST_MAP_SIZE + (data.stat().st_size if data.exists() else 0)
        try:
            # Without metasync an image can be lost in a power failure, but the LMDB stays whole.
            self._opened = lmdb.open(str(self._part), map_size=size, metasync=False)
        except lmdb.Error as error:
            raise OSError(f'{self._part} cannot be opened: {error}; remove it and run again') from error

    @property
    def _env(self) -> lmdb.Environment:
        assert self._opened is not None
        return self._opened

    def holds(self, name: str, origin: str) -> bool:
        """Whether all images of a source are in, made from this origin (see `put`)."""
        if self.finished:
            return True
        with self._env.begin() as transaction:
            return transaction.get(_encode(_NOTE + name)) == origin.encode()

    def put(self, name: str, origin: str, images: Iterable[tuple[str, bytes]]) -> None:
        """Writes the images of a source in one transaction: all of them or none.

        Args:
            name: The source.
            origin: What the images are made from, and how; another origin in a later run replaces them.
            images: Keys and PNG files.

        Raises:
            OSError: The disk is full, or cannot be written.
        """
        items = [*((_encode(key), data) for key, data in images), (_encode(_NOTE + name), origin.encode())]
        try:
            while not self._try_put(items):
                self._env.set_mapsize(2 * self._env.info()['map_size'])
        except lmdb.Error as error:
            raise OSError(f'{self._part} cannot be written: {error}') from error

    def finish(self) -> None:
        """Writes meta_info.txt and renames the LMDB.

        Raises:
            OSError: The disk is full, or cannot be written.
        """
        if self.finished:
            return
        wanted = {_encode(key) for key in self.shapes}
        try:
            with self._env.begin(write=True) as transaction:
                # The notes, and what an earlier run made of sources that have changed or gone since.
                for key in list(transaction.cursor().iternext(values=False)):
                    if key not in wanted:
                        transaction.delete(key)
                assert transaction.stat()['entries'] == len(wanted)
            self._env.sync(True)
        except lmdb.Error as error:
            raise OSError(f'{self._part} cannot be written: {error}') from error
        self.close()
        (self._part / 'meta_info.txt').write_text(self._meta_info)
        (self._part / 'lock.mdb').unlink(missing_ok=True)
        os.rename(self._part, self.path)
        self.finished = True

    def close(self) -> None:
        """Closes the LMDB, finished or not."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _try_put(self, items: list[tuple[bytes, bytes]]) -> bool:
        try:
            with self._env.begin(write=True) as transaction:
                for key, data in items:
                    transaction.put(key, data)
        except lmdb.MapFullError:
            return False
        return True

    def _check_finished(self) -> None:
        meta_info = self.path / 'meta_info.txt'
        if not meta_info.is_file() or not (self.path / 'data.mdb').is_file():
            raise ValueError(
                f'{self.path} exists and is not a finished LMDB (data.mdb, meta_info.txt); remove it first'
            )
        if meta_info.read_text() != self._meta_info:
            raise ValueError(
                f'{self.path} exists and holds other images than these sources give ({len(self.shapes)}); '
                'remove it, or choose another output folder with -o'
            )


def make_key(name: str) -> str:
    """The key of an image by its name: letters, digits, '-' and '_' of ASCII stay, everything else becomes '_'.

    BasicSR takes what stands before the first dot for the key, and looks it up in ASCII.
    """
    return re.sub(r'[^\w-]', '_', name, flags=re.ASCII)


def part_of(path: Path) -> Path:
    """The folder of an unfinished LMDB."""
    return path.with_name(f'{path.name}.part')


def _encode(key: str) -> bytes:
    # BasicSR looks keys up in ASCII.
    return key.encode('ascii')
