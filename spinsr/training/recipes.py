"""Option files from recipes: BasicSR's YAML for every network that declares a `Recipe`, with comments.

The files in the layout of BasicSR's own: sections in its order, plain values, nothing that refers to another file.
"""

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from spinsr.convert.recipe import Recipe
from spinsr.convert.registry import ArchFormat, formats

_WIDTH = 120
_BENCHMARKS = ('Set5', 'Set14', 'B100', 'Urban100', 'Manga109')
_MODEL = 'SRModel with more options, see docs/training.md; SRModel works too'
# Of training, where BasicSR's model would not do.
_MODEL_NEEDED = 'SRModel with more options, of which this file needs some, see docs/training.md'
# What every option file says; `Recipe.comments` replaces them. Keys that begin with # are lines of comments.
_COMMENTS = {
    'model_type': _MODEL,
    'num_gpu': 'all GPUs, or the CPU if no GPU is found; 0: the CPU',
    'dataset_enlarge_ratio': 'Passes over the data per epoch of the loader, which restarts its workers at each epoch.',
    'prefetch_mode': 'or cuda, with pin_memory: true',
    'datasets:val': "the first 10 images of DIV2K's validation part; LR is made on the fly",
    'datasets:val_2': 'made by: spinsr prepare benchmark',
    'val:metrics': 'on Y, as in the papers',
}
_COMMENTS_OF_TEST = {
    'model_type': _COMMENTS['model_type'],
    'num_gpu': _COMMENTS['num_gpu'],
    'datasets': 'made by: spinsr prepare benchmark',
    'param_key_g': 'params_ema if the network was trained with EMA',
    'suffix': 'added to the names of saved images; ~: the name above',
}


@dataclass(frozen=True)
class RecipeFile:
    """An option file that a recipe determines.

    Attributes:
        phase: 'train' or 'test'.
        format: The network.
        configuration: Public name of the network, or of one of its configurations.
        scale: Upscaling factor.
        stage: '' for the first.
    """

    phase: str
    format: ArchFormat
    configuration: str
    scale: int
    stage: str = ''

    @property
    def name(self) -> str:
        """File name: train_SPIN_x4.yml, train_RLFN_x4_contrastive.yml."""
        return f'{self.phase}_{self._experiment()}.yml'

    @property
    def recipe(self) -> Recipe:
        """The recipe with the changes for this file."""
        assert self.format.recipe is not None
        return self.format.recipe.at(self.scale, self.configuration, self.stage)

    def text(self) -> str:
        """The content: YAML with comments, which ends with a newline."""
        write = _train if self.phase == 'train' else _test
        comments, sections = write(self, self.recipe)
        lines = []
        for title, section in sections.items():
            lines += ['', f'# {title}', *_lines(section, comments)]
        return '\n'.join([*self._header(), *lines]) + '\n'

    def _experiment(self, scale: int | None = None, stage: str | None = None) -> str:
        stage = self.stage if stage is None else stage
        return f'{self.configuration}_x{scale or self.scale}{f"_{stage}" if stage else ""}'

    def _weights(self, scale: int | None = None, stage: str | None = None) -> str:
        return f'experiments/train_{self._experiment(scale, stage)}/models/net_g_latest.pth'

    def _header(self) -> list[str]:
        what = f'{self.configuration} x{self.scale}'
        if self.phase == 'test':
            stage = f' ({self.stage})' if self.stage else ''
            return _wrap(f'{what}{stage} on the five benchmarks, PSNR and SSIM on Y.')
        assert self.format.recipe is not None
        stages = ['', *self.format.recipe.stages]
        number = f', stage {stages.index(self.stage) + 1} of {len(stages)}' if len(stages) > 1 else ''
        recipe = self.recipe
        return _wrap(f'{what} on {recipe.data.name}{number}: {self.format.source.paper}. {recipe.about}')

    def _general(self, recipe: Recipe) -> dict[str, Any]:
        return {
            'name': f'{self.phase}_{self._experiment()}',
            'model_type': recipe.model_type,
            'scale': self.scale,
            'num_gpu': 'auto',
            'manual_seed': 0,
        }

    def _network(self, recipe: Recipe) -> dict[str, Any]:
        given = {
            **self.format.defaults,
            **self.format.configurations.get(self.configuration, {}),
            **recipe.network,
            self.format.scale_keyword: self.scale,
        }
        signature = inspect.signature(self.format.cls).parameters
        if unknown := sorted(set(given) - set(signature)):
            raise ValueError(
                f'the recipe of {self.configuration} has arguments that {self.format.name} lacks: {unknown}'
            )
        values = {
            name: given.get(name, parameter.default)
            for name, parameter in signature.items()
            if parameter.kind is not parameter.VAR_KEYWORD
        }
        # A class of another package may also take what an option file cannot hold, as the class of a layer.
        values = {name: value for name, value in values.items() if not callable(value)}
        return {'type': self.format.registered, **values}


