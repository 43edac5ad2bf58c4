"""The nodes for ComfyUI, with spandrel's own loader and a stand-in for the parts of ComfyUI that they call."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from spinsr.archs.spin_arch import SPIN

spandrel = pytest.importorskip('spandrel', reason='needs spandrel: the extra spandrel')
FOLDER = Path(__file__).parents[2] / 'integrations' / 'comfyui'
SMALL = {'num_feat': 8, 'num_block': 1, 'stoken_size': (8,), 'qk_dim': 4, 'mlp_dim': 8, 'upscale': 2}


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    """The package, imported from a folder of custom nodes, as ComfyUI does."""
    steps = []
    management = {
        'get_torch_device': lambda: torch.device('cpu'),
        'unet_offload_device': lambda: torch.device('cpu'),
        'intermediate_device': lambda: torch.device('cpu'),
        'module_size': lambda module: 1,
        'free_memory': lambda size, device: None,
    }
    comfy, utils = ModuleType('comfy'), ModuleType('comfy.utils')
    comfy.utils = utils
    comfy.model_management = SimpleNamespace(**management)
    utils.ProgressBar = lambda total: SimpleNamespace(update=lambda count: steps.append((count, total)))
    monkeypatch.setitem(sys.modules, 'comfy', comfy)
    monkeypatch.setitem(sys.modules, 'comfy.utils', utils)
    monkeypatch.setattr(spandrel, 'MAIN_REGISTRY', spandrel.MAIN_REGISTRY.copy())
    (tmp_path / '__init__.py').write_bytes((FOLDER / '__init__.py').read_bytes())
    (tmp_path / 'arch_args.json').write_text(json.dumps({'SPIN': {'stoken_size': [8]}}))
    spec = importlib.util.spec_from_file_location('custom_nodes.spinsr', tmp_path / '__init__.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.steps = steps
    return module


@pytest.fixture
def loaded(nodes):
    """A network, and what ComfyUI's own loader makes of its weights."""
    net = SPIN(**SMALL).eval()
    return net, spandrel.ModelLoader(registry=spandrel.MAIN_REGISTRY).load_from_state_dict(net.state_dict()).eval()


def node_of(nodes):
    cls = nodes.NODE_CLASS_MAPPINGS['SpinsrUpscaleImage']
    assert cls.INPUT_TYPES()['required'].keys() == {'upscale_model', 'image', 'tile', 'self_ensemble'}
    return getattr(cls(), cls.FUNCTION)


def test_the_node_upscales_whole_images(nodes, loaded):
    net, model = loaded
    image = torch.rand(2, 40, 37, 3)
    (out,) = node_of(nodes)(model, image)
    with torch.no_grad():
        expected = torch.cat([net(one) for one in image.movedim(-1, 1).split(1)]).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(out, expected)
    assert nodes.steps == [(1, 2), (1, 2)]
    (tiled,) = node_of(nodes)(model, image, tile=32)
    assert tiled.shape == out.shape and not torch.equal(tiled, out)


def test_alpha_is_kept(nodes, loaded):
    _, model = loaded
    alpha = torch.ones(1, 9, 11, 1)
    alpha[:, :, :5] = 0
    (out,) = node_of(nodes)(model, torch.cat([torch.rand(1, 9, 11, 3), alpha], -1))
    assert out.shape == (1, 18, 22, 4) and 0 <= out.min() and out.max() <= 1
    assert (out[:, :, :6, 3] == 0).all() and (out[:, :, 14:, 3] == 1).all()
    assert 0 < out[0, 0, 9, 3] < out[0, 0, 10, 3] < 1  # smooth, as `spinsr upscale` enlarges it


def test_networks_of_one_channel_take_colours(nodes):
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.Upsample(scale_factor=2))
    (out,) = node_of(nodes)(SimpleNamespace(model=net, to=net.to), torch.rand(1, 9, 11, 3))
    assert out.shape == (1, 18, 22, 3)
