import json
import os
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import spinsr
from spinsr import cli
from spinsr.archs import ARCH_REGISTRY
from spinsr.convert import get_format
from spinsr.export import onnx
from spinsr.export.onnx import export_file, to_onnx
from spinsr.ops import associate, top_n

from ..networks import BASICSR, SMALL

NETWORKS = {
    'SPIN': {'num_feat': 8, 'num_block': 1, 'stoken_size': (8,), 'qk_dim': 4, 'mlp_dim': 8, 'upscale': 2},
    'SAN': {'num_feat': 8, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4, 'upscale': 2},
    'RCAN': {'num_feat': 8, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4, 'upscale': 2},
    'RDBESA': {'num_feat': 8, 'num_block': 1, 'squeeze_factor': 4, 'upscale': 2},
}
each_arch = pytest.mark.parametrize('arch', NETWORKS)


def build(arch):
    net = ARCH_REGISTRY.get('RCAN_spinsr' if arch == 'RCAN' else arch)(**NETWORKS[arch]).eval()
    with torch.no_grad():
        for value in net.parameters():
            if not value.any():  # SAN's skips start at 0 and would hide what they carry
                value.normal_(0, 0.1)
    return net


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Gives an arch's network, its file, and what `to_onnx` said of it; each is exported once."""
    done = {}

    def get(arch):
        if arch not in done:
            net, path = build(arch), tmp_path_factory.mktemp(arch) / 'net.onnx'
            done[arch] = net, path, to_onnx(net, path)
        return done[arch]

    return get


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'net.pth'
    torch.save({'params': build('RCAN').state_dict()}, path)
    return path


def run(path, x):
    import onnxruntime

    (out,) = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'image': x.numpy()})
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ('arch', 'size'),
    [
        *(
            pytest.param('SPIN', size, id=f'SPIN-{size[0]}x{size[1]}')
            # One cell, less than two, multiples of the cell and none, one side far longer, and a batch.
            for size in (
                (8, 8),
                (15, 9),
                (16, 24),
                (21, 34),
                (8, 61),
                (70, 11),
                (40, 40),
                (57, 33),
                (64, 48),
                (31, 31, 3),
            )
        ),
        pytest.param('SAN', (4, 5), id='SAN-4x5'),
        pytest.param('SAN', (33, 20), id='SAN-33x20'),
        pytest.param('RCAN', (2, 3), id='RCAN-2x3'),
        pytest.param('RCAN', (33, 20), id='RCAN-33x20'),
        pytest.param('RDBESA', (15, 31), id='RDBESA-15x31'),
    ],
)
def test_onnx_gives_what_torch_gives(arch, size, exported):
    net, path, _ = exported(arch)
    (height, width), batch = size[:2], *(size[2:] or (1,))
    x = torch.rand(batch, 3, height, width)
    with torch.no_grad():
        np.testing.assert_allclose(run(path, x), net(x).numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('arch', 'size', 'sides', 'shape'),
    [
        ('SPIN', None, (8, None), ['B', 3, 'H', 'W']),
        ('SAN', None, (4, 1000), ['B', 3, 'H', 'W']),
        ('RCAN', None, (2, None), ['B', 3, 'H', 'W']),
        ('RDBESA', None, (15, None), ['B', 3, 'H', 'W']),
    ],
    ids=NETWORKS,
)
def test_what_the_file_takes(arch, size, sides, shape, exported):
    import onnx

    _, path, written = exported(arch)
    assert (written.size, written.sides, written.set_aside) == (size, sides, 0)
    assert written.difference <= 1e-5
    assert written.num_bytes == path.stat().st_size
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [('', 18)]
    (taken,) = model.graph.input
    assert taken.name == 'image'
    assert [side.dim_param or side.dim_value for side in taken.type.tensor_type.shape.dim] == shape
    assert [out.name for out in model.graph.output] == ['upscaled']
    assert b'.py' not in path.read_bytes()  # where each node came from


def metadata(path):
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_file_says_which_network_it_is(exported):
    _, path, _ = exported('RCAN')
    found = metadata(path)
    assert (found['arch'], found['scale'], found['dtype']) == ('RCAN', '2', 'fp32')
    rebuilt = ARCH_REGISTRY.get('RCAN_spinsr')(**json.loads(found['arguments']))
    assert repr(rebuilt) == repr(build('RCAN'))


