"""The arrays and pictures of SPIN's superpixels, against the dense formulation and by hand."""

import numpy as np
import pytest
import torch

import spinsr
from spinsr import ops
from spinsr.analysis.superpixels import draw, draw_boundaries, each_block, enlarge, find_superpixels, write_pictures
from spinsr.data import image_file
from spinsr.ops.attention.reference import attention

TINY = {'num_feat': 8, 'num_block': 2, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': (4, 3), 'num_iter': 2}
SIZES = {'one_pixel': (1, 1), 'one_row': (1, 9), 'odd': (13, 11), 'divisible': (12, 8), 'side_below_cell': (2, 14)}


def network(**arguments):
    net = spinsr.load('SPIN', 2, None, **{**TINY, **arguments}).double()
    with torch.no_grad():
        net.conv_first.weight *= 4  # else the associations are nearly uniform
    return net


def picture(height, width, channels=3):
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture(params=SIZES.values(), ids=SIZES.keys())
def image(request):
    return picture(*request.param)


@pytest.fixture(params=['reference', 'torch'])
def backend(request, monkeypatch):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', request.param)
    return request.param


def heard(net, image, block):
    """What the block's SPCA gets and gives when the whole network runs: its input, the association, its output."""
    seen = []
    hook = net.blocks[block].cross_attention.register_forward_hook(lambda _, args, out: seen.extend([*args, out]))
    with torch.no_grad():
        net(torch.from_numpy(image / 255.0).permute(2, 0, 1)[None])
    hook.remove()
    return seen


@pytest.fixture
def dense(image, monkeypatch):
    """(K, N), of block 1, from the reference backend of the whole network."""

    def association(net):
        with monkeypatch.context() as context:
            context.setenv('SPINSR_OPS_BACKEND', 'reference')
            return heard(net, image, 1)[1].dense()[0].numpy()

    return association


def test_association_and_labels_are_those_of_the_network(image, backend, dense):
    net = network()
    found, expected = find_superpixels(image, net, 1), dense(net)
    pixels = np.ndindex(image.shape[:2])
    actual = np.stack([found.association_of(*pixel).reshape(-1) for pixel in pixels], 1)
    assert np.abs(actual - expected).max() < 1e-6  # the image is float32
    chosen = np.take_along_axis(expected, found.labels.reshape(1, -1), 0)[0]
    assert np.abs(chosen - expected.max(0)).max() < 1e-6
    assert found.labels.shape == image.shape[:2]


def test_top_pixels_are_those_of_the_network(image, backend, dense):
    net = network()
    found, expected = find_superpixels(image, net, 1), dense(net)
    last = len(expected) - 1
    chosen = found.top_pixels(last).reshape(-1)
    count = min(9, found.association.grid.smallest_neighborhood)
    assert chosen.sum() == count
    rest = expected[last][~chosen]
    assert expected[last][chosen].min() >= rest.max(initial=0) - 1e-6
    assert found.top_pixels(last, 1).sum() == 1
    assert found.top_pixels(last)[found.top_pixels(last, 1)].all()


@pytest.mark.parametrize('block', [0, 1])
def test_both_softmaxes_make_the_output_of_the_cross_attention(image, backend, block):
    net = network()
    x, association, expected = heard(net, image, block)
    found = find_superpixels(image, net, block)
    values = net.blocks[block].cross_attention.inputs(x, association)[2][0].detach().numpy()  # (N, C)
    k = found.tokens.shape[1]
    first = np.stack([found.attention_of_superpixel(i).reshape(-1) for i in range(k)])  # (K, N)
    second = np.stack([found.attention_of_pixel(*pixel).reshape(-1) for pixel in np.ndindex(image.shape[:2])])
    np.testing.assert_allclose(second @ first @ values, expected[0].numpy().reshape(-1, 8), atol=1e-5)
    np.testing.assert_allclose(first.sum(1), 1)
    np.testing.assert_allclose(second.sum(1), 1)


def test_attention_is_the_mean_of_the_heads():
    found = find_superpixels(picture(9, 8), network(num_heads=2), 0)
    one_hot = torch.eye(72, dtype=torch.float64)
    heads = [attention(found.tokens[..., i : i + 2], found.keys[..., i : i + 2], one_hot) for i in (0, 2)]
    expected = torch.stack(heads).mean(0)[0, 3].numpy()
    np.testing.assert_allclose(found.attention_of_superpixel(3).reshape(-1), expected, atol=1e-12)


@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES.keys())
def test_by_pixel_is_the_same_of_both_forms(size):
    x = torch.randn(2, *size, 5, dtype=torch.float64)
    sparse, whole = (ops.associate(x, 3, backend=name) for name in ('torch', 'reference'))
    torch.testing.assert_close(sparse.by_pixel(), whole.by_pixel(), rtol=0, atol=1e-9)
    torch.testing.assert_close(whole.by_pixel().sum(2), torch.ones(2, size[0] * size[1], dtype=torch.float64))


