"""Back to the authors' form, to BasicSR's, and telling which network a state dict is of."""

import pytest
import torch

from spinsr.archs import ARCH_REGISTRY
from spinsr.archs.registry import find
from spinsr.convert import convert_state_dict, detect_arch, to_basicsr, to_official

SCALES = {'spin': (2, 3, 4), 'san': (2, 3, 4), 'rcan': (2, 3, 4)}
EACH_NETWORK = [f'{arch}_official_tiny_x{scale}' for arch, scales in SCALES.items() for scale in scales]
EACH_NETWORK += ['zoo/emt_x2', 'zoo/emt_x3', 'zoo/emt_x4', 'zoo/rlfn_x2']
each_network = pytest.mark.parametrize('name', EACH_NETWORK)
each_arch = pytest.mark.parametrize('name', EACH_NETWORK[::3])
drifted = pytest.mark.parametrize('name', ['san_official_tiny_drift_x2', 'rcan_official_tiny_drift_x2'])


def is_dead(name):
    return name in ('conv_last.weight', 'conv_last.bias') or name.startswith('non_local.soca.') or '.gamma' in name


def net_of(official, weights=None):
    net = ARCH_REGISTRY.get(official.arch)(**official.arguments)
    if weights is not None:
        net.load_state_dict(weights)
    return net


def same(one, other):
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


@each_network
def test_there_and_back_is_the_same_bit_for_bit(name, official):
    official = official(name)
    back = to_official(convert_state_dict(official.weights, official.arch), official.arch)
    dead = {key for key in official.weights if official.arch == 'SAN' and is_dead(key)}
    assert same({k: v for k, v in back.items() if k not in dead}, {k: official.weights[k] for k in back.keys() - dead})
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in official.weights.items()}


@each_network
def test_back_and_there_is_the_same_bit_for_bit(name, official):
    official = official(name)
    ours = net_of(official).state_dict()
    assert same(convert_state_dict(to_official(ours, official.arch), official.arch), ours)


@pytest.mark.parametrize('name', ['spin_official_tiny_x4', 'san_official_tiny_x4', 'rcan_official_tiny_x4'])
def test_input_stays_as_it_is(name, official):
    official = official(name)
    ours = net_of(official).state_dict()
    before = {key: value.clone() for key, value in ours.items()}
    to_official(ours, official.arch)
    assert same(ours, before)


def test_unused_parameters_of_san_come_back_as_zeros(official):
    official = official('san_official_tiny_x2')
    back = to_official(convert_state_dict(official.weights, 'SAN'), 'SAN')
    dead = {key: value for key, value in back.items() if is_dead(key)}
    assert len(dead) == 8  # two groups' gammas, a convolution, and an attention of two
    assert not any(value.any() for value in dead.values())


@drifted
def test_drifted_mean_comes_back_as_the_same_function(name, official):
    official = official(name)
    once = convert_state_dict(official.weights, official.arch)
    back = to_official(once, official.arch)
    assert not same(back, official.weights)
    assert torch.equal(back['sub_mean.weight'].flatten(1), torch.eye(3).double())
    outputs = []
    for weights in (once, convert_state_dict(back, official.arch)):
        with torch.no_grad():
            outputs.append(net_of(official, weights).double()(official.images[0].double()))
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-12
    assert (outputs[0] - official.results[0]).abs().max() < 1e-6


@pytest.mark.parametrize('name', [*EACH_NETWORK[::3], 'rcan_official_tiny_drift_x2'])
def test_official_names_come_back_with_the_same_tensors(name, official):
    official = official(name)
    back = to_official({f'module.{key}': value for key, value in official.weights.items()}, official.arch)
    assert back.keys() == official.weights.keys()
    assert all(back[key] is official.weights[key] for key in back)


@each_arch
def test_every_strange_name_is_named(name, official):
    official = official(name)
    strange = {'ghost.weight': torch.zeros(1), 'zzz': torch.zeros(1)}
    with pytest.raises(ValueError, match=r'2 unexpected keys for [A-Z]+: ghost\.weight, zzz'):
        to_official(net_of(official).state_dict() | strange, official.arch)


def test_rcan_of_basicsr_gets_the_mean_that_basicsr_subtracts(official):
    official = official('rcan_official_tiny_x2')
    theirs = find('RCAN')(3, 3, **official.arguments)
    back = to_official(theirs.state_dict(), 'RCAN')
    assert torch.equal(back['add_mean.bias'], 255 * theirs.mean.flatten())
    assert torch.equal(back['sub_mean.bias'], -back['add_mean.bias'])
    assert same(convert_state_dict(back, 'RCAN'), theirs.state_dict() | {'mean': net_of(official).mean})


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-6), (torch.float32, 3e-6)], ids=str)
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_rcan_of_basicsr_gives_the_same_image(scale, dtype, tolerance, official):
    official = official(f'rcan_official_tiny_x{scale}')
    ours = net_of(official, convert_state_dict(official.weights, 'RCAN')).to(dtype)
    theirs = find('RCAN')(3, 3, **official.arguments)
    theirs.load_state_dict(to_basicsr(official.weights))
    x = torch.rand(1, 3, 9, 11, dtype=dtype)
    with torch.no_grad():
        one, other = ours(x), theirs.to(dtype)(x)
    assert (one - other).abs().max() < tolerance
    assert one.std() > 0.01


def test_rcan_of_basicsr_comes_out_as_it_is(official):
    theirs = find('RCAN')(3, 3, **official('rcan_official_tiny_x2').arguments).state_dict()
    assert same(to_basicsr(theirs), theirs)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_usual_mean_is_dropped_in_every_type(dtype, official):
    ours = {key: value.to(dtype) for key, value in net_of(official('rcan_official_tiny_x2')).state_dict().items()}
    assert to_basicsr(ours).keys() == ours.keys() - {'mean'}