@pytest.mark.parametrize('dtype', ['fp16', 'bf16'])
def test_weights_in_half_types(dtype, exported, tmp_path):
    import onnx as onnx_package

    net, _, whole = exported('RCAN')
    half = to_onnx(net, tmp_path / 'half.onnx', size=(9, 14), dtype=dtype)
    assert whole.rounding == 0 < half.rounding < {'fp16': 1e-3, 'bf16': 1e-2}[dtype]
    assert metadata(tmp_path / 'half.onnx')['dtype'] == dtype
    kind = getattr(onnx_package.TensorProto, {'fp16': 'FLOAT16', 'bf16': 'BFLOAT16'}[dtype])
    stored = [
        tensor for tensor in onnx_package.load(tmp_path / 'half.onnx').graph.initializer if tensor.data_type == kind
    ]
    large = [value for value in net.state_dict().values() if value.numel() >= 256]
    assert len(stored) == len(large) > 0
    x = torch.rand(1, 3, 9, 14)
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / 'half.onnx', x), net(x).numpy(), rtol=0, atol=4 * half.rounding)


def test_weights_that_fp16_cannot_hold(tmp_path):
    net = build('RCAN')
    net.conv_after_body.weight.data.mul_(1e7)
    with pytest.raises(ValueError, match='conv_after_body.weight holds .*, which fp16 cannot; use bf16 or fp32'):
        to_onnx(net, tmp_path / 'net.onnx', dtype='fp16')
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('name', [*SMALL, *BASICSR])
def test_every_network_is_exported_or_says_why_not(name, tmp_path):
    format, small = get_format(name), BASICSR[name].small if name in BASICSR else SMALL[name]
    torch.manual_seed(0)
    net = format.cls(**{**format.defaults, **small, format.scale_keyword: 2}).eval()
    with torch.no_grad():
        for value in net.parameters():
            if not value.any():
                value.normal_(0, 0.1)
    # Which compares with ONNX Runtime at three sizes where the file takes any.
    size = None if isinstance(format.onnx.sides, tuple) else (16, 24)  # SPIN for any size takes long: above
    if format.onnx.refused:
        with pytest.raises(ValueError, match='cannot be exported to ONNX: '):
            to_onnx(net, tmp_path / 'net.onnx', size=size)
    else:
        assert to_onnx(net, tmp_path / 'net.onnx', size=size).difference <= onnx.TOLERANCE


@pytest.mark.slow
def test_full_size_spin(tmp_path):
    net = ARCH_REGISTRY.get('SPIN')().eval()
    written = to_onnx(net, tmp_path / 'net.onnx', size=(37, 50))
    assert written.difference <= 1e-4
    assert written.num_bytes < 6e6


class Selection(torch.nn.Module):
    def forward(self, x):
        return top_n(associate(x, 4))


def test_exported_graphs_select_the_same_pixels_of_equal_rank():
    x = torch.rand(1, 9, 14, 3).round()
    with torch.no_grad():
        program = torch.export.export(Selection(), (x,))
    assert torch.equal(program.module()(x), Selection()(x))
    # What ONNX does not know: looking at the bits of a number, and graphs within the graph.
    assert not {'view.dtype', 'wrap_with_autocast', 'wrap_with_set_grad_enabled'} & {
        str(node.target).removeprefix('aten.') for node in program.graph.nodes
    }


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_written(exported, tmp_path, monkeypatch):
    translate, net = onnx._translate, build('RCAN')

    def mistranslate(net, *args):
        content = translate(net, *args)
        net.conv_last.bias.data += 0.1  # of 255
        return content

    monkeypatch.setattr(onnx, '_translate', mistranslate)
    with pytest.raises(ValueError, match=r'differ from PyTorch by 0\.00039'):
        to_onnx(net, tmp_path / 'net.onnx')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('found', 'set_aside'),
    [([1e-5], 0), ([0.3, 1e-5], 1), ([0.3, 0.3, 0.3], None), ([float('nan')] * 3, None)],
    ids=['agrees', 'second-agrees', 'none-agrees', 'nan'],
)
def test_images_on_which_ranks_differ_are_set_aside(found, set_aside, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, '_translate', lambda *_: b'content')
    monkeypatch.setattr(onnx, '_differences', lambda *_: found)
    path = tmp_path / 'net.onnx'
    if set_aside is None:
        with pytest.raises(ValueError, match='it was not written'):
            to_onnx(build('SPIN'), path, size=(64, 64))
        assert not path.exists()
    else:
        assert to_onnx(build('SPIN'), path, size=(64, 64)) == ((64, 64), None, 1e-5, set_aside, 7, 0)
        assert path.read_bytes() == b'content'