def test_mean_colours_are_the_means_of_the_regions(image):
    found = find_superpixels(image, network(), 1)
    region = found.labels == found.labels[-1, -1]
    assert np.array_equal(found.mean_colours()[-1, -1], np.rint(image[region].mean(0)))
    assert len(np.unique(found.mean_colours()[region], axis=0)) == 1


def test_boundaries_are_the_pixels_beside_another_superpixel(image):
    found = find_superpixels(image, network(), 1)
    padded = np.pad(found.labels, 1, mode='edge')
    others = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    assert np.array_equal(found.boundaries(), np.any([found.labels != other for other in others], 0))


@pytest.mark.parametrize(
    ('kind', 'same'),
    [
        (lambda rgb: np.dstack((rgb, rgb[..., :1])), lambda rgb: rgb),
        (lambda rgb: rgb[..., 0], lambda rgb: rgb[..., [0, 0, 0]]),
        (lambda rgb: rgb[..., :2], lambda rgb: rgb[..., [0, 0, 0]]),
        (lambda rgb: rgb.astype(np.uint16) * 257, lambda rgb: rgb),
    ],
    ids=['alpha', 'grey', 'grey_and_alpha', '16_bits'],
)
def test_kinds_of_images(kind, same):
    rgb, net = picture(9, 7), network()
    found, expected = find_superpixels(kind(rgb), net), find_superpixels(same(rgb), net)
    assert np.array_equal(found.image, expected.image)
    torch.testing.assert_close(found.queries, expected.queries)


def test_lines_show_on_black_and_on_white():
    labels = np.array([[0, 1]])
    expected = np.repeat([[9, 9, 255, 0, 9, 9]], 3, 0)
    assert np.array_equal(draw_boundaries(np.full((3, 6, 3), 9, np.uint8), labels)[..., 0], expected)


def test_pictures(image):
    found = find_superpixels(image, network(), 1)
    pictures = draw(found, 3, pixel=(0, 0), superpixel=0, top=2)
    assert list(pictures) == [
        'boundaries',
        'colours',
        'pixel_0_0_association',
        'pixel_0_0_attention',
        'superpixel_0_top2',
        'superpixel_0_attention',
    ]
    height, width = (3 * side for side in image.shape[:2])
    for name, one in pictures.items():
        assert one.dtype == np.uint8
        # Pictures of weights have a colour bar at the right, and are as high as its numbers need.
        has_bar = 'association' in name or 'attention' in name
        assert (one.shape[0] >= height and one.shape[1] > width) if has_bar else one.shape == (height, width, 3)
    assert np.array_equal(pictures['colours'], enlarge(found.mean_colours(), 3))
    assert np.array_equal(pictures['boundaries'], draw_boundaries(enlarge(image, 3), found.labels))


def test_the_largest_attention_is_the_brightest():
    found = find_superpixels(np.full((12, 8, 3), 90, np.uint8), network(), 0)  # grey: the heat alone differs
    heat = draw(found, 1, superpixel=5)['superpixel_5_attention'][:12, :8].sum(2, dtype=int)
    away = found.labels != 5
    attention = found.attention_of_superpixel(5)
    assert heat[away][attention[away].argmax()] > heat[away][attention[away].argmin()]


