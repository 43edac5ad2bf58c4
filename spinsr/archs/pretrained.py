"""`from_pretrained`, `save_pretrained` and `push_to_hub`: networks in folders laid out as on the Hugging Face Hub.

A folder holds `config.json` (the constructor's arguments and the name of the network), `model.safetensors` and
`README.md`, the model card: the layout of huggingface_hub's `PyTorchModelHubMixin`. The mixin itself is not a base
class of the networks. It would be imported with them, though most users need no hub, and its `__new__` hides the
signature of the constructor, from which option files and commands learn the arguments. `add_methods` adds the three
methods to a class instead, once for all networks in `spinsr.archs`. It leaves the state dict, `repr` and the registry
as they are. A network remembers its arguments in an attribute, which copies and pickles keep.

Only repositories need the package huggingface_hub; folders do not.
"""

import functools
import inspect
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from spinsr._version import __version__
from spinsr.convert.checkpoint import read_checkpoint, write_checkpoint
from spinsr.convert.registry import ArchFormat, get_format
from spinsr.convert.state_dicts import convert_state_dict
from spinsr.utils.atomic_write import write_bytes
from spinsr.utils.text import printable
from spinsr.weights.models import MODELS, Model

CONFIG, WEIGHTS, CARD = 'config.json', 'model.safetensors', 'README.md'
_ARGUMENTS = '_init_arguments'

Network = TypeVar('Network', bound=nn.Module)


def add_methods(cls: type[nn.Module]) -> None:
    """Gives a network the methods of `Pretrained`, and lets its instances remember their arguments."""
    init = cls.__init__

    @functools.wraps(init)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        # Not in a base class's constructor, which was called with other arguments.
        if type(self).__init__ is __init__:
            bound = inspect.signature(init).bind(self, *args, **kwargs)
            bound.apply_defaults()
            self.__dict__[_ARGUMENTS] = dict(list(bound.arguments.items())[1:])

    cls.__init__ = __init__
    for name in ('from_pretrained', 'save_pretrained', 'push_to_hub'):
        if not hasattr(cls, name):
            setattr(cls, name, vars(Pretrained)[name])


def arguments_of(net: nn.Module) -> dict[str, Any] | None:
    """The arguments that a network was built with, defaults included; None if it does not remember them."""
    arguments = vars(net).get(_ARGUMENTS)
    return None if arguments is None else dict(arguments)


class Pretrained(nn.Module):
    """The methods that `add_methods` gives to a network."""

    @classmethod
    def from_pretrained(
        cls: type[Network],
        name: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        device: str | torch.device = 'cpu',
        **arch_args: Any,
    ) -> Network:
        """Builds a network from a folder of `save_pretrained`, or from a repository of the Hugging Face Hub.

        Args:
            name: A folder, or a repository as 'owner/name'.
            revision: Of the repository: a branch, a tag or a commit.
            token: For a private repository; None takes the token of `hf auth login`.
            cache_dir: Where downloads are kept.
            force_download: Download again what is in the cache.
            local_files_only: Take the files from the cache.
            device: Where the network goes.
            **arch_args: Arguments of the constructor that replace those in `config.json`.

        Returns:
            The network in eval mode.

        Raises:
            ValueError: The files are damaged, or hold another network.
            TypeError: The constructor does not have an argument of this name.
            FileNotFoundError: No such folder, or a file is missing in it.
            ImportError: A repository, and huggingface_hub is not installed.
        """
        options = {
            'revision': revision,
            'token': token,
            'cache_dir': cache_dir,
            'force_download': force_download,
            'local_files_only': local_files_only,
        }
        folder = Path(name) if os.path.isdir(name) else _download(os.fspath(name), options)
        format, config = get_format(cls), read_config(folder)
        found = config.pop('arch', format.name)
        if found != format.name:
            raise ValueError(f'{printable(folder)} holds {printable(found)}, not {format.name}; use spinsr.load')
        net = cls(**config | arch_args)
        path = weights_in(folder)
        try:
            net.load_state_dict(convert_state_dict(read_checkpoint(path), format.name))
        except (RuntimeError, TypeError) as error:
            raise ValueError(f'{printable(path)} does not fit {CONFIG}: {printable(str(error))}') from error
        return net.to(device).eval()

    def save_pretrained(self, folder: str | os.PathLike, *, card: str | None = None) -> None:
        """Writes `config.json`, `model.safetensors` and `README.md`, for `from_pretrained` and `spinsr.load`.

        Args:
            folder: Made if it does not exist. Weights and configuration in it are replaced.
            card: The model card, Markdown. None writes one with what is known of the network, unless the folder has
                one already.

        Raises:
            ValueError: The network does not remember its arguments: a subclass with a constructor of its own, or a
                pickle of an earlier version of spinsr.
            TypeError: An argument that JSON cannot hold.
            OSError: The folder cannot be written.
        """
        format, config = get_format(type(self)), arguments_of(self)
        if config is None:
            raise ValueError(
                f'{type(self).__name__} does not know the arguments that it was built with; build a {format.name} and '
                'load the state dict into it'
            )
        content = json.dumps({'arch': format.name, **config, 'spinsr_version': __version__}, indent=2) + '\n'
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {'arch': format.name, 'scale': str(config[format.scale_keyword]), 'form': 'spinsr', 'format': 'pt'}
        metadata['spinsr'] = __version__
        write_checkpoint(folder / WEIGHTS, self.state_dict(), metadata, overwrite=True)
        if card is not None or not (folder / CARD).exists():
            write_bytes(folder / CARD, (model_card(self) if card is None else card).encode())
        write_bytes(folder / CONFIG, content.encode())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str | None = None,
        commit_message: str = 'Upload the network with spinsr',
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Uploads what `save_pretrained` writes to a repository of the Hugging Face Hub.

        Args:
            repo_id: As 'owner/name'; made if it does not exist.
            card: As for `save_pretrained`.
            commit_message: Of the upload.
            private: Whether a new repository is private; None means the owner's default.
            token: None takes the token of `hf auth login`.
            branch: Where to commit; None means the main branch.
            create_pr: Open a pull request instead of a commit.

        Returns:
            The address of the commit.

        Raises:
            ImportError: huggingface_hub is not installed.
            ValueError: As `save_pretrained`.
        """
        api = _hub('push_to_hub').HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
            )


def is_folder(name: str | os.PathLike | None) -> bool:
    """Whether this is a folder of `save_pretrained`."""
    return name is not None and os.path.isfile(os.path.join(name, CONFIG))


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The arguments in `config.json`, and the network's name as 'arch'.

    Raises:
        FileNotFoundError: No `config.json`.
        ValueError: Not JSON, or not an object.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f'no {CONFIG} in {printable(folder)}; save_pretrained writes it')
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f'{printable(path)} is not JSON: {printable(str(error))}') from error
    if not isinstance(config, dict):
        raise ValueError(f'{printable(path)} must hold an object, got {type(config).__name__}')
    config.pop('spinsr_version', None)
    return config


def weights_in(folder: str | os.PathLike) -> Path:
    """The weights in a folder of `save_pretrained`.

    Raises:
        FileNotFoundError: They are missing.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f'no {WEIGHTS} in {printable(folder)}')
    return path


