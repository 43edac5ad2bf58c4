"""Animations and pages come and go frame by frame, with their timing."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from spinsr.data import frames, photograph

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def animation(path, kind: str, **options) -> None:
    images = [Image.new('RGB', (6, 4), colour) for colour in COLOURS]
    images[0].save(path, kind, save_all=True, append_images=images[1:], duration=[100, 200, 300], **options)


def doubled(several: frames.Frames):
    return (frame._replace(pixels=frame.pixels.repeat(2, 0).repeat(2, 1)) for frame in several)


@pytest.mark.parametrize('loops', [None, 0, 2], ids=['once', 'for_ever', 'twice'])
@pytest.mark.parametrize(('kind', 'other'), [('GIF', 'GIF'), ('GIF', 'PNG'), ('PNG', 'WEBP'), ('WEBP', 'GIF')])
def test_frames_and_their_timing_come_back(tmp_path, kind, other, loops):
    options = {} if kind == 'GIF' and loops is None else {'loop': 1 if loops is None else loops}
    animation(tmp_path / 'a.gif', kind, **options, **({'lossless': True} if kind == 'WEBP' else {}))
    several = frames.read(tmp_path / 'a.gif')
    target = tmp_path / f'b.{other.lower()}'
    frames.check_room(target, several, 8, 12)
    frames.write(target, doubled(several), several.timing)
    found = frames.read(target)
    assert found.count == 3 and found.timing == several.timing
    assert found.timing.durations == (100, 200, 300)
    assert found.timing.plays == {None: 1, 0: 0, 2: 3 if kind == 'GIF' else 2}[loops]
    for frame, colour in zip(found, COLOURS, strict=True):
        assert frame.pixels.shape == (8, 12, 3) and (frame.pixels == colour).all()


@pytest.mark.parametrize('kind', ['GIF', 'PNG', 'WEBP'])
def test_transparent_pixels_of_an_animation_stay(tmp_path, kind):
    images = []
    for number in range(2):
        image = Image.new('RGBA', (6, 4), (200, 0, 0, 255))
        image.paste((0, 0, 0, 0), (number, 0, number + 3, 4))
        images.append(image)
    images[0].save(tmp_path / 'a.png', 'PNG', save_all=True, append_images=images[1:], duration=50)
    several = frames.read(tmp_path / 'a.png')
    target = tmp_path / f'b.{kind.lower()}'
    frames.write(target, doubled(several), several.timing)
    for frame, image in zip(frames.read(target), images, strict=True):
        expected = np.array(image).repeat(2, 0).repeat(2, 1)
        assert np.array_equal(frame.pixels[..., 3], expected[..., 3])
        assert (abs(frame.pixels.astype(int) - expected)[expected[..., 3] == 255] <= 4).all()


def test_the_still_image_of_a_png_stays(tmp_path):
    still, *others = [Image.new('RGB', (6, 4), colour) for colour in COLOURS]
    still.save(tmp_path / 'a.png', save_all=True, default_image=True, append_images=others, duration=[70, 80])
    several = frames.read(tmp_path / 'a.png')
    assert several.timing == ((70, 80), 0, True) and several.count == 3
    frames.write(tmp_path / 'b.png', several, several.timing)
    assert frames.read(tmp_path / 'b.png').timing == several.timing
    frames.write(tmp_path / 'b.gif', several, several.timing)
    assert [tuple(frame.pixels[0, 0]) for frame in frames.read(tmp_path / 'b.gif')] == list(COLOURS[1:])


@pytest.mark.parametrize(('byteorder', 'bigtiff'), [('<', False), ('>', False), ('<', True)])
def test_pages_keep_their_sizes_depths_and_metadata(tmp_path, byteorder, bigtiff):
    pages = [
        np.random.randint(0, 65536, (4, 5, 3)).astype(np.uint16),
        np.random.randint(0, 256, (7, 3)).astype(np.uint8),
    ]
    with tifffile.TiffWriter(tmp_path / 'a.tif', byteorder=byteorder, bigtiff=bigtiff) as writer:
        for number, page in enumerate(pages):
            writer.write(page, metadata=None, description=f'page {number}', subfiletype=2)
        writer.write(np.zeros((2, 2), np.uint8), metadata=None, subfiletype=1)
    several = frames.read(tmp_path / 'a.tif')
    assert several.count == 2 and several.timing is None
    frames.write(tmp_path / 'b.tif', several, None)
    for frame, page in zip(frames.read(tmp_path / 'b.tif'), pages, strict=True):
        assert frame.pixels.dtype == page.dtype and np.array_equal(frame.pixels, page)
    with tifffile.TiffFile(tmp_path / 'b.tif') as written:
        assert [page.description for page in written.pages] == ['page 0', 'page 1']


@pytest.mark.parametrize(
    ('kind', 'name', 'said'),
    [('GIF', 'b.jpg', 'JPEG cannot hold an animation'), ('TIFF', 'b.png', 'PNG cannot hold 3 pages; TIFF can')],
    ids=['animation', 'pages'],
)
def test_what_cannot_hold_frames(tmp_path, kind, name, said):
    animation(tmp_path / 'a.gif', kind)
    with pytest.raises(ValueError, match=said):
        frames.check_room(tmp_path / name, frames.read(tmp_path / 'a.gif'), 8, 12)


def test_limits_and_damage_show_before_the_work(tmp_path):
    animation(tmp_path / 'a.gif', 'PNG')
    with pytest.raises(ValueError, match='at most 71 pixels'):
        frames.read(tmp_path / 'a.gif', max_pixels=71)
    assert frames.read(tmp_path / 'a.gif', max_pixels=72).count == 3
    data = (tmp_path / 'a.gif').read_bytes()
    (tmp_path / 'a.gif').write_bytes(data[:-30])
    with pytest.raises(ValueError, match='a.gif cannot be read completely'):
        frames.read(tmp_path / 'a.gif')


def test_a_single_image_has_no_frames(tmp_path):
    for kind in ('GIF', 'TIFF', 'PNG', 'WEBP', 'JPEG'):
        Image.new('RGB', (6, 4)).save(tmp_path / 'a.png', kind)
        assert frames.read(tmp_path / 'a.png') is None
        assert photograph.read(tmp_path / 'a.png').pixels.shape == (4, 6, 3)
