"""JPEG files whose data end early are recognised, those with harmless oddities are read."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from spinsr.data import image_file, jpeg, photograph

END = b'\xff\xd9'
KINDS = {
    'baseline': {},
    'progressive': {'progressive': True},
    'restarts': {'restart_marker_rows': 1},
    'full-colour': {'subsampling': 0, 'optimize': True},
    'grey': {'mode': 'L'},
    'cmyk': {'mode': 'CMYK'},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def data(request, photo):
    return encoded(photo, **request.param)


def encoded(photo, mode='RGB', **options):
    file = io.BytesIO()
    Image.fromarray(photo(60, 80)).convert(mode).save(file, 'JPEG', **options)
    return file.getvalue()


def test_whole_files_are_accepted(data):
    jpeg.check_complete(data)


@pytest.mark.parametrize('share', [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize('reader', [image_file.read, photograph.read], ids=['image_file', 'photograph'])
def test_a_file_that_was_cut_and_closed_again_is_refused(tmp_path, data, reader, share):
    path = tmp_path / 'a.jpg'
    start = data.index(b'\xff\xda') + 14
    path.write_bytes(data[: start + int(share * (len(data) - start))] + END)
    with pytest.raises(ValueError, match='a.jpg cannot be read completely'):
        reader(path)
    with pytest.raises(ValueError, match='a.jpg cannot be read completely'):
        image_file.verify(path.read_bytes(), path)


def test_a_progressive_file_without_its_last_scans_is_refused(photo):
    data = encoded(photo, progressive=True)
    scans = [match.start() for match in re.finditer(b'\xff\xda', data)]
    for start in scans[1:]:
        with pytest.raises(ValueError, match='a scan is missing'):
            jpeg.check_complete(data[:start] + END)


@pytest.mark.parametrize('reader', [image_file.read, photograph.read], ids=['image_file', 'photograph'])
def test_a_small_file_that_claims_a_large_image_is_refused(tmp_path, photo, reader):
    data = bytearray(encoded(photo))
    at = data.index(b'\xff\xc0') + 5
    data[at : at + 4] = (12000).to_bytes(2, 'big') * 2
    (tmp_path / 'a.jpg').write_bytes(data)
    with pytest.raises(ValueError, match='a.jpg cannot be read completely'):
        reader(tmp_path / 'a.jpg')


@pytest.mark.parametrize('reader', [image_file.read, photograph.read], ids=['image_file', 'photograph'])
def test_jpeg_data_in_a_tiff_that_end_early_are_refused(tmp_path, photo, reader):
    file, path = io.BytesIO(), tmp_path / 'a.tif'
    Image.fromarray(photo(60, 80)).save(file, 'TIFF', compression='jpeg')
    path.write_bytes(file.getvalue())
    assert reader(path) is not None
    with Image.open(file) as image:
        offset, length = image.tag_v2[273][-1], image.tag_v2[279][-1]
    data = bytearray(file.getvalue())
    end = offset + length
    data[end - length // 2 : end] = END + bytes(length // 2 - 2)
    path.write_bytes(data)
    with pytest.raises(ValueError, match='a.tif cannot be read completely'):
        reader(path)


ODD = {
    'after-the-end': lambda data: data + b'more',
    'before-the-end': lambda data: data[:-2] + b'abcd' + END,
    'between-segments': lambda data: data[:20] + bytes(7) + data[20:],
    'fill-bytes': lambda data: data[:2] + b'\xff\xff' + data[2:],
    'comment': lambda data: data[:2] + b'\xff\xfe\0\x06\xff\xd9\xff\xda' + data[2:],
    'second-image': lambda data: data + data[: len(data) // 2],
}


@pytest.mark.parametrize('change', ODD.values(), ids=ODD)
def test_oddities_that_cost_no_samples_are_accepted(photo, change):
    jpeg.check_complete(change(encoded(photo)))


def test_what_is_read_is_what_was_written(tmp_path, data):
    (tmp_path / 'a.jpg').write_bytes(data)
    expected = np.array(Image.open(io.BytesIO(data)).convert('RGB'))
    assert np.array_equal(image_file.read(tmp_path / 'a.jpg'), expected)


@pytest.mark.parametrize(
    ('quality', 'options'),
    [
        (1, {}),
        (30, {'subsampling': '4:2:0'}),
        (60, {'subsampling': '4:4:4', 'progressive': True}),
        (90, {'mode': 'L'}),
        (98, {'mode': 'CMYK'}),
        (100, {}),
    ],
)
def test_quality_is_the_one_of_libjpeg(tmp_path, photo, quality, options):
    (tmp_path / 'a.jpg').write_bytes(encoded(photo, quality=quality, **options))
    assert photograph.read(tmp_path / 'a.jpg').jpeg_quality == quality


def test_other_tables_have_the_quality_of_the_same_mean_step(photo):
    def quality(*tables):
        return jpeg.estimate_quality(Image.open(io.BytesIO(encoded(photo, qtables=tables))))

    assert (quality([1] * 64), quality([255] * 64)) == (100, 1)
    flat = quality([8] * 64)  # quality 93 has the sum 517
    assert flat == 93 and quality([8] * 64, [255] * 64) == flat


def test_quality_follows_the_table_of_the_first_component(photo):
    data = bytearray(encoded(photo, quality=90))
    data[data.index(b'\xff\xc0') + 12] = 1  # luminance by the table of chrominance
    assert jpeg.estimate_quality(Image.open(io.BytesIO(data))) == 85


def test_without_tables_no_quality_is_known(photo):
    bare = re.sub(rb'\xff\xdb\x00\x43.{65}', b'', encoded(photo), flags=re.DOTALL)
    with Image.open(io.BytesIO(bare)) as image:
        assert image.quantization == {} and jpeg.estimate_quality(image) is None
    assert jpeg.estimate_quality(Image.new('L', (1, 1))) is None