def test_images_are_compared_until_one_agrees(exported, monkeypatch):
    net, path, _ = exported('RCAN')
    offsets = iter([0.5, 0, 0])

    def forward(x):
        return net(x) + next(offsets)

    with torch.no_grad():
        first, second = onnx._differences(forward, path.read_bytes(), 18, 3, (1, 7, 9))
    assert first == pytest.approx(0.5, abs=1e-4)
    assert second <= 1e-5


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('net.pth', {}, 'an ONNX file must end in .onnx'),
        ('net.onnx', {'size': (0, 4)}, 'at least 1'),
        ('net.onnx', {'size': (4,)}, 'a height and a width'),
        ('net.onnx', {'opset': 17}, 'at least 18, got 17'),
        ('net.onnx', {'dtype': 'int8'}, "dtype must be one of fp32, fp16, bf16, got 'int8'"),
        ('none/net.onnx', {}, 'does not exist'),
    ],
    ids=['ending', 'size', 'one-side', 'opset', 'dtype', 'folder'],
)
def test_what_is_refused(name, options, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        to_onnx(build('RCAN'), tmp_path / name, **options)


class Pixels(torch.nn.Module):
    """Little to translate."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x)


@pytest.mark.slow
def test_a_later_opset(tmp_path):
    import onnx

    to_onnx(Pixels(), tmp_path / 'net.onnx', size=(4, 5), opset=20)
    assert [opset.version for opset in onnx.load(tmp_path / 'net.onnx').opset_import] == [20]


@pytest.mark.slow
def test_an_opset_that_torch_cannot_write(tmp_path):
    with pytest.raises(ValueError, match='^opset must be one that torch .* can write, got 99; it wrote '):
        to_onnx(Pixels(), tmp_path / 'net.onnx', size=(4, 5), opset=99)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_an_opset_that_the_runtime_does_not_take(tmp_path, monkeypatch):
    import onnxruntime

    def refuse(*_, **__):
        raise onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph('no Attention\nmore')

    monkeypatch.setattr(onnxruntime, 'InferenceSession', refuse)
    with pytest.raises(ValueError, match=r'^ONNX Runtime \S+ does not take opset 18: no Attention$'):
        to_onnx(Pixels(), tmp_path / 'net.onnx', size=(4, 5))
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_file_that_the_runtime_cannot_run(tmp_path, monkeypatch):
    import onnxruntime

    class Session(onnxruntime.InferenceSession):
        def run(self, *_):
            raise onnxruntime.capi.onnxruntime_pybind11_state.Fail('a Slice node\nmore')

    monkeypatch.setattr(onnxruntime, 'InferenceSession', Session)
    with pytest.raises(ValueError, match=r'^ONNX Runtime \S+ cannot run what torch \S+ wrote: a Slice node$'):
        to_onnx(Pixels(), tmp_path / 'net.onnx', size=(4, 5))
    assert os.listdir(tmp_path) == []


def test_a_network_that_cannot_be_translated(exported, tmp_path):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) if x.sum().item() > 0 else x

    with pytest.raises(ValueError, match='Odd cannot be translated to ONNX: '):
        to_onnx(Odd(), tmp_path / 'net.onnx')
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(checkpoint, tmp_path):
    target = tmp_path / 'net.onnx'
    target.write_text('mine')
    with pytest.raises(FileExistsError, match='--overwrite'):
        export_file(checkpoint, target)
    assert target.read_text() == 'mine'


def test_other_backends_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', 'reference')
    with pytest.raises(ValueError, match="'torch', got 'reference'"):
        to_onnx(build('RCAN'), tmp_path / 'net.onnx')


@pytest.mark.parametrize('package', ['onnx', 'onnxruntime', 'onnxscript'])
def test_without_a_package(package, exported, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'needs the package {package}: pip install {package}$'):
        to_onnx(build('RCAN'), tmp_path / 'net.onnx')


def test_command_writes_onnx_of_a_fixed_size(exported, checkpoint, tmp_path, capsys):
    target = tmp_path / 'new' / 'net.onnx'
    assert cli.main(['export', str(checkpoint), str(target), '--size', '9x14']) == 0
    shown = capsys.readouterr()
    assert 'takes 9 x 14 pixels (height x width); ' in shown.out
    assert shown.err.startswith(f'spinsr export: {checkpoint} to ONNX')
    assert run(target, torch.rand(1, 3, 9, 14)).shape == (1, 3, 18, 28)


@pytest.mark.parametrize(
    ('written', 'takes'),
    [
        (onnx.OnnxFile(None, (4, 1000), 2e-7, 0, 10**6), 'any size, sides of 4 to 1000 pixels; 1.0 MB'),
        (onnx.OnnxFile(None, (2, None), 2e-7, 0, 10**6), 'any size from 2 x 2 pixels; 1.0 MB'),
        (onnx.OnnxFile((64, 65), None, 2e-7, 1, 10**6), 'note: on 1 generated images it was more'),
    ],
    ids=['limits', 'no-largest', 'set-aside'],
)
def test_command_says_what_it_wrote(written, takes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx, 'export_file', lambda *_, **__: written)
    (tmp_path / 'net.pth').touch()
    assert cli.main(['export', str(tmp_path / 'net.pth'), str(tmp_path / 'net.onnx')]) == 0
    assert takes in capsys.readouterr().out


def test_command_passes_on_what_no_shape_tells(exported, tmp_path, monkeypatch):
    taken, source = [], tmp_path / 'net.pth'
    torch.save({'params': build('SPIN').state_dict()}, source)
    monkeypatch.setattr(onnx, 'to_onnx', lambda net, *_, **options: taken.append((net, options)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(['export', str(source), str(tmp_path / 'net.onnx'), '--opset', '20', '--arch-args', 'stoken_size=[8]'])
    ((net, options),) = taken
    assert [block.aggregation.stoken_size for block in net.blocks] == [8]
    assert net.upscale == 2
    assert options == {'size': None, 'opset': 20, 'dtype': 'fp32', 'overwrite': False}


def test_command_writes_safetensors(checkpoint, tmp_path, capsys):
    target = tmp_path / 'net.safetensors'
    assert cli.main(['export', str(checkpoint), str(target)]) == 0
    assert 'RCAN x2' in capsys.readouterr().out
    assert torch.equal(load_file(target)['mean'], torch.load(checkpoint)['params']['mean'])


def test_command_writes_safetensors_in_half(checkpoint, tmp_path):
    target = tmp_path / 'net.safetensors'
    assert cli.main(['export', str(checkpoint), str(target), '--dtype', 'bf16']) == 0
    written = load_file(target)
    for name, value in torch.load(checkpoint)['params'].items():
        expected = value.bfloat16() if value.numel() >= 256 else value
        assert written[name].dtype == expected.dtype and torch.equal(written[name], expected)
    assert spinsr.load(weights=target).conv_first.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ('name', 'flags', 'message'),
    [
        ('net.safetensors', ['--size', '9x14'], '--size is for ONNX'),
        ('net.safetensors', ['--arch-args', 'num_heads=2'], '--arch-args is for ONNX and ncnn'),
        ('net.pth', [], 'OUT must end in .onnx, .param or .safetensors, got '),
        ('old.onnx', [], 'old.onnx exists; --overwrite replaces it'),
    ],
    ids=['size', 'arch-args', 'ending', 'exists'],
)
def test_bad_input_is_one_line_and_exit_status_1(name, flags, message, checkpoint, tmp_path, capsys):
    (tmp_path / 'old.onnx').write_text('mine')
    before = sorted(tmp_path.iterdir())
    assert cli.main(['export', str(checkpoint), str(tmp_path / name), *flags]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert sorted(tmp_path.iterdir()) == before


def test_weights_of_another_network(exported, tmp_path, capsys):
    torch.save({'params': {'weight': torch.zeros(3)}}, tmp_path / 'net.pth')
    assert cli.main(['export', str(tmp_path / 'net.pth'), str(tmp_path / 'net.onnx')]) == 1
    assert 'do not belong to a known network' in capsys.readouterr().err


@pytest.mark.parametrize('size', ['9', '9x', '0x4', 'axb'])
def test_sizes_that_are_none(size, checkpoint, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(['export', str(checkpoint), str(tmp_path / 'net.onnx'), '--size', size])
    assert stop.value.code == 2