def test_colour_bar_has_the_colours_and_the_largest_weight_of_the_picture():
    found = find_superpixels(np.full((12, 8, 3), 128, np.uint8), network(), 0)  # the grey of the bar
    pictures = draw(found, 8, pixel=(5, 5))
    bar = pictures['pixel_5_5_attention'][:, 8 * 8 + 12]
    weights = found.attention_of_pixel(5, 5).reshape(-1)[found.labels]
    y, x = np.argwhere(weights == weights.max())[-1]
    corner = pictures['pixel_5_5_attention'][8 * y + 7, 8 * x + 7]  # away from the ring
    assert np.array_equal(bar[0], corner)
    assert bar[0].sum() > bar[len(bar) // 2].sum() > bar[-1].sum()
    labels = [one[:, 8 * 8 + 40 :] for one in pictures.values() if one.shape[1] > 8 * 8]
    assert all((label < 128).any() for label in labels)
    # The association and the attention have other largest weights, and so other numbers.
    assert not np.array_equal(*labels)


@pytest.mark.parametrize(('size', 'sides'), [((20, 30), (660, 990)), ((1500, 1), (1500, 1))], ids=['small', 'long'])
def test_pictures_have_about_1000_pixels(size, sides):
    found = find_superpixels(picture(*size), network())
    assert draw(found)['colours'].shape == (*sides, 3)


@pytest.mark.parametrize(
    ('look', 'message'),
    [
        (lambda net, found: find_superpixels(picture(4, 4), net, 2), 'the block must be 0 to 1, got 2'),
        (lambda net, found: find_superpixels(picture(4, 4), net, -1), 'the block must be 0 to 1, got -1'),
        (lambda net, found: find_superpixels(picture(4, 4, 5), net), r'\(H, W, 1 to 4\), got \(4, 4, 5\)'),
        (lambda net, found: found.association_of(8, 0), r'inside the image of 8x12 \(HxW\), got y=8, x=0'),
        (lambda net, found: found.attention_of_pixel(0, 12), r'inside the image of 8x12 \(HxW\), got y=0, x=12'),
        (lambda net, found: found.attention_of_pixel(0, -1), r'inside the image of 8x12 \(HxW\), got y=0, x=-1'),
        (lambda net, found: found.top_pixels(6), r'superpixel must be 0 to 5 \(block 0 has 2x3\), got 6'),
        (lambda net, found: found.attention_of_superpixel(-1), r'superpixel must be 0 to 5 .*, got -1'),
        (lambda net, found: found.top_pixels(0, 0), 'n must be at least 1, got n=0'),
        (lambda net, found: draw(found, 0), 'factor must be at least 1, got factor=0'),
    ],
    ids='block last_block shape row column column_-1 superpixel superpixel_-1 top factor'.split(),
)
def test_what_does_not_exist_is_an_error(look, message):
    net = network()
    with pytest.raises(ValueError, match=message):
        look(net, find_superpixels(picture(8, 12), net))


VARIANTS = {
    'mixture': {'aggregation': 'mixture'},
    'patch': {'aggregation': 'patch'},
    'top_n': {'top_n': 5},
    'only_cross': {'interaction': 'only_cross'},
}


@pytest.mark.parametrize('variant', VARIANTS.values(), ids=VARIANTS.keys())
def test_variants_are_shown_as_they_are(variant, image, backend, monkeypatch):
    net = network(**variant)
    found = find_superpixels(image, net)
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
    association = heard(net, image, 0)[1]
    expected = association.dense()[0].numpy()  # (K, N)
    actual = np.stack([found.association_of(*pixel).reshape(-1) for pixel in np.ndindex(image.shape[:2])], 1)
    assert np.abs(actual - expected).max() < 1e-6
    chosen = np.take_along_axis(expected, found.labels.reshape(1, -1), 0)[0]
    assert np.abs(chosen - expected.max(0)).max() < 1e-6
    selected = ops.top_n(association, net.blocks[0].intra_attention.num_pixels if 'top_n' in variant else None)
    assert found.top_pixels(0).sum() == selected.shape[2]
    assert len(draw(found, pixel=(0, 0), superpixel=0)) == 6


def test_patches_are_the_cells():
    found = find_superpixels(picture(12, 8), network(aggregation='patch'))
    assert np.array_equal(found.labels, np.arange(6).reshape(3, 2).repeat(4, 0).repeat(4, 1))
    assert np.array_equal(found.top_pixels(3), found.labels == 3)


def test_without_cross_attention_there_is_no_attention_to_show():
    found = find_superpixels(picture(8, 12), network(interaction='only_intra', top_n=7))
    assert found.top_pixels(1).sum() == 7
    assert sorted(draw(found, pixel=(3, 4), superpixel=1)) == [
        'boundaries',
        'colours',
        'pixel_3_4_association',
        'superpixel_1_top',
    ]
    with pytest.raises(ValueError, match='has no cross-attention of superpixels'):
        found.attention_of_pixel(3, 4)
    with pytest.raises(ValueError, match='has no cross-attention of superpixels'):
        found.attention_of_superpixel(1)


def test_other_networks_are_an_error():
    rcan = spinsr.load('RCAN', 2, None, num_feat=4, num_group=1, num_block=1, squeeze_factor=2)
    with pytest.raises(TypeError, match='superpixels need a SPIN, got RCAN'):
        find_superpixels(picture(4, 4), rcan)


def test_a_network_of_grey_images_is_an_error():
    net = spinsr.load('SPIN', 2, None, **TINY, num_in_ch=1, num_out_ch=1)
    with pytest.raises(ValueError, match='the network must accept RGB images, got one for 1 channels'):
        find_superpixels(np.zeros((8, 8), np.uint8), net)


def test_a_network_that_gives_no_numbers_is_an_error():
    net = network()
    torch.nn.init.constant_(net.conv_first.bias, float('nan'))
    with pytest.raises(ValueError, match='contains NaN or infinity before block=0'):
        find_superpixels(picture(4, 4), net, 1)


@pytest.mark.parametrize(
    ('error', 'expected', 'message'),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError, r'out of memory .* 12x8 \(HxW\)'),
        (torch.OutOfMemoryError(), MemoryError, 'image: OutOfMemoryError$'),
        (RuntimeError('something else'), RuntimeError, '^something else$'),
    ],
    ids=['memory', 'wordless', 'other'],
)
def test_an_image_that_is_too_large_is_said_so(error, expected, message, monkeypatch):
    def fails(x):
        raise error

    net = network()
    monkeypatch.setattr(net.blocks[0].aggregation, 'forward', fails)
    with pytest.raises(expected, match=message):
        find_superpixels(picture(12, 8), net)


def test_files_that_are_there_stay(tmp_path):
    old, new = picture(2, 3), picture(3, 2)
    here, there = tmp_path / 'here.png', tmp_path / 'folder' / 'there.png'
    image_file.write_png(here, old)
    assert write_pictures({here: new, there: new}) == ([there], [here])
    assert np.array_equal(image_file.read(here), old)
    assert write_pictures({here: new, there: old}, overwrite=True) == ([here, there], [])
    assert np.array_equal(image_file.read(here), new)


def test_all_blocks_in_one_run_are_the_same_as_one_at_a_time():
    net, image = network(), picture(13, 11)
    found = list(each_block(image, net))
    assert [one.block for one in found] == [0, 1]
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(found[1].association.dense(), find_superpixels(image, net, 1).association.dense())
    assert torch.equal(found[1].tokens, find_superpixels(image, net, 1).tokens)


def test_between_the_blocks_the_caller_is_not_in_inference_mode():
    modes = [torch.is_inference_mode_enabled() for _ in each_block(picture(8, 8), network())]
    assert modes == [False, False]