def files() -> dict[str, RecipeFile]:
    """All option files that recipes determine, by file name."""
    found = [file for format in formats() if format.recipe is not None for file in _files_of(format)]
    return {file.name: file for file in found}


def _files_of(format: ArchFormat) -> Iterator[RecipeFile]:
    recipe = format.recipe
    assert recipe is not None
    for configuration in (format.name, *format.configurations):
        scales = recipe.by_configuration.get(configuration, {}).get('scales', recipe.scales)
        for scale in scales:
            for stage in ('', *recipe.stages):
                for phase in ('train', 'test'):
                    yield RecipeFile(phase, format, configuration, scale, stage)


def _train(file: RecipeFile, recipe: Recipe) -> tuple[dict[str, str], dict[str, Any]]:
    scale, batch = file.scale, recipe.batch
    start = recipe.start
    if start and start.scale == scale:  # this is the training from which the other scales start
        start = None
    gt_size = recipe.gt_size(scale)
    comments = dict(_COMMENTS)
    comments['datasets:train'] = f'made by: {recipe.data.made_by}'
    comments['gt_size'] = f'LR patches of {gt_size // scale}x{gt_size // scale}'
    if recipe.augment.get('use_hflip') and recipe.augment.get('use_rot'):
        comments['use_hflip'] = 'Flips and transposition, each with probability 0.5.'
    if batch % 2 == 0:
        comments['batch_size_per_gpu'] = f'{batch} in total: {batch // 2} on each of two GPUs'
    if recipe.ema_decay == 0:
        comments['ema_decay'] = "not in the authors' recipe; BasicSR's usual value is 0.999"
    if recipe.warmup_iter == -1:
        comments['warmup_iter'] = 'no warm-up'
    comments['pretrain_network_g'] = 'from scratch'
    optional = {'grad_clip': recipe.grad_clip, 'precision': recipe.precision}
    optional = {key: value for key, value in optional.items() if value is not None}
    own_losses = set(recipe.losses) - {'pixel_opt', 'perceptual_opt'}
    if recipe.optim_g['type'] != 'Adam' or own_losses or recipe.train or optional:
        comments['model_type'] = _MODEL_NEEDED
    comments |= recipe.comments
    if start:
        comments['pretrain_network_g'] = start.comment

    losses = [{name: loss} for name, loss in recipe.losses.items()]
    sections = {
        'general settings': file._general(recipe),
        'dataset and data loader settings': {
            'datasets': (
                {
                    'train': (
                        {
                            'name': recipe.data.name,
                            'type': recipe.data.type,
                            'dataroot_gt': recipe.data.hr,
                            **({'dataroot_lq': recipe.data.lr.format(scale=scale)} if recipe.data.lr else {}),
                            'io_backend': {'type': 'lmdb'},
                        },
                        {'gt_size': gt_size, **recipe.augment},
                        {
                            '# data loader': None,
                            'num_worker_per_gpu': 6,
                            'batch_size_per_gpu': batch,
                            'dataset_enlarge_ratio': 100,
                            'prefetch_mode': None,
                        },
                    )
                },
                {
                    'val': {
                        'name': 'DIV2K_valid_10',
                        'type': 'BicubicImageDataset',
                        'dataroot_gt': 'datasets/div2k/DIV2K_valid_HR.lmdb',
                        'io_backend': {'type': 'lmdb'},
                        'max_images': 10,
                    }
                },
                {'val_2': _benchmark('Set5', scale)},
            )
        },
        'network structures': {'network_g': file._network(recipe)},
        'path': {
            'path': {
                'pretrain_network_g': file._weights(start.scale, start.stage) if start else None,
                'param_key_g': 'params_ema' if start and recipe.ema_decay else 'params',
                'strict_load_g': not start or start.scale in (None, scale),
                'resume_state': None,
            }
        },
        'training settings': {
            'train': (
                {'ema_decay': recipe.ema_decay, 'optim_g': recipe.optim_g},
                {'scheduler': recipe.scheduler},
                {
                    'total_iter': recipe.total_iter,
                    'warmup_iter': recipe.warmup_iter,
                    **optional,
                    **recipe.train,
                },
                {'# losses': None, **losses[0]},
                *losses[1:],
            )
        },
        'validation settings': {
            'val': ({'val_freq': 5000, 'save_img': False}, {'metrics': _metrics(scale)}),
        },
        'logging settings': {
            'logger': {
                'print_freq': 100,
                'save_checkpoint_freq': recipe.save_checkpoint_freq,
                'use_tb_logger': True,
                'wandb': {'project': None, 'resume_id': None},
            }
        },
        'dist training settings': {'dist_params': {'backend': 'nccl', 'port': 29500}},
    }
    return comments, sections