def _hub(what: str) -> Any:
    """The module huggingface_hub."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f'{what} needs the package huggingface_hub: pip install "spinsr[hub]"') from error
    return huggingface_hub


def _download(repo_id: str, options: Mapping[str, Any]) -> Path:
    """The folder with the files of a repository."""
    if not re.fullmatch(r'(?!\.)[\w.-]+/[\w.-]+', repo_id, re.ASCII):
        raise FileNotFoundError(f'neither a folder nor a repository OWNER/NAME: {printable(repo_id)}')
    hub = _hub(f'{printable(repo_id)} is not a folder here; from_pretrained of a repository')
    hub.hf_hub_download(repo_id, WEIGHTS, **options)
    return Path(hub.hf_hub_download(repo_id, CONFIG, **options)).parent


def model_card(net: nn.Module) -> str:
    """A model card in Markdown with what is known of a network; for the shipped weights also their results.

    Args:
        net: A network that remembers its arguments.
    """
    format, config = get_format(type(net)), arguments_of(net) or {}
    scale, source, shipped = config.get(format.scale_keyword), format.source, _shipped(net, format)
    license = ['license: other', 'license_name: spinsr-weights'] if shipped else []
    head = ['---', 'library_name: spinsr', 'pipeline_tag: image-to-image', *license]
    head += ['tags:', '- super-resolution', f'- {format.name.lower()}', '---']
    count = sum(parameter.numel() for parameter in net.parameters())
    rows = {
        'network': f'{format.name} x{scale}, {count:,} parameters',
        'images': f'{config.get("num_in_ch", 3)} channels in [0, 1]; RGB where there are 3',
        'paper': source.paper,
        "authors' code": source.repository and f'{source.repository} ({source.code_licence or "no licence"})',
        'file': f'{WEIGHTS}, written by spinsr {__version__}',
    }
    table = ['| | |', '| --- | --- |', *(f'| {key} | {value} |' for key, value in rows.items() if value)]
    cls = type(net)
    use = [
        '```python',
        'import spinsr',
        f'from {cls.__module__} import {cls.__name__}',
        '',
        f"net = {cls.__name__}.from_pretrained('OWNER/NAME')  # or spinsr.load(FOLDER)",
        'upscaled = spinsr.upscale(image, net)  # image: uint8, RGB, (H, W, 3)',
        '```',
    ]
    title = [f'# {format.name} x{scale}', '', 'A network for image super-resolution, for spinsr.']
    lines = [*head, '', *title, '', *table, '', *use, '', '## Results and training', '', _results(shipped)]
    return '\n'.join(lines) + '\n'


def _results(shipped: Model | None) -> str:
    if shipped is None:
        return 'Not stated. Describe the training images, the degradation and the measured PSNR here.'
    scores = ', '.join(f'{psnr:.2f} dB on {name}' for name, psnr in shipped.psnr.items())
    return (
        f'The weights `{shipped.file}` that come with spinsr, trained for {shipped.trained_for}: PSNR '
        f'{scores or "not measured"} (on Y, `y_crop_scale`, from LR that was reduced bicubically). For '
        f'{shipped.licence} only. Training images and recipe: `spinsr/weights/README.md`.'
    )


def _shipped(net: nn.Module, format: ArchFormat) -> Model | None:
    """The shipped model whose weights these are, if any."""
    state_dict = net.state_dict()
    for model in MODELS:
        if model.arch == format.name and model.path.is_file():
            other = read_checkpoint(model.path)
            if other.keys() == state_dict.keys() and all(
                torch.equal(value, state_dict[name].cpu()) for name, value in other.items()
            ):
                return model
    return None
