"""Networks as ncnn files; needs the extra ncnn."""

import sys

import pytest
import torch

from spinsr import cli
from spinsr.archs import ARCH_REGISTRY
from spinsr.export import ncnn as ncnn_export

ncnn = pytest.importorskip('ncnn', reason='runs what was exported by ncnn: the extra ncnn')
pytest.importorskip('pnnx', reason='exports by pnnx: the extra ncnn')

NETWORKS = {
    'RCAN_spinsr': {'num_feat': 8, 'num_group': 1, 'num_block': 1, 'squeeze_factor': 4, 'upscale': 2},
    'RLFN': {'num_feat': 8, 'num_mid': 12, 'num_block': 1, 'num_esa': 4, 'upscale': 2},
    'SPIN': {'num_feat': 8, 'num_block': 1, 'stoken_size': (8,), 'qk_dim': 4, 'mlp_dim': 8, 'upscale': 2},
}


@pytest.fixture
def checkpoint(request, tmp_path):
    net = ARCH_REGISTRY.get(request.param)(**NETWORKS[request.param]).eval()
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    return net, tmp_path / 'net.pth'


@pytest.mark.slow
@pytest.mark.parametrize('checkpoint', ['RCAN_spinsr', 'RLFN'], indirect=True)
def test_ncnn_gives_what_torch_gives(checkpoint, tmp_path, capsys):
    net, source = checkpoint
    assert cli.main(['export', str(source), str(tmp_path / 'net.param')]) == 0
    assert 'net.param and .bin: take any size from ' in capsys.readouterr().out
    runtime, image = ncnn.Net(), torch.rand(1, 3, 33, 20)
    assert not runtime.load_param(str(tmp_path / 'net.param')) and not runtime.load_model(str(tmp_path / 'net.bin'))
    extractor = runtime.create_extractor()
    extractor.input('in0', ncnn.Mat(image[0].numpy()).clone())
    _, out = extractor.extract('out0')
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(out.numpy()), net(image)[0], rtol=0, atol=2e-2)  # fp16 by default
    assert sorted(path.name for path in tmp_path.iterdir()) == ['net.bin', 'net.param', 'net.pth']


@pytest.mark.parametrize('checkpoint', ['SPIN'], indirect=True)
def test_networks_whose_tables_depend_on_the_size(checkpoint, tmp_path, capsys):
    assert cli.main(['export', str(checkpoint[1]), str(tmp_path / 'net.param')]) == 1
    error = capsys.readouterr().err
    assert 'SPIN cannot be converted to ncnn: its tables depend on the size' in error and error.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['net.pth']


@pytest.mark.parametrize('checkpoint', ['RCAN_spinsr'], indirect=True)
@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--size', '9x14'], '--size is for ONNX'),
        (['--dtype', 'fp16'], '--dtype is not for ncnn'),
        ([], 'net.bin exists'),
    ],
    ids=['size', 'dtype', 'bin'],
)
def test_what_is_refused(flags, message, checkpoint, tmp_path, capsys):
    (tmp_path / 'net.bin').write_text('mine')
    assert cli.main(['export', str(checkpoint[1]), str(tmp_path / 'net.param'), *flags]) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / 'net.bin').read_text() == 'mine'


@pytest.mark.parametrize('checkpoint', ['RCAN_spinsr'], indirect=True)
def test_without_pnnx(checkpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, 'pnnx', None)
    assert cli.main(['export', str(checkpoint[1]), str(tmp_path / 'net.param')]) == 1
    assert 'pip install "spinsr[ncnn]"' in capsys.readouterr().err


def test_layers_that_ncnn_lacks_are_found():
    param = '7767517\n3 2\nInput in0 0 1 in0\nTensor.index take 1 1 in0 1\naten::topk best 1 1 1 out0\n'
    assert ncnn_export._unknown_layers(param) == ['Tensor.index', 'aten::topk']