def _test(file: RecipeFile, recipe: Recipe) -> tuple[dict[str, str], dict[str, Any]]:
    network = file._network(recipe)
    of_network = {f'network_g:{key}': _comment(('network_g', key), recipe.comments) for key in network}
    comments = _COMMENTS_OF_TEST | of_network
    if recipe.ema_decay:
        del comments['param_key_g']
    datasets = ({f'test_{number}': _benchmark(name, file.scale)} for number, name in enumerate(_BENCHMARKS, 1))
    sections = {
        'general settings': file._general(recipe),
        'dataset and data loader settings': {'datasets': tuple(datasets)},
        'network structures': {'network_g': network},
        'path': {
            'path': {
                'pretrain_network_g': file._weights(),
                'param_key_g': 'params_ema' if recipe.ema_decay else 'params',
                'strict_load_g': True,
            }
        },
        'validation settings': {
            'val': ({'save_img': True, 'suffix': None, 'pbar': True}, {'metrics': _metrics(file.scale)}),
        },
    }
    return comments, sections


def _benchmark(name: str, scale: int) -> dict[str, Any]:
    return {
        'name': name,
        'type': 'PairedImageDataset',
        'dataroot_gt': f'datasets/benchmark/{name}/HR',
        'dataroot_lq': f'datasets/benchmark/{name}/LR_bicubic/X{scale}',
        'filename_tmpl': f'{{}}x{scale}',
        'io_backend': {'type': 'disk'},
    }


def _metrics(scale: int) -> dict[str, Any]:
    rules = {'crop_border': scale, 'test_y_channel': True}
    return {name: {'type': f'calculate_{name}', **rules} for name in ('psnr', 'ssim')}


def _lines(
    section: Mapping[str, Any] | tuple[Mapping[str, Any], ...], comments: Mapping[str, str], path: tuple[str, ...] = ()
) -> Iterator[str]:
    """The lines of a section; a tuple of mappings is one mapping with empty lines between its parts."""
    if isinstance(section, tuple):
        for index, part in enumerate(section):
            if index:
                yield ''
            yield from _lines(part, comments, path)
        return
    indent = '  ' * len(path)
    for key, value in section.items():
        if key.startswith('#'):
            yield indent + key
            continue
        here = (*path, key)
        line, comment = f'{indent}{key}:', _comment(here, comments)
        is_section = isinstance(value, Mapping) or (
            isinstance(value, tuple) and value and isinstance(value[0], Mapping)
        )
        if not is_section:
            line += f' {_scalar(value)}'
        if comment and not comment.endswith('.') and len(line) + len(comment) + 4 <= _WIDTH:
            line += f'  # {comment}'
        elif comment:
            yield from _wrap(comment, indent)
        yield line
        if is_section:
            yield from _lines(value, comments, here)


def _comment(path: tuple[str, ...], comments: Mapping[str, str]) -> str:
    """The comment of a key: 'a:b:key' comes before 'b:key', and that before 'key'."""
    names = (':'.join(path[start:]) for start in range(len(path)))
    return next((comments[name] for name in names if name in comments), '')


def _scalar(value: Any) -> str:
    """A value on one line, as YAML reads it back; lists in brackets."""
    if value is None:
        return '~'
    if isinstance(value, list | tuple):
        return f'[{", ".join(map(_scalar, value))}]'
    return yaml.safe_dump(value, width=float('inf')).removesuffix('\n').removesuffix('\n...')


def _wrap(text: str, indent: str = '') -> list[str]:
    start = f'{indent}# '
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False, break_on_hyphens=False
    )
