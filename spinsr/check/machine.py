"""An option file against the machine: its devices, and the files that it names."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from spinsr import weights
from spinsr.check import registries
from spinsr.check.finding import Finding, datasets, error, section, warning
from spinsr.check.list_file import list_problem
from spinsr.training import option_files
from spinsr.utils import lmdb_file
from spinsr.utils.validation import is_whole

# BasicSR's models that move their degradations to the GPU, whatever num_gpu says.
_ON_CUDA = ('RealESRNetModel', 'RealESRGANModel')


def devices(options: Mapping[str, Any], launcher: str = 'none') -> Iterator[Finding]:
    """Finds what num_gpu and the launcher ask for and the machine does not have."""
    import torch

    count = options.get('num_gpu', 'auto')
    if count != 'auto' and not (is_whole(count) and count >= 0):
        yield error('num_gpu', f"must be 'auto' or a whole number of at least 0, got {count!r}")
        return
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    model = registries.find('MODEL', options.get('model_type'))
    bases = [base.__name__ for base in getattr(model, '__mro__', ()) if base.__module__.startswith('basicsr.')]
    if (not there or count == 0) and any(base in _ON_CUDA for base in bases):
        yield error('model_type', f'{model.__name__} runs on CUDA devices only')
    if not there and launcher == 'slurm':
        yield error(
            'num_gpu', f'--launcher {launcher} needs CUDA devices, and none is available; use torchrun on the CPU'
        )
    elif not there and count not in ('auto', 0):
        yield error('num_gpu', f'is {count}, but torch finds no CUDA device; use num_gpu: auto or 0 for the CPU')
    elif there and count != 'auto' and count > there and launcher == 'none':
        yield error('num_gpu', f'is {count}, but torch finds {there}; auto takes them all')


def files(options: Mapping[str, Any], *, resumes: bool = False) -> Iterator[Finding]:
    """Finds the data, the weights and the state that the options name and that are not there.

    Args:
        options: The option file; its relative paths are relative to the working directory.
        resumes: A state will be resumed, so `pretrain_network_*` is not read.
    """
    for where, _, dataset in datasets(options):
        is_lmdb = section(dataset, 'io_backend').get('type') == 'lmdb'
        for key, value in dataset.items():
            if str(key).startswith(('dataroot', 'meta_info')):
                for path in value if isinstance(value, list) else [value]:
                    if isinstance(path, str):
                        yield from _data(path, f'{where}:{key}')
                        # BasicSR does not read it for an LMDB.
                        listed = str(key).startswith('meta_info') and not is_lmdb
                        if listed and _is_file(path) and (problem := list_problem(path)):
                            yield error(f'{where}:{key}', problem)
    from spinsr.check.images import unpaired

    yield from unpaired(options)
    for key, path in section(options, 'path').items():
        if not path or not isinstance(path, str) or _is_file(path):
            continue
        # --auto_resume replaces resume_state.
        if key == 'resume_state' and not options.get('auto_resume'):
            yield error(f'path:{key}', f'{path} does not exist')
        if str(key).startswith('pretrain_network') and not resumes:
            yield error(f'path:{key}', f'{path} does not exist{_maker(path)}')
    yield from _vgg(section(options, 'train', 'perceptual_opt'))


def _is_file(path: str) -> bool:
    return Path(os.path.expanduser(path)).is_file()


def _vgg(part: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds that the weights of BasicSR's PerceptualLoss would be downloaded."""
    if part.get('type') != 'PerceptualLoss':
        return
    import torch
    from basicsr.archs.vgg_arch import VGG_PRETRAIN_PATH
    from torchvision.models import get_model_weights

    kind = part.get('vgg_type', 'vgg19')
    try:
        url = cast(Any, get_model_weights(kind)).DEFAULT.url
    except (ValueError, TypeError):
        yield error('train:perceptual_opt:vgg_type', f'torchvision has no {kind!r}')
        return
    name = PurePosixPath(url).name
    places = [Path(torch.hub.get_dir(), 'checkpoints', name)]
    if PurePosixPath(VGG_PRETRAIN_PATH).name == name:
        places.append(Path(VGG_PRETRAIN_PATH))
    if not any(place.is_file() for place in places):
        reason = f'torchvision downloads {url} when training starts, for it is not here'
        yield warning('train:perceptual_opt', f'{reason} ({" or ".join(map(str, places))})')


def _data(path: str, where: str) -> Iterator[Finding]:
    full = Path(os.path.expanduser(path))
    if full.is_file():
        return
    if not full.exists():
        yield error(where, f'{path} does not exist{_preparation(path)}')
    # prepare writes the meta_info last, and BasicSR reads it first.
    elif full.suffix == '.lmdb' and not (full / 'meta_info.txt').is_file():
        yield error(where, f'{path} is not complete (no meta_info.txt){_preparation(path)}')
    elif full.suffix == '.lmdb' and (problem := lmdb_file.problem(full)):
        yield error(where, problem)


def _preparation(path: str) -> str:
    parts = PurePosixPath(Path(path).as_posix()).parts
    if len(parts) > 1 and 'teacher_X' in parts[-1]:
        folder, scale = str(PurePosixPath(*parts[:-1])), parts[-1].rpartition('_X')[2][:1]
        return f'; make it with: spinsr prepare teacher {folder} --arch NAME --weights FILE --scale {scale}'
    if parts[:2] == ('datasets', 'div2k'):
        return '; make it with: spinsr prepare div2k PATH_TO_DIV2K'
    if parts[:2] == ('datasets', 'df2k'):
        return '; make it with: spinsr prepare div2k PATH_TO_DF2K --subset -o datasets/df2k'
    for name in ('release', 'distill'):
        if parts[:2] == ('datasets', name):
            return f'; make it with the command at the top of train_SPIN_x4_{name}.yml'
    if parts[:2] == ('datasets', 'sample'):
        return '; make it with: spinsr prepare sample'
    if parts[:2] == ('datasets', 'benchmark') and len(parts) > 2:
        return f'; make it with: spinsr prepare benchmark PATH_TO/{parts[2]}'
    return ''


def _maker(path: str) -> str:
    """What weights spinsr ships, or which of its option files trains the network experiments/<name>/models/…."""
    parts = PurePosixPath(Path(path).as_posix()).parts
    if len(parts) == 1 and Path(path).suffix == '.safetensors':
        return f'; spinsr ships {", ".join(weights.shipped())}'
    if len(parts) < 4 or parts[0] != 'experiments' or parts[2] != 'models':
        return ''
    # The name of an experiment is that of its option file.
    names = [*option_files.shipped(), *option_files.generated()]
    for name in names:
        if PurePosixPath(name).stem == parts[1] and not parts[1].startswith('test'):
            return f'; train it first: python -m spinsr.train -opt {name}'
    return f'; train the experiment {parts[1]} first'
