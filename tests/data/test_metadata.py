"""Metadata reach the output, upright and with its sides."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from spinsr.data import photograph, png
from spinsr.data.metadata import Metadata
from spinsr.data.photograph import Photograph

XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6" exif:PixelXDimension="4"/><dc:title>t</dc:title></x:xmpmeta>'
EXIF, GPS = 0x8769, 0x8825


def exif_of_a_camera(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[271], exif[306], exif[274] = 'Maker', '2026:01:02 03:04:05', orientation
    exif[EXIF] = {0x9003: '2025:01:02 03:04:05', 0xA002: 5, 0xA003: 4, 0x927C: b'note of the maker', 0x829A: 0.01}
    exif[GPS] = {1: 'N', 2: (48.0, 8.0, 1.5)}
    return exif.tobytes()


def source(path, kind: str):
    options = {'exif': exif_of_a_camera(), 'xmp': XMP, 'dpi': (300, 300)}
    if kind == 'TIFF':
        exif = Image.Exif()
        exif.load(options['exif'])
        exif[700] = XMP
        options['exif'] = exif
    Image.new('RGB', (5, 4)).save(path, kind, **options)
    if kind == 'PNG':
        # Pillow writes no XMP here; the texts go behind the header.
        header, *others = (whole for _, _, whole in png.chunks(path.read_bytes()))
        texts = [(b'iTXt', png.XMP_START + XMP), (b'tEXt', b'parameters\0a prompt')]
        packed = [
            struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))
            for name, content in texts
        ]
        path.write_bytes(b''.join((png.SIGNATURE, header, *packed, *others)))


@pytest.mark.parametrize('ending', ['.jpg', '.png', '.tif', '.webp'])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
def test_metadata_reach_every_format(tmp_path, kind, ending):
    source(tmp_path / 'a.png', kind)
    photo = photograph.read(tmp_path / 'a.png')
    assert photo.pixels.shape == (5, 4, 3)
    photograph.write(tmp_path / f'b{ending}', photo._replace(pixels=np.zeros((10, 8, 3), np.uint8)))
    with Image.open(tmp_path / f'b{ending}') as image:
        assert image.size == (8, 10)
        exif = image.getexif()
        assert exif[271] == 'Maker' and exif[306] == '2026:01:02 03:04:05'
        assert exif.get(274, 1) == 1
        folder = exif.get_ifd(EXIF)
        assert folder[0x9003] == '2025:01:02 03:04:05'
        assert folder[0x927C] == b'note of the maker' and float(folder[0x829A]) == 0.01
        assert (folder[0xA002], folder[0xA003]) == (8, 10)
        assert exif.get_ifd(GPS)[2] == (48.0, 8.0, 1.5)
        if kind != 'WEBP' and ending != '.webp':  # which has no resolution of its own
            assert np.allclose(image.info['dpi'], 300, atol=0.01)
        xmp = image.tag_v2[700] if ending == '.tif' else image.info['xmp']
        assert xmp == XMP.replace(b'Orientation="6"', b'Orientation="1"').replace(b'Dimension="4"', b'Dimension="8"')
        if kind == 'PNG' and ending == '.png':
            assert image.text['parameters'] == 'a prompt'


def test_orientation_of_exif_is_changed_in_place_and_the_thumbnail_unlinked():
    exif = b'MM\0*\0\0\0\x08' + struct.pack('>HHHIHHI', 1, 274, 3, 1, 6, 0, 26) + struct.pack('>HI', 0, 0) + b'notes'
    found = photograph.metadata.of_output(Metadata(exif), 9, 9, 'a.jpg').exif
    assert found == exif[:18] + b'\0\1' + exif[20:22] + bytes(4) + exif[26:]


def test_exif_behind_the_pixels_of_a_png(tmp_path):
    *others, end = (
        whole for _, _, whole in png.chunks(photograph.encode(Photograph(np.zeros((4, 5), np.uint8)), 'PNG'))
    )
    exif = exif_of_a_camera().removeprefix(b'Exif\0\0')
    (tmp_path / 'a.png').write_bytes(b''.join((png.SIGNATURE, *others, png._chunk(b'eXIf', exif), end)))
    photo = photograph.read(tmp_path / 'a.png')
    assert photo.pixels.shape == (5, 4) and photo.metadata.exif == exif


@pytest.mark.parametrize('exif', [b'II*\0\xff\xff\xff\xff', b'II*\0\x08\0\0\0\xff\xff', b'Exif\0\0MM\0*', b'text'])
def test_damaged_exif_costs_no_image(tmp_path, caplog, exif):
    Image.new('RGB', (5, 4)).save(tmp_path / 'a.webp', exif=b'Exif\0\0' + exif)
    photograph.write(tmp_path / 'b.webp', photograph.read(tmp_path / 'a.webp'))
    assert photograph.read(tmp_path / 'b.webp').pixels.shape == (4, 5, 3)
    assert caplog.messages == [f'{tmp_path / "b.webp"}: damaged EXIF is left out']


def test_the_description_of_tifffile_is_left_out(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', np.zeros((4, 5, 3), np.uint8))
    assert b'shape' not in photograph.read(tmp_path / 'a.tif').metadata.exif


@pytest.mark.parametrize(
    ('name', 'metadata', 'said'),
    [
        ('a.bmp', Metadata(exif_of_a_camera().removeprefix(b'Exif\0\0'), XMP), 'BMP cannot hold EXIF, XMP'),
        ('a.gif', Metadata(xmp=XMP), 'GIF cannot hold XMP'),
        ('a.jpg', Metadata(xmp=bytes(70000)), 'JPEG cannot hold long XMP'),
        ('a.jpg', Metadata(texts=((b'tEXt', b'a\0b'),)), 'JPEG cannot hold text'),
    ],
    ids=['bmp', 'gif', 'long', 'text'],
)
def test_what_a_format_cannot_hold_is_named(tmp_path, caplog, name, metadata, said):
    photograph.write(tmp_path / name, Photograph(np.zeros((4, 5, 3), np.uint8), metadata=metadata))
    (line,) = caplog.messages
    assert line.endswith(f'{name}: {said}')
