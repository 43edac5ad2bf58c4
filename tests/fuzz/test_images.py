"""Damaged images of every documented format: refused with one ValueError, or read as a second decoder reads them.

Seeded and bounded; `pytest -m slow -s tests/fuzz` prints how many were refused and how many were read.
"""

import io
import random
import time
import warnings
from collections import Counter

import cv2
import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image

from spinsr.data import image_file, photograph

ROUNDS = 150
SECONDS = 5  # for one file; a hang, not a measurement


def saved(kind: str, mode: str = 'RGB', **options) -> bytes:
    rng = np.random.default_rng(1)
    smooth = cv2.resize(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), (29, 23), interpolation=cv2.INTER_CUBIC)
    file = io.BytesIO()
    Image.fromarray(smooth).convert(mode).save(file, kind, **options)
    return file.getvalue()


def by_opencv(data: bytes) -> np.ndarray | None:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else image[..., ::-1]


def by_simplejpeg(data: bytes) -> np.ndarray | None:
    try:
        return simplejpeg.decode_jpeg(data, strict=False)
    except ValueError:
        return None


def by_tifffile(data: bytes) -> np.ndarray | None:
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            image, codes = page.asarray(), [tag.code for tag in page.tags]
    except Exception:  # it has no exception of its own for damage
        return None
    # Of two tags with one code it takes the first, other decoders the last.
    return image if image.ndim == 3 and len(set(codes)) == len(codes) else None


def unchanged(data: bytes) -> np.ndarray | None:
    """A PNG has checksums: what is read is what was there."""
    return np.array(Image.open(io.BytesIO(FILES['png'][0])).convert('RGB'))


FILES = {
    'png': (saved('PNG'), unchanged),
    'bmp': (saved('BMP'), by_opencv),
    'ppm': (saved('PPM'), by_opencv),
    'webp': (saved('WEBP', lossless=True), by_opencv),
    'jpeg': (saved('JPEG', quality=90), by_simplejpeg),
    'progressive': (saved('JPEG', quality=90, progressive=True), by_simplejpeg),
    'restarts': (saved('JPEG', quality=90, restart_marker_rows=1), by_simplejpeg),
    'tiff': (saved('TIFF'), by_tifffile),
    'deflate': (saved('TIFF', compression='tiff_adobe_deflate'), by_tifffile),
}
# Further files, of which only the kind of failure is checked.
OTHERS = {
    'palette': saved('PNG', 'P'),
    'grey_alpha': saved('PNG', 'LA'),
    'png16': photograph.encode(
        photograph.Photograph(np.random.default_rng(0).integers(0, 65536, (9, 14, 3), np.uint16)), 'PNG'
    ),
    'tiff16': photograph.encode(
        photograph.Photograph(np.random.default_rng(0).integers(0, 65536, (9, 14, 4), np.uint16)), 'TIFF'
    ),
    'lzw': saved('TIFF', compression='tiff_lzw'),
    'jpeg_in_tiff': saved('TIFF', compression='jpeg'),
    'cmyk': saved('JPEG', 'CMYK'),
    'cmyk_tiff': saved('TIFF', 'CMYK'),
    'mpo': saved('MPO', save_all=True, append_images=[Image.new('RGB', (8, 8))]),
    'pgm': saved('PPM', 'L'),
    'lossy_webp': saved('WEBP'),
    'rgba_webp': saved('WEBP', 'RGBA', lossless=True),
}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A cut, a cut that is closed again, changed bits, changed or repeated or removed stretches, other lengths."""
    copy = bytearray(data)
    at = rng.randrange(len(copy))
    kind = rng.randrange(7)
    if kind == 0:
        return bytes(copy[:at])
    if kind == 1:
        return bytes(copy[:at] + data[-12:])
    if kind == 2:
        for _ in range(rng.randint(1, 4)):
            copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        copy[at : at + rng.randint(1, 40)] = rng.randbytes(rng.randint(1, 40))
    elif kind == 4:
        copy[at:at] = copy[at : at + rng.randint(1, 60)]
    elif kind == 5:
        del copy[at : at + rng.randint(1, 60)]
    else:  # the header, where sizes and lengths are
        at = rng.randrange(min(len(copy), 64))
        copy[at : at + 4] = rng.choice([b'\xff\xff\xff\xff', b'\0\0\0\0', b'\x7f\xff\xff\xff', b'\0\0\x40\0'])
    return bytes(copy)


def read_or_refused(data: bytes, name: str, reader) -> np.ndarray | None:
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return reader(data)
    except ValueError as error:
        text = str(error)
        assert name in text and '\n' not in text
        return None
    finally:
        assert time.monotonic() - start < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize('kind', FILES)
def test_what_is_read_of_a_damaged_image_is_what_a_second_decoder_reads(kind):
    data, reference = FILES[kind]
    rng, counts = random.Random(kind), Counter()
    assert np.array_equal(image_file.decode(data, 'it'), reference(data))
    for _ in range(ROUNDS):
        changed = damaged(data, rng)
        found = read_or_refused(changed, 'it', lambda changed: image_file.decode(changed, 'it'))
        counts['refused' if found is None else 'read'] += 1
        if found is not None:
            expected = reference(changed)
            counts['without reference'] += expected is None
            assert expected is None or np.array_equal(found, expected)
    print(f'{kind}: {dict(counts)}')


@pytest.mark.slow
@pytest.mark.parametrize('kind', [*FILES, *OTHERS])
def test_a_damaged_photograph_is_read_or_refused_with_one_line(tmp_path, kind):
    data = FILES[kind][0] if kind in FILES else OTHERS[kind]
    rng, counts, path = random.Random(kind), Counter(), tmp_path / 'a.img'
    for _ in range(ROUNDS):
        path.write_bytes(damaged(data, rng))
        found = read_or_refused(b'', 'a.img', lambda _: photograph.read(path).pixels)
        counts['refused' if found is None else 'read'] += 1
        seen = read_or_refused(b'', 'a.img', lambda _: np.array(image_file.inspect(path)))
        counts['header refused'] += seen is None
    print(f'{kind}: {dict(counts)}')