def test_drifted_mean_is_refused_with_the_reason(official):
    with pytest.raises(
        ValueError, match=r'always subtracts .*114\.444, 111\.46, 103\.02.*subtracts \(115\.468, .*drifted'
    ):
        to_basicsr(official('rcan_official_tiny_drift_x2').weights)


@pytest.mark.parametrize(
    'arguments',
    [{'img_range': 1.0}, {'rgb_mean': (0.5, 0.5, 0.5)}, {'rgb_mean': (0.4488, 0.4371, 0.40401)}],
    ids=['range', 'mean', 'slightly'],
)
def test_other_means_are_refused(arguments, official):
    net = ARCH_REGISTRY.get('RCAN_spinsr')(**official('rcan_official_tiny_x2').arguments, **arguments)
    with pytest.raises(ValueError, match='img_range or rgb_mean is another'):
        to_basicsr(net.state_dict())


def test_drift_that_leaves_the_mean_is_carried_over(official, assert_close):
    official = official('rcan_official_tiny_x2')
    stretch = torch.diag(torch.tensor([1.5, 0.75, 1.25]))[..., None, None]
    weights = official.weights | {
        'sub_mean.weight': stretch,
        'sub_mean.bias': stretch.sum((1, 2, 3)) * official.weights['sub_mean.bias'],
    }
    theirs = find('RCAN')(3, 3, **official.arguments)
    theirs.load_state_dict(to_basicsr(weights))
    with torch.no_grad():
        expected = net_of(official, convert_state_dict(weights, 'RCAN'))(official.images[0].float())
        assert_close(theirs(official.images[0].float()), expected)
        assert not torch.allclose(theirs(official.images[0].float()).double(), official.results[0], atol=1e-2)


@pytest.mark.parametrize('form', ['official', 'ours', 'wrapped'])
@each_network
def test_arch_is_told_from_the_names(name, form, official):
    official = official(name)
    weights = official.weights if form == 'official' else net_of(official).state_dict()
    if form == 'wrapped':
        weights = {'params': {f'module.{key}': value for key, value in weights.items()}}
    assert detect_arch(weights) == official.arch.removesuffix('_spinsr')


def test_rcan_of_basicsr_is_rcan(official):
    theirs = find('RCAN')(3, 3, **official('rcan_official_tiny_x2').arguments)
    assert detect_arch(theirs.state_dict()) == 'RCAN'


def test_a_few_strange_names_do_not_hide_the_arch(official):
    assert detect_arch(official('san_official_tiny_x2').weights | {'ghost': torch.zeros(1)}) == 'SAN'


@pytest.mark.parametrize(
    ('names', 'candidates'),
    [
        (['conv_first.weight', 'conv_last.weight'], '.*DITN, .*EMT, .*RCAN, .*SPIN.* and .*'),
        (['head.0.weight', 'tail.1.bias'], '.*RCAN.* and .*SAN.*'),
    ],
    ids=['ours', 'official'],
)
def test_ambiguous_names_are_refused_with_the_candidates(names, candidates):
    with pytest.raises(ValueError, match=f'fit {candidates} equally well'):
        detect_arch(dict.fromkeys(names, torch.zeros(1)))


@pytest.mark.parametrize('names', [[], ['a'], ['conv_first.bias', 'a'], ['a', 'b', 'c', 'd']], ids=len)
def test_names_of_no_arch_are_refused(names):
    with pytest.raises(ValueError, match='do not belong to a known network'):
        detect_arch(dict.fromkeys(names, torch.zeros(1)))


def test_other_networks_of_basicsr_are_refused():
    with pytest.raises(ValueError, match='do not belong to a known network: body'):
        detect_arch(find('MSRResNet')(3, 3, num_feat=8, num_block=3).state_dict())


@pytest.mark.parametrize(
    ('name', 'upscale', 'tensors', 'numbers'),
    [
        ('SPIN', 2, 486, 497_275),
        ('SPIN', 3, 486, 569_475),
        ('SPIN', 4, 488, 555_035),
        ('SAN', 2, 965, 15_712_800),
        ('SAN', 3, 965, 15_897_440),
        ('SAN', 4, 967, 15_860_512),
        ('SAN', 8, 969, 16_008_224),
        ('RCAN_spinsr', 2, 1632, 15_444_667),
        ('RCAN_spinsr', 4, 1634, 15_592_379),
        ('RCAN_spinsr', 8, 1636, 15_740_091),
        ('EMT', 4, 476, 690_048 + 71_304 + 5_796),
        ('RLFN', 4, 114, 543_740),
        ('IMDN', 4, 92, 715_176),
        ('LAPAR', 4, 170, 659_226 + 1800 + 3),
        ('ETDSInference', 4, 18, 72_608),
        ('RFDN', 4, 128, 433_448),
        ('BSRN', 4, 346, 352_400),
        ('BSRN_S', 4, 247, 156_288),
        ('SAFMN', 4, 148, 239_520),
        ('SMFANet', 4, 180, 197_328),
        ('ShuffleMixer', 4, 147, 410_579),
    ],
)
def test_full_size_has_as_many_tensors_and_numbers_as_the_authors_networks(name, upscale, tensors, numbers):
    with torch.device('meta'):
        ours = ARCH_REGISTRY.get(name)(upscale=upscale).state_dict()
    official = to_official(ours, name)
    assert (len(official), sum(value.numel() for value in official.values())) == (tensors, numbers)


def test_emt_without_its_mean_is_refused(official):
    official = official('zoo/emt_x2')
    weights = {name: value for name, value in net_of(official).state_dict().items() if name != 'mean'}
    with pytest.raises(ValueError, match='the state dict lacks mean'):
        to_official(weights, 'EMT')
